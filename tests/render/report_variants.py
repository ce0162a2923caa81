"""Reports at the edges of what can be shown: interrupted, of one of each, of many, with names of any kind."""

from dataclasses import replace
from io import StringIO, TextIOWrapper
from typing import Any

from gptfast_cli.core.drafts.report import DraftReport, DraftResult, Interval, PositionAcceptance
from gptfast_cli.core.drafts.texts import FailedPrompt
from sample_report import sample_report

LONG = "/data/" + "a" * 40 + "/drafts/" + "b" * 40 + "/step-1000"
WILD = "a|b\x1b[31m\n`c`\t<d>_e_*f*"
LISTS = ("drafts", "recommendations", "validation_runs", "losslessness_checks")


def renamed(names: dict[str, str]) -> DraftReport:
    """The sample with other names of its drafts, wherever they stand."""

    def other(part: Any) -> Any:
        return part if part.draft is None else replace(part, draft=names.get(part.draft, part.draft))

    whole = sample_report()
    return replace(
        whole,
        **{name: tuple(map(other, getattr(whole, name))) for name in LISTS},
    )


def of_one() -> DraftReport:
    """One draft, one k, one batch size, one temperature."""
    whole = sample_report()
    first = whole.drafts[0]
    draft = replace(
        first,
        grid=tuple(cell for cell in first.grid if (cell.k, cell.batch_size) == (4, 1)),
        tau={4: first.tau[4]},
        acceptance_by_position=first.acceptance_by_position[:4],
        slices=(),
    )
    return replace(
        whole,
        drafts=(draft,),
        recommendations=whole.recommendations[:1],
        validation_runs=whole.validation_runs[:1],
        plain=whole.plain[:1],
    )


def interrupted() -> DraftReport:
    """Nothing but the verdict."""
    return replace(
        sample_report(),
        drafts=(),
        plain=(),
        recommendations=(),
        validation_runs=(),
        losslessness_checks=(),
        median_error=None,
        verdict="nothing was compared",
        is_interrupted=True,
    )


def without_costs() -> DraftReport:
    """Interrupted between agreement and the time of rounds."""
    whole = sample_report()
    drafts = tuple(replace(draft, grid=()) for draft in whole.drafts)
    return replace(
        whole,
        drafts=drafts,
        plain=(),
        recommendations=(),
        validation_runs=(),
        losslessness_checks=(),
        is_interrupted=True,
    )


def with_gaps() -> DraftReport:
    """Numbers that are not there, and numbers that are none."""
    whole = sample_report()
    first = whole.drafts[0]
    cells = tuple(replace(cell, break_even=None, measured=None, ceiling=float("inf")) for cell in first.grid)
    places = (
        PositionAcceptance(0.0, 0.0),
        PositionAcceptance(None, 0.0),
        PositionAcceptance(float("nan"), float("nan")),
    )
    draft = replace(first, grid=cells, acceptance_by_position=places, alpha=Interval(float("nan"), 0.0, 1.0))
    return replace(whole, drafts=(draft, *whole.drafts[1:]), median_error=None)


def with_failed_prompts() -> DraftReport:
    """57 prompts judged, and three that failed for two reasons, one by a name that would make markup."""
    failed = (
        FailedPrompt("rows.jsonl:3", "Token id 9999 has no embedding."),
        FailedPrompt(WILD, "The model's logits are <NaN> or _infinite_."),
        FailedPrompt("rows.jsonl:7", "Token id 9999 has no embedding."),
    )
    return replace(sample_report(), n_prompts=57, failed_prompts=failed)


def of_many() -> DraftReport:
    """12 drafts of long names, k up to 16, 10 batch sizes up to 1024."""
    whole = sample_report()
    drafts = tuple(_large(whole.drafts[0], f"{LONG}/{n}/{LONG}") for n in range(12))
    return replace(whole, drafts=drafts)


def _large(draft: DraftResult, name: str) -> DraftResult:
    first = draft.grid[0]
    grid = tuple(
        replace(
            first,
            k=k,
            batch_size=1 << n,
            predicted=Interval(k * 0.9, 0.5, 20.0),
            measured=Interval(k, 0.1, 100.0) if k % 3 == 0 else None,
        )
        for n in range(11)
        for k in range(1, 17)
    )
    tau = {k: Interval(1.0 + k, 1.0, 17.0) for k in range(1, 17)}
    return replace(draft, draft=name, grid=grid, tau=tau, acceptance_by_position=(PositionAcceptance(0.5, 0.25),) * 16)


CASES = {
    "sample": sample_report(),
    "one": of_one(),
    "interrupted": interrupted(),
    "without costs": without_costs(),
    "gaps": with_gaps(),
    "many": of_many(),
    "long names": renamed({"tiny-draft": LONG, "ngram": LONG.replace("/drafts/", "/graphs/")}),
    "failed prompts": with_failed_prompts(),
    "wild names": renamed({"tiny-draft": WILD}),
}


class Terminal(StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Written(TextIOWrapper):
    """A pipe of some encoding that keeps what is written to it."""

    def text(self) -> str:
        self.flush()
        self.buffer.seek(0)
        return self.buffer.read().decode(self.encoding)
