"""The probability that drafted tokens are accepted, at every position of a text, and what a round then gains.

A text of the target's own is what speculation would have given, whatever drafted it. Given the text, the draft proposed
its next token x, and x stayed, with probability min(p, q)(x) / p(x) = min(1, q(x) / p(x)); else the round ended with x.
So the places where rounds begin are a Markov chain along the text, whose expected visits are counted from its start to
its end, for every depth from the same chances: nothing is assumed of how easy and hard tokens follow one another. Where
tokens are not drawn, chances are 0 or 1, and the counts those of the engine.
"""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gptfast_cli.core.drafts.texts import TargetText
from gptfast_cli.core.engine.runner import PREFILL_CHUNK, Runner
from gptfast_cli.core.engine.sampling import SamplingContext, distribution
from gptfast_cli.core.engine.speculative.proposers.ngram import NGram
from gptfast_cli.core.stopwatch import Stopwatch


@dataclass(frozen=True, slots=True)
class AcceptanceProbs:
    """Of a proposer, along texts of which `n` tokens are there when a round begins.

    stays:      [texts, n, place] float64, the chance that the token drafted at a place stays where those before it did
    n_proposed: [texts, n] int64, how many it drafts at most
    lengths, most: [texts] int64, tokens of each text, and what it might have come to
    overlap:    [texts, token] float64, sum of min(p, q) for each token of a text, NaN where there is none
    """

    stays: Tensor
    n_proposed: Tensor
    lengths: Tensor
    most: Tensor
    overlap: Tensor

    def of(self, n_texts: int) -> "AcceptanceProbs":
        """Those along the first texts."""
        return AcceptanceProbs(*(getattr(self, name)[:n_texts] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Expected:
    """Expected counts for each text: [texts] float64, and by place [texts, k].

    n_rounds: that drafted something; n_plain: plain steps between them
    n_drafted, n_reached, n_accepted: rounds that drafted a token at a place, that kept all before it, and that kept it
    """

    n_rounds: Tensor
    n_plain: Tensor
    n_drafted: Tensor
    n_reached: Tensor
    n_accepted: Tensor


def expected(chances: AcceptanceProbs, k: int, *, n_undrafted: int = 1) -> Expected:
    """What rounds of depth k come to; where nothing is proposed, `n_undrafted` plain steps follow."""
    n_texts, time, deepest = chances.stays.shape
    assert 0 < k <= deepest
    visits = torch.zeros(n_texts, time + k + n_undrafted + 1, dtype=torch.float64)
    visits[:, 1] = 1  # the first token is the prefill's
    n_rounds, n_plain = torch.zeros(n_texts, dtype=torch.float64), torch.zeros(n_texts, dtype=torch.float64)
    n_drafted, n_reached, n_accepted = (torch.zeros(n_texts, k, dtype=torch.float64) for _ in range(3))
    for n in range(1, int(chances.lengths.max())):
        here = torch.where(n < chances.lengths, visits[:, n], 0.0)
        depth = torch.minimum(chances.n_proposed[:, n], chances.most - n - 1).clamp(0, k)
        skipped = torch.where(depth == 0, here, 0.0)
        n_skipped = torch.minimum(torch.full_like(depth, n_undrafted), chances.lengths - n).clamp(min=0)
        n_plain += skipped * n_skipped
        visits[:, n + n_undrafted] += skipped
        reaching = here - skipped
        n_rounds += reaching
        for place in range(k):
            drafting = torch.where(place < depth, reaching, 0.0)
            n_drafted[:, place] += torch.where(place < depth, here, 0.0)
            n_reached[:, place] += drafting
            staying = drafting * chances.stays[:, n, place]
            n_accepted[:, place] += staying
            # the others end with the token that takes the place of this one, or that follows all of them
            visits[:, n + place + 1] += reaching - staying
            reaching = staying
        visits[:, n + k + 1] += reaching
    return Expected(n_rounds, n_plain, n_drafted, n_reached, n_accepted)


_NOTHING = torch.empty(0, dtype=torch.int64)


class AcceptanceReader(Protocol):
    """Follows texts one by one, and says in the end what a draft's chances along them were."""

    def read(self, text: TargetText, laws: Tensor) -> None:
        """Take in the next text and the target's probabilities of each of its tokens, [tokens, vocab] float32.

        They are 1 and 0 where the target takes the most probable token.
        """
        ...

    def chances(self, deepest: int) -> AcceptanceProbs:
        """Along all texts so far, up to a depth."""
        ...


class ProbsReader:
    """Feeds a model whole texts, and times what their prompts take."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.prefill_seconds: list[float] = []

    def laws(self, text: TargetText) -> Tensor:
        """Its probabilities of each token of a text, [tokens, vocab] float32; 1 and 0 where none are drawn.

        They are all 0 where the model's logits are not finite.
        """
        prompt, runner, watch = text.prompt.ids, self._runner, Stopwatch(self._runner.model.device)
        runner.clear()
        with watch:
            for first in range(0, len(prompt) - 1, PREFILL_CHUNK):
                runner.prefill(0, prompt[first : min(first + PREFILL_CHUNK, len(prompt) - 1)])
        self.prefill_seconds.append(watch.seconds)
        fed = torch.tensor([prompt[-1], *text.tokens[:-1]], device=runner.model.device)
        (logits,) = runner.extend([fed], needs_laws=True)
        draw = SamplingContext(text.sampler, prompt, text.tokens)
        best = logits.best().unsqueeze(-1)
        is_finite = best < logits.vocab_size
        if not bool(is_finite.all()):
            runner.wipe(0)
        if text.sampler.sampling.is_greedy:
            return torch.zeros_like(logits.whole).scatter_(-1, best.where(is_finite, 0), is_finite.float())
        return distribution(logits, draw, _NOTHING.to(fed.device)).where(is_finite, 0)


class ModelAcceptance:
    """See Agreement; of a model that drafts token by token, under the target's own sampling options.

    On text that is not the target's own, a token's chance is the overlap of both laws: the mean over what the draft
    might have said.
    """

    def __init__(self, runner: Runner) -> None:
        self.reader = ProbsReader(runner)
        self._rows: list[tuple[TargetText, Tensor, Tensor]] = []  # chance and overlap of each token

    def read(self, text: TargetText, laws: Tensor) -> None:
        """See AcceptanceReader."""
        q = self.reader.laws(text).to(laws.device)
        overlap = torch.minimum(laws, q).sum(dim=-1).clamp(max=1)
        own = torch.tensor(text.tokens, device=laws.device).unsqueeze(-1)
        p_own, q_own = laws.gather(-1, own).squeeze(-1), q.gather(-1, own).squeeze(-1)
        is_proxy = text.prompt.completion is not None
        # a text of the target's own has no token of probability 0; a bit more or less in a product may say otherwise
        stays = overlap if is_proxy else torch.where(p_own > 0, (q_own / p_own).clamp(max=1), overlap)
        self._rows.append((text, stays.double().cpu(), overlap.double().cpu()))

    def chances(self, deepest: int) -> AcceptanceProbs:
        """See AcceptanceReader."""
        lengths = torch.tensor([len(text.tokens) for text, _, _ in self._rows])
        time = int(lengths.max())
        stays, overlap = torch.zeros(len(lengths), time + deepest).double(), torch.full((len(lengths), time), torch.nan)
        for row, (text, each, both) in enumerate(self._rows):
            stays[row, : len(text.tokens)] = each
            overlap[row, 1 : len(text.tokens)] = both[1:]  # the first token is not drafted
        return AcceptanceProbs(
            stays.unfold(1, deepest, 1)[:, :time],
            torch.full((len(lengths), time), deepest),
            lengths,
            torch.tensor([text.most for text, _, _ in self._rows]),
            overlap.double(),
        )


class NGramAcceptance:
    """See Agreement; of prompt lookup, whose tokens are certain: one stays where the text has it too."""

    def __init__(self, deepest: int) -> None:
        self._deepest = deepest
        self._rows: list[tuple[TargetText, Tensor, Tensor, Tensor]] = []

    def read(self, text: TargetText, laws: Tensor) -> None:
        """See AcceptanceReader."""
        n_tokens, proposer = len(text.tokens), NGram(1)
        stays, n_proposed = torch.zeros(n_tokens, self._deepest).double(), torch.zeros(n_tokens, dtype=torch.int64)
        overlap = torch.full((n_tokens,), torch.nan).double()
        proposer.begin(0, text.prompt.ids)
        for n in range(1, n_tokens):
            draw = SamplingContext(text.sampler, text.prompt.ids, text.tokens[:n])
            drafted = proposer.propose([draw], [self._deepest])[0].tokens.tolist()
            n_proposed[n] = len(drafted)
            for place, (token, own) in enumerate(zip(drafted, text.tokens[n:], strict=False)):
                stays[n, place] = token == own
            if drafted:
                overlap[n] = laws[n, drafted[0]]  # what a certain token and a law have in common
        self._rows.append((text, stays, n_proposed, overlap))

    def chances(self, deepest: int) -> AcceptanceProbs:
        """See AcceptanceReader."""
        texts, stays, n_proposed, overlap = zip(*self._rows, strict=True)
        return AcceptanceProbs(
            _padded(stays)[..., :deepest],
            _padded(n_proposed),
            torch.tensor([len(text.tokens) for text in texts]),
            torch.tensor([text.most for text in texts]),
            _padded(overlap, torch.nan),
        )


class AssumedAcceptance:
    """See Agreement; nothing is known of the draft but the chance that any of its tokens stays."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._texts: list[TargetText] = []

    def read(self, text: TargetText, laws: Tensor) -> None:  # noqa: ARG002  # what is assumed has no need of laws
        """See AcceptanceReader."""
        self._texts.append(text)

    def chances(self, deepest: int) -> AcceptanceProbs:
        """See AcceptanceReader."""
        lengths = torch.tensor([len(text.tokens) for text in self._texts])
        shape = len(lengths), int(lengths.max())
        most = torch.tensor([text.most for text in self._texts])
        always = torch.full((*shape, deepest), self._alpha).double()
        return AcceptanceProbs(
            always, torch.full(shape, deepest), lengths, most, torch.full(shape, self._alpha).double()
        )


def _padded(rows: Rows[Tensor], value: float = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
