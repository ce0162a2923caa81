"""A row whose logits are not finite becomes an error record; the others are answered as if it were not there."""

import json
from pathlib import Path
from typing import Any

import pytest

from chat_model import model_that_fails_at_q
from generation_requests import changed, requested
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.engine.speculative.draft_length import DraftOptions
from gptfast_cli.core.jobs import generate, generate_batch
from gptfast_cli.core.models.decoder import NonFiniteLogitsError
from model_files import drained, settings_in

ROWS: list[dict[str, Any]] = [
    {"prompt": "a b"},
    {"prompt": "a q"},  # q has NaN
    {"prompt": "q", "n": 4},
    {"prompt": "a b", "n": 3},
    {"prompt": "c", "temperature": 1e-60},
    {"prompt": "c", "repetition_penalty": 1e-300},
    {"prompt": "c", "repetition_penalty": 1.1},
    {"prompt": "q c", "logprobs": 2},
]
GOOD, FAILED = [1, 4, 7], [2, 3, 5, 6, 8]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_that_fails_at_q(tmp_path_factory.mktemp("model") / "bytes")


def request(folder: Path, home: Path, rows: list[dict[str, Any]]) -> generate_batch.BatchRequest:
    (home / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runtime = RuntimeConfig("cpu", "float32")
    return requested(
        generate_batch.BatchRequest,
        home / "x.jsonl",
        settings_in(home),
        output=home / "out.jsonl",
        model=str(folder),
        runtime=runtime,
        seed=7,
        sampling=Sampling(top_k=5),
        max_new_tokens=6,
        ignore_eos=True,
    )


def records(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home / "out.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("draft", [None, "ngram", "itself"])
def test_a_row_without_finite_logits_is_an_error_of_its_own(
    folder: Path, tmp_path: Path, draft: str | None, batch_size: int
) -> None:
    drafting = None if draft is None else DraftOptions(str(folder) if draft == "itself" else draft)
    asked = changed(request(folder, tmp_path, ROWS), batch_size=batch_size, drafting=drafting)
    batch = drained(generate_batch.run(asked))[1]
    reported = {record["line"]: record for record in records(tmp_path)}
    assert batch.n_bad == 5 and sorted(reported) == list(range(1, 9))
    assert [line for line, record in reported.items() if "error" in record] == FAILED
    assert reported[2]["error"]["message"] == "The model's logits are NaN or infinite after 4 tokens."
    assert len(reported[1]["token_ids"]) == len(reported[7]["token_ids"]) == 6
    assert [len(sample["token_ids"]) for sample in reported[4]["samples"]] == [6] * 3
    if draft is None:
        alone = [{**row, "seed": 7} for row in ROWS]
        sound = [alone[line - 1] for line in GOOD]
        drained(generate_batch.run(changed(request(folder, tmp_path, alone), output=tmp_path / "a.jsonl")))
        drained(generate_batch.run(changed(request(folder, tmp_path, sound), output=tmp_path / "b.jsonl")))
        beside, without = (
            [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("a.jsonl", "b.jsonl")
        )
        keys = ("token_ids", "samples", "text")
        assert [[beside[line - 1].get(key) for key in keys] for line in GOOD] == [
            [record.get(key) for key in keys] for record in without
        ]


def test_a_run_that_goes_on_keeps_the_error_of_such_a_row(folder: Path, tmp_path: Path) -> None:
    asked = request(folder, tmp_path, ROWS)
    drained(generate_batch.run(asked))
    whole = (tmp_path / "out.jsonl").read_text()
    again = drained(generate_batch.run(asked))[1]
    assert (again.n_found, again.n_bad, again.metrics) == (8, 5, None)
    (tmp_path / "out.jsonl").write_text("".join(whole.splitlines(keepends=True)[:2]))
    again = drained(generate_batch.run(asked))[1]
    assert (again.n_found, again.n_bad) == (2, 5)
    assert (tmp_path / "out.jsonl").read_text() == whole


def test_a_prompt_alone_is_an_error(folder: Path) -> None:
    asked = requested(generate.GenerateRequest, "a q", settings_in(folder), model=str(folder), num_samples=2)
    with pytest.raises(NonFiniteLogitsError, match="after 4 tokens"):
        drained(generate.run(asked))
