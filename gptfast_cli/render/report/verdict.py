"""The head of the report: what to use, where, when and with what that was found, and which prompts were left out."""

import re
from collections.abc import Iterable, Iterator

from gptfast_cli.core.bench.environment import Environment
from gptfast_cli.core.drafts.report import DraftReport
from gptfast_cli.render.markup import Child, Element, tag
from gptfast_cli.render.numbers import count, digits, size
from gptfast_cli.render.report.tables import paragraph, section, table

_SHORT_VERDICT = 100  # characters that may be as large as a title

BASES = {
    "on-policy": "agreement measured on text that the target wrote",
    "proxy": "agreement measured on given text, not on the target's own: a proxy",
    "assumed": "agreement assumed, not measured",
}


def head(judgement: DraftReport) -> Element:
    """The verdict, and that a run was cut short where it was."""
    return tag(
        "header",
        tag(
            "h1",
            *(tag("span", *_unbroken(line), "\n", class_="row") for line in judgement.verdict.split("\n")),
            class_="long" if len(judgement.verdict) > _SHORT_VERDICT else None,
        ),
        tag(
            "p",
            tag("b", "Interrupted: "),
            "the run was stopped early. What follows was measured until then; what is missing was not reached.",
            class_="warning",
            role="note",
        )
        if judgement.is_interrupted
        else None,
    )


def about(judgement: DraftReport, command: str) -> Element:
    """Target, drafts, machine, versions and the command: what a number needs beside it."""
    items = [part for name, text in _facts(judgement) for part in (tag("dt", name), tag("dd", text))]
    return tag(
        "section",
        tag("h2", "What was judged, and where", class_="unseen"),
        tag("dl", *items, tag("dt", "Command"), tag("dd", tag("code", _spaced(command.split(" ")))), class_="facts"),
        id="about",
    )


def failed(judgement: DraftReport) -> Element | None:
    """Prompts that were left out, those with one reason together; None where there are none."""
    if not judgement.failed_prompts:
        return None
    n_failed = len(judgement.failed_prompts)
    n_all = judgement.n_prompts + n_failed
    rows = [(tag("span", ", ".join(names), class_="name"), reason) for reason, names in judgement.failures.items()]
    return section(
        "failed",
        "Failed prompts",
        paragraph(f"Left out: {n_failed:,} of {n_all:,} prompts."),
        table("Prompts that failed, and why", ("Prompts", "Reason"), rows, texts=(0, 1)),
    )


def _unbroken(verdict: str) -> list[Child]:
    """A line of the verdict; no line break falls inside an interval or a `k = 5`."""
    parts = re.split(r"(\[[\d., ]+\]|k = \d+)", verdict)
    return [tag("span", part, class_="whole") if n % 2 else part for n, part in enumerate(parts)]


def _facts(judgement: DraftReport) -> Iterator[tuple[str, Child]]:
    environment = judgement.environment
    names = list(dict.fromkeys(each.draft for each in judgement.drafts))
    yield (
        "Target",
        f"{judgement.target}: {count(judgement.n_params)} parameters, {judgement.scheme}, {size(judgement.n_bytes)}",
    )
    yield "Drafts", _spaced(", ".join(names).split(" ")) if names else "none was reached"
    bases = [text for basis, text in BASES.items() if any(each.basis == basis for each in judgement.drafts)]
    if bases:
        yield "Basis", "; ".join(bases)
    n = judgement.n_prompts
    yield (
        "Texts",
        f"{n:,} prompt{'s' * (n != 1)}, up to {judgement.max_new_tokens:,} new tokens each; seed {judgement.seed}",
    )
    yield "Machine", _machine(environment, judgement.bandwidth_gbps)
    commit = f", commit {environment.commit}" if environment.commit else ""
    python = f"torch {environment.torch}, Python {environment.python}"
    yield "Software", f"gptfast {environment.gptfast}{commit}; {python}, {environment.os}"
    yield "Date", environment.date.replace("T", " ").replace("+00:00", " UTC")


def _machine(environment: Environment, bandwidth_gbps: float) -> str:
    cpu = environment.cpu or "a CPU"
    threads = f"{environment.threads} thread{'' if environment.threads == 1 else 's'}"
    place = f"{environment.gpu}, with {cpu}" if environment.gpu else f"{cpu}, {threads} of {environment.n_cpus} CPUs"
    sets = f" ({', '.join(environment.instruction_sets)})" if environment.instruction_sets else ""
    memory = "" if environment.memory_bytes is None else f", {size(environment.memory_bytes)} of memory"
    reads = f"memory reads {digits(bandwidth_gbps)} GB/s"
    return f"{place}{sets}{memory}; {environment.dtype} on {environment.device}; {reads}"


def _spaced(words: Iterable[str]) -> Element:
    """Words that are not torn at their hyphens."""
    return tag("span", *(part for word in words for part in (tag("span", word, class_="word"), " ")))
