"""Log-probabilities are those of transformers, whatever shares a batch, a beginning or a cache with a passage."""

import math
import random
from collections.abc import Sequence

import pytest
import torch
from transformers import LlamaForCausalLM

from cpu_engine import native, reference, weights_of
from gptfast_cli.core.backends.base import KEY_BLOCK
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.passages import Passage, fit_passage
from gptfast_cli.core.evals.scoring import Score, batch_budget_of, scores
from gptfast_cli.core.models.decoder import Decoder
from llama_oracle import ours, random_llama

VOCAB_SIZE = 101


class Watched:
    """Counts what a model is fed and asked for."""

    def __init__(self, model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_fed = 0
        self.most_wanted = 0
        self.most_rows = 0
        feed = model.feed

        def watched(tokens: Sequence[torch.Tensor], *rest: object) -> torch.Tensor:
            logits = feed(tokens, *rest)  # type: ignore[arg-type]
            self.n_fed += sum(map(len, tokens))
            self.most_wanted = max(self.most_wanted, len(logits))
            self.most_rows = max(self.most_rows, len(tokens))
            return logits

        monkeypatch.setattr(model, "feed", watched)


def words(rng: random.Random, n: int) -> tuple[int, ...]:
    return tuple(rng.randrange(VOCAB_SIZE) for _ in range(n))


def mixture(seed: int = 0) -> list[Passage]:
    """Questions with several answers behind a common beginning, pages that are all predicted, and doubles."""
    rng = random.Random(seed)
    beginning = words(rng, 12)
    passages = []
    for _ in range(12):
        question = beginning + words(rng, rng.randrange(1, 60))
        answers = [words(rng, rng.randrange(1, 9)) for _ in range(4)]
        passages += [Passage((*question, *answer), len(question)) for answer in [*answers, answers[0][:1]]]
    passages += [Passage(words(rng, n), 1) for n in (2, 3, 300, 511)]
    return [*passages, passages[7]]


def oracle(model: LlamaForCausalLM, passage: Passage) -> tuple[list[float], list[bool]]:
    """The whole passage through transformers in float64, by itself."""
    tokens = torch.tensor(passage.tokens)
    logprobs = model(tokens[None]).logits[0].log_softmax(dim=-1)[passage.n_context - 1 : -1]
    targets = tokens[passage.n_context :]
    own = logprobs.gather(1, targets[:, None])[:, 0]
    return own.tolist(), (logprobs.argmax(dim=-1) == targets).tolist()


@torch.no_grad()
def test_scores_are_those_of_transformers() -> None:
    model = random_llama(vocab_size=VOCAB_SIZE)
    passages = mixture()
    ours_of = dict(scores(ours(model), passages))
    assert sorted(ours_of) == list(range(len(passages)))
    exact = model.double()
    for number, passage in enumerate(passages):
        logprobs, likeliest = oracle(exact, passage)
        assert ours_of[number].logprobs == pytest.approx(logprobs, abs=1e-5)
        assert list(ours_of[number].likeliest) == likeliest


@pytest.mark.parametrize("backend", ["reference", "engine"])
def test_a_score_does_not_depend_on_company(backend: str) -> None:
    config, weights = weights_of("grouped heads, odd sizes", "float32", vocab_size=VOCAB_SIZE)
    model: Decoder = reference(config, weights) if backend == "reference" else native(config, weights, torch.float32)
    passages = mixture()
    batched = dict(scores(model, passages))
    for number, passage in enumerate(passages):
        assert dict(scores(model, [passage])) == {0: batched[number]}


@pytest.mark.parametrize("storage", ["bfloat16", "int8", "int4-32"])
def test_the_engine_scores_alike_in_any_company_however_weights_are_stored(storage: str) -> None:
    config, weights = weights_of("grouped heads, odd sizes", storage, vocab_size=VOCAB_SIZE)
    model = native(config, weights, torch.bfloat16)
    passages = mixture()[:15]
    batched = dict(scores(model, passages))
    for number, passage in enumerate(passages):
        assert dict(scores(model, [passage])) == {0: batched[number]}


def test_what_passages_have_in_common_is_fed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    beginning = words(rng, 100)
    questions = [beginning + words(rng, 20) for _ in range(30)]
    passages = [Passage((*question, *words(rng, 5)), 120) for question in questions for _ in range(4)]
    model = ours(random_llama(vocab_size=VOCAB_SIZE))
    watched = Watched(model, monkeypatch)
    assert len(dict(scores(model, passages))) == len(passages)
    # the beginning, the end of each question, and four of an answer's five tokens: the last is only predicted
    assert watched.n_fed <= 100 + 30 * 20 + 120 * 4


def test_answers_of_one_token_are_read_off_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ours(random_llama(vocab_size=VOCAB_SIZE))
    watched = Watched(model, monkeypatch)
    letters = [Passage((5, 6, 7, 8, letter), 4) for letter in range(40)]
    found = dict(scores(model, letters))
    assert (watched.n_fed, watched.most_wanted) == (4, 1)
    assert sum(score.is_greedy for score in found.values()) <= 1


def test_logits_and_rows_are_bounded_whatever_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ours(random_llama(vocab_size=VOCAB_SIZE))
    passages = mixture()
    whole = dict(scores(model, passages, batch_budget_of(model, piece_logits=64 * VOCAB_SIZE)))
    watched = Watched(model, monkeypatch)
    budget = batch_budget_of(model, piece_logits=64 * VOCAB_SIZE, cache_tokens=600)
    assert dict(scores(model, passages, budget)) == whole
    assert watched.most_wanted <= 64
    assert watched.most_rows <= 600 // KEY_BLOCK


def test_a_native_model_gives_few_rows_of_logits_at_once_and_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = native(*weights_of("grouped heads, odd sizes", "float32", vocab_size=VOCAB_SIZE), torch.float32)
    passages = mixture()
    whole = dict(scores(model, passages))
    watched = Watched(model, monkeypatch)
    assert dict(scores(model, passages, batch_budget_of(model, native_piece_rows=5))) == whole
    assert watched.most_wanted == 5


def test_nothing_to_score_is_no_score() -> None:
    assert dict(scores(ours(random_llama()), [])) == {}


def test_a_context_is_cut_off_from_the_left() -> None:
    assert fit_passage([1, 2, 3], [4, 5], 10) == Passage((1, 2, 3, 4, 5), 3)
    # the last token is only predicted, so there is room for one more than the model holds
    assert fit_passage([1, 2, 3], [4, 5], 3) == Passage((2, 3, 4, 5), 2)
    assert fit_passage([1, 2, 3], [4, 5, 6], 3) == Passage((3, 4, 5, 6), 1)


@pytest.mark.parametrize(("context", "continuation"), [([], [1]), ([1], []), ([1], [2, 3, 4, 5])])
def test_what_cannot_be_scored_is_refused(context: list[int], continuation: list[int]) -> None:
    with pytest.raises(UsageError):
        fit_passage(context, continuation, 3)


def test_a_score_adds_up() -> None:
    score = Score((-1.5, -0.25), (True, False))
    assert (score.logprob, score.is_greedy) == (-1.75, False)
    assert math.isclose(Score((-0.1,) * 10, (True,) * 10).logprob, -1)


def test_a_model_without_finite_logits_gives_no_score() -> None:
    model = random_llama()
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    (score,) = dict(scores(ours(model), [Passage((1, 2, 3), 1)])).values()
    assert not score.is_defined and math.isnan(score.logprob)


@pytest.mark.parametrize("kind", ["engine", "reference"])
def test_a_passage_whose_logits_are_not_finite_fails_alone(kind: str) -> None:
    """Also where it shares its beginning with others, and where they come after it in its row of the cache."""
    config, weights = weights_of("grouped heads, odd sizes", "float32")
    sound = reference(config, weights) if kind == "reference" else native(config, weights, torch.float32)
    begin = tuple(range(1, 30))
    passages = [Passage((*begin, *end), 2) for end in ((50, 60), (77, 60, 61), (50, 61), (50, 60, 62, 63))]
    passages += [Passage((n, 40, *(77,) * (n % 3 == 0), 41, n, 90), 1) for n in range(1, 40)]
    expected = dict(scores(sound, passages))
    config, weights = weights_of("grouped heads, odd sizes", "float32")
    (embedding,) = weights["embedding"].parts.values()
    embedding[77] = math.nan
    spoilt = reference(config, weights) if kind == "reference" else native(config, weights, torch.float32)
    found = dict(scores(spoilt, passages))
    for number, passage in enumerate(passages):
        assert found[number].is_defined == (77 not in passage.fed)
        assert not found[number].is_defined or found[number] == expected[number]
