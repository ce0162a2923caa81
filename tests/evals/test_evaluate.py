"""A run that is stopped keeps what has been answered: it marks the whole questions, and the next run goes on."""

import json
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import ChatOptions
from gptfast_cli.core.engine.load import load
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.errors import GptFastError, NotFoundError, UsageError
from gptfast_cli.core.evals.tasks.bos_rules import bos_rules_of
from gptfast_cli.core.evals.tasks.request_runner import RequestRunner
from gptfast_cli.core.evals.tasks.requests import (
    Failure,
    GenerationRequest,
    LikelihoodRequest,
    RollingRequest,
    TaskOptions,
    TaskRequest,
)
from gptfast_cli.core.evals.tasks.results import TaskResults
from gptfast_cli.core.events import Event, Note, Progress
from gptfast_cli.core.jobs.eval import EvalRequest, Evaluation, run
from harness_tasks import write_tasks
from model_files import drained, saved, settings_in

SOURCES = "gptfast_cli.core.evals.tasks.sources"
Running = Generator[Event, None, Evaluation]


def request(home: Path, *names: str, **options: object) -> EvalRequest:
    asked = TaskOptions(names, output_path=home / "results", **options)  # type: ignore[arg-type]
    return EvalRequest(settings_in(home), "tiny-draft", RuntimeConfig(dtype="float32", threads=1), asked)


def advanced(job: Running, n_answers: int) -> None:
    """Run until so many answers have come."""
    for event in job:
        if isinstance(event, Progress) and event.task == "answer" and event.done >= n_answers:
            return
    raise AssertionError(n_answers)


def interrupted(job: Running) -> Evaluation:
    """What the job returns once it has been interrupted."""
    try:
        job.throw(KeyboardInterrupt())
        while True:
            next(job)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]


def tasks_of(evaluation: Evaluation) -> TaskResults:
    assert evaluation.tasks is not None
    return evaluation.tasks


def samples(results: TaskResults, task: str) -> dict[int, dict[str, object]]:
    assert results.folder is not None
    files = sorted(results.folder.glob(f"samples_{task}_*.jsonl"))
    return {row["doc_id"]: row for row in map(json.loads, files[-1].read_text().splitlines())}


def answer_files(home: Path) -> list[Path]:
    return sorted((home / "home" / "answers").glob("*"))


def test_an_interrupt_marks_the_questions_that_are_whole(tmp_path: Path) -> None:
    names = ("bundled-choice", "bundled-cloze")
    whole = tasks_of(drained(run(request(tmp_path / "whole", *names, limit=20)))[1])
    job = run(request(tmp_path / "part", *names, limit=20))
    advanced(job, 55)  # of 4 x 20 + 20
    evaluation = interrupted(job)
    partial = tasks_of(evaluation)
    assert evaluation.is_interrupted and partial.is_partial and not whole.is_partial
    assert 0 < sum(result.n for result in partial.results) < 40
    for result in partial.results:
        assert result.is_whole == (result.n == 20)
        own, all_of_them = samples(partial, result.task), samples(whole, result.task)
        assert own == {question: all_of_them[question] for question in own}
        marks = [float(str(sample[result.metrics[0].name])) for sample in own.values()]
        assert result.metrics[0].value == pytest.approx(sum(marks) / len(marks))


def test_the_next_run_goes_on_and_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    names = ("bundled-choice", "bundled-sums")
    whole = tasks_of(drained(run(request(tmp_path / "whole", *names, limit=10)))[1])
    job = run(request(tmp_path / "part", *names, limit=10))
    advanced(job, 25)
    job.close()  # as a kill would: nothing is score_answers
    (file,) = answer_files(tmp_path / "part")
    with file.open("a") as torn:
        torn.write('["0123", [-1.5, tr')
    events, evaluation = drained(run(request(tmp_path / "part", *names, limit=10)))
    again = tasks_of(evaluation)
    assert Note("25 of 50 answers were cached by an earlier run.") in events
    assert again.n_found == 25 and again.results == whole.results
    assert answer_files(tmp_path / "part") == []


def test_answers_do_not_depend_on_the_blocks_that_they_come_in(tmp_path: Path) -> None:
    loaded = drained(load("tiny-draft", settings_in(tmp_path), RuntimeConfig(dtype="float32", threads=1)))[1]
    beginnings = ["One day, a fox met", "There was", "A bear", "One day, a fox saw", "3 + 4 ="]
    requests: list[TaskRequest] = []
    for words in beginnings:
        requests += [LikelihoodRequest(words, " a badger."), LikelihoodRequest(words, " 7"), RollingRequest(words)]
        requests += [GenerationRequest(words, ("\n",), 9), GenerationRequest(words, (), 9, Sampling(1.0))]
    whole = RequestRunner(loaded, bos_rules_of(loaded, loaded.tokenizer), batch_size=8, seed=0)
    answers = dict(whole.answers(requests))
    assert dict(replace(whole, block_size=7).answers(requests)) == answers
    assert len(answers) == 25 and not any(isinstance(answer, Failure) for answer in answers.values())


def test_more_questions_and_another_folder_go_on_with_the_same_answers(tmp_path: Path) -> None:
    job = run(request(tmp_path, "bundled-sums", limit=5))
    advanced(job, 3)
    job.close()
    assert tasks_of(drained(run(request(tmp_path, "bundled-sums", limit=8)))[1]).n_found == 3


def test_answers_of_another_model_or_dtype_are_not_taken(tmp_path: Path) -> None:
    job = run(request(tmp_path, "bundled-sums", limit=5))
    advanced(job, 3)
    job.close()
    other = EvalRequest(settings_in(tmp_path), "tiny-draft", RuntimeConfig(dtype="bfloat16", threads=1), TaskOptions(
        ("bundled-sums",), limit=5))  # fmt: skip
    assert tasks_of(drained(run(other))[1]).n_found == 0
    assert len(answer_files(tmp_path)) == 1  # and those of the other stay


def test_an_interrupt_in_the_harness_marks_whole_questions_too(tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks", n_times=3)
    names = ("one_of_three", "in_own_words")
    whole = tasks_of(drained(run(request(tmp_path / "whole", *names, include_path=tasks)))[1])
    job = run(request(tmp_path / "part", *names, include_path=tasks, n_shots=0))
    advanced(job, 20)  # of 36 answers, three to a question, and then 12
    partial = tasks_of(interrupted(job))
    (result,) = partial.results
    assert (result.task, result.is_whole) == ("one_of_three", False) and 0 < result.n < 12
    own, all_of_them = samples(partial, result.task), samples(whole, result.task)
    assert own.keys() <= all_of_them.keys() and len(own) == result.n
    for question, sample in own.items():
        assert sample == all_of_them[question]


def test_an_interrupt_before_any_question_is_whole_has_no_results(tmp_path: Path) -> None:
    job = run(request(tmp_path, "bundled-sums"))
    advanced(job, 0)
    partial = tasks_of(interrupted(job))
    assert partial.is_partial and partial.results == () and partial.folder is None


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"names": ("bundled-sum",)}, NotFoundError, "Similar: bundled-sums"),
        ({"names": ("x",), "include_path": "nowhere"}, NotFoundError, "not found"),
        ({"n_shots": 2}, UsageError, "bundled tasks do not support --num-fewshot"),
        (
            {"chat": ChatOptions(chat=False, system="x")},
            UsageError,
            "--chat, --system",
        ),
        ({"chat": ChatOptions(chat=False, template="x")}, UsageError, "--chat-template requires --chat"),
        ({"limit": 0.0}, UsageError, "--limit"),
        ({"limit": 2.5}, UsageError, "--limit"),
        ({"batch_size": 0}, UsageError, "--batch-size"),
        ({"n_shots": -1}, UsageError, "--num-fewshot"),
    ],
)
def test_what_cannot_be_meant_is_reported_before_a_model_is_looked_for(
    options: dict[str, object], error: type[Exception], says: str, tmp_path: Path
) -> None:
    if "include_path" in options:
        options = options | {"include_path": tmp_path / str(options["include_path"])}
    asked = EvalRequest(settings_in(tmp_path), "no/such-model", tasks=TaskOptions(**options))  # type: ignore[arg-type]
    with pytest.raises(error, match=says):
        drained(run(asked))


def test_a_model_without_a_tokenizer_has_no_tasks(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    with pytest.raises(UsageError, match="no tokenizer"):
        drained(run(EvalRequest(settings_in(tmp_path), str(model), RuntimeConfig(threads=1))))


def test_a_missing_harness_is_reported_with_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith(("lm_eval", f"{SOURCES}.harness"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match="hellaswag is not a bundled task") as error:
        drained(run(request(tmp_path, "hellaswag")))
    assert error.value.hint.startswith("pip install lm_eval 'datasets>=4'")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dataset_kwargs": {"data_files": {"test": "nowhere.json"}}}, "Tasks one_of_three cannot be loaded: "),
        (
            {"doc_to_text": "{% if question == 'x' %}{{ question.nothing() }}{% endif %}"},
            "Task one_of_three cannot be built: UndefinedError: ",
        ),
    ],
)
def test_what_is_wrong_with_a_task_is_reported_in_a_line(changes: dict[str, object], says: str, tmp_path: Path) -> None:
    tasks = write_tasks(tmp_path / "tasks", one_of_three=changes)
    with pytest.raises(GptFastError) as error:
        drained(run(request(tmp_path, "one_of_three", include_path=tasks)))
    assert error.value.message.startswith(says) and "\n" not in error.value.message
