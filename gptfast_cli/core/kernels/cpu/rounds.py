"""Rounds of speculation on two native engines, in one call."""

from collections.abc import Sequence
from ctypes import c_double, c_int32, c_int64, pointer
from dataclasses import dataclass

import torch

from gptfast_cli.core.kernels.cpu.engine import Batch, Engine, Place, call_of
from gptfast_cli.core.kernels.cpu.library import Choice, Rounds, Row

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Side:
    """A model of a pair: its engine, and where its keys and values stand."""

    engine: Engine
    place: Place


@dataclass(frozen=True, slots=True)
class Text:
    """A sequence that rounds go on with.

    slot:   its row in both caches
    n_left: tokens that may still come, at least 1
    n_held: tokens of the text that the draft's cache holds; the target's lacks the last one
    rest:   the text from there on
    seed, stream: of its uniform numbers
    """

    slot: int
    n_left: int
    n_held: int
    rest: Sequence[int]
    seed: int
    stream: int
    choice: Choice


@dataclass(frozen=True, slots=True)
class Round:
    """What a round came to for one text: the tokens given, of which all but the last had been drafted.

    overlap: the sum over its verified tokens of the sum of min(p, q)
    """

    tokens: list[int]
    n_drafted: int
    overlap: float


@dataclass(frozen=True, slots=True)
class Played:
    """What rounds came to: [rounds][texts].

    n_held:  tokens of each text that the draft's cache holds in the end
    seconds: of drafting, verifying and sampling
    """

    rounds: list[list[Round]]
    n_held: list[int]
    seconds: tuple[float, float, float]


def play_rounds(
    target: Side, draft: Side, texts: Sequence[Text], *, depth: int, n_rounds: int, stops: Sequence[int]
) -> Played:
    """Let a draft of the same vocabulary propose, and the target verify what it does, in up to `n_rounds` rounds.

    A round that gives one of the stops is the last, as is one after which a text may have but one token more.
    """
    n_texts, most, nothing = len(texts), n_rounds * len(texts), torch.empty(0)
    tokens, seconds = (c_int64 * (most * (depth + 1)))(), (c_double * 3)()
    n_drafted, n_accepted, n_held = (c_int32 * most)(), (c_int32 * most)(), (c_int32 * n_texts)()
    overlaps = (c_double * most)()
    rounds = Rounds(
        n_rounds,
        depth,
        n_texts,
        (Row * n_texts)(*map(_row, texts)),
        pointer(call_of(Batch(), target.place, nothing)),
        pointer(call_of(Batch(), draft.place, nothing)),
        len(stops),
        (c_int64 * len(stops))(*stops),
        tokens,
        n_drafted,
        n_accepted,
        overlaps,
        n_held,
        seconds,
    )
    n_done = target.engine.library.gptfast_run_rounds(target.engine.pointer, draft.engine.pointer, rounds)

    def played(at: int) -> Round:
        begin = at * (depth + 1)
        return Round(tokens[begin : begin + n_accepted[at] + 1], n_drafted[at], overlaps[at])

    drafting, verifying, sampling = seconds
    return Played(
        [[played(n * n_texts + text) for text in range(n_texts)] for n in range(n_done)],
        list(n_held),
        (drafting, verifying, sampling),
    )


def _row(text: Text) -> Row:
    n_rest = len(text.rest)
    rest = (c_int64 * n_rest)(*text.rest)
    seed, stream = (number & _MASK for number in (text.seed, text.stream))
    return Row(text.slot, text.n_left, text.n_held + n_rest, text.n_held, rest, seed, stream, text.choice)
