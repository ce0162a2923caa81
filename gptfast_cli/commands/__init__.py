"""The commands, one module each: options make a request, the request a job, and `render` shows the job.

Modules that load PyTorch are imported inside a command's body, so that help and completion stay fast.
"""

from gptfast_cli.commands.bench import bench
from gptfast_cli.commands.convert import convert
from gptfast_cli.commands.download import download
from gptfast_cli.commands.eval import evaluate
from gptfast_cli.commands.generate import generate
from gptfast_cli.commands.quantize import quantize
from gptfast_cli.commands.speculate import speculate

COMMANDS = (download, convert, quantize, generate, speculate, evaluate, bench)
"""In the order of a model's life, which is the order of `gptfast --help`."""
