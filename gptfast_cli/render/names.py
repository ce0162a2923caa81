"""Names of any length and any characters, made short enough for a table and kept apart from one another."""

from collections.abc import Iterable

from gptfast_cli.render.terminal import printable

_CUT = "..."  # in every encoding, unlike the one character


def short_names(names: Iterable[str], width: int) -> dict[str, str]:
    """What stands for each name: itself, its two ends, or those and a number where another name has the same."""
    shown: dict[str, str] = {}
    for name in dict.fromkeys(names):
        short, n = shortened(name, width), 1
        while short in shown.values():
            n += 1
            short = f"{shortened(name, width - len(f' #{n}'))} #{n}"
        shown[name] = short
    return shown


def shortened(name: str, width: int) -> str:
    """The name in one line; of a long one the beginning and, of a path the telling part, more of the end."""
    line = one_line(name)
    if len(line) <= width:
        return line
    n_first = (width - len(_CUT)) // 3
    return line[:n_first] + _CUT + line[len(line) - (width - len(_CUT) - n_first) :]


def one_line(name: str) -> str:
    """The whole name without line ends and tabs, its other control characters made visible."""
    return printable(" ".join(name.split()))
