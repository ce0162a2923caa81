"""Rounds of speculative decoding on two native engines, in one call."""

import math
from collections.abc import Sequence
from ctypes import c_double, c_int32, c_int64, pointer
from dataclasses import dataclass

import torch

from gptfast_cli.core.backends.cpu.engine import CachePointers, NativeEngine, TokenBatch, call_of
from gptfast_cli.core.backends.cpu.library import Rounds, Row, SamplingParams, Status

_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class EngineHandle:
    """A native engine and its KV cache."""

    engine: NativeEngine
    cache: CachePointers


@dataclass(frozen=True, slots=True)
class RoundRow:
    """A sequence to continue.

    slot:         its row in both caches
    n_left:       tokens that may still be generated, at least 1
    n_held:       tokens of the text in the draft's cache; the target's lacks the last one
    rest:         the text after these
    seed, stream: of its uniform numbers
    """

    slot: int
    n_left: int
    n_held: int
    rest: Sequence[int]
    seed: int
    stream: int
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class NativeRound:
    """The result of a round for one sequence: the emitted tokens, of which all but the last were drafted.

    overlap:     sum of min(p, q) over the verified positions
    uncertainty: sum of 1 - p(draft) over them; 0 where `max_uncertainty` is infinite
    """

    tokens: list[int]
    n_drafted: int
    overlap: float
    uncertainty: float


@dataclass(frozen=True, slots=True)
class NativeRounds:
    """The result of `run_rounds`: [rounds][texts].

    n_held:  tokens of each text in the draft's cache at the end
    seconds: of drafting, verifying and sampling
    """

    rounds: list[list[NativeRound]]
    n_held: list[int]
    seconds: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class RoundLimits:
    """The number of rounds, and the draft length of each.

    draft_length:    maximum number of tokens that a round drafts
    max_uncertainty: stop drafting once sum(1 - p) exceeds this; p is the draft's probability of its token, at
                     temperature 1 for greedy decoding
    """

    n_rounds: int
    draft_length: int
    max_uncertainty: float = math.inf


def run_rounds(
    target: EngineHandle, draft: EngineHandle, texts: Sequence[RoundRow], limits: RoundLimits, stops: Sequence[int]
) -> NativeRounds:
    """Run rounds: a draft of the same vocabulary proposes, the target verifies.

    The rounds end early after one that emits a stop token, or that leaves a text at most one token. Raises TokenIdError
    where one of the models has no embedding of a token.
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
        pointer(call_of(TokenBatch(), target.cache, nothing)),
        pointer(call_of(TokenBatch(), draft.cache, nothing)),
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
    if n_done == Status.NO_EMBEDDING:
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
    return Row(text.slot, text.n_left, text.n_held + n_rest, text.n_held, rest, seed, stream, text.params)
