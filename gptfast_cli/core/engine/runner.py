"""Runs the model on the rows of a KV cache, and knows the tokens that each row holds.

The requests that are being decoded have the first rows. A free row keeps its last text, and a prompt starts from the
longest prefix of it that any row holds: samples of one prompt, turns of a conversation and requests with one system
message are prefilled once.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import phase
from gptfast_cli.core.backends.cpu.engine import StepsAhead
from gptfast_cli.core.backends.cpu.library import SamplingParams
from gptfast_cli.core.backends.cpu.rounds import EngineHandle
from gptfast_cli.core.device import to_device, torch_threads
from gptfast_cli.core.engine.sampling import SamplingContext
from gptfast_cli.core.models.decoder import Decoder, Logits
from gptfast_cli.core.models.kv_cache import KVCache
from gptfast_cli.core.token_ids import check_token_ids

PREFILL_CHUNK = 512
"""Prompt tokens of one forward pass: enough to be compute-bound, few enough to bound the memory of the scores."""

AHEAD_SECONDS = 0.008
"""Time budget of one run-ahead call, in seconds: a small model pays the host's work once for many steps."""

_USUAL_BANDWIDTH = 20e9  # bytes/s, before any step has been timed

_WARM_UP_TOKENS = 2  # compilers specialize on a size of 1


@dataclass(frozen=True, slots=True)
class Forward:
    """A forward pass: `Decoder.step`, or one that is compiled for tensors of one shape.

    is_fixed: its inputs span the whole capacity of the cache and, in decoding, all rows
    """

    run: Callable[[Sequence[Sequence[int]], KVCache, slice], Tensor]
    is_fixed: bool = False


class Runner:
    """A model and its KV cache of `n_rows` rows."""

    def __init__(self, model: Decoder, n_rows: int) -> None:
        self.model = model
        self.n_rows = n_rows
        self._cache = model.new_cache(n_rows)
        self._plain = self._prefill = self._decode = Forward(model.step)
        self._held: list[list[int]] = [[] for _ in range(n_rows)]  # the tokens of each row in the cache

    def reuse_prefix(self, row: int, prompt: Sequence[int]) -> int:
        """Fill a row with the longest prefix of the prompt that any row holds; returns its number of tokens."""
        shared = [self.reusable_length(other, prompt) for other in range(self.n_rows)]
        best = max(range(self.n_rows), key=lambda other: (shared[other], other == row))
        n_tokens = shared[best]
        if best == row:
            self._cache.rollback(row, n_tokens)
        else:
            self._cache.share(best, row, n_tokens)
        self._held[row] = list(prompt[:n_tokens])
        return n_tokens

    def reusable_length(self, row: int, prompt: Sequence[int]) -> int:
        """Number of leading tokens of the prompt that can be reused from a row."""
        return self._cache.reusable_length(row, common_prefix(self._held[row], prompt))

    @property
    def forgets(self) -> bool:
        """Whether a row that grows loses what a prefix of it needs; see KVCache."""
        return self._cache.forgets

    def wipe(self, row: int) -> None:
        """Empty a row in which something may be NaN: its memory is zeroed before another text gets it."""
        self._cache.wipe(row)
        self._held[row] = []

    def clear(self) -> None:
        """Empty every row; the capacity stays."""
        for row in range(self.n_rows):
            self._cache.rollback(row, 0)
            self._held[row] = []

    def prepare(self, n_tokens: int, *, prefill: Forward | None = None, decode: Forward | None = None) -> None:
        """Reserve `n_tokens` in each row, and use these forward passes from now on."""
        self._prefill, self._decode = prefill or self._plain, decode or self._plain
        self._cache.reserve(max(n_tokens, max(self._cache.lengths) + _WARM_UP_TOKENS), PREFILL_CHUNK)

    def alone(self) -> AbstractContextManager[None]:
        """One PyTorch thread for small work beside a model that has threads of its own."""
        return torch_threads(1) if self.model.has_own_threads else nullcontext()

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor of the cache that a step reads."""
        yield from self._cache.tensors()

    def warm_up(self) -> None:
        """Run each compiled forward pass once; the content of the rows does not change."""
        if self._prefill.is_fixed:
            self._feed(self._prefill, [[0] * _WARM_UP_TOKENS], slice(0, 1))
        if self._decode.is_fixed:
            self.step([])

    def prefill(self, row: int, tokens: Sequence[int]) -> Logits:
        """Feed tokens of a prompt to one row; returns the logits after the last of them, [1, vocab].

        Raises TokenIdError for a token without an embedding, before anything is fed.
        """
        check_token_ids(tokens, self.model.config.vocab_size)
        rows, most = slice(row, row + 1), min(self._cache.most_tokens, len(tokens))
        for piece in (tokens[first : first + most] for first in range(0, len(tokens), most)):
            with phase("prefill"):
                # a compiler would specialize on a size of 1, and compile again
                logits = self._feed(self._prefill if len(piece) > 1 else self._plain, [piece], rows)
            self.append(row, piece)
        return self._logits(logits)

    def step(self, tokens: Sequence[int]) -> Logits:
        """Feed one token to each of the first rows; returns the logits after them, [rows, vocab]."""
        n_rows = len(tokens)
        batch = [[token] for token in tokens]
        if self._decode.is_fixed:  # free rows are computed too, and write after their last token
            batch += [[0]] * (self.n_rows - n_rows)
        with phase("decode"):
            logits = self._feed(self._decode, batch, slice(0, len(batch)))
        for row, token in enumerate(tokens):
            self.append(row, [token])
        return self._logits(logits[:n_rows])

    @property
    def runs_ahead(self) -> bool:
        """Whether the model samples tokens itself, several steps in one call."""
        return self.model.token_loop is not None

    def run_ahead(
        self,
        fed: Sequence[Sequence[int]],
        draws: Sequence[SamplingContext],
        uniforms: Sequence[Sequence[float]],
        stops: Collection[int] = (),
        *,
        keep_logits: bool = False,
    ) -> StepsAhead:
        """Feed the first rows these tokens, then the tokens that the model samples, one step for each of `uniforms`.

        The step in which a row samples one of `stops` is the last.
        """
        loop = self.model.token_loop
        assert loop is not None
        choices = list(map(sampling_params, draws))
        with self.alone(), phase("decode"):
            chosen = loop.run_ahead(fed, self._cache, choices, uniforms, tuple(stops), keep_logits=keep_logits)
        for row, first in enumerate(fed):
            self.append(row, [*first, *(tokens[row] for tokens in chosen.tokens[:-1])])
        return chosen

    def handle(self, n_rows: int, n_tokens: int) -> EngineHandle:
        """A handle for native rounds of speculation of the first rows, with room for `n_tokens` in each."""
        loop = self.model.token_loop
        assert loop is not None
        return loop.handle(self._cache, n_rows, n_tokens)

    def extend(self, fed: Sequence[Tensor], *, needs_probs: bool) -> list[Logits]:
        """Feed the first rows drafted tokens, any number to each, int64 on the model's device.

        Returns the logits after each token, for each row [tokens, vocab]; `needs_probs`: every rank gets the whole
        vocabulary. The tokens are not copied to the host: `truncate_to` then sets how many of them a row keeps.
        """
        rows = slice(0, len(fed))
        with self.alone(), phase("verify"), torch.inference_mode():
            logits = self._logits(self.model.feed(fed, self._cache, rows))
            if needs_probs:
                logits = logits.put_together()
        for row, tokens in enumerate(fed):
            self._cache.advance(slice(row, row + 1), len(tokens))
        return logits.split([len(tokens) for tokens in fed])

    def read(self, rows: slice, texts: Sequence[Sequence[int]], wanted: Sequence[int]) -> Tensor:
        """Feed rows more tokens of known texts, any number to each.

        Returns the logits after the tokens `wanted`, indices into the tokens of all rows: [wanted, vocab] float32.
        Raises TokenIdError for a token without an embedding, before anything is fed.
        """
        for text in texts:
            check_token_ids(text, self.model.config.vocab_size)
        device = self.model.device
        with self.alone(), phase("prefill"), torch.inference_mode():
            fed = [to_device(text, torch.int64, device) for text in texts]
            logits = self._logits(self.model.feed(fed, self._cache, rows, wanted)).whole
        for row, text in zip(range(*rows.indices(self.n_rows)), texts, strict=True):
            self.append(row, text)
        return logits

    def truncate_to(self, row: int, prompt: Sequence[int], generated: Sequence[int]) -> list[int]:
        """Shorten a row to this text without its last token; returns the tokens of the text that the row lacks."""
        held = self._held[row]
        n_tokens = min(self._cache.lengths[row], len(prompt) + len(generated) - 1)
        self._cache.rollback(row, n_tokens)
        del held[n_tokens:]
        held += generated[len(held) - len(prompt) : n_tokens - len(prompt)]
        return list(generated[n_tokens - len(prompt) :])

    def n_held(self, row: int) -> int:
        """Number of tokens in a row."""
        return self._cache.lengths[row]

    def append(self, row: int, tokens: Sequence[int]) -> None:
        """Count tokens of a known text as held by a row; their keys and values have just been written."""
        self._cache.advance(slice(row, row + 1), len(tokens))
        self._held[row] += tokens

    def swap(self, row: int, other: int) -> None:
        """Exchange two rows."""
        self._cache.swap(row, other)
        self._held[row], self._held[other] = self._held[other], self._held[row]

    def save(self, row: int, n_tokens: int) -> dict[str, Tensor]:
        """The first tokens of a row as tensors by name: `tokens` [tokens] int64, keys and values.

        `n_tokens` of them, or fewer: in int8 whole blocks only.
        """
        assert n_tokens <= len(self._held[row])
        n_tokens = self._cache.truncated(n_tokens)
        return {"tokens": torch.tensor(self._held[row][:n_tokens]), **self._cache.save(row, n_tokens)}

    def restore(self, row: int, saved: Mapping[str, Tensor]) -> None:
        """Fill a row with the tensors of `save`; raises ValueError if they do not fit this model."""
        tokens = saved["tokens"].tolist()
        self._cache.restore(row, len(tokens), {name: each for name, each in saved.items() if name != "tokens"})
        self._held[row] = tokens

    @property
    def guessed_seconds(self) -> float:
        """Estimated duration of a step that has not been timed yet."""
        return self.model.weight_bytes / _USUAL_BANDWIDTH

    @property
    def cache_bytes(self) -> int:
        """Size of the KV cache in bytes."""
        return self._cache.n_bytes

    def step_bytes(self, n_rows: int) -> int:
        """Bytes that the next step of the first rows reads: weights, embedding rows, KV cache."""
        lengths = self._cache.lengths[:n_rows]
        return self._weight_bytes(n_rows) + sum(map(self._cache.bytes_read, lengths))

    def bytes_of_last_steps(self, n_rows: int, n_steps: int) -> int:
        """Bytes that the last steps of the first rows have read together."""
        lengths = (length - step for length in self._cache.lengths[:n_rows] for step in range(1, n_steps + 1))
        return n_steps * self._weight_bytes(n_rows) + sum(map(self._cache.bytes_read, lengths))

    def _weight_bytes(self, n_rows: int) -> int:
        """Bytes that a step of so many rows reads of weights and embedding rows."""
        model = self.model
        # a tied table is read whole: it is the head
        table = 0 if model.config.tied_embeddings else model.embedding_bytes
        return model.weight_bytes - table + n_rows * model.embedding_bytes // model.config.vocab_size

    @torch.inference_mode()
    def _feed(self, forward: Forward, tokens: Sequence[Sequence[int]], rows: slice) -> Tensor:
        """Run the forward pass on tokens that continue the rows; they are written, but not yet counted as held."""
        with self.alone():
            return forward.run(tokens, self._cache, rows)

    def _logits(self, logits: Tensor) -> Logits:
        """Logits of this rank's shard of the vocabulary, with what is needed to combine them."""
        return Logits(logits, self.model.shard, self.model.group)


def sampling_params(draw: SamplingContext) -> SamplingParams:
    """The sampling parameters of the native engine; they point to the tokens seen, until these are asked for again."""
    sampling = draw.sampler.sampling
    address, n_seen = (None, 0) if sampling.repetition_penalty == 1 else draw.seen_tokens.buffer_info()
    return SamplingParams(
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.repetition_penalty,
        n_seen,
        address,
    )


def common_prefix(held: Sequence[int], prompt: Sequence[int]) -> int:
    """Number of leading tokens that two sequences have in common."""
    for n, (a, b) in enumerate(zip(held, prompt, strict=False)):
        if a != b:
            return n
    return min(len(held), len(prompt))
