"""The only place where tokens meet the model and its cache, which remembers the tokens that it holds.

Rows of the cache are slots: the sequences under way have the first ones, and a slot that is free still holds what
was there last. A prompt starts from the longest beginning that any slot holds, so that the samples of one prompt,
the turns of a conversation and the requests with one system message feed what they have in common once.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from gptfast_cli.core.backends import phase
from gptfast_cli.core.backends.cpu.engine import StepsAhead
from gptfast_cli.core.backends.cpu.library import SamplingParams
from gptfast_cli.core.backends.cpu.rounds import EngineHandle
from gptfast_cli.core.device import to_device, torch_threads
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.models.decoder import Decoder, Logits
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.token_ids import check_token_ids

PREFILL_CHUNK = 512
"""Prompt tokens fed at once: enough to keep the arithmetic busy, few enough to bound the memory of their scores."""

AHEAD_SECONDS = 0.008
"""A model that chooses by itself goes on for so long before its tokens are looked at: too short to be seen, long enough
that what is done between the steps of a small model costs them little."""

_USUAL_BANDWIDTH = 20e9  # bytes a second; for a first guess

_WARM_UP_TOKENS = 2  # at least: a size of 1 is a case of its own


@dataclass(frozen=True, slots=True)
class Forward:
    """What a step runs: `Decoder.step`, or one prepared for tensors of one shape.

    is_fixed: it is always given the whole length of the cache and, decoding, all rows
    """

    run: Callable[[Sequence[Sequence[int]], KVCache, slice], Tensor]
    is_fixed: bool = False


class Runner:
    """A model and the KV cache of up to `n_rows` sequences."""

    def __init__(self, model: Decoder, n_rows: int) -> None:
        self.model = model
        self.n_rows = n_rows
        self._cache = model.new_cache(n_rows)
        self._plain = self._prefill = self._decode = Forward(model.step)
        self._held: list[list[int]] = [[] for _ in range(n_rows)]  # tokens whose keys and values each row has

    def reuse_prefix(self, row: int, prompt: Sequence[int]) -> int:
        """Let a row begin as the prompt does, as far as any row holds that; returns how many tokens it then has."""
        shared = [
            self._cache.reusable_length(other, common_prefix(held, prompt)) for other, held in enumerate(self._held)
        ]
        best = max(range(self.n_rows), key=lambda other: (shared[other], other == row))
        n_tokens = shared[best]
        if best == row:
            self._cache.rollback(row, n_tokens)
        else:
            self._cache.copy(best, row, n_tokens)
        self._held[row] = list(prompt[:n_tokens])
        return n_tokens

    def wipe(self, row: int) -> None:
        """Let a row hold nothing, and no NaN: what it held, times a weight of 0, would reach a later text there."""
        self._cache.wipe(row)
        self._held[row] = []

    def clear(self) -> None:
        """Let every row hold nothing; the room of the cache stays."""
        for row in range(self.n_rows):
            self._cache.rollback(row, 0)
            self._held[row] = []

    def prepare(self, n_tokens: int, *, prefill: Forward | None = None, decode: Forward | None = None) -> None:
        """Make room for `n_tokens` in each row once and for all, and run these from now on."""
        self._prefill, self._decode = prefill or self._plain, decode or self._plain
        self._cache.reserve(max(n_tokens, max(self._cache.lengths) + _WARM_UP_TOKENS))

    def alone(self) -> AbstractContextManager[None]:
        """For small work beside steps: PyTorch wakes no threads that would be in the way of the model's own."""
        return torch_threads(1) if self.model.has_own_threads else nullcontext()

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of the cache, which all steps share."""
        yield from self._cache.tensors()

    def warm_up(self) -> None:
        """Run what is prepared once; it leaves what the rows hold as it is."""
        if self._prefill.is_fixed:
            self._feed(self._prefill, [[0] * _WARM_UP_TOKENS], slice(0, 1))
        if self._decode.is_fixed:
            self.step([])

    def prefill(self, row: int, tokens: Sequence[int]) -> Logits:
        """Feed a piece of a prompt to one row; return the logits of the token to come, a single row.

        Raises TokenIdError for a token without an embedding, which nothing has been fed of then.
        """
        check_token_ids(tokens, self.model.config.vocab_size)
        rows, most = slice(row, row + 1), min(self._cache.most_tokens, len(tokens))
        for piece in (tokens[first : first + most] for first in range(0, len(tokens), most)):
            with phase("prefill"):
                # compilers take a size of 1 for a constant, and would begin anew for it
                logits = self._feed(self._prefill if len(piece) > 1 else self._plain, [piece], rows)
            self.hold(row, piece)
        return self._told(logits)

    def step(self, tokens: Sequence[int]) -> Logits:
        """Feed one token to each of the first rows; return the logits of the tokens to come."""
        n_rows = len(tokens)
        batch = [[token] for token in tokens]
        if self._decode.is_fixed:  # free rows run along, and write past the end of what they hold
            batch += [[0]] * (self.n_rows - n_rows)
        with phase("decode"):
            logits = self._feed(self._decode, batch, slice(0, len(batch)))
        for row, token in enumerate(tokens):
            self.hold(row, [token])
        return self._told(logits[:n_rows])

    @property
    def runs_ahead(self) -> bool:
        """Whether the model samples tokens itself, several steps in one call."""
        return self.model.token_loop is not None

    def run_ahead(
        self,
        fed: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
        uniforms: Sequence[Sequence[float]],
        stops: Collection[int] = (),
        *,
        keep_logits: bool = False,
    ) -> StepsAhead:
        """Feed the first rows these tokens, and then what they choose, in as many steps as there are uniforms.

        A row's sampling says how it chooses, but for repetition penalties, of which the model knows nothing. The step
        that gives one of the stops is the last.
        """
        loop = self.model.token_loop
        assert loop is not None
        n_rows = len(fed)
        n_tokens = max(self._cache.lengths[:n_rows]) + max(map(len, fed)) + len(uniforms)
        self._cache.begin(slice(0, n_rows), n_tokens)
        choices = list(map(sampling_params, samplings))
        with self.alone(), phase("decode"):
            chosen = loop.run_ahead(fed, self._cache, choices, uniforms, tuple(stops), keep_logits=keep_logits)
        for row, first in enumerate(fed):
            self.hold(row, [*first, *(tokens[row] for tokens in chosen.tokens[:-1])])
        return chosen

    def side(self, n_rows: int, n_tokens: int) -> EngineHandle:
        """What rounds of speculation of the first rows need of a native model, with room for `n_tokens` in each."""
        loop = self.model.token_loop
        assert loop is not None
        self._cache.begin(slice(0, n_rows), n_tokens)
        return loop.side(self._cache)

    def extend(self, fed: Sequence[Tensor], *, needs_probs: bool) -> list[Logits]:
        """Feed the first rows tokens that may come to nothing, any number to each, int64 on the model's device.

        Returns a row's logits after every one of them; where laws are to be made of them, all ranks have all. Nobody
        looks at the tokens: the rows have their keys and values, and `truncate_to` tells which of them stay.
        """
        rows = slice(0, len(fed))
        self._cache.begin(rows, max(self._cache.lengths[rows]) + max(map(len, fed)))
        with self.alone(), phase("verify"), torch.inference_mode():
            logits = self._told(self.model.feed(fed, self._cache, rows))
            if needs_probs:
                logits = logits.put_together()
        for row, tokens in enumerate(fed):
            self._cache.advance(slice(row, row + 1), len(tokens))
        return logits.split([len(tokens) for tokens in fed])

    def read(self, rows: slice, texts: Sequence[Sequence[int]], wanted: Sequence[int]) -> Tensor:
        """Feed rows more of texts that are certain, any number of tokens to each.

        Returns the logits after the wanted ones, counted through the tokens of all rows: [wanted, vocab] float32.
        Raises TokenIdError for a token without an embedding, before anything is fed.
        """
        for text in texts:
            check_token_ids(text, self.model.config.vocab_size)
        self._cache.begin(rows, max(self._cache.lengths[rows]) + max(map(len, texts)))
        device = self.model.device
        with self.alone(), phase("prefill"), torch.inference_mode():
            fed = [to_device(text, torch.int64, device) for text in texts]
            logits = self._told(self.model.feed(fed, self._cache, rows, wanted)).whole
        for row, text in zip(range(*rows.indices(self.n_rows)), texts, strict=True):
            self.hold(row, text)
        return logits

    def truncate_to(self, row: int, prompt: Sequence[int], generated: Sequence[int]) -> list[int]:
        """Let a row hold no more than this text but for its last token; returns what it lacks of the whole text."""
        held = self._held[row]
        n_tokens = min(self._cache.lengths[row], len(prompt) + len(generated) - 1)
        self._cache.rollback(row, n_tokens)
        del held[n_tokens:]
        held += generated[len(held) - len(prompt) : n_tokens - len(prompt)]
        return list(generated[n_tokens - len(prompt) :])

    def n_held(self, row: int) -> int:
        """Tokens whose keys and values a row has."""
        return self._cache.lengths[row]

    def hold(self, row: int, tokens: Sequence[int]) -> None:
        """Let a row have more tokens of a text that is certain, whose keys and values were just written."""
        self._cache.advance(slice(row, row + 1), len(tokens))
        self._held[row] += tokens

    def move(self, source: int, target: int) -> None:
        """Put what a row holds into another row."""
        self._cache.copy(source, target, self._cache.lengths[source])
        self._held[target] = list(self._held[source])

    def save(self, row: int, n_tokens: int) -> dict[str, Tensor]:
        """The first tokens that a row holds, as tensors by name: `tokens` [tokens] int64, keys and values.

        They are `n_tokens`, or the most of them that can be kept without the rest.
        """
        assert n_tokens <= len(self._held[row])
        n_tokens = self._cache.truncated(n_tokens)
        return {"tokens": torch.tensor(self._held[row][:n_tokens]), **self._cache.row(row, n_tokens)}

    @torch.inference_mode()
    def restore(self, row: int, saved: Mapping[str, Tensor]) -> None:
        """Let a row hold what `save` gave, of a runner of the same model; raises ValueError where it does not fit."""
        tokens = saved["tokens"].tolist()
        if len(tokens) != self._cache.truncated(len(tokens)):
            raise ValueError("a part of a block of keys")
        found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in saved.items() if name != "tokens"}
        if found != self._cache.outline(len(tokens)):
            raise ValueError("keys and values of another shape or dtype")
        self._cache.reserve(len(tokens))
        room = self._cache.row(row, len(tokens))
        for name, tensor in room.items():
            tensor.copy_(saved[name])
        self._cache.lengths[row] = len(tokens)
        self._held[row] = tokens

    @property
    def guessed_seconds(self) -> float:
        """That a step may take, before one has been timed."""
        return self.model.weight_bytes / _USUAL_BANDWIDTH

    @property
    def cache_bytes(self) -> int:
        """Bytes that the KV cache takes."""
        return self._cache.n_bytes

    def step_bytes(self, n_rows: int, later: int = 0) -> int:
        """Bytes that the next step of the first rows reads, or one so many steps later.

        They are all weights, but only rows of the embedding, and the keys and values.
        """
        model = self.model
        table = 0 if model.config.tied_embeddings else model.embedding_bytes  # a tied table is read whole, as the head
        embedded = n_rows * model.embedding_bytes // model.config.vocab_size
        kv = sum(self._cache.bytes_read(length + later) for length in self._cache.lengths[:n_rows])
        return model.weight_bytes - table + embedded + kv

    @torch.inference_mode()
    def _feed(self, forward: Forward, tokens: Sequence[Sequence[int]], rows: slice) -> Tensor:
        """Run tokens of some rows, each going on where its row ends; they are written, but not yet counted."""
        with self.alone():
            self._cache.begin(rows, max(self._cache.lengths[rows]) + len(tokens[0]))
            return forward.run(tokens, self._cache, rows)

    def _told(self, logits: Tensor) -> Logits:
        """What the model has said of its own tokens, as all ranks know it."""
        return Logits(logits, self.model.shard, self.model.group)


def sampling_params(sampling: Sampling) -> SamplingParams:
    """The same for a native model, which knows nothing of repetition penalties."""
    return SamplingParams(sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)


def common_prefix(held: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    for n, (a, b) in enumerate(zip(held, prompt, strict=False)):
        if a != b:
            return n
    return min(len(held), len(prompt))
