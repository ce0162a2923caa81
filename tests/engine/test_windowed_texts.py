"""A model whose layers forget: the texts are those of a cache that keeps all, whatever is drafted, shared or reused."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cpu_engine import native, reference
from gptfast_cli.core.backends.base import KEY_BLOCK
from gptfast_cli.core.engine import prompt_cache
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.prompt_cache import PromptCache
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.engine.speculative.draft_length import FixedDraftLength
from gptfast_cli.core.engine.speculative.drafting import check_rollback
from gptfast_cli.core.engine.speculative.proposers.draft_model import DraftModel
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.models.kv_blocks import MOST_ROLLBACK
from layer_features import random_weights
from model_files import run_to_end
from windowed_models import MIXED, cache_of_all, config_of, some_tokens

CONFIG = config_of([replace(each, head_dim=32, n_heads=4) for each in MIXED])  # windows of 40 and 200
GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=1.0, top_k=0)
LONG = tuple(some_tokens(1, 500)[0].tolist())
PROMPTS = (LONG, LONG[:3], (*LONG[:300], 5, 9), LONG)
KINDS = ["torch", "torch, int8", "native", "native, int8"]


def model_of(kind: str) -> Decoder:
    build = native if kind.startswith("native") else reference
    kv_dtype = torch.int8 if "int8" in kind else None
    return build(CONFIG, random_weights(CONFIG), torch.float32, kv_dtype=kv_dtype)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> Decoder:
    return model_of(request.param)


@pytest.fixture(scope="module")
def model_that_keeps_all(model: Decoder) -> Decoder:
    """The same model with caches of which windows only hide a part."""
    kind = ("native" if model.has_own_threads else "torch") + (", int8" if model.kv_dtype is torch.int8 else "")
    other = model_of(kind)
    other.new_cache = lambda n_rows: cache_of_all(other, n_rows, is_stacked=not other.has_own_threads)  # type: ignore[method-assign]
    return other


def texts(model: Decoder, n_rows: int, sampling: Sampling, *, drafts: bool = False) -> list[list[int]]:
    """What follows each prompt, of which `n_rows` are decoded at a time."""
    limits = [Limits(20 + 30 * n, 1024, frozenset()) for n in range(len(PROMPTS))]
    requests = [Request(n, PROMPTS[n], Sampler(sampling, 3, n), limits[n]) for n in range(len(PROMPTS))]
    speculation = Speculation(DraftModel(model, n_rows), FixedDraftLength(5)) if drafts else None
    run_to_end(Engine(Runner(model, n_rows), speculation), requests)
    return [request.generated for request in requests]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN])
def test_texts_are_those_of_a_model_that_keeps_all(
    model: Decoder, model_that_keeps_all: Decoder, sampling: Sampling
) -> None:
    expected = texts(model_that_keeps_all, 1, sampling)
    for n_rows in (1, 3):
        assert texts(model, n_rows, sampling) == expected


def test_speculation_gives_the_greedy_texts(model: Decoder, model_that_keeps_all: Decoder) -> None:
    assert texts(model, 2, GREEDY, drafts=True) == texts(model_that_keeps_all, 1, GREEDY)


def test_a_draft_that_is_always_wrong_is_taken_back(model: Decoder, model_that_keeps_all: Decoder) -> None:
    other = native(CONFIG, random_weights(CONFIG), torch.bfloat16, float_activations=True)
    draft = DraftModel(other, 1)
    (prompt, limits) = LONG[:170], Limits(150, 1024, frozenset())
    requests = [Request(0, prompt, Sampler(GREEDY, 0), limits) for _ in range(2)]
    run_to_end(Engine(Runner(model, 1), Speculation(draft, FixedDraftLength(100))), requests[:1])
    run_to_end(Engine(Runner(model_that_keeps_all, 1)), requests[1:])
    assert requests[0].generated == requests[1].generated


def test_a_prefix_that_is_forgotten_is_fed_anew(model: Decoder) -> None:
    runner = Runner(model, 2)
    runner.prefill(0, LONG)
    assert runner.reuse_prefix(1, LONG[:300]) == 0
    again = runner.prefill(1, LONG[:300]).whole
    fresh = Runner(model, 1)
    assert torch.equal(again, fresh.prefill(0, LONG[:300]).whole)
    assert runner.reuse_prefix(1, LONG) == len(LONG)  # what another row has just been fed is there
    continued = runner.prefill(1, [7]).whole
    assert torch.equal(continued, runner.prefill(0, [7]).whole)


def test_no_more_can_be_drafted_than_be_taken_back(model: Decoder) -> None:
    check_rollback("--k", MOST_ROLLBACK, model)
    with pytest.raises(UsageError, match="--k may be up to 128 with int8 keys and values or windows"):
        check_rollback("--k", MOST_ROLLBACK + 1, model)


def cached(file: Path, runner: Runner, prompt: tuple[int, ...]) -> PromptCache:
    return PromptCache(file, SimpleNamespace(model=runner.model, checkpoint=None), runner, prompt)  # type: ignore[arg-type]


def fed(runner: Runner, prompt: tuple[int, ...]) -> tuple[int, torch.Tensor]:
    """How many tokens of a prompt the first row had to be fed, and the logits after it."""
    n_known = runner.reuse_prefix(0, prompt[:-1])
    return len(prompt) - n_known, runner.prefill(0, prompt[n_known:]).whole


def test_a_prompt_is_kept_in_a_file_though_its_row_has_gone_on(
    model: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_cache, "fingerprint", lambda _: "a model of no file")
    file, runner, prompt = tmp_path / "prompt.safetensors", Runner(model, 1), LONG[: 3 * KEY_BLOCK + 30]
    writing = cached(file, runner, prompt)
    _, expected = fed(runner, prompt)
    writing.keep()
    runner.prefill(0, LONG)
    (note,) = writing.save()
    n_kept = 3 * KEY_BLOCK if model.kv_dtype is torch.int8 else len(prompt)
    assert f"kept {n_kept} tokens" in note.text
    again = Runner(model, 1)
    (note,) = cached(file, again, prompt).load()
    assert f"holds {n_kept} of the prompt's {len(prompt)} tokens" in note.text
    n_fed, logits = fed(again, prompt)
    assert n_fed == max(1, len(prompt) - n_kept)
    assert torch.equal(logits, expected)


def test_a_prompt_that_parts_from_the_file_before_its_end_is_fed_whole(
    model: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt_cache, "fingerprint", lambda _: "a model of no file")
    file, runner, prompt = tmp_path / "prompt.safetensors", Runner(model, 1), LONG[: 3 * KEY_BLOCK]
    writing = cached(file, runner, prompt)
    fed(runner, prompt)
    writing.keep()
    list(writing.save())
    again, other = Runner(model, 1), (*prompt[:100], 5, 9)
    reading = cached(file, again, other)
    (note,) = reading.load()
    assert "holds 0 of the prompt's 102 tokens" in note.text
    n_fed, logits = fed(again, other)
    assert n_fed == len(other)
    assert torch.equal(logits, fed(Runner(model, 1), other)[1])
