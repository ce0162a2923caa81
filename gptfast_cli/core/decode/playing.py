"""Rounds that two native models play by themselves, in one call: what a small pair would lose between them is saved."""

import math
from collections.abc import Sequence as Rows

from gptfast_cli.core.decode.depth import Plan
from gptfast_cli.core.decode.proposers import Proposer
from gptfast_cli.core.decode.proposers.draft_model import DraftModel
from gptfast_cli.core.decode.runner import Runner, native_choice
from gptfast_cli.core.decode.sequence import Sequence
from gptfast_cli.core.kernels.cpu.rounds import Extent, Played, Text, play_rounds

_IN_ONE_PASS = 7  # drafted tokens that are verified, after the one before them, while weights are read once: TILE - 1


def playing_draft(proposer: Proposer, target: Runner, sequences: Rows[Sequence]) -> Runner | None:
    """The rows of a draft that can play: both models choose by themselves, and no more is asked of their logits."""
    if not isinstance(proposer, DraftModel) or not (proposer.runner.runs_ahead and target.runs_ahead):
        return None
    return proposer.runner if all(sequence.wants_tokens_alone for sequence in sequences) else None


def extent_of(plan: Plan, n_left: int, n_rounds: int) -> Extent:
    """Up to so many of the planned rounds, one at least, of sequences of which one has `n_left` tokens to come.

    A round that ends for doubt may go on for longer than what pays on average while the draft is sure.
    """
    depth = plan.depth if math.isinf(plan.most_doubt) else max(plan.depth, _IN_ONE_PASS)
    return Extent(max(1, min(n_rounds, plan.n_rounds)), min(depth, n_left - 1), plan.most_doubt)


def play(target: Runner, draft: Runner, sequences: Rows[Sequence], extent: Extent) -> Played:
    """Rounds of sequences that have the first rows of both; they are not told of it yet.

    The round after which one of them is over is the last.
    """
    texts = [_text(row, sequence, draft) for row, sequence in enumerate(sequences)]
    stops = frozenset().union(*(sequence.limits.stop_ids for sequence in sequences))
    longest = max(text.n_held + len(text.rest) for text in texts) + (extent.n_rounds + 1) * (extent.depth + 1)
    with target.alone():
        played = play_rounds(
            target.side(len(texts), longest), draft.side(len(texts), longest), texts, extent, tuple(stops)
        )
    for row, (text, n_held) in enumerate(zip(texts, played.n_held, strict=True)):
        given = [token for each in played.rounds for token in each[row].tokens]
        target.hold(row, [text.rest[-1], *given[:-1]])
        draft.hold(row, [*text.rest, *given][: n_held - text.n_held])
    return played


def _text(row: int, sequence: Sequence, draft: Runner) -> Text:
    rest, sampler = draft.settle(row, sequence.prompt, sequence.generated), sequence.sampler
    return Text(
        row, sequence.n_left, draft.n_held(row), rest, sampler.seed, sampler.stream, native_choice(sampler.sampling)
    )
