"""`python -m gptfast_cli.completion FOLDER` writes all scripts into a folder."""

import sys
from pathlib import Path

from gptfast_cli.completion.scripts import write_scripts

write_scripts(Path(sys.argv[1]))
