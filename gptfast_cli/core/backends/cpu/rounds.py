"""Rounds of speculation on two native engines, in one call."""

import math
from collections.abc import Sequence
from ctypes import c_double, c_int32, c_int64, pointer
from dataclasses import dataclass

import torch

from gptfast_cli.core.backends.cpu.engine import (
    CachePointers,
    NativeEngine,
    TokenBatch,
    call_of,
)
from gptfast_cli.core.backends.cpu.library import (
    NO_EMBEDDING,
    Choice,
    Rounds,
    Row,
)

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class EngineHandle:
    """A model of a pair: its engine, and where its keys and values stand."""

    engine: NativeEngine
    place: CachePointers


@dataclass(frozen=True, slots=True)
class RoundRow:
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
class NativeRound:
    """What a round came to for one text: the tokens given, of which all but the last had been drafted.

    overlap: the sum over its verified tokens of the sum of min(p, q)
    uncertainty:   the sum over them of how unlikely they were to the draft, 0 where rounds never end for doubt
    """

    tokens: list[int]
    n_drafted: int
    overlap: float
    uncertainty: float


@dataclass(frozen=True, slots=True)
class NativeRounds:
    """What rounds came to: [rounds][texts].

    n_held:  tokens of each text that the draft's cache holds in the end
    seconds: of drafting, verifying and sampling
    """

    rounds: list[list[NativeRound]]
    n_held: list[int]
    seconds: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class RoundLimits:
    """How far rounds go.

    draft_length:      tokens that a round drafts, at most
    max_uncertainty: a round stops drafting once the uncertainties of its tokens exceed this; one is 1 - the
                draft's probability of the token, at temperature 1 where the most probable one is taken
    """

    n_rounds: int
    draft_length: int
    max_uncertainty: float = math.inf


def run_rounds(
    target: EngineHandle, draft: EngineHandle, texts: Sequence[RoundRow], limits: RoundLimits, stops: Sequence[int]
) -> NativeRounds:
    """Let a draft of the same vocabulary propose, and the target verify what it does, as far as that.

    A round that gives one of the stops is the last, as is one after which a text may have but one token more. Raises
    TokenIdError where one of both has no embedding of a token.
    """
    draft_length, n_texts, most = limits.draft_length, len(texts), limits.n_rounds * len(texts)
    nothing = torch.empty(0)
    tokens, seconds = (c_int64 * (most * (draft_length + 1)))(), (c_double * 3)()
    n_drafted, n_accepted, n_held = (c_int32 * most)(), (c_int32 * most)(), (c_int32 * n_texts)()
    overlaps, uncertainties = (c_double * most)(), (c_double * most)()
    rounds = Rounds(
        limits.n_rounds,
        draft_length,
        n_texts,
        limits.max_uncertainty,
        (Row * n_texts)(*map(_row, texts)),
        pointer(call_of(TokenBatch(), target.place, nothing)),
        pointer(call_of(TokenBatch(), draft.place, nothing)),
        len(stops),
        (c_int64 * len(stops))(*stops),
        tokens,
        n_drafted,
        n_accepted,
        overlaps,
        uncertainties,
        n_held,
        seconds,
    )
    n_done = target.engine.library.gptfast_run_rounds(target.engine.pointer, draft.engine.pointer, rounds)
    if n_done == NO_EMBEDDING:
        fed = [token for text in texts for token in text.rest]
        raise min((target, draft), key=lambda side: side.engine.n_embeddings).engine.token_error(fed)

    def round_at(at: int) -> NativeRound:
        begin = at * (draft_length + 1)
        return NativeRound(tokens[begin : begin + n_accepted[at] + 1], n_drafted[at], overlaps[at], uncertainties[at])

    drafting, verifying, sampling = seconds
    return NativeRounds(
        [[round_at(n * n_texts + text) for text in range(n_texts)] for n in range(n_done)],
        list(n_held),
        (drafting, verifying, sampling),
    )


def _row(text: RoundRow) -> Row:
    n_rest = len(text.rest)
    rest = (c_int64 * n_rest)(*text.rest)
    seed, stream = (number & _MASK for number in (text.seed, text.stream))
    return Row(text.slot, text.n_left, text.n_held + n_rest, text.n_held, rest, seed, stream, text.choice)
