"""The report as one HTML file without scripts, fonts or network: `page.html.j2` lays the sections out.

Autoescape is on, so no text can act as markup; control characters become visible. Only the charts, whose SVG is
escaped by `charts.svg`, are inserted as they are.
"""

import re
from importlib.resources import files
from typing import Final, TextIO

from jinja2 import Environment, StrictUndefined

from gptfast_cli.core.drafts.report import DraftReport
from gptfast_cli.render.charts.svg import chart_style, visible
from gptfast_cli.render.numbers import digits, duration
from gptfast_cli.render.report.about import facts
from gptfast_cli.render.report.content import sections, temperatures
from gptfast_cli.render.report.tree import Ranged

_FOLDER: Final = "gptfast_cli.render.report"
_SHORT_VERDICT: Final = 100  # characters that may be as large as a title


def write_html(report: DraftReport, command: str, stream: TextIO) -> None:
    """Write the page; `command` is the command line. The stream has to encode as UTF-8."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_visible, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(unbroken=_unbroken, ranged=Ranged, digits=digits, duration=duration)
    page = environment.from_string(_file("page.html.j2"))
    stream.write(
        page.render(
            report=report,
            command=command,
            facts=list(facts(report)),
            sections=list(sections(report)),
            temperatures=temperatures(report),
            style=chart_style() + _file("style.css"),
            is_long=len(report.verdict) > _SHORT_VERDICT,
        )
    )
    stream.flush()


def _file(name: str) -> str:
    return files(_FOLDER).joinpath(name).read_text("utf-8")


def _visible(value: object) -> object:
    """A template's value, its text without control characters."""
    return value if hasattr(value, "__html__") else visible(str(value))


def _unbroken(line: str) -> list[str]:
    """The parts of a line; every second one is an interval or a `k = 5`, in which no line break may fall."""
    return re.split(r"(\[[\d., ]+\]|k = \d+)", line)
