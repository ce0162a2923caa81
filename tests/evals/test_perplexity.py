"""Perplexity is what each protocol's own code gives over the same model in transformers."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoTokenizer, LlamaForCausalLM

from chat_model import chat_model
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import load
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals import perplexity as measuring
from gptfast_cli.core.evals.perplexity import Perplexity, TextOptions, measure_perplexity, protocol_text
from gptfast_cli.core.evals.protocols import protocol_of, usual_protocols
from gptfast_cli.core.evals.scoring import batch_budget_of
from gptfast_cli.core.events import Progress
from gptfast_cli.core.jobs.eval import EvalRequest, Evaluation, run
from model_files import drained, edit_json, settings_in

RUNTIME = RuntimeConfig(device="cpu", dtype="float32", threads=1, backend="reference")
CONTEXT = 64
TEXT = 'One day, a fox met a badger.\n\nThe fox said: "Où vas-tu?"  It rained. ' * 11  # two bytes in one character


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokens are bytes, led by BOS, and which holds 64 of them."""
    made = chat_model(tmp_path_factory.mktemp("model") / "bytes", template=None)
    edit_json(made / "config.json", lambda config: config.update(max_position_embeddings=CONTEXT))
    return made


@pytest.fixture(scope="module")
def oracle(folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokens(folder: Path) -> Tensor:
    ids = torch.tensor([Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids])
    assert ids[0, 0] == 256 and len(ids[0]) == len(TEXT.encode()) + 1
    return ids


def request(tmp_path: Path, folder: Path, protocol: str, text: str | bytes = TEXT, **runtime: Any) -> EvalRequest:
    file = tmp_path / "text.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return EvalRequest(
        settings_in(tmp_path), str(folder), replace(RUNTIME, **runtime), text=TextOptions(file, protocol)
    )


def measured(tmp_path: Path, folder: Path, protocol: str, text: str | bytes = TEXT) -> Perplexity:
    evaluation: Evaluation = drained(run(request(tmp_path, folder, protocol, text)))[1]
    assert evaluation.perplexity is not None and evaluation.perplexity.protocol == protocol
    assert (evaluation.tasks, evaluation.comparison, evaluation.is_interrupted) == (None, None, False)
    return evaluation.perplexity


@torch.no_grad()
def gptq(model: LlamaForCausalLM, ids: Tensor, n: int) -> float:
    """As the papers' code has it: each window's mean times its length, over all tokens."""
    losses = []
    for number in range(ids.numel() // n):
        window = ids[:, number * n : (number + 1) * n]
        logits = model(window).logits
        losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], window[0, 1:]) * n)
    return torch.exp(torch.stack(losses).sum() / (len(losses) * n)).item()


@torch.no_grad()
def llamacpp(model: LlamaForCausalLM, ids: Tensor, n: int) -> tuple[float, float]:
    """Perplexity and error of the second halves, each window led by BOS."""
    values = []
    for number in range(ids.numel() // n):
        window = ids[0, number * n : (number + 1) * n].clone()
        window[0] = 256
        logprobs = model(window[None]).logits[0].double().log_softmax(dim=-1)
        values += [-logprobs[at, window[at + 1]].item() for at in range(n // 2, n - 1)]
    count = len(values)
    mean = sum(values) / count
    variance = sum(value * value for value in values) / count - mean * mean
    return math.exp(mean), math.exp(mean) * math.sqrt(variance / (count - 1))


@torch.no_grad()
def stride(model: LlamaForCausalLM, ids: Tensor, n: int) -> float:
    """As the guide has it, with the labels that transformers shifts by itself."""
    total, n_tokens, reached = 0.0, 0, 0
    for begin in range(0, ids.shape[1], n):
        end = min(begin + CONTEXT, ids.shape[1])
        window = ids[:, begin:end]
        labels = window.clone()
        labels[:, : -(end - reached)] = -100
        counted = int((labels != -100).sum()) - 1
        if window.shape[1] > 1:
            total += model(window, labels=labels).loss.item() * counted
        n_tokens += counted
        reached = end
        if end == ids.shape[1]:
            break
    return math.exp(total / n_tokens)


@pytest.mark.parametrize("n", [64, 63, 17])
def test_gptq_is_the_papers(tmp_path: Path, folder: Path, oracle: LlamaForCausalLM, tokens: Tensor, n: int) -> None:
    found = measured(tmp_path, folder, f"gptq-{n}")
    assert found.value == pytest.approx(gptq(oracle, tokens, n), rel=1e-5)
    assert found.n_windows == found.n_windows_all == tokens.numel() // n
    assert found.n_tokens == found.n_windows * (n - 1) and found.unit == "token"


@pytest.mark.parametrize("n", [64, 33, 4])
def test_llamacpp_is_the_tools_with_its_error(
    tmp_path: Path, folder: Path, oracle: LlamaForCausalLM, tokens: Tensor, n: int
) -> None:
    found = measured(tmp_path, folder, f"llamacpp-{n}")
    value, error = llamacpp(oracle, tokens, n)
    assert found.value == pytest.approx(value, rel=1e-5)
    assert found.stderr_tokens == pytest.approx(error, rel=1e-4)
    assert found.n_tokens == (tokens.numel() // n) * (n - n // 2 - 1)


@pytest.mark.parametrize("n", [64, 63, 40, 16])
def test_stride_is_the_guides(tmp_path: Path, folder: Path, oracle: LlamaForCausalLM, tokens: Tensor, n: int) -> None:
    found = measured(tmp_path, folder, f"stride-{n}")
    assert found.value == pytest.approx(stride(oracle, tokens, n), rel=1e-5)
    assert found.n_tokens == tokens.numel() - 1 - (found.n_windows - 1) * (n == CONTEXT)


@pytest.mark.parametrize("length", [2, 40, 63, 64, 65, 100, 128, 129])
def test_stride_ends_where_the_text_does(
    tmp_path: Path, folder: Path, oracle: LlamaForCausalLM, tokens: Tensor, length: int
) -> None:
    text = TEXT.encode()[: length - 1].decode()
    for n in (1, 30, 63, 64):
        found = measured(tmp_path, folder, f"stride-{n}", text)
        assert found.value == pytest.approx(stride(oracle, tokens[:, :length], n), rel=1e-5)


@pytest.mark.parametrize("text", [TEXT, TEXT[:20], f"\n {TEXT[:100]}\n", "x y" * 50, " "])
def test_lm_eval_word_is_the_harness_own_models(
    tmp_path: Path, folder: Path, oracle: LlamaForCausalLM, text: str
) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    harness = HFLM(pretrained=oracle, tokenizer=tokenizer, backend="causal", batch_size=1, max_length=CONTEXT)
    (logprob,) = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    n_words = len(re.split(r"\s+", text))  # as process_results of the harness's wikitext
    found = measured(tmp_path, folder, "lm-eval-word", text)
    assert math.log(found.value) == pytest.approx(-logprob / n_words, rel=1e-5)
    assert found.unit == "word" and found.n_tokens == len(text.encode()) + 1


def test_a_perplexity_beyond_all_floats_is_infinite(tmp_path: Path, folder: Path) -> None:
    assert measured(tmp_path, folder, "lm-eval-word", "x" * 2000).value == math.inf


def test_what_is_held_is_bounded_and_changes_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = drained(load(str(folder), settings_in(tmp_path), RUNTIME))[1]
    text = protocol_text(TEXT, "gptq-16", loaded)
    whole = drained(measure_perplexity(loaded, text))[1]
    groups: list[int] = []
    scores = measuring.scores

    def watched(model: Any, passages: Any, budget: Any) -> Any:
        groups.append(sum(len(passage.tokens) for passage in passages))
        return scores(model, passages, budget)

    monkeypatch.setattr(measuring, "scores", watched)
    budget = batch_budget_of(loaded.model, cache_tokens=40, piece_logits=260 * 5)
    assert drained(measure_perplexity(loaded, text, budget))[1] == whole
    assert max(groups) == 32 and sum(groups) == 16 * whole.n_windows


def windows_done(events: list[Any]) -> Iterator[Progress]:
    return (event for event in events if isinstance(event, Progress) and event.unit == "windows")


def test_the_running_value_ends_in_the_result(tmp_path: Path, folder: Path) -> None:
    loaded = drained(load(str(folder), settings_in(tmp_path), RUNTIME))[1]
    budget = batch_budget_of(loaded.model, cache_tokens=128)
    events, perplexity = drained(measure_perplexity(loaded, protocol_text(TEXT, "gptq-64", loaded), budget))
    output = list(windows_done(events))
    assert [event.done for event in output] == [0, 2, 4, 6, 8, 10, 12]
    assert math.isnan(output[0].so_far) and output[-1].so_far == perplexity.value
    first = measured(tmp_path, folder, "gptq-64", TEXT.encode()[:127].decode())
    assert output[1].so_far == pytest.approx(first.value)


def interrupted(job: Any, at: int) -> Any:
    """What a job returns that is interrupted when so many windows are done."""
    event = next(job)
    while not (isinstance(event, Progress) and event.unit == "windows" and event.done >= at):
        event = next(job)
    event = job.throw(KeyboardInterrupt())
    try:
        while True:
            event = next(job)
    except StopIteration as end:
        return end.value


def test_an_interrupt_keeps_the_windows_so_far_and_says_so(tmp_path: Path, folder: Path) -> None:
    text = TEXT * 8
    n_all = (len(text.encode()) + 1) // 64
    evaluation = interrupted(run(request(tmp_path, folder, "gptq-64", text)), 1)
    found = evaluation.perplexity
    assert evaluation.is_interrupted and found.is_partial
    assert 0 < found.n_windows < found.n_windows_all == n_all
    begin = measured(tmp_path, folder, "gptq-64", text.encode()[: 64 * found.n_windows - 1].decode())
    assert found.value == begin.value and not begin.is_partial
    nothing = interrupted(run(request(tmp_path, folder, "gptq-64", text)), 0)
    assert nothing.is_interrupted and nothing.perplexity is None


@pytest.mark.parametrize(
    ("protocol", "text", "message", "hint"),
    [
        ("gptq-2048", TEXT, "needs a context of 2,048 tokens, and .* has 64", "gptq-64"),
        ("stride-65", TEXT, "needs a context of 65", "stride-64"),
        ("llamacpp-64", TEXT[:100], "has 102 tokens, and llamacpp-64 needs 128", "lm-eval-word"),
        ("gptq-64", "A fox.", "has 7 tokens, and gptq-64 needs 64", "longer text"),
        ("stride-16", "", "is empty", "page"),
        ("lm-eval-word", "", "is empty", "page"),
        ("gptq-16", b"a fox \xff\xfe", r"not text in UTF-8 \(byte 6\)", "UTF-8"),
        ("gptq", TEXT, "no protocol called 'gptq'", "gptq-2048, llamacpp-512, lm-eval-word, stride-512"),
        ("lm-eval-word-3", TEXT, "no protocol called", "Protocols"),
        ("wiki-3", TEXT, "no protocol called", "Protocols"),
        ("gptq-1", TEXT, "smallest size is 2", ""),
        ("stride-0", TEXT, "smallest size is 1", ""),
        ("llamacpp--5", TEXT, "no protocol called", "Protocols"),
    ],
)
def test_what_cannot_be_measured_is_a_usage_error(
    tmp_path: Path, folder: Path, protocol: str, text: str | bytes, message: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=message) as error:
        drained(run(request(tmp_path, folder, protocol, text)))
    assert hint in error.value.hint


def test_a_file_that_is_not_there_and_a_model_without_a_tokenizer_are_usage_errors(
    tmp_path: Path, folder: Path
) -> None:
    asked = request(tmp_path, folder, "gptq-16")
    (tmp_path / "text.txt").unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        drained(run(asked))
    bare = chat_model(tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(UsageError, match="has no tokenizer"):
        drained(run(request(tmp_path, bare, "gptq-16")))


def test_line_ends_are_predicted_as_they_stand_in_the_file(tmp_path: Path, folder: Path) -> None:
    assert measured(tmp_path, folder, "lm-eval-word", b"a fox\r\nran\r\n").n_tokens == 13


def test_every_protocol_can_be_named_as_it_is_usually_taken() -> None:
    assert usual_protocols() == ["gptq-2048", "llamacpp-512", "lm-eval-word", "stride-512"]
    assert [protocol_of(name).size for name in usual_protocols()] == [2048, 512, 0, 512]


def test_a_model_that_adds_no_bos_keeps_the_first_token_of_each_window(
    tmp_path: Path, folder: Path, oracle: LlamaForCausalLM, tokens: Tensor
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in folder.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    content = json.loads((bare / "tokenizer.json").read_text())
    (bare / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    found = measured(tmp_path, bare, "llamacpp-64")
    windows = [window for window in tokens[0, 1:].split(64) if len(window) == 64]
    with torch.no_grad():
        logits = torch.cat([oracle(window[None]).logits[0, 32:63] for window in windows])
    loss = torch.nn.functional.cross_entropy(logits, torch.cat([window[33:] for window in windows])).item()
    assert math.log(found.value) == pytest.approx(loss, rel=1e-5)
