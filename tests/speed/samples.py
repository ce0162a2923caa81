"""Writes the measured samples of a document: runs the command of each, and puts in what it prints on this machine.

    PYTHONPATH=.:tests python tests/speed/samples.py [README.md ...] [--only WORD]

A sample is a console block below a comment, and a line of its own below it that says where it was measured:

    <!-- sample -->                                    all that the command prints
    <!-- sample: decode | Validation runs -->          only paragraphs that begin so; "..." stands for the others

`--only` takes the samples whose command has the word. Each is run once, with a store of its own, in 80 columns; what
the memory reads just before and just after is in the line below, as it differs between levels on shared machines.
"""

import argparse
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
from gptfast_cli.render.machine import machine_line

WIDTH = 80
CPU = torch.device("cpu")
SAMPLE = re.compile(
    r"(?P<head><!-- sample(?:: (?P<kept>.*?))? -->\n```console\n\$ (?P<command>(?:.*\\\n)*.*)\n)"
    r"(?P<output>[\s\S]*?)```\n\n\((?P<about>measured [\s\S]*?)\)\n"
)
PROGRESS = re.compile(r"^[^:]+: ([\d.,]+ of [\d.,]+ \w+|[\d.]+ [kMG]?B of .*)(, .*)?$")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", nargs="*", type=Path, default=[Path("README.md")])
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()

    def written(sample: re.Match[str]) -> str:
        if arguments.only not in sample["command"]:
            return sample[0]
        sys.stderr.write(f"{sample['command']}\n")
        output, about = measured(sample["command"])
        return f"{sample['head']}{shown(output, sample['kept'])}```\n\n{textwrap.fill(f'({about})', 120)}\n"

    for document in arguments.documents:
        document.write_text(SAMPLE.sub(written, document.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def measured(command: str) -> tuple[str, str]:
    """What a command prints, and where it was measured."""
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
    """The lines that a sample shows, folded as a terminal does it."""
    lines = [line for line in output.strip("\n").split("\n") if not PROGRESS.match(line)]
    folded = [line[at : at + WIDTH].rstrip() for line in lines for at in range(0, max(1, len(line)), WIDTH)]
    text = "\n".join(folded) + "\n"
    return text if kept is None else "".join(_chosen(text.strip("\n").split("\n\n"), kept.split(" | ")))


def _chosen(paragraphs: Sequence[str], beginnings: Sequence[str]) -> Iterator[str]:
    """The paragraphs that begin so; a line of three dots stands for others between and after them."""
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
