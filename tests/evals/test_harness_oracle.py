"""What the harness says of a model through us and through its own `hf`, for each kind of tokenizer and request."""

import contextlib
import io
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers.convert_slow_tokenizer import TikTokenConverter

import tokenizer_samples as samples
from chat_model import TEMPLATE, chat_model
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import ChatOptions
from gptfast_cli.core.evals.tasks.requests import TaskOptions
from gptfast_cli.core.evals.tasks.results import TaskResults
from gptfast_cli.core.jobs.eval import EvalRequest, run
from harness_tasks import NAMES, write_tasks
from model_files import drained, saved, settings_in

SHAPE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
N_RANKED = len(samples.ranked_tokens())


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def declare(folder: Path, **content: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(content))


def sentencepiece(folder: Path) -> Path:
    """tokenizer.model for us; `hf` gets the same pieces as Llama 2's tokenizer.json writes them."""
    saved(folder, vocab_size=32000, **SHAPE)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    theirs = shutil.copytree(folder, folder / "hf")
    shutil.copy(samples.real_model("v1"), folder / "tokenizer.model")
    declare(folder, **special, add_bos_token=True)
    samples.rewritten("v1").save(str(theirs / "tokenizer.json"))
    declare(theirs, **special, tokenizer_class="PreTrainedTokenizerFast")
    return theirs


def tokenizer_json(folder: Path) -> Path:
    saved(folder, vocab_size=700, bos_token_id=0, eos_token_id=1, **SHAPE)
    samples.byte_level().save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    declare(folder, **special, tokenizer_class="PreTrainedTokenizerFast")
    return folder


def without_bos(folder: Path) -> Path:
    """No token stands before a text, and what ends one is the prefix."""
    tokenizer_json(folder)
    tokenizer = samples.byte_level()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    declare(folder, eos_token="<|end_of_text|>", tokenizer_class="PreTrainedTokenizerFast")
    return folder


def tiktoken(folder: Path) -> Path:
    """Llama 3's own file for us; `hf` gets what transformers makes of it."""
    begin, end = N_RANKED, N_RANKED + 1
    saved(folder, vocab_size=N_RANKED + 256, bos_token_id=begin, eos_token_id=end, **SHAPE)
    theirs = shutil.copytree(folder, folder / "hf")
    samples.write_tiktoken(folder)
    names = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|special_{n}|>" for n in range(2, 256))]
    converter = TikTokenConverter(vocab_file=str(folder / "tokenizer.model"), extra_special_tokens=names)
    tokenizer = converter.converted()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", begin)]
    )
    tokenizer.save(str(theirs / "tokenizer.json"))
    declare(theirs, bos_token=names[0], eos_token=names[1], tokenizer_class="PreTrainedTokenizerFast")
    return theirs


KINDS: Mapping[str, Callable[[Path], Path]] = {
    "SentencePiece": sentencepiece,
    "tokenizer.json": tokenizer_json,
    "tokenizer.json without BOS": without_bos,
    "tiktoken": tiktoken,
}


def by_us(model: Path, tasks: Path, out: Path, **options: Any) -> TaskResults:
    asked = TaskOptions(options.pop("names", NAMES), include_path=tasks, output_path=out / "results", **options)
    request = EvalRequest(settings_in(out), str(model), RuntimeConfig(dtype="float32", threads=1), asked)
    evaluation = drained(run(request))[1]
    assert evaluation.tasks is not None
    return evaluation.tasks


def by_hf(model: Path, tasks: Path, **options: Any) -> dict[str, Any]:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    os.environ["DISABLE_MULTIPROC"] = "1"
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        hf = HFLM(pretrained=str(model), device="cpu", dtype="float32", batch_size=1)
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        names = options.pop("names", NAMES)
        return lm_eval.simple_evaluate(hf, tasks=list(names), task_manager=manager, bootstrap_iters=1000, **options)


def logged(results: TaskResults, task: str) -> list[dict[str, Any]]:
    assert results.folder is not None
    (file,) = results.folder.glob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def check(ours: TaskResults, theirs: dict[str, Any], names: tuple[str, ...] = NAMES) -> None:
    """Every sample within 1e-4, and the same metrics."""
    assert [result.task for result in ours.results] == list(names)
    for result in ours.results:
        metrics = theirs["results"][result.task]
        for metric in result.metrics:
            assert metric.value == pytest.approx(metrics[f"{metric.name},none"], rel=1e-5)
            if isinstance(expected := metrics[f"{metric.name}_stderr,none"], float):
                assert metric.stderr == pytest.approx(expected, rel=1e-4)
        for own, their in zip(logged(ours, result.task), theirs["samples"][result.task], strict=True):
            given = [list(arguments.values()) for arguments in own["arguments"].values()]
            assert json.dumps(given) == json.dumps(their["arguments"])
            for answer, expected in zip(own["resps"], their["resps"], strict=True):
                check_answer(answer[0], expected[0])


def check_answer(own: Any, their: Any) -> None:
    match their:
        case (logprob, is_greedy):
            assert float(own[0]) == pytest.approx(logprob, abs=1e-4)
            assert own[1] == str(is_greedy)
        case float():
            # a text of a thousand tokens is a sum of as many float32 numbers, on their side in float32 too
            assert float(own) == pytest.approx(their, abs=1e-4, rel=1e-6)
        case _:
            assert own == their


@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_and_metric_is_what_hf_says(kind: str, tasks: Path, tmp_path: Path) -> None:
    theirs = KINDS[kind](tmp_path / "model")
    check(by_us(tmp_path / "model", tasks, tmp_path), by_hf(theirs, tasks))


def test_solved_examples_and_limits_are_those_of_hf(tasks: Path, tmp_path: Path) -> None:
    tokenizer_json(tmp_path / "model")
    names = ("one_of_three", "continuation", "in_own_words")
    ours = by_us(tmp_path / "model", tasks, tmp_path, names=names, n_shots=2, limit=3)
    check(ours, by_hf(tmp_path / "model", tasks, names=names, num_fewshot=2, limit=3), names)
    assert [(result.n_shots, result.n, result.n_all) for result in ours.results] == [(2, 3, 4)] * 3


def test_a_group_is_made_up_as_for_hf_and_a_system_text_stands_before_plain_questions(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    members = {"group": "both", "task": ["one_of_three", "continuation"]}
    means = {"aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]}
    (tasks / "both.yaml").write_text(yaml.safe_dump(members | means))
    tokenizer_json(tmp_path / "model")
    ours = by_us(tmp_path / "model", tasks, tmp_path, names=("both",), chat=ChatOptions(chat=False, system="Go on."))
    theirs = by_hf(tmp_path / "model", tasks, names=("both",), system_instruction="Go on.")
    group = next(result for result in ours.results if result.is_group)
    assert {metric.name: metric.value for metric in group.metrics} == {"acc": theirs["groups"]["both"]["acc,none"]}
    check(replace(ours, results=tuple(each for each in ours.results if not each.is_group)), theirs, NAMES[:2])
    (asked,) = logged(ours, "continuation")[0]["arguments"].values()
    assert asked["arg_0"].startswith("Go on.")


def test_conversations_are_those_of_hf(tmp_path: Path) -> None:
    # the last one puts the first words into the model's mouth
    changes = {"in_own_words": {"gen_prefix": "So: "}, "one_of_three": {"description": "Go on. "}}
    tasks = write_tasks(tmp_path / "tasks", **changes)
    chat_model(tmp_path / "model")
    names = ("one_of_three", "in_own_words")
    chat = ChatOptions(chat=True, system="Be brief.")
    ours = by_us(tmp_path / "model", tasks, tmp_path, names=names, n_shots=1, chat=chat)
    options = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be brief."}
    check(ours, by_hf(tmp_path / "model", tasks, names=names, num_fewshot=1, **options), names)
    (asked,) = logged(ours, "in_own_words")[0]["arguments"].values()
    assert asked["arg_0"].startswith("<|im_start|>system\nBe brief.")
    assert asked["arg_0"].endswith("<|im_start|>assistant\nSo: ")


def test_a_template_that_knows_no_system_message_gets_none(tmp_path: Path) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    chat_model(tmp_path / "model", template=refusing)
    tasks = write_tasks(tmp_path / "tasks")
    chat = ChatOptions(chat=True, system="Be brief.")
    ours = by_us(tmp_path / "model", tasks, tmp_path, names=NAMES[:1], chat=chat)
    options = {"apply_chat_template": True, "fewshot_as_multiturn": True, "system_instruction": "Be brief."}
    check(ours, by_hf(tmp_path / "model", tasks, names=NAMES[:1], **options), NAMES[:1])
    assert ours.notes == ("the chat template refuses system messages, which were left out",)


def test_a_uniform_model_over_bytes_has_a_byte_perplexity_of_256(tasks: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", vocab_size=256, **SHAPE)
    weights = load_file(model / "model.safetensors")
    save_file(weights | {"lm_head.weight": torch.zeros(256, 64)}, model / "model.safetensors", {"format": "pt"})
    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(model / "tokenizer.json"))
    declare(model, eos_token=next(iter(alphabet)))
    (result,) = by_us(model, tasks, tmp_path, names=("whole_text",)).results
    values = {metric.name: metric.value for metric in result.metrics}
    assert values["byte_perplexity"] == pytest.approx(256, rel=1e-6)
    assert values["bits_per_byte"] == pytest.approx(8, rel=1e-6)
