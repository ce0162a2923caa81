"""A failed question is reported by task, number and reason; the numbers of the others are still given."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from chat_model import chat_model
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel, load
from gptfast_cli.core.evals.passages import Passage
from gptfast_cli.core.evals.tasks.bos_rules import bos_rules_of
from gptfast_cli.core.evals.tasks.requests import TaskOptions
from gptfast_cli.core.evals.tasks.results import TaskResults
from gptfast_cli.core.jobs.eval import EvalRequest, run
from gptfast_cli.render.evaluation import KEYS, write_evaluation
from gptfast_cli.render.json import to_document
from model_files import WEIGHTS, drained, edit_json, edit_tensors, settings_in

BOS, EOS, BAD = 256, 257, ord("q")  # the embedding of q is NaN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokens are bytes; no token leads a text by itself."""
    made = chat_model(tmp_path_factory.mktemp("model") / "bytes", template=None)
    edit_json(made / "tokenizer.json", lambda values: values.update(post_processor=None))
    letters = json.loads((made / "tokenizer.json").read_text())["model"]["vocab"]

    def spoil(tensors: dict[str, Any]) -> None:
        tensors["model.embed_tokens.weight"][letters["q"]] = float("nan")

    edit_tensors(made / WEIGHTS, spoil)
    return made


def task(folder: Path, name: str, rows: Sequence[dict[str, Any]], **changes: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.json")}},
        "test_split": "test",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content | changes))


def evaluated(folder: Path, home: Path, *names: str) -> tuple[TaskResults, dict[str, Any], str]:
    """The results, as JSON and as text."""
    options = TaskOptions(names, include_path=home / "tasks", output_path=home / "out")
    request = EvalRequest(settings_in(home), str(folder), RuntimeConfig("cpu", "float32"), options)
    evaluation = drained(run(request))[1]
    assert evaluation.tasks is not None
    with (home / "output.txt").open("w") as stream:
        write_evaluation(evaluation, stream)
    return evaluation.tasks, to_document(evaluation, KEYS)["tasks"], (home / "output.txt").read_text()


def test_failed_questions_of_every_kind_leave_the_others(folder: Path, tmp_path: Path) -> None:
    rows = [{"context": context, "answer": " x"} for context in ("a b", "a q", "c d", "", "  ")]
    task(tmp_path / "tasks", "continued", [*rows, {"context": "a", "answer": ""}], output_type="loglikelihood")
    task(
        tmp_path / "tasks",
        "whole",
        [{"context": "", "answer": text} for text in ("a b c", "a q b")],
        output_type="loglikelihood_rolling",
        doc_to_text="",
    )
    task(
        tmp_path / "tasks",
        "said",
        rows[:4],
        output_type="generate_until",
        generation_kwargs={"until": ["\n"], "max_gen_toks": 4},
    )
    task(
        tmp_path / "tasks",
        "hot",
        rows[:1],
        output_type="generate_until",
        generation_kwargs={"until": ["\n"], "do_sample": True, "temperature": 1e-60},
    )
    (tmp_path / "tasks" / "both.yaml").write_text(
        yaml.safe_dump({"group": "both", "task": ["continued", "said"], "aggregate_metric_list": [{"metric": "acc"}]})
    )
    results, output, text = evaluated(folder, tmp_path, "both", "whole", "hot")
    failed = [(each.task, each.number) for each in results.failures]
    assert sorted(failed) == [("continued", 1), ("continued", 5), ("hot", 0), ("said", 1), ("whole", 1)]
    assert output["failures"] == [
        {"task": each.task, "question": each.number, "reason": each.reason} for each in results.failures
    ]
    reasons = {(each.task, each.number): each.reason for each in results.failures}
    assert reasons["said", 1] == "The model's logits are NaN or infinite after 3 tokens."
    assert reasons["continued", 1].startswith("The model's logits are NaN or infinite")
    assert "one to predict" in reasons["continued", 5]
    assert "--temperature must be" in reasons["hot", 0]
    by_name = {result.task: result for result in results.results}
    assert (by_name["continued"].n, by_name["continued"].n_all) == (4, 6)
    assert by_name["said"].n == 3 and by_name["whole"].n == 1 and "hot" not in by_name
    assert not results.is_partial
    assert "FAILED: continued, question 1: The model's logits" in " ".join(text.split())


def test_a_group_is_given_without_the_questions_that_failed(folder: Path, tmp_path: Path) -> None:
    rows = [{"context": context, "answer": " x"} for context in ("a b", "a q", "c d")]
    for name in ("one", "two"):
        task(tmp_path / "tasks", name, rows, output_type="loglikelihood", metric_list=[{"metric": "acc"}])
    group = {"group": "both", "task": ["one", "two"], "aggregate_metric_list": [{"metric": "acc"}]}
    (tmp_path / "tasks" / "both.yaml").write_text(yaml.safe_dump(group))
    results = evaluated(folder, tmp_path, "both")[0]
    assert {result.task: result.n for result in results.results if not result.is_group} == {"one": 2, "two": 2}
    assert [result.task for result in results.results if result.is_group] == ["both"]


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return drained(load(str(folder), settings_in(folder), RuntimeConfig("cpu", "float32")))[1]


def test_a_context_without_a_token_is_the_prefix_token_as_in_the_harness(loaded: LoadedModel) -> None:
    assert loaded.tokenizer is not None
    bos_rules = bos_rules_of(loaded, loaded.tokenizer)
    x, space = loaded.tokenizer.encode("x")[0], loaded.tokenizer.encode(" ")[0]
    assert bos_rules.pair("", "x") == Passage((BOS, x), 1)
    assert bos_rules.pair("  ", "x") == Passage((BOS, space, space, x), 1)
    assert bos_rules.pair("  ", "<s>x") == Passage((BOS, space, space, BOS, x), 1)
    assert bos_rules.prompt("") == [BOS]
    assert bos_rules.prompt("x") == [x]
