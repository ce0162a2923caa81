"""A prompts file: each row gets the answer that it gets alone, no slot is idle, and an interrupted run resumes."""

import json
import shutil
from collections.abc import Generator as Run
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chat_model import TEMPLATE, chat_model
from generation_requests import changed, requested
from gptfast_cli.core.checkpoints.store import bundled_folder
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import ChatOptions, thinking_variables
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.events import Event, Measured, Note, Progress, Record
from gptfast_cli.core.jobs import generate, generate_batch
from gptfast_cli.core.jobs.generate_batch import BatchRequest, BatchResult
from llama_oracle import random_llama
from model_files import drained, settings_in

WIDE = Sampling(temperature=1.5, top_k=0)
PROMPTS = ["Once upon a time", "Tom was", "2+3=", "A", "The recipe: take two eggs and", "Once upon a time", "Far away"]
ROWS: list[dict[str, Any]] = [
    {"prompt": text, "max_new_tokens": n} for text, n in zip(PROMPTS, (16, 3, 6, 1, 24, 8, 12), strict=True)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the tokenizer of the bundled one, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("model")
    random_llama(vocab_size=1536).save_pretrained(folder)
    shutil.copy(bundled_folder("tiny") / "tokenizer.model", folder)
    return folder


@pytest.fixture
def request_for(tmp_path: Path, folder: Path) -> BatchRequest:
    return requested(
        BatchRequest,
        prompts=tmp_path / "x.jsonl",
        settings=settings_in(tmp_path),
        sampling=WIDE,
        model=str(folder),
        runtime=RuntimeConfig(device="cpu", dtype="float32"),
        seed=7,
        batch_size=3,
    )


def write_rows(request: BatchRequest, *rows: dict[str, Any]) -> None:
    request.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))


def ran(request: BatchRequest, *rows: dict[str, Any], **changes: Any) -> tuple[list[Event], BatchResult]:
    if rows:
        write_rows(request, *rows)
    return drained(generate_batch.run(changed(request, **changes)))


def records(events: list[Event]) -> list[dict[str, Any]]:
    return [dict(event.fields) for event in events if isinstance(event, Record)]


def answers(request: BatchRequest, *rows: dict[str, Any], **changes: Any) -> list[dict[str, Any]]:
    """The records, without what tells one run from another."""
    reported = records(ran(request, *rows, **changes)[0])
    return [{name: value for name, value in record.items() if name != "request"} for record in reported]


def alone(request: BatchRequest, row: dict[str, Any], **changes: Any) -> generate.GenerateResult:
    """What `gptfast generate` makes of a row."""
    single = requested(
        generate.GenerateRequest,
        prompt=row["prompt"],
        settings=request.settings,
        model=request.model,
        runtime=request.runtime,
        sampling=request.options.sampling,
        max_new_tokens=row["max_new_tokens"],
        seed=row.get("seed"),
    )
    return drained(generate.run(changed(single, **changes)))[1]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_a_row_with_a_seed_is_answered_as_if_it_were_alone(request_for: BatchRequest, batch_size: int) -> None:
    rows = [row | {"seed": 100 + number} for number, row in enumerate(ROWS)]
    reported = answers(request_for, *rows, batch_size=batch_size)
    for row, record in zip(rows, reported, strict=True):
        (sample,) = alone(request_for, row).samples
        assert (record["text"], tuple(record["token_ids"])) == (sample.text, sample.token_ids)
        assert (record["finish_reason"], record["prompt_tokens"]) == (sample.finish_reason, sample.prompt_tokens)
        assert record["seed"] == row["seed"]


def test_rows_without_a_seed_differ_and_depend_on_nothing_but_the_runs_seed_and_their_place(
    request_for: BatchRequest,
) -> None:
    first = answers(request_for, *ROWS)
    assert not first[0]["text"].startswith(first[5]["text"]), "the same prompt twice"
    for changes in ({"batch_size": 1}, {"batch_size": 16}, {"in_order": False}):
        again = answers(request_for, *ROWS, **changes)
        assert sorted(again, key=lambda record: record["line"]) == first
    assert answers(request_for, *ROWS, seed=8)[0]["text"] != first[0]["text"]
    (sample,) = alone(request_for, ROWS[0], seed=7).samples
    assert first[0]["text"] == sample.text


def test_a_fresh_seed_is_reported_and_repeats_the_answers(request_for: BatchRequest) -> None:
    _, batch = ran(request_for, *ROWS, seed=None)
    first = answers(request_for, *ROWS, seed=batch.seed)
    assert {record["seed"] for record in first} == {batch.seed}
    assert ran(request_for, *ROWS, seed=None)[1].seed != batch.seed


def test_several_samples_of_a_row_are_one_record(request_for: BatchRequest) -> None:
    row = ROWS[0] | {"seed": 5, "num_samples": 3, "logprobs": 1}
    _, record, _ = answers(request_for, ROWS[1], row, ROWS[2])
    expected = alone(request_for, row, num_samples=3).samples
    assert [sample["text"] for sample in record["samples"]] == [sample.text for sample in expected]
    assert {"text", "token_ids", "finish_reason", "logprobs"} == set(record["samples"][0])
    assert "text" not in record and record["prompt_tokens"] == expected[0].prompt_tokens


def test_samples_of_rows_without_a_seed_are_all_different(request_for: BatchRequest) -> None:
    reported = answers(request_for, *[ROWS[0] | {"n": 4}] * 2)
    assert len({sample["text"] for record in reported for sample in record["samples"]}) == 8


def test_logprobs_are_reported_where_a_row_asks_for_them(request_for: BatchRequest) -> None:
    with_them, without = answers(request_for, ROWS[0] | {"logprobs": 2}, ROWS[0])
    assert len(with_them["logprobs"]) == len(with_them["token_ids"])
    for token_id, logprobs in zip(with_them["token_ids"], with_them["logprobs"], strict=True):
        assert logprobs["token_id"] == token_id and logprobs["logprob"] <= 0 and len(logprobs["top"]) == 2
    assert "logprobs" not in without


def test_a_row_that_is_over_leaves_its_place_at_once(request_for: BatchRequest) -> None:
    lengths = [1, 9, 1, 1, 2, 1, 2, 1]  # beside the 9: two places need 8 steps, in which the others fit
    rows = [ROWS[0] | {"max_new_tokens": n, "ignore_eos": True} for n in lengths]
    events, _ = ran(request_for, *rows, batch_size=2)
    steps = [event.n_tokens for event in events if isinstance(event, Measured) and event.phase == "decode"]
    assert len(steps) == 8
    assert sum(steps) == sum(lengths) - len(lengths)


def test_a_stop_string_of_a_row_frees_its_place(request_for: BatchRequest) -> None:
    free = answers(request_for, ROWS[0] | {"seed": 1})[0]["text"]
    stop = free[10:14]
    stopped, other = answers(request_for, ROWS[0] | {"seed": 1, "stop": stop}, ROWS[0] | {"seed": 1}, batch_size=1)
    assert stopped["text"] == free[: free.index(stop)] and stopped["finish_reason"] == "stop"
    assert other["text"] == free


def test_rows_are_encoded_when_their_turn_comes(request_for: BatchRequest) -> None:
    write_rows(request_for, *ROWS[:3], *[{"prompt_ids": [10**6]}] * 50)
    job = generate_batch.run(changed(request_for, batch_size=1))
    before_first = []
    while not isinstance(event := next(job), Record):
        before_first.append(event)
    job.close()
    assert not [event for event in before_first if isinstance(event, Note) and "Token id" in event.text]


BAD_FOR_THE_MODEL = [
    ({"messages": [{"role": "user", "content": "hi"}]}, "no chat template"),
    ({"prompt": "hi", "system": "Be kind."}, "no chat template"),
    ({"prompt_ids": [1, 99999]}, "Token id 99999 has no embedding"),
    ({"prompt": "word " * 3000}, "and the context holds"),
    ({"prompt": "half \ud83d"}, "not valid Unicode"),
    ({"nope": 1, "prompt": "x"}, "nope: unknown field"),
]


@pytest.mark.parametrize("in_order", [True, False])
def test_a_bad_row_is_reported_by_its_line_and_the_rest_goes_on(request_for: BatchRequest, in_order: bool) -> None:
    rows = [row for bad, _ in BAD_FOR_THE_MODEL for row in (bad, ROWS[1])]
    events, batch = ran(request_for, *rows, in_order=in_order)
    reported = sorted(records(events), key=lambda record: record["line"])
    notes = [event.text for event in events if isinstance(event, Note)]
    assert [record["line"] for record in reported] == list(range(1, len(rows) + 1))
    for number, (_, reason) in enumerate(BAD_FOR_THE_MODEL):
        line = 2 * number + 1
        assert reason in reported[line - 1]["error"]["message"]
        assert any(note.startswith(f"x.jsonl:{line}: ") and reason in note for note in notes)
        assert "error" not in reported[line]
    assert (batch.n_rows, batch.n_done, batch.n_bad) == (12, 12, 6)
    assert [record["line"] for record in records(events)] == [record["line"] for record in reported] or not in_order


def test_messages_and_system_are_put_in_the_models_chat_format(request_for: BatchRequest) -> None:
    chat = ChatOptions(chat=True)  # tiny has no template: Llama 2's format is used
    said = {"max_new_tokens": 5, "temperature": 0}
    messages = [{"role": "user", "content": "hi"}]
    system = {"role": "system", "content": "Be kind."}
    reported = answers(
        request_for,
        {"prompt": "hi"} | said,
        {"messages": messages} | said,
        {"prompt": "hi", "system": "Be kind."} | said,
        {"messages": [system, *messages]} | said,
        {"messages": messages, "system": "Be kind."} | said,
        chat=chat,
    )
    counts = [record["prompt_tokens"] for record in reported]
    assert counts[0] == counts[1] < counts[2] == counts[3] == counts[4]
    with_system = answers(request_for, chat=replace(chat, system="Be kind."))
    assert [record["prompt_tokens"] for record in with_system] == [counts[2]] * 5


def test_progress_counts_rows_to_the_last(request_for: BatchRequest) -> None:
    events, batch = ran(request_for, *ROWS)
    progress = [event for event in events if isinstance(event, Progress) and event.unit == "rows"]
    assert [event.done for event in progress] == list(range(len(ROWS) + 1))
    assert {event.total for event in progress} == {len(ROWS)}
    assert not [event for event in events if isinstance(event, Progress) and event.task == "prefill"]
    assert batch.n_tokens == sum(len(record["token_ids"]) for record in records(events))
    assert batch.n_prompt_tokens == sum(record["prompt_tokens"] for record in records(events))


def interrupted_after(request: BatchRequest, n_records: int) -> tuple[list[Event], BatchResult]:
    """A run that Ctrl-C ends when so many records are out."""
    job: Run[Event, None, BatchResult] = generate_batch.run(request)
    events: list[Event] = []
    while len(records(events)) < n_records:
        events.append(next(job))
    try:
        events.append(job.throw(KeyboardInterrupt()))
    except StopIteration as finished:
        return events, finished.value
    rest, batch = drained(job)
    return events + rest, batch


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("seed", [7, None])
def test_an_interrupted_run_goes_on_to_the_same_records(
    request_for: BatchRequest, tmp_path: Path, in_order: bool, seed: int | None
) -> None:
    rows = [*ROWS, {"nope": 1}, *ROWS, *ROWS]
    write_rows(request_for, *rows)
    request = changed(request_for, output=tmp_path / "out.jsonl", in_order=in_order, seed=seed)
    for n_records in (1, 2):
        _, batch = interrupted_after(request, n_records)
        assert batch.is_interrupted and 0 < batch.n_done < batch.n_rows
    _, batch = ran(request)
    assert (batch.n_done, batch.n_bad, batch.is_interrupted) == (len(rows), 1, False) and batch.n_found > 0
    undisturbed = records(ran(request_for, seed=batch.seed)[0])
    there = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert (there if in_order else sorted(there, key=lambda record: record["line"])) == undisturbed


def test_an_interrupt_tells_what_is_finished_and_waits_for_its_turn(request_for: BatchRequest) -> None:
    write_rows(request_for, ROWS[1], ROWS[0] | {"max_new_tokens": 400, "ignore_eos": True}, *ROWS[1:4])
    job = generate_batch.run(request_for)
    done = 0
    while done < 4:
        event = next(job)
        done = event.done if isinstance(event, Progress) and event.unit == "rows" else done
    events = [job.throw(KeyboardInterrupt())]
    rest, batch = drained(job)
    assert [record["line"] for record in records(events + rest)] == [3, 4, 5]
    assert batch.n_done == 4 and batch.is_interrupted


def test_a_finished_output_is_left_alone_and_no_model_is_loaded(request_for: BatchRequest, tmp_path: Path) -> None:
    request = changed(request_for, output=tmp_path / "out.jsonl", seed=None)
    ran(request, *ROWS)
    before = (tmp_path / "out.jsonl").read_bytes()
    events, batch = ran(request)
    assert events == [] and batch.metrics is None
    assert batch.n_found == batch.n_done == batch.n_rows == len(ROWS)
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_rows_that_were_added_at_the_end_are_answered_too(request_for: BatchRequest, tmp_path: Path) -> None:
    request = changed(request_for, output=tmp_path / "out.jsonl")
    ran(request, *ROWS[:3])
    _, batch = ran(request, *ROWS)
    assert (batch.n_found, batch.n_done) == (3, len(ROWS))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sampling": Sampling(temperature=0)}, "its record of line 1 comes from another prompt"),
        ({"model": "tiny-draft"}, "its record of line 1"),
        ({"chat": ChatOptions(chat=True)}, "its record of line 1"),
        ({"max_context": 100}, "its record of line 1"),
        ({"runtime": RuntimeConfig(device="cpu", dtype="float32", kv_dtype="int8")}, "its record of line 1"),
        ({"seed": 8}, "was written with --seed 7, not 8"),
    ],
)
def test_other_options_are_not_mixed_into_an_output(
    request_for: BatchRequest, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    request = changed(request_for, output=tmp_path / "out.jsonl")
    ran(request, *ROWS[:3])
    with pytest.raises(UsageError, match=says):
        ran(request, *ROWS, **changes)


def test_an_edited_row_is_not_mixed_into_an_output(request_for: BatchRequest, tmp_path: Path) -> None:
    request = changed(request_for, output=tmp_path / "out.jsonl")
    ran(request, *ROWS[:3])
    with pytest.raises(UsageError, match="its record of line 2 comes from another prompt"):
        ran(request, ROWS[0], ROWS[1] | {"prompt": "Tim was"}, ROWS[2])
    with pytest.raises(UsageError, match="its record of line 3"):
        ran(request, *ROWS[:2])


def test_a_batch_size_and_an_order_may_change_on_the_way(request_for: BatchRequest, tmp_path: Path) -> None:
    request = changed(request_for, output=tmp_path / "out.jsonl")
    write_rows(request, *ROWS)
    interrupted_after(request, 2)
    _, batch = ran(request, batch_size=1, in_order=False)
    assert batch.n_done == len(ROWS)


def test_rows_of_ids_need_no_tokenizer(request_for: BatchRequest, tmp_path: Path) -> None:
    random_llama().save_pretrained(tmp_path / "model")
    ids, text = answers(
        request_for, {"prompt": [5, 6], "max_tokens": 4}, {"prompt": "x"}, model=str(tmp_path / "model")
    )
    assert ids["text"] == "" and len(ids["token_ids"]) <= 4
    assert "has no tokenizer" in text["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 0}, "--batch-size must be at least 1"),
        ({"max_context": 0}, "--max-context must be at least 1"),
        ({"max_context": 10**6}, "--max-context 1000000 exceeds"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"sampling": Sampling(top_p=2)}, "--top-p must be"),
    ],
)
def test_an_option_that_cannot_be_meant_is_no_rows_fault(
    request_for: BatchRequest, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        ran(request_for, *ROWS, **changes)


def test_a_model_that_is_not_there_leaves_no_output(request_for: BatchRequest, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        ran(request_for, *ROWS, model="no/such", output=tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_a_stop_of_a_row_that_can_never_match_is_reported_once_with_its_row(request_for: BatchRequest) -> None:
    rows = [
        {"prompt": "A", "max_new_tokens": 1},
        {"prompt": "A", "max_new_tokens": 1, "stop": ["a", "bad"]},
        {"prompt": "B", "max_new_tokens": 1, "stop": ["a", "bad"]},
        {"prompt": "B", "max_new_tokens": 1, "stop": "\ud800"},
        {"prompt": "B", "max_new_tokens": 1, "stop": "a"},
    ]
    events, batch = ran(request_for, *rows)
    reported = [event.text for event in events if isinstance(event, Note) and "never match" in event.text]
    assert reported == [
        "x.jsonl:2: stop 'bad' can never match: 'a', another stop string, is complete before it.",
        "x.jsonl:4: stop '\\ud800' can never match: it is not valid Unicode.",
    ]
    assert batch.n_bad == 0


def test_a_row_tells_the_chat_template_whether_to_think_and_beats_the_run(
    request_for: BatchRequest, tmp_path: Path
) -> None:
    off = "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    model = str(chat_model(tmp_path / "thinks", template=TEMPLATE + off))
    rows: list[dict[str, Any]] = [
        {"prompt": "Hi"},
        {"prompt": "Hi", "think": False},
        {"messages": [{"role": "user", "content": "Hi"}], "chat_template_kwargs": {"enable_thinking": False}},
        {"prompt": "Hi", "think": True},
    ]

    def lengths(**changes: Any) -> list[int]:
        found = answers(request_for, *rows, model=model, max_new_tokens=1, **changes)
        return [record["prompt_tokens"] - found[3]["prompt_tokens"] for record in found]

    n_more = len("<think></think>")  # a token is a byte
    assert lengths() == [0, n_more, n_more, 0]
    assert lengths(chat=ChatOptions(variables=thinking_variables(think=False))) == [n_more, n_more, n_more, 0]


def test_a_row_with_variables_needs_a_chat_template(request_for: BatchRequest) -> None:
    (record,) = records(ran(request_for, {"prompt": "Hi", "think": False})[0])
    assert "has no chat template" in record["error"]["message"]


def test_the_record_of_a_chat_has_its_reasoning_apart(request_for: BatchRequest, tmp_path: Path) -> None:
    model = str(chat_model(tmp_path / "thinks", template=TEMPLATE + "<think>\n"))
    rows: list[dict[str, Any]] = [{"prompt": "Hi"}, {"prompt_ids": [5, 6]}]
    thought, text = answers(request_for, *rows, model=model, max_new_tokens=9)
    assert (thought["reasoning"], thought["content"]) == (thought["text"].strip(), "")
    assert not {"reasoning", "content"} & text.keys()
