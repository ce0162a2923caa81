"""Sampling: temperature, top-k, top-p, min-p, penalties, and uniforms keyed by seed, sequence and position.

The generator is counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): a number is a hash
of its key, here rounds of the SplitMix64 finalizer (Steele et al. 2014), so that there is no state to pass on.

The order is that of transformers' generate: repetition penalty, temperature, top-k, top-p, min-p. The CPU engine has
the same rules in native/sampling.h; tests/backends/test_cpu_choosing.py holds both equal.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (the name that everyone knows)
from torch import Tensor

from gptfast_cli.core.device import to_device, widest
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.models.decoder import Logits

_MASK = (1 << 64) - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15


TOKEN, PROPOSAL, ACCEPTANCE = range(3)
"""Purpose of a uniform: the target's token, the token that a draft proposes, or whether that one is accepted."""


def uniform(seed: int, sequence: int, position: int, purpose: int = TOKEN) -> float:
    """A uniform number in [0, 1), a multiple of 2^-32; purposes have independent numbers."""
    state = 0
    for part in (seed, sequence, position) if purpose == TOKEN else (seed, sequence, position, purpose):
        state = _mix((state ^ part) + _GOLDEN_GAMMA & _MASK)
    return (state >> 32) / 2**32


def _mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters of a request; temperature 0 is greedy."""

    temperature: float = 0.8
    top_k: int = 200  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return self.temperature == 0


_FLOAT32 = torch.finfo(torch.float32)
"""Logits are float32: below `tiny` a parameter would be 0, above `max` infinite."""

_MOST_TOP_K = 2**31 - 1

_MOST_PENALTY = 1e6
"""Logits up to 3e32 stay finite under penalties from 1 / this to this."""


def check(sampling: Sampling) -> None:
    """Raise UsageError for a value out of its range."""
    temperature, penalty = sampling.temperature, sampling.repetition_penalty
    ranges = {
        "--temperature": (
            temperature,
            temperature == 0 or _FLOAT32.tiny <= temperature <= _FLOAT32.max,
            f"0, or from {_FLOAT32.tiny:.2g} to {_FLOAT32.max:.2g}",
        ),
        "--top-k": (sampling.top_k, 0 <= sampling.top_k <= _MOST_TOP_K, f"from 0 (off) to {_MOST_TOP_K}"),
        "--top-p": (sampling.top_p, _FLOAT32.tiny <= sampling.top_p <= 1, f"from {_FLOAT32.tiny:.2g} to 1"),
        "--min-p": (sampling.min_p, 0 <= sampling.min_p <= 1, "from 0 to 1"),
        "--repetition-penalty": (
            penalty,
            1 / _MOST_PENALTY <= penalty <= _MOST_PENALTY,
            f"from {1 / _MOST_PENALTY:g} to {_MOST_PENALTY:g}",
        ),
    }
    for option, (value, fits, allowed) in ranges.items():
        if not fits:
            raise UsageError(f"{option} must be {allowed}, not {value}.")


def penalize(logits: Tensor, seen: Sequence[Tensor], penalty: float) -> Tensor:
    """Repetition penalty on the tokens seen by each row, [n] int64, once however often they come.

    Source: CTRL (Keskar et al. 2019, arXiv:1909.05858).
    """
    penalized = logits.clone()
    for row, tokens in enumerate(seen):
        values = logits[row, tokens]
        penalized[row, tokens] = torch.where(values > 0, values / penalty, values * penalty)
    return penalized


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution that a token is drawn from, [rows, vocab] float32 (float64 stays float64); not for greedy."""
    assert not sampling.is_greedy
    wide = logits if logits.dtype is torch.float64 else logits.float()
    # the maximum goes first, so that the smallest temperature cannot overflow
    logits = (wide - wide.amax(dim=-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        logits = _keep_top_k(logits, sampling.top_k)
    if sampling.top_p < 1:
        logits = _keep_top_p(logits, sampling.top_p)
    if sampling.min_p > 0:
        logits = _keep_min_p(logits, sampling.min_p)
    return logits.softmax(dim=-1)


def _keep_top_k(logits: Tensor, k: int) -> Tensor:
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def _keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens that together reach p (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751)."""
    ascending, order = logits.sort(dim=-1, stable=True)  # of equals the later tokens stay, as in native/sampling.h
    dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    dropped[..., -1] = False  # the most probable token stays, however small p is
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)


def _keep_min_p(logits: Tensor, fraction: float) -> Tensor:
    """Keep tokens at least `fraction` as probable as the most probable one (Nguyen et al. 2024, arXiv:2407.01082)."""
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) + math.log(fraction), -torch.inf)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability (natural) of a token; `top`: the most probable tokens, in descending order, as (id, logprob)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Tensor, token: int, n_top: int) -> TokenLogprobs:
    """Log-probabilities of a token and of the `n_top` most probable ones, from logits [vocab] float32."""
    logprobs = logits.log_softmax(dim=-1)
    values, ids = logprobs.topk(min(n_top, len(logprobs)))
    return TokenLogprobs(token, logprobs[token].item(), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


@dataclass(frozen=True, slots=True)
class Sampler:
    """Sampling parameters and random stream of a request: (seed, stream) is unique to it."""

    sampling: Sampling
    seed: int
    stream: int = 0


class SeenTokens:
    """The distinct tokens of a text that grows."""

    def __init__(self) -> None:
        self._tokens = array("q")
        self._known: set[int] = set()
        self._n_read = 0  # tokens of the text

    def of(self, prompt: Sequence[int], generated: Sequence[int]) -> "array[int]":
        """Those of the text, each once, as int64; only what has come since the last call is read."""
        assert self._n_read <= len(prompt) + len(generated)
        later = (*prompt[self._n_read :], *generated[max(0, self._n_read - len(prompt)) :])
        new = [token for token in dict.fromkeys(later) if token not in self._known]
        self._tokens.extend(new)
        self._known.update(new)
        self._n_read += len(later)
        return self._tokens


@dataclass(frozen=True, slots=True)
class SamplingContext:
    """The sampler of the next token, and the tokens before it."""

    sampler: Sampler
    prompt: Sequence[int]
    generated: Sequence[int]
    seen: SeenTokens = field(default_factory=SeenTokens)

    @property
    def seen_tokens(self) -> "array[int]":
        """The tokens that a repetition penalty is on, each once, as int64."""
        return self.seen.of(self.prompt, self.generated)

    def uniform(self, later: int = 0, purpose: int = TOKEN) -> float:
        """The uniform number in [0, 1) of the token `later` positions from the next one."""
        position = len(self.prompt) + len(self.generated) + later
        return uniform(self.sampler.seed, self.sampler.stream, position, purpose)


def draw_tokens(logits: Logits, draws: Sequence[SamplingContext]) -> list[int]:
    """Sample a token for each row of logits by its own sampler; the same on all ranks.

    `vocab_size`, which is no token, stands for logits that are not finite.
    """
    rows_by_sampling: dict[Sampling, list[int]] = {}
    for row, draw in enumerate(draws):
        rows_by_sampling.setdefault(draw.sampler.sampling, []).append(row)
    if len(rows_by_sampling) == 1:
        return _draw_alike(logits, draws, draws[0].sampler.sampling)
    tokens = [-1] * len(draws)
    for sampling, rows in rows_by_sampling.items():
        drawn = _draw_alike(logits.rows(rows), [draws[row] for row in rows], sampling)
        for row, token in zip(rows, drawn, strict=True):
            tokens[row] = token
    return tokens


def _draw_alike(logits: Logits, draws: Sequence[SamplingContext], sampling: Sampling) -> list[int]:
    if sampling.repetition_penalty != 1:
        logits = _penalized(logits, [_seen(logits, draw) for draw in draws], sampling.repetition_penalty)
    chosen = logits.best() if sampling.is_greedy else _drawn(logits, draws, sampling)
    return list(chosen.tolist())


def _drawn(logits: Logits, draws: Sequence[SamplingContext], sampling: Sampling) -> Tensor:
    """Tokens drawn by inverse CDF, [rows] int64."""
    device = logits.own.device
    n_candidates = sampling.top_k if 0 < sampling.top_k < logits.vocab_size else 0
    if n_candidates and logits.group.size == 1 and device.type == "cpu":  # elsewhere the host would wait for the check
        values, tokens = logits.own.topk(n_candidates + 1)
        is_tied = values[:, -1] >= values[:, -2]  # then others may be as large as the last candidate, too
        if not is_tied.any():
            tokens, order = tokens[:, :-1].sort()
            return _drawn_of(logits, values.gather(-1, order), tokens, draws)
        if len(draws) > 1:  # a row's numbers do not depend on those of others
            rows = (_drawn(logits.rows([row]), [draw], sampling) for row, draw in enumerate(draws))
            return torch.cat(list(rows))
    candidates = logits.largest(n_candidates) if n_candidates else None
    if candidates is None:
        return sample_inverse_cdf(probabilities(logits.whole, sampling), _uniforms(draws, device))
    return _drawn_of(logits, *candidates, draws)


def _drawn_of(logits: Logits, values: Tensor, tokens: Tensor, draws: Sequence[SamplingContext]) -> Tensor:
    """The same of candidates: their logits [rows, n] and tokens, in the order of tokens."""
    p = probabilities(values, draws[0].sampler.sampling)
    place = sample_inverse_cdf(p, _uniforms(draws, values.device)).unsqueeze(-1)
    return (
        F.pad(tokens, (0, 1), value=logits.vocab_size).gather(-1, place).squeeze(-1)
    )  # past the last candidate: no token


def _uniforms(draws: Sequence[SamplingContext], device: torch.device) -> Tensor:
    return to_device([draw.uniform() for draw in draws], widest(device), device)


def sample_inverse_cdf(p: Tensor, uniforms: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds u · Σp, for p [rows, vocab] and u in [0, 1) [rows]: [rows].

    p need not be normalized. A token of probability 0 is never taken. NaN gives `vocab`, which is no token.
    """
    cumulative = p.to(widest(p.device)).cumsum(dim=-1)  # float32 would lose the steps of rare tokens in a sum near 1
    thresholds = uniforms.to(cumulative).unsqueeze(-1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1)


def distribution(logits: Logits, draw: SamplingContext, drafted: Tensor) -> Tensor:
    """Target distribution at the last positions of `drafted` [n] int64: [rows, vocab] float32.

    The last row of the logits is after all drafted tokens, the row before it after all but one, and so on.
    """
    return probabilities(_as_drafted(logits, draw, drafted).whole, draw.sampler.sampling)


def most_probable(logits: Logits, draw: SamplingContext, drafted: Tensor) -> Tensor:
    """The most probable token at the same positions, [rows] int64; `vocab` where logits are not finite."""
    return _as_drafted(logits, draw, drafted).best()


def _as_drafted(logits: Logits, draw: SamplingContext, drafted: Tensor) -> Logits:
    penalty = draw.sampler.sampling.repetition_penalty
    if penalty == 1:
        return logits
    before, n_rows = _seen(logits, draw), len(logits.own)
    n_drafted = range(len(drafted) - n_rows + 1, len(drafted) + 1)  # before each position
    return _penalized(logits, [torch.cat([before, drafted[:n]]) for n in n_drafted], penalty)


def _seen(logits: Logits, draw: SamplingContext) -> Tensor:
    """The distinct tokens of prompt and text of a request, [n] int64."""
    seen = torch.from_numpy(np.array(draw.seen_tokens))  # a copy: an array that is viewed cannot grow
    device = logits.own.device
    return (seen.pin_memory() if device.type == "cuda" else seen).to(device, non_blocking=True)


def _penalized(logits: Logits, seen: Sequence[Tensor], penalty: float) -> Logits:
    """The rank's own logits with the repetition penalty on the tokens seen by each row."""
    own = logits.tokens
    if len(logits.own[0]) < logits.vocab_size:
        seen = [tokens[(tokens >= own.start) & (tokens < own.stop)] - own.start for tokens in seen]
    return replace(logits, own=penalize(logits.own, seen, penalty))
