"""Acceptance probability of drafted tokens at every position of a text, and the expected rounds that follow from it.

Speculation is lossless, so a text that the target sampled is what any draft would have produced. Block verification
accepts the n tokens x_1 ... x_n of a drafted block or more of them with probability a_n (see `verification`). Given
that the text goes on with them, they were drafted and accepted with probability

    w_n = prod q(x_i) / prod p(x_i) * a_n = min(1, s_1, s_1 s_2, ..., s_1 ... s_n),  s_i = q(x_i) / p(x_i)

since a_n = min(1, a_(n-1) / s_n); otherwise the round ended before. The positions where rounds begin are therefore a
Markov chain along the text. Its expected visits are computed from start to end, for every draft length k from the same
probabilities, without assuming that tokens are independent. Under greedy decoding the probabilities are 0 or 1, and the
counts equal those of the engine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gptfast_cli.core.drafts.texts import TargetText
from gptfast_cli.core.engine.runner import PREFILL_CHUNK, Runner
from gptfast_cli.core.engine.sampling import SamplingContext, distribution, most_probable
from gptfast_cli.core.engine.speculative.proposers.ngram import NGram
from gptfast_cli.core.stopwatch import Stopwatch


@dataclass(frozen=True, slots=True)
class AcceptanceProbs:
    """Acceptance probabilities of a proposer, for a round that begins after the first `n` tokens of a text.

    p_accept:         [texts, n, position] float64, P(the text's token there is drafted and accepted | those before it
                      in the round were)
    n_proposed:       [texts, n] int64, number of tokens that the proposer drafts there, at most
    lengths, most:    [texts] int64, tokens of each text, and the maximum that its limits allow
    overlap:          [texts, token] float64, sum over the vocabulary of min(p, q); NaN if nothing is drafted
    """

    p_accept: Tensor
    n_proposed: Tensor
    lengths: Tensor
    most: Tensor
    overlap: Tensor

    def of(self, n_texts: int) -> "AcceptanceProbs":
        """Those of the first texts."""
        return AcceptanceProbs(*(getattr(self, name)[:n_texts] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected counts for each text: [texts] float64, and by position [texts, k].

    n_rounds:   rounds with at least one drafted token
    n_plain:    plain steps between them
    n_drafted:  rounds that drafted a token at the position
    n_reached:  of these, rounds that accepted all tokens before it
    n_accepted: of these, rounds that accepted the token, too
    """

    n_rounds: Tensor
    n_plain: Tensor
    n_drafted: Tensor
    n_reached: Tensor
    n_accepted: Tensor


def expected(acceptance_probs: AcceptanceProbs, k: int, *, n_undrafted: int = 1) -> Expected:
    """Expected counts of rounds with draft length k; `n_undrafted` plain steps follow an empty proposal."""
    n_texts, time, max_draft_length = acceptance_probs.p_accept.shape
    assert 0 < k <= max_draft_length
    visits = torch.zeros(n_texts, time + k + n_undrafted + 1, dtype=torch.float64)
    visits[:, 1] = 1  # the prefill gives the first token
    n_rounds, n_plain = torch.zeros(n_texts, dtype=torch.float64), torch.zeros(n_texts, dtype=torch.float64)
    n_drafted, n_reached, n_accepted = (torch.zeros(n_texts, k, dtype=torch.float64) for _ in range(3))
    for n in range(1, int(acceptance_probs.lengths.max())):
        here = torch.where(n < acceptance_probs.lengths, visits[:, n], 0.0)
        draft_length = torch.minimum(acceptance_probs.n_proposed[:, n], acceptance_probs.most - n - 1).clamp(0, k)
        skipped = torch.where(draft_length == 0, here, 0.0)
        n_skipped = torch.minimum(torch.full_like(draft_length, n_undrafted), acceptance_probs.lengths - n).clamp(min=0)
        n_plain += skipped * n_skipped
        visits[:, n + n_undrafted] += skipped
        reaching = here - skipped
        n_rounds += reaching
        for position in range(k):
            drafting = torch.where(position < draft_length, reaching, 0.0)
            n_drafted[:, position] += torch.where(position < draft_length, here, 0.0)
            n_reached[:, position] += drafting
            staying = drafting * acceptance_probs.p_accept[:, n, position]
            n_accepted[:, position] += staying
            # the others end here, with the corrected token
            visits[:, n + position + 1] += reaching - staying
            reaching = staying
        visits[:, n + k + 1] += reaching
    return Expected(n_rounds, n_plain, n_drafted, n_reached, n_accepted)


class AcceptanceReader(Protocol):
    """Reads texts one by one and collects a draft's acceptance probabilities along them."""

    @property
    def prefill_seconds(self) -> Sequence[float]:
        """Seconds of the draft's prefill of each prompt; empty for a draft without a model."""
        ...

    def read(self, text: TargetText, probs: Tensor) -> None:
        """Read the next text and the target's probabilities along it, [tokens, vocab] float32, one-hot if greedy."""
        ...

    def acceptance_probs(self, max_draft_length: int) -> AcceptanceProbs:
        """Acceptance probabilities along all texts read so far."""
        ...


class ProbsReader:
    """Computes a model's probabilities along whole texts, and times their prefill."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.prefill_seconds: list[float] = []

    def probs(self, text: TargetText) -> Tensor:
        """Probabilities at each token of a text, [tokens, vocab] float32; one-hot if greedy.

        All 0 where the logits are not finite.
        """
        prompt, runner, watch = text.prompt.ids, self._runner, Stopwatch(self._runner.model.device)
        runner.clear()
        with watch:
            for first in range(0, len(prompt) - 1, PREFILL_CHUNK):
                runner.prefill(0, prompt[first : min(first + PREFILL_CHUNK, len(prompt) - 1)])
        self.prefill_seconds.append(watch.seconds)
        fed = torch.tensor([prompt[-1], *text.tokens[:-1]], device=runner.model.device)
        (logits,) = runner.extend([fed], needs_probs=True)
        context = SamplingContext(text.sampler, prompt, ())
        best = most_probable(logits, context, fed[1:]).unsqueeze(-1)
        is_finite = best < logits.vocab_size
        if not bool(is_finite.all()):
            runner.wipe(0)
        if text.sampler.sampling.is_greedy:
            return torch.zeros_like(logits.whole).scatter_(-1, best.where(is_finite, 0), is_finite.float())
        return distribution(logits, context, fed[1:]).where(is_finite, 0)


class ModelAcceptance:
    """Acceptance of a draft model that samples with the target's options.

    On text that the target did not sample, overlaps sum(min(p, q)) stand in for the ratios q / p of its tokens.
    """

    def __init__(self, runner: Runner) -> None:
        self._reader = ProbsReader(runner)
        self.prefill_seconds = self._reader.prefill_seconds
        self._rows: list[tuple[TargetText, Tensor, Tensor]] = []  # ratio q / p and overlap of each token

    def read(self, text: TargetText, probs: Tensor) -> None:
        q = self._reader.probs(text).to(probs.device)
        overlap = torch.minimum(probs, q).sum(dim=-1).clamp(max=1)
        own = torch.tensor(text.tokens, device=probs.device).unsqueeze(-1)
        p_own, q_own = probs.gather(-1, own).squeeze(-1), q.gather(-1, own).squeeze(-1)
        is_proxy = text.prompt.completion is not None
        # a sampled token has p > 0, except for rounding differences between runs
        ratios = overlap if is_proxy else torch.where(p_own > 0, q_own.double() / p_own, overlap)
        self._rows.append((text, ratios.double().cpu(), overlap.double().cpu()))

    def acceptance_probs(self, max_draft_length: int) -> AcceptanceProbs:
        lengths = torch.tensor([len(text.tokens) for text, _, _ in self._rows])
        time = int(lengths.max())
        ratios, overlap = (
            torch.zeros(len(lengths), time + max_draft_length).double(),
            torch.full((len(lengths), time), torch.nan),
        )
        for row, (text, each, both) in enumerate(self._rows):
            ratios[row, : len(text.tokens)] = each
            overlap[row, 1 : len(text.tokens)] = both[1:]  # the prefill gives the first token
        return AcceptanceProbs(
            block_acceptance(ratios.unfold(1, max_draft_length, 1)[:, :time]),
            torch.full((len(lengths), time), max_draft_length),
            lengths,
            torch.tensor([text.most for text, _, _ in self._rows]),
            overlap.double(),
        )


def block_acceptance(ratios: Tensor) -> Tensor:
    """Acceptance probabilities of blocks, as in `p_accept`, from the ratios q / p of their tokens [..., position]."""
    reached = ratios.cumprod(dim=-1).cummin(dim=-1).values.clamp(max=1)  # w_n
    before = torch.cat([torch.ones_like(reached[..., :1]), reached[..., :-1]], dim=-1)
    return torch.where(before > 0, reached / before, 0)


class NGramAcceptance:
    """Acceptance of prompt lookup: a deterministic token is accepted where it equals the text's."""

    prefill_seconds = ()

    def __init__(self, max_draft_length: int) -> None:
        self._max_draft_length = max_draft_length
        self._rows: list[tuple[TargetText, Tensor, Tensor, Tensor]] = []

    def read(self, text: TargetText, probs: Tensor) -> None:
        n_tokens, proposer = len(text.tokens), NGram(1)
        p_accept, n_proposed = (
            torch.zeros(n_tokens, self._max_draft_length).double(),
            torch.zeros(n_tokens, dtype=torch.int64),
        )
        overlap = torch.full((n_tokens,), torch.nan).double()
        proposer.begin(0, text.prompt.ids)
        for n in range(1, n_tokens):
            context = SamplingContext(text.sampler, text.prompt.ids, text.tokens[:n])
            drafted = proposer.propose([context], [self._max_draft_length])[0].tokens.tolist()
            n_proposed[n] = len(drafted)
            for position, (token, own) in enumerate(zip(drafted, text.tokens[n:], strict=False)):
                p_accept[n, position] = token == own
            if drafted:
                overlap[n] = probs[n, drafted[0]]  # sum(min(p, q)) with one-hot q
        self._rows.append((text, p_accept, n_proposed, overlap))

    def acceptance_probs(self, max_draft_length: int) -> AcceptanceProbs:
        texts, p_accept, n_proposed, overlap = zip(*self._rows, strict=True)
        return AcceptanceProbs(
            _padded(p_accept)[..., :max_draft_length],
            _padded(n_proposed),
            torch.tensor([len(text.tokens) for text in texts]),
            torch.tensor([text.most for text in texts]),
            _padded(overlap, torch.nan),
        )


class AssumedAcceptance:
    """The same assumed acceptance probability alpha for every token."""

    prefill_seconds = ()

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._texts: list[TargetText] = []

    def read(self, text: TargetText, probs: Tensor) -> None:  # noqa: ARG002  # alpha is assumed
        self._texts.append(text)

    def acceptance_probs(self, max_draft_length: int) -> AcceptanceProbs:
        lengths = torch.tensor([len(text.tokens) for text in self._texts])
        shape = len(lengths), int(lengths.max())
        most = torch.tensor([text.most for text in self._texts])
        always = torch.full((*shape, max_draft_length), self._alpha).double()
        return AcceptanceProbs(
            always, torch.full(shape, max_draft_length), lengths, most, torch.full(shape, self._alpha).double()
        )


def _padded(rows: Sequence[Tensor], value: float = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
