"""How probable a token and its likeliest alternatives were to the model itself, before any sampling option."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities; `top` holds the likeliest tokens, the likeliest first, as (id, logprob)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


def token_logprobs(logits: Tensor, token: int, n_top: int) -> TokenLogprobs:
    """Of a token drawn from logits [vocab] float32, and of the `n_top` likeliest ones."""
    logprobs = logits.log_softmax(dim=-1)
    values, ids = logprobs.topk(min(n_top, len(logprobs)))
    return TokenLogprobs(token, logprobs[token].item(), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
