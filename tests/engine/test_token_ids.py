"""A token without a row in the model's embedding is refused where it comes in, and again by the engine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from chat_model import chat_model
from cpu_engine import native, weights_of
from generation_requests import changed, requested
from gptfast_cli.core.backends.cpu.rounds import RoundLimits, RoundRow, run_rounds
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import ChatOptions
from gptfast_cli.core.engine.load import load
from gptfast_cli.core.engine.runner import Runner, sampling_params
from gptfast_cli.core.engine.sampling import Sampler, Sampling, SamplingContext
from gptfast_cli.core.evals.perplexity import TextOptions
from gptfast_cli.core.jobs import chat, generate, generate_batch, quantize
from gptfast_cli.core.jobs import eval as evaluating
from gptfast_cli.core.jobs.calibration_text import CalibrationOptions
from gptfast_cli.core.token_ids import TokenIdError, check_token_ids
from model_files import drained, edit_json, settings_in

N_ROWS = 260  # of the embedding
GREEDY = Sampling(temperature=0)
NEXT = SamplingContext(Sampler(GREEDY, 0), (1,), ())
FAR = [-1, 101, 2**31 + 5, 2**32 + 5, 2**53, -(2**40)]  # of which some would be 5 in 32 bits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer has a token more than its embedding: the common [PAD], with id = vocab_size."""
    return padded(chat_model(tmp_path_factory.mktemp("model") / "bytes", template=None))


def padded(folder: Path) -> Path:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[PAD]"])
    assert tokenizer.token_to_id("[PAD]") == N_ROWS
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def refused(job: Any) -> None:
    with pytest.raises(TokenIdError, match=rf"^Token '\[PAD\]' \(id {N_ROWS}\) has no embedding: .* {N_ROWS}, for ids"):
        drained(job)


def generating(folder: Path, prompt: str | tuple[int, ...], **changes: Any) -> generate.GenerateRequest:
    runtime = RuntimeConfig(device="cpu", dtype="float32")
    request = requested(
        generate.GenerateRequest, prompt, settings_in(folder), model=str(folder), runtime=runtime, sampling=GREEDY
    )
    return changed(request, max_new_tokens=4, **changes)


@pytest.mark.parametrize("prompt", ["a [PAD] b", (5, N_ROWS)])
def test_a_prompt_with_a_token_that_has_no_embedding_is_refused_by_name(
    folder: Path, prompt: str | tuple[int, ...]
) -> None:
    refused(generate.run(generating(folder, prompt)))


@pytest.mark.parametrize("token_id", [-1, N_ROWS + 1, 2**31, 2**32 + 5, 2**53, 2**70])
def test_an_id_of_any_size_is_refused_whole(folder: Path, token_id: int) -> None:
    with pytest.raises(TokenIdError, match=f"^Token id {token_id} has no embedding"):
        drained(generate.run(generating(folder, (5, token_id))))


def test_the_tokens_that_have_an_embedding_are_of_use(folder: Path) -> None:
    (sample,) = drained(generate.run(generating(folder, "a b <|im_end|>")))[1].samples
    assert len(sample.token_ids) == 4 and max(sample.token_ids) < N_ROWS


def test_bos_is_refused_where_it_is_used_and_an_end_token_never(tmp_path: Path) -> None:
    folder = padded(chat_model(tmp_path / "model", template=None))
    edit_json(folder / "tokenizer_config.json", lambda values: values.update(eos_token="[PAD]"))
    edit_json(folder / "config.json", lambda values: values.update(eos_token_id=[257, N_ROWS, 2**31 - 1]))
    loaded = drained(load(str(folder), settings_in(folder), RuntimeConfig(device="cpu")))[1]
    assert loaded.limits(9, None, stop=["[PAD]"]).stop_ids == {257}
    drained(generate.run(generating(folder, "a b")))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"]["special_tokens"] = {"[PAD]": {"id": "[PAD]", "ids": [N_ROWS], "tokens": ["[PAD]"]}}
    tokenizer["post_processor"]["single"][0] = {"SpecialToken": {"id": "[PAD]", "type_id": 0}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit_json(folder / "tokenizer_config.json", lambda values: values.update(bos_token="[PAD]"))
    refused(generate.run(generating(folder, "a b")))
    drained(generate.run(generating(folder, (97, 98))))


def test_a_chat_templates_own_text_is_refused_by_name(tmp_path: Path) -> None:
    folder = padded(chat_model(tmp_path / "model", template="[PAD]{{ messages[0].content }}"))
    refused(generate.run(generating(folder, "a")))
    request = requested(
        chat.ChatRequest, settings_in(folder), str(folder), runtime=RuntimeConfig(device="cpu", dtype="float32")
    )
    with drained(chat.open_chat(request))[1] as talk:
        refused(talk.say("a"))
    with drained(chat.open_chat(changed(request, chat=ChatOptions(chat=False))))[1] as talk:
        refused(talk.say("[PAD]"))
        assert drained(talk.say("a"))[1].n_generated > 0


def test_in_a_file_of_prompts_such_a_row_fails_alone(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "a [PAD]"}, {"prompt_ids": [97, 2**30]}, {"prompt": "b"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = requested(
        generate_batch.BatchRequest,
        tmp_path / "x.jsonl",
        settings_in(tmp_path),
        sampling=GREEDY,
        max_new_tokens=3,
        output=tmp_path / "out.jsonl",
        model=str(folder),
    )
    assert drained(generate_batch.run(request))[1].n_bad == 2
    records = list(map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()))
    assert [len(record.get("token_ids", ())) for record in records] == [3, 0, 0, 3]
    assert records[1]["error"]["message"].startswith("Token '[PAD]' (id 260) has no embedding")
    assert records[2]["error"]["message"].startswith(f"Token id {2**30} has no embedding")


@pytest.mark.parametrize("protocol", ["llamacpp-16", "lm-eval-word"])
def test_a_text_that_is_measured_is_refused_by_name(folder: Path, tmp_path: Path, protocol: str) -> None:
    (tmp_path / "text").write_text("a b c d e f g h" * 8 + "[PAD]")
    text = TextOptions(tmp_path / "text", protocol)
    refused(
        evaluating.run(
            evaluating.EvalRequest(settings_in(tmp_path), str(folder), RuntimeConfig(device="cpu"), text=text)
        )
    )


def test_a_text_to_calibrate_on_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a b c [PAD]")
    learning = CalibrationOptions(text=str(tmp_path / "text"))
    request = quantize.QuantizeRequest(settings_in(tmp_path), str(folder), rounding="gptq", calibration=learning)
    refused(quantize.run(request))


@pytest.mark.parametrize("token", FAR)
def test_the_engine_reads_nothing_beyond_the_embedding(token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights = weights_of("grouped heads, odd sizes", "float32")
    model = native(config, weights, torch.float32)
    monkeypatch.setattr("gptfast_cli.core.engine.runner.check_token_ids", lambda *_: None)
    runner = Runner(model, 1)
    calls: list[Callable[[], object]] = [
        lambda: runner.prefill(0, [5, token]),
        lambda: runner.run_ahead([[5, token]], [NEXT], [[0.0]]),
        lambda: runner.read(slice(0, 1), [[5, token]], [1]),
        lambda: run_rounds(
            runner.handle(1, 9),
            Runner(model, 1).handle(1, 9),
            [RoundRow(0, 5, 1, (5, token), 1, 1, sampling_params(NEXT))],
            RoundLimits(2, 2),
            (),
        ),
    ]
    for call in calls:
        with pytest.raises(TokenIdError, match=f"^Token id {token} has no embedding: the model has 101,"):
            call()
    assert runner.n_held(0) == 0


def test_ids_are_checked_up_to_the_last() -> None:
    check_token_ids(range(7), 7)
    with pytest.raises(TokenIdError, match=r"^Token 'seven' \(id 7\)"):
        check_token_ids(range(8), 7, {7: "seven"}.get)
