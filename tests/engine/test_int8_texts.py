"""Keys and values in int8 change no text for how it is made: drafted, in a batch, after another one, from a file."""

from pathlib import Path

import pytest
import torch

from cpu_engine import native, reference, weights_of
from generation_requests import changed, requested
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.compiled import Compiling, compile_steps, fixed_step
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.prompt_cache import _sha256_of
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.engine.speculative import speculation as module
from gptfast_cli.core.engine.speculative.draft_length import DraftOptions, FixedDraftLength
from gptfast_cli.core.engine.speculative.proposers.draft_model import DraftModel
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.events import Measured, Note
from gptfast_cli.core.jobs.generate import GenerateRequest, GenerateResult, run
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.models.transformer import Transformer
from llama_oracle import ours, random_llama
from model_files import drained, edit_tensors, run_to_end, saved, settings_in

INT8 = torch.int8
GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=1.1, top_k=30)
LENGTHS = (97, 115, 126, 127, 128, 129, 251)  # so that texts go through the end of a block of keys
LIMITS = Limits(max_new_tokens=16, max_context=512, stop_ids=frozenset())
Pair = tuple[Decoder, Decoder]


@pytest.fixture(scope="module", params=["native", "torch"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """A target, and a draft that agrees with it now and then."""
    (config, weights), (_, drafts) = (weights_of("grouped heads, odd sizes", kind) for kind in ("float32", "int4-32"))
    if request.param == "torch":
        return reference(config, weights, kv_dtype=INT8), reference(config, drafts, kv_dtype=INT8)
    target = native(config, weights, torch.float32, n_threads=2, kv_dtype=INT8)
    return target, native(config, drafts, torch.bfloat16, n_threads=2, kv_dtype=INT8)


def prompts() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(5)
    return [tuple(torch.randint(4, 90, (length,), generator=generator).tolist()) for length in LENGTHS]


def sequences(sampling: Sampling) -> list[Request]:
    return [Request(n, prompt, Sampler(sampling, 9, n), LIMITS) for n, prompt in enumerate(prompts())]


def texts(model: Decoder, sampling: Sampling, n_rows: int = 1, draft: Decoder | None = None, k: int = 0) -> list:
    wanted = sequences(sampling)
    speculation = (
        None if draft is None else Speculation(DraftModel(draft, n_rows), FixedDraftLength(k), ahead_seconds=1e9)
    )
    run_to_end(Engine(Runner(model, n_rows), speculation), wanted)
    if speculation is not None:
        assert sum(1 for count in speculation.rounds.histogram if count) > 1, "some agree, some do not"
    return [each.generated for each in wanted]


@pytest.mark.parametrize(("n_rows", "k"), [(1, 1), (1, 4), (3, 7)])
def test_greedy_text_with_a_draft_is_that_without(pair: Pair, n_rows: int, k: int) -> None:
    assert texts(pair[0], GREEDY, n_rows, pair[1], k) == texts(pair[0], GREEDY)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_rounds_one_by_one_give_what_rounds_in_one_call_give(
    pair: Pair, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    batched = texts(pair[0], sampling, 3, pair[1], 4)
    monkeypatch.setattr(module, "native_draft", lambda *_: None)
    assert texts(pair[0], sampling, 3, pair[1], 4) == batched


def test_a_row_of_a_batch_is_what_it_is_alone(pair: Pair) -> None:
    assert texts(pair[0], DRAWN, n_rows=4) == texts(pair[0], DRAWN)


def test_a_prompt_goes_on_from_whole_blocks_of_another_and_from_its_very_end(pair: Pair) -> None:
    prompt = prompts()[-1]
    runner, fresh = Runner(pair[0], 2), Runner(pair[0], 1)
    runner.prefill(0, prompt)
    for other, n_known in (((*prompt[:200], 5, 6), 128), ((*prompt, 7, 8), len(prompt)), (prompt[:127], 0)):
        known = runner.reuse_prefix(1, other)
        fresh.clear()
        assert known == n_known
        assert torch.equal(runner.prefill(1, other[known:]).whole, fresh.prefill(0, other).whole)


def test_after_a_call_that_was_broken_off_whole_blocks_are_trusted_alone(pair: Pair) -> None:
    prompt = prompts()[-1]
    runner, fresh = Runner(pair[0], 1), Runner(pair[0], 1)
    runner.prefill(0, prompt)
    with torch.inference_mode():
        pair[0].step([[7] * 149], runner._cache, slice(0, 1))  # and nobody has counted them
    known = runner.reuse_prefix(0, (*prompt, 7))
    assert known == 128
    assert torch.equal(runner.prefill(0, (*prompt, 7)[known:]).whole, fresh.prefill(0, (*prompt, 7)).whole)


def test_compiled_steps_give_the_same_tokens(tmp_path: Path) -> None:
    model = ours(random_llama(num_hidden_layers=2), kv_dtype=INT8)
    runner, compiling = Runner(model, 2), Compiling(decode=True, prefill=True, backend="eager")
    drained(compile_steps(runner, compiling, n_tokens=300, settings=settings_in(tmp_path)))
    plain = Runner(model, 2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in (0, 3):
            for each in (runner, plain):
                each.clear()
                each.reuse_prefix(0, ())
                each.prefill(0, prompts()[n])
            for token in range(12):
                torch.testing.assert_close(runner.step([token]).whole, plain.step([token]).whole)


def test_a_free_row_that_runs_along_spoils_nothing() -> None:
    model: Transformer = ours(random_llama(), kv_dtype=INT8)
    runner, alone, (short, *_, long) = Runner(model, 2), Runner(model, 1), prompts()
    runner.prepare(400, decode=fixed_step(model, model.next_logits))
    runner.prefill(1, long)
    runner.prefill(0, short)
    for token in range(40):
        runner.step([token])
    known = runner.reuse_prefix(1, (*long, 7))
    assert known == 128
    assert torch.equal(runner.prefill(1, (*long, 7)[known:]).whole, alone.prefill(0, (*long, 7)).whole)


@pytest.fixture
def request_for(tmp_path: Path) -> GenerateRequest:
    return requested(
        GenerateRequest,
        prompt=tuple(range(3, 99)) * 2,
        settings=settings_in(tmp_path),
        model=str(saved(tmp_path / "model")),
        runtime=RuntimeConfig(device="cpu", kv_dtype="int8"),
        sampling=Sampling(temperature=1.0, top_k=0),
        max_new_tokens=12,
        seed=3,
    )


def outcome(request: GenerateRequest, **changes: object) -> tuple[int, GenerateResult, list[str]]:
    """Prompt tokens fed, the result, and what was reported."""
    events, result = drained(run(changed(request, **changes)))
    fed = sum(event.n_tokens for event in events if isinstance(event, Measured) and event.phase == "prefill")
    return fed, result, [event.text for event in events if isinstance(event, Note)]


def test_a_file_keeps_the_whole_blocks_of_a_prompt_and_gives_the_same_text(request_for: GenerateRequest) -> None:
    request = changed(request_for, prompt_cache=request_for.settings.home.parent / "prompt.safetensors")
    fed, first, output = outcome(request)
    assert fed == 192 and "kept 128 tokens" in output[-1]
    fed, second, _ = outcome(request)
    assert fed == 64 and second.samples == first.samples == outcome(request_for)[1].samples
    with pytest.raises(UsageError, match="another model, or of another dtype"):
        outcome(request, runtime=RuntimeConfig(device="cpu"))
    assert "needs 128 tokens" in outcome(request, prompt=(1, 2, 3))[2][-1]

    def cut(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["sha256"]
        tensors["tokens"] = tensors["tokens"][:100]
        tensors["sha256"] = _sha256_of(tensors)

    edit_tensors(request.prompt_cache, cut)
    with pytest.raises(CorruptError, match="part of a block"):
        outcome(request)


def test_what_keys_and_values_are_kept_in_is_reported(request_for: GenerateRequest) -> None:
    _, coded, output = outcome(request_for)
    assert "float32 with int8 keys and values on cpu" in output[0]
    _, plain, output = outcome(request_for, runtime=RuntimeConfig(device="cpu"))
    assert "int8" not in output[0]
    assert (coded.kv_dtype, plain.kv_dtype) == ("int8", "float32")
    assert 0 < coded.kv_cache_bytes < plain.kv_cache_bytes


def test_samples_go_on_from_the_prompt_that_was_fed_once(request_for: GenerateRequest) -> None:
    fed, batched, _ = outcome(request_for, num_samples=3)
    assert fed == 192
    fed, in_turn, _ = outcome(request_for, num_samples=3, batch_size=1)
    assert fed == 192 + 2 * 64
    assert batched.samples == in_turn.samples


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"runtime": RuntimeConfig(device="cpu", kv_dtype="int4")}, "--kv-dtype cannot be 'int4'"),
        ({"drafting": DraftOptions("ngram", 129)}, "--speculate-k may be up to 128"),
    ],
)
def test_what_cannot_be_is_refused(request_for: GenerateRequest, changes: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        outcome(request_for, **changes)
