"""What speculation came to, as it is reported: counts become rates, each under the name of what it is."""

from dataclasses import dataclass

from gptfast_cli.core.decode.rounds import Position, Rounds
from gptfast_cli.core.decode.speculation import Speculation


@dataclass(frozen=True, slots=True)
class Acceptance:
    """How often the n-th drafted token of a round was accepted.

    conditional:   of the rounds in which all those before it were
    unconditional: of all rounds that drafted it
    """

    conditional: float | None
    unconditional: float


@dataclass(frozen=True, slots=True)
class SpeculationReport:
    """Rounds of all sequences together.

    k:                  tokens drafted in a round; None where it was adapted
    alpha:              mean of the sum of min(p, q) over verified tokens, of no dimension and independent of k
    tau:                tokens per round, the one after the accepted ones with them
    accepted_histogram: rounds by how many drafted tokens they kept
    shares:             of the time of rounds: draft, verify, sample, host; they sum to 1
    n_plain_tokens:     given by steps without a draft, where the depth was adapted to 0
    replicated:         each rank of the target had all of a draft that could not be dealt out
    draft_load_s, draft_prefill_s: seconds of the draft before the first round, part of none of the shares
    """

    draft: str
    k: int | None
    rounds: int
    alpha: float | None
    tau: float | None
    accepted_histogram: tuple[int, ...]
    acceptance: tuple[Acceptance, ...]
    shares: dict[str, float]
    n_plain_tokens: int
    replicated: bool
    draft_load_s: float
    draft_prefill_s: float


def speculation_report(speculation: Speculation | None) -> SpeculationReport | None:
    """The report of a generation; None where nothing was drafted for it."""
    if speculation is None or speculation.drafting is None:
        return None
    drafting, rounds = speculation.drafting, speculation.rounds
    return SpeculationReport(
        draft=drafting.draft,
        k=drafting.depth,
        rounds=rounds.n_rounds,
        alpha=rounds.alpha,
        tau=rounds.tau,
        accepted_histogram=tuple(rounds.histogram),
        acceptance=tuple(map(_acceptance, rounds.positions)),
        shares=_shares(rounds),
        n_plain_tokens=rounds.n_plain_tokens,
        replicated=speculation.is_replicated,
        draft_load_s=speculation.load_seconds,
        draft_prefill_s=rounds.draft_prefill_seconds,
    )


def _acceptance(position: Position) -> Acceptance:
    conditional = position.n_accepted / position.n_verified if position.n_verified else None
    return Acceptance(conditional, position.n_accepted / position.n_drafted)


def _shares(rounds: Rounds) -> dict[str, float]:
    seconds = {
        "draft": rounds.draft_seconds,
        "verify": rounds.verify_seconds,
        "sample": rounds.sample_seconds,
        "host": rounds.host_seconds,
    }
    return {part: each / rounds.seconds for part, each in seconds.items()} if rounds.seconds else {}
