"""The chance that each token of a text would have stayed, had a draft proposed it: one pass of both models over it."""

from collections.abc import Sequence as Rows
from typing import Protocol

import torch
from torch import Tensor

from gptfast_cli.core.decode.proposers.ngram import NGram
from gptfast_cli.core.decode.runner import PREFILL_CHUNK, Runner
from gptfast_cli.core.decode.sampler import Draw, law
from gptfast_cli.core.measure.drafts.expectation import Chances
from gptfast_cli.core.measure.drafts.texts import Text
from gptfast_cli.core.stopwatch import Stopwatch

_NOTHING = torch.empty(0, dtype=torch.int64)


class Agreement(Protocol):
    """Follows texts one by one, and says in the end what a draft's chances along them were."""

    def read(self, text: Text, laws: Tensor) -> None:
        """Take in the next text and the target's probabilities of each of its tokens, [tokens, vocab] float32.

        They are 1 and 0 where the target takes the most probable token.
        """
        ...

    def chances(self, deepest: int) -> Chances:
        """Along all texts so far, up to a depth."""
        ...


class Reader:
    """Feeds a model whole texts, and times what their prompts take."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.prefill_seconds: list[float] = []

    def laws(self, text: Text) -> Tensor:
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
        draw = Draw(text.sampler, prompt, text.tokens)
        best = logits.best().unsqueeze(-1)
        is_finite = best < logits.vocab_size
        if not bool(is_finite.all()):
            runner.wipe(0)
        if text.sampler.sampling.is_greedy:
            return torch.zeros_like(logits.whole).scatter_(-1, best.where(is_finite, 0), is_finite.float())
        return law(logits, draw, _NOTHING.to(fed.device)).where(is_finite, 0)


class ModelAgreement:
    """See Agreement; of a model that drafts token by token, under the target's own sampling options.

    On text that is not the target's own, a token's chance is the overlap of both laws: the mean over what the draft
    might have said.
    """

    def __init__(self, runner: Runner) -> None:
        self.reader = Reader(runner)
        self._rows: list[tuple[Text, Tensor, Tensor]] = []  # chance and overlap of each token

    def read(self, text: Text, laws: Tensor) -> None:
        """See Agreement."""
        q = self.reader.laws(text).to(laws.device)
        overlap = torch.minimum(laws, q).sum(dim=-1).clamp(max=1)
        own = torch.tensor(text.tokens, device=laws.device).unsqueeze(-1)
        p_own, q_own = laws.gather(-1, own).squeeze(-1), q.gather(-1, own).squeeze(-1)
        is_proxy = text.prompt.completion is not None
        # a text of the target's own has no token of probability 0; a bit more or less in a product may say otherwise
        stays = overlap if is_proxy else torch.where(p_own > 0, (q_own / p_own).clamp(max=1), overlap)
        self._rows.append((text, stays.double().cpu(), overlap.double().cpu()))

    def chances(self, deepest: int) -> Chances:
        """See Agreement."""
        lengths = torch.tensor([len(text.tokens) for text, _, _ in self._rows])
        time = int(lengths.max())
        stays, overlap = torch.zeros(len(lengths), time + deepest).double(), torch.full((len(lengths), time), torch.nan)
        for row, (text, each, both) in enumerate(self._rows):
            stays[row, : len(text.tokens)] = each
            overlap[row, 1 : len(text.tokens)] = both[1:]  # the first token is not drafted
        return Chances(
            stays.unfold(1, deepest, 1)[:, :time],
            torch.full((len(lengths), time), deepest),
            lengths,
            torch.tensor([text.most for text, _, _ in self._rows]),
            overlap.double(),
        )


class NGramAgreement:
    """See Agreement; of prompt lookup, whose tokens are certain: one stays where the text has it too."""

    def __init__(self, deepest: int) -> None:
        self._deepest = deepest
        self._rows: list[tuple[Text, Tensor, Tensor, Tensor]] = []

    def read(self, text: Text, laws: Tensor) -> None:
        """See Agreement."""
        n_tokens, proposer = len(text.tokens), NGram(1)
        stays, n_proposed = torch.zeros(n_tokens, self._deepest).double(), torch.zeros(n_tokens, dtype=torch.int64)
        overlap = torch.full((n_tokens,), torch.nan).double()
        proposer.begin(0, text.prompt.ids)
        for n in range(1, n_tokens):
            draw = Draw(text.sampler, text.prompt.ids, text.tokens[:n])
            drafted = proposer.propose([draw], [self._deepest])[0].tokens.tolist()
            n_proposed[n] = len(drafted)
            for place, (token, own) in enumerate(zip(drafted, text.tokens[n:], strict=False)):
                stays[n, place] = token == own
            if drafted:
                overlap[n] = laws[n, drafted[0]]  # what a certain token and a law have in common
        self._rows.append((text, stays, n_proposed, overlap))

    def chances(self, deepest: int) -> Chances:
        """See Agreement."""
        texts, stays, n_proposed, overlap = zip(*self._rows, strict=True)
        return Chances(
            _padded(stays)[..., :deepest],
            _padded(n_proposed),
            torch.tensor([len(text.tokens) for text in texts]),
            torch.tensor([text.most for text in texts]),
            _padded(overlap, torch.nan),
        )


class AssumedAgreement:
    """See Agreement; nothing is known of the draft but the chance that any of its tokens stays."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._texts: list[Text] = []

    def read(self, text: Text, laws: Tensor) -> None:  # noqa: ARG002  # what is assumed has no need of laws
        """See Agreement."""
        self._texts.append(text)

    def chances(self, deepest: int) -> Chances:
        """See Agreement."""
        lengths = torch.tensor([len(text.tokens) for text in self._texts])
        shape = len(lengths), int(lengths.max())
        most = torch.tensor([text.most for text in self._texts])
        always = torch.full((*shape, deepest), self._alpha).double()
        return Chances(always, torch.full(shape, deepest), lengths, most, torch.full(shape, self._alpha).double())


def _padded(rows: Rows[Tensor], value: float = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)
