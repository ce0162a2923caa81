"""Rewrites the measured samples of the documentation: runs each command and inserts its output on this machine.

    PYTHONPATH=.:tests python tests/speed/samples.py [PAGE ...] [--only WORD]

Without a PAGE it takes the README and all pages of gptfast_cli/docs.

A sample is a console block below a comment, followed by a line that says where it was measured:

    <!-- sample -->                                    the whole output
    <!-- sample: decode | Validation runs -->          only paragraphs that start so; "..." stands for the others

`--only` selects samples whose command contains the word. Each command runs once, with its own store and a CPU engine
that is compiled already, in 80 columns. The line below the block gives the memory bandwidth just before and just after:
on shared machines it has several levels. A command that stands on several pages runs once, and all of them get the same
output. The pages are written at the end, so that a run from a clean checkout says so in every sample.
"""

import argparse
import os
import re
import shlex
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from cli.command_line import CommandLine, environment_of
from gptfast_cli.core.bench.bandwidth import Probe
from gptfast_cli.core.bench.environment import device_clock, environment
from gptfast_cli.render.numbers import machine_line

WIDTH = 80
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "gptfast_cli" / "docs").glob("*.md")))
SAMPLE = re.compile(
    r"(?P<head><!-- sample(?:: (?P<kept>.*?))? -->\n```console\n\$ (?P<command>(?:.*\\\n)*.*)\n)"
    r"(?P<output>[\s\S]*?)```\n\n\((?P<about>measured [\s\S]*?)\)\n"
)
PROGRESS = re.compile(r"^[^:]+: ([\d.,]+ of [\d.,]+ \w+|[\d.]+ [kMG]?B of .*)(, .*)?$")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", nargs="*", type=Path, default=PAGES)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as kernels:
        os.environ["GPTFAST_KERNELS"] = kernels  # which command lines inherit
        write_samples(arguments.documents, arguments.only)
    return 0


def write_samples(documents: Sequence[Path], only: str) -> None:
    """Measure the samples of documents whose command contains a word, and then write all of them."""
    outputs: dict[str, tuple[str, str]] = {}  # of each command: what it prints, and where it was measured
    measured('gptfast generate "x" --max-new-tokens 1')  # compiles the CPU engine

    def written(sample: re.Match[str]) -> str:
        if only not in sample["command"]:
            return sample[0]
        if sample["command"] not in outputs:
            sys.stderr.write(f"{sample['command']}\n")
            outputs[sample["command"]] = measured(sample["command"])
        output, about = outputs[sample["command"]]
        return f"{sample['head']}{shown(output, sample['kept'])}```\n\n{textwrap.fill(f'({about})', 120)}\n"

    pages = {page: SAMPLE.sub(written, page.read_text(encoding="utf-8")) for page in documents}
    for page, text in pages.items():
        page.write_text(text, encoding="utf-8")


def measured(command: str) -> tuple[str, str]:
    """The output of a command, and where it was measured."""
    program, *arguments = shlex.split(command.replace("\\\n", " "))
    assert program == "gptfast", program
    probe = Probe(CPU, device_clock(CPU))
    with tempfile.TemporaryDirectory() as home:
        shell = CommandLine((sys.executable, "-m", "gptfast_cli"), environment_of(Path(home)))
        rates = [probe.measure().bytes_per_second / 1e9]
        code, screen = shell.with_environment(NO_COLOR="1").run_in_terminal(*arguments, columns=WIDTH)
        assert code == 0, screen
        rates.append(probe.measure().bytes_per_second / 1e9)
    about = machine_line(environment(CPU, torch.bfloat16))
    levels = f"memory reads {rates[0]:.1f} GB/s before and {rates[1]:.1f} after"
    return screen.replace(home, "/home/me"), f"measured on {about}; {levels}"


def shown(output: str, kept: str | None) -> str:
    """The lines of a sample, without progress lines, folded as in a terminal."""
    lines = [line for line in output.strip("\n").split("\n") if not PROGRESS.match(line)]
    folded = [line[at : at + WIDTH].rstrip() for line in lines for at in range(0, max(1, len(line)), WIDTH)]
    text = "\n".join(folded) + "\n"
    return text if kept is None else "".join(_chosen(text.strip("\n").split("\n\n"), kept.split(" | ")))


def _chosen(paragraphs: Sequence[str], beginnings: Sequence[str]) -> Iterator[str]:
    """Paragraphs with these beginnings; a line of three dots stands for the others between and after them."""
    gap = ""
    for paragraph in paragraphs:
        if any(re.match(rf"{re.escape(beginning)}(?![\w.])", paragraph) for beginning in beginnings):
            yield f"{gap}{paragraph}\n"
            gap = "\n"
        else:
            gap = "...\n"
    yield gap.strip("\n") and gap


if __name__ == "__main__":
    sys.exit(main())
