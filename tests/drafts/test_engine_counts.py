"""What is predicted of a greedy draft is what the engine then does: as many rounds and plain steps, to the last one."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from gptfast_cli.core.drafts.acceptance import AcceptanceProbs, ProbsReader, expected
from gptfast_cli.core.drafts.candidates import DraftCandidate, JudgeOptions, open_candidate, open_target, target_limits
from gptfast_cli.core.drafts.texts import TargetText, read_prompts, write_texts
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import ChatOptions
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.load import LoadedModel
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.engine.speculative.draft_length import FixedDraftLength
from gptfast_cli.core.engine.speculative.proposers.ngram import NGram
from gptfast_cli.core.engine.speculative.speculation import Speculation
from model_files import drained, settings_in

DEEPEST, N_PROMPTS = 8, 6


class Pair:
    """The bundled target, its greedy texts, and a draft's acceptance probabilities along them."""

    def __init__(self, folder: Path, backend: str, draft: str) -> None:
        options = JudgeOptions(settings_in(folder), RuntimeConfig("cpu", "float32", backend=backend), None, 1, DEEPEST)
        self.target: LoadedModel = drained(open_target("tiny", options))[1]
        opening = open_candidate(draft, self.target, options, n_tokens=200)
        self.candidate: DraftCandidate = drained(opening)[1]
        self.limits: Limits = target_limits(self.target, 60, ChatOptions())
        prompts = read_prompts(self.target, None, 60, ChatOptions())[0][:: 60 // N_PROMPTS]
        writing = write_texts(Runner(self.target.model, 4), prompts, Sampling(temperature=0), 0, self.limits)
        self.texts: list[TargetText] = drained(writing)[1][0]

    def acceptance_probs(self) -> AcceptanceProbs:
        acceptance, reader = self.candidate.new_reader(), ProbsReader(Runner(self.target.model, 1))
        for text in self.texts:
            acceptance.read(text, reader.probs(text))
        return acceptance.acceptance_probs(DEEPEST)

    def decoded(self, k: int) -> Iterator[tuple[list[int], Speculation]]:
        """Each text again, as the engine decodes it with the draft, and its rounds."""
        for text in self.texts:
            proposer = NGram(1) if isinstance(self.candidate.proposer, NGram) else self.candidate.proposer
            speculation = Speculation(proposer, FixedDraftLength(k))
            engine = Engine(Runner(self.target.model, 1), speculation)
            sequence = Request(0, text.prompt.ids, text.sampler, self.limits)
            engine.submit(sequence)
            while engine.has_work:
                drained(engine.step(1))
            yield sequence.generated, speculation


@cache
def pair(folder: Path, backend: str, draft: str) -> Pair:
    return Pair(folder, backend, draft)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize(
    ("backend", "draft"),
    [("cpu", "tiny-draft"), ("reference", "tiny-draft"), ("cpu", "self:int4"), ("reference", "ngram")],
)
def test_counts_of_greedy_rounds_are_the_engines(folder: Path, backend: str, draft: str, k: int) -> None:
    both = pair(folder, backend, draft)
    counts = expected(both.acceptance_probs(), k)
    output = list(both.decoded(k))
    ends = both.target.stop_ids
    assert [tokens for tokens, _ in output] == [[t for t in text.tokens if t not in ends] for text in both.texts]
    assert counts.n_rounds.tolist() == [speculation.rounds.n_rounds for _, speculation in output]
    assert counts.n_plain.tolist() == [speculation.rounds.n_plain_tokens for _, speculation in output]


def test_texts_are_of_several_lengths_and_end_in_their_end_tokens(folder: Path) -> None:
    both = pair(folder, "cpu", "tiny-draft")
    ends = both.target.stop_ids
    over = [text for text in both.texts if len(text.tokens) < text.most]
    assert over and all(text.tokens[-1] in ends for text in over)
    assert all(token not in ends for text in both.texts for token in text.tokens[:-1])
    assert any(len(text.tokens) == text.most for text in both.texts)
