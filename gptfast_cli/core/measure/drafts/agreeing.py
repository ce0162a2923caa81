"""A draft of known agreement: it does all of a model's work, and then says what the target will say, as often as asked.

So a draft can be run, and its speed-up be seen, before it is trained: what it costs does not depend on its words.
"""

from collections.abc import Mapping, Sequence

from gptfast_cli.core.decode.proposers import Proposal
from gptfast_cli.core.decode.proposers.draft_model import DraftModel
from gptfast_cli.core.decode.randomness import uniform
from gptfast_cli.core.decode.sampler import Draw


class Agreeing:
    """See Proposer; for targets that take the most probable token, of texts that are known beforehand."""

    def __init__(self, draft: DraftModel, alpha: float) -> None:
        """`alpha`: chance that a drafted token stays where those before it did."""
        self._draft, self._alpha = draft, alpha
        self._answers: Mapping[tuple[int, ...], Sequence[int]] = {}
        self._n_asked = 0
        self.bytes_per_step = draft.bytes_per_step

    def know(self, answers: Mapping[tuple[int, ...], Sequence[int]]) -> None:
        """What the target says after each prompt; after another one it is what the draft says."""
        self._answers = answers

    def begin(self, row: int, prompt: Sequence[int]) -> None:
        """See Proposer."""
        self._draft.begin(row, prompt)

    def move(self, source: int, target: int) -> None:
        """See Proposer."""
        self._draft.move(source, target)

    def propose(self, draws: Sequence[Draw], depths: Sequence[int]) -> list[Proposal]:
        """See Proposer."""
        proposals = self._draft.propose(draws, depths)
        self._n_asked += 1
        return [self._exchanged(row, draw, each) for row, (draw, each) in enumerate(zip(draws, proposals, strict=True))]

    def _exchanged(self, row: int, draw: Draw, proposal: Proposal) -> Proposal:
        answer = self._answers.get(tuple(draw.prompt))
        if answer is None:
            return proposal
        tokens, n = proposal.tokens.clone(), len(draw.generated)
        for place, own in enumerate(answer[n : n + len(tokens)]):
            is_right = uniform(row, self._n_asked, place) < self._alpha
            tokens[place] = own if is_right else int(own == 0)  # any other token
        return Proposal(tokens, None)
