"""Rounds that two native models play by themselves are those of the sampler's own verification, token for token."""

import pytest
import torch

from cpu_engine import native, weights_of
from gptfast_cli.core.decode import speculation as module
from gptfast_cli.core.decode.depth import FixedDepth
from gptfast_cli.core.decode.generator import Generator
from gptfast_cli.core.decode.proposers.draft_model import DraftModel
from gptfast_cli.core.decode.runner import Runner
from gptfast_cli.core.decode.sampler import Sampler
from gptfast_cli.core.decode.sampling import Sampling
from gptfast_cli.core.decode.sequence import Limits, Sequence
from gptfast_cli.core.decode.speculation import Speculation
from gptfast_cli.core.model.native import NativeModel
from model_files import drained

SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=1.0, top_k=0),
    Sampling(temperature=0.8, top_k=20),
    Sampling(temperature=1.2, top_k=0, top_p=0.9),
    Sampling(temperature=1.0, top_k=50, top_p=0.95, min_p=0.02),
]
PROMPTS = ((1, 5, 9), (1, 7, 7, 30, 2, 4), (80,), (1, 5, 9, 11, 12))


@pytest.fixture(scope="module")
def pair() -> tuple[NativeModel, NativeModel]:
    config, weights = weights_of("grouped heads, odd sizes", "float32")
    draft = native(config, weights_of("grouped heads, odd sizes", "int4-32")[1], torch.float32, n_threads=2)
    return native(config, weights, torch.float32, n_threads=2), draft


def answers(
    pair: tuple[NativeModel, NativeModel], sampling: Sampling, limits: Limits, n_rows: int, k: int
) -> tuple[list[list[int]], Speculation]:
    wanted = [Sequence(n, prompt, Sampler(sampling, 11, n), limits) for n, prompt in enumerate(PROMPTS)]
    speculation = Speculation(DraftModel(pair[1], n_rows), FixedDepth(k))
    generator, waiting = Generator(Runner(pair[0], n_rows), speculation), list(wanted)
    while waiting or generator.active:
        while waiting and generator.has_room:
            drained(generator.admit(waiting.pop(0)))
        if generator.active:
            drained(generator.step())
    return [each.generated for each in wanted], speculation


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize(("n_rows", "k"), [(1, 1), (1, 4), (3, 5), (4, 2)])
def test_rounds_in_one_call_give_what_rounds_one_by_one_give(
    pair: tuple[NativeModel, NativeModel], sampling: Sampling, n_rows: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(40, 512, frozenset(range(3)))
    monkeypatch.setattr(module, "AHEAD_SECONDS", 1e9)  # however slow this machine is
    played, their = answers(pair, sampling, limits, n_rows, k)
    monkeypatch.setattr(module, "playing_draft", lambda *_: None)
    asked, our = answers(pair, sampling, limits, n_rows, k)
    assert played == asked
    assert their.rounds.histogram == our.rounds.histogram
    assert their.rounds.positions == our.rounds.positions
    assert (their.rounds.n_rounds, their.rounds.n_tokens) == (our.rounds.n_rounds, our.rounds.n_tokens)
    assert their.rounds.alpha == pytest.approx(our.rounds.alpha, abs=1e-5)


def test_more_rounds_than_one_are_played_in_a_call(
    pair: tuple[NativeModel, NativeModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AHEAD_SECONDS", 1e9)
    limits = Limits(60, 512, frozenset())
    generator = Generator(Runner(pair[0], 1), Speculation(DraftModel(pair[1], 1), FixedDepth(2)))
    sequence = Sequence(0, PROMPTS[0], Sampler(SAMPLINGS[0], 11), limits)
    drained(generator.admit(sequence))
    drained(generator.step())
    assert len(sequence.generated) >= 58


def test_logits_that_are_no_numbers_are_an_error(pair: tuple[NativeModel, NativeModel]) -> None:
    config, weights = weights_of("grouped heads, odd sizes", "float32")
    (norm,) = weights["norm"].parts.values()
    broken = norm.clone()
    norm.fill_(torch.nan)
    spoilt = native(config, weights, torch.float32)
    norm.copy_(broken)
    limits = Limits(12, 512, frozenset())
    expected, _ = answers(pair, SAMPLINGS[0], limits, 2, 0)
    assert answers((pair[0], spoilt), SAMPLINGS[0], limits, 2, 3)[0] == expected, "a draft may be broken"
