"""`speculate` end to end: acceptance, costs, predictions, validation runs, and the report after an interrupt."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chat_model import model_that_fails_at_q
from generation_requests import changed, requested
from gptfast_cli.core.drafts.costs import CostMeter, Costs
from gptfast_cli.core.drafts.report import DraftReport, Noise
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.engine.speculative.draft_length import DraftOptions
from gptfast_cli.core.errors import GptFastError, NotFoundError, UsageError
from gptfast_cli.core.events import Note, Progress
from gptfast_cli.core.jobs import generate
from gptfast_cli.core.jobs.generate import GenerateRequest
from gptfast_cli.core.jobs.speculate import SpeculateRequest, run
from gptfast_cli.core.settings import Settings
from model_files import drained, settings_in

SMALL = "layers=2,dim=64,heads=2,ffn=160,vocab=300"


@pytest.fixture
def asked(tmp_path: Path) -> SpeculateRequest:
    return SpeculateRequest(
        settings=settings_in(tmp_path),
        model="tiny",
        runtime=RuntimeConfig("cpu", "float32"),
        draft_lengths=(1, 3),
        batch_sizes=(1, 2),
        temperatures=(0.0, 0.8),
        limit=3,
        max_new_tokens=24,
        n_times=1,
    )


def judged(request: SpeculateRequest, **changes: Any) -> DraftReport:
    return drained(run(replace(request, **changes)))[1]


def interrupted(request: SpeculateRequest, task: str, least_done: int = 1) -> DraftReport:
    """What is known when a task has come so far."""
    job = run(request)
    for event in job:
        if isinstance(event, Progress) and event.task == task and event.done >= least_done:
            break
    assert isinstance(job.throw(KeyboardInterrupt), Note)
    return drained(job)[1]


def test_a_report_has_every_draft_temperature_draft_length_and_batch_size(asked: SpeculateRequest) -> None:
    output = judged(asked, certify=True)
    assert (output.target, output.n_prompts, output.is_interrupted) == ("tiny", 3, False)
    assert [(each.draft, each.temperature) for each in output.drafts] == [
        ("tiny-draft", 0.0),
        ("ngram", 0.0),
        ("tiny-draft", 0.8),
        ("ngram", 0.8),
    ]
    for draft in output.drafts:
        assert draft.basis == "on-policy"
        assert [(cell.batch_size, cell.k) for cell in draft.grid] == [(1, 1), (1, 3), (2, 1), (2, 3)]
        if draft.draft == "ngram" and draft.n_tokens == 0:
            assert math.isnan(draft.alpha.value), "nothing stood there before"
        else:
            assert 0 <= draft.alpha.low <= draft.alpha.value <= draft.alpha.high <= 1
            assert 1 <= draft.tau[1].value <= 2 and draft.tau[1].value <= draft.tau[3].value <= 4
        assert all(cell.cost.total > 0 and cell.predicted.value > 0 for cell in draft.grid)
    assert {(each.temperature, each.batch_size) for each in output.plain} == {
        (t, b) for t in (0.0, 0.8) for b in (1, 2)
    }
    assert {(each.temperature, each.batch_size) for each in output.recommendations} == {
        (t, b) for t in (0.0, 0.8) for b in (1, 2)
    }
    assert len(output.validation_runs) >= 4 and any(run.draft is None and run.k == 0 for run in output.validation_runs)
    validated = {(run.draft, run.temperature, run.k, run.batch_size) for run in output.validation_runs if run.draft}
    measured = {
        (draft.draft, draft.temperature, cell.k, cell.batch_size)
        for draft in output.drafts
        for cell in draft.grid
        if cell.measured is not None
    }
    assert measured == validated
    assert [each.draft for each in output.losslessness_checks] == ["tiny-draft", "ngram"]
    assert all(each.holds and each.n_texts == 9 for each in output.losslessness_checks)


def test_acceptance_depends_on_the_seed_alone(asked: SpeculateRequest) -> None:
    runs = [replace(asked, seed=seed, temperatures=(0.8,)) for seed in (1, 1, 2)]
    first, second, other = (interrupted(each, "measure costs").drafts[0] for each in runs)
    assert (first.alpha, first.tau, first.acceptance_by_position, first.slices) == (
        second.alpha,
        second.tau,
        second.acceptance_by_position,
        second.slices,
    )
    assert first.alpha != other.alpha


@pytest.mark.parametrize("task", ["write texts", "compare drafts", "measure costs", "validate"])
def test_an_interrupt_keeps_what_is_known(asked: SpeculateRequest, task: str) -> None:
    output = interrupted(asked, task, least_done=4 if task == "measure costs" else 1)
    assert output.is_interrupted
    assert bool(output.drafts) == (task != "write texts")
    assert any(draft.grid for draft in output.drafts) == (task in ("measure costs", "validate"))
    assert bool(output.validation_runs) == (task == "validate")


def test_a_text_that_was_given_is_no_text_of_the_targets(asked: SpeculateRequest, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "Once upon a time", "completion": " there was a fox.", "category": "a"}]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    output = judged(asked, prompts=file, temperatures=(0.0,), batch_sizes=(1,), draft_lengths=(1,))
    assert {draft.basis for draft in output.drafts} == {"proxy"}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "has no prompts"),
        ("{", "prompts.jsonl:1: not readable as JSON"),
        ('{"promt": "a"}', "no prompt has such a field"),
        (
            '{"prompt_ids": [99999]}',
            "No prompt can be used[.]\nprompts.jsonl:1: Token id 99999 has no embedding",
        ),
        ('{"prompt": "a", "completion": "b"}', "too short"),
        ('{"prompt": "a", "completion": "b c d e"}\n{"prompt": "a"}', "some of its prompts have a completion"),
    ],
)
def test_what_is_no_prompt_is_refused(asked: SpeculateRequest, tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(line)
    with pytest.raises(UsageError, match=says):
        judged(asked, prompts=file)
    with pytest.raises(NotFoundError):
        judged(asked, prompts=tmp_path / "none")


@pytest.mark.parametrize("completion", [None, " c d"])
def test_a_prompt_that_fails_is_left_out_alone(tmp_path: Path, completion: str | None) -> None:
    folder = model_that_fails_at_q(tmp_path / "model", num_hidden_layers=1, head_dim=16)
    file = tmp_path / "prompts.jsonl"
    prompts: list[dict[str, object]] = [{"prompt": "q a"}, {"prompt": "a b"}, {"prompt_ids": [5, 9999]}]
    rows = [*prompts, {"prompt": "a" * 600}, {"prompt": "b q"}, {"prompt": "c"}]
    file.write_text("\n".join(json.dumps(row | ({"completion": completion} if completion else {})) for row in rows))
    request = SpeculateRequest(
        settings_in(tmp_path), str(folder), drafts=(str(folder),), runtime=RuntimeConfig("cpu", "float32"), prompts=file
    )
    output = judged(
        request,
        draft_lengths=(2,),
        batch_sizes=(8,),  # of many rows, as the thousands of texts of a losslessness check are short
        temperatures=(0.0, 0.8),
        max_new_tokens=8,
        n_times=1,
        certify=completion is None,
    )
    failed = {each.name: each.reason for each in output.failed_prompts}
    assert sorted(failed) == [f"prompts.jsonl:{line}" for line in (1, 3, 4, 5)]
    assert output.n_prompts == 2
    assert failed["prompts.jsonl:3"].startswith("Token id 9999 has no embedding")
    assert "the context holds" in failed["prompts.jsonl:4"]
    assert all(failed[f"prompts.jsonl:{line}"].startswith("The model's logits are NaN") for line in (1, 5))
    assert all(math.isfinite(draft.alpha.value) for draft in output.drafts if draft.n_tokens)
    file.write_text(json.dumps(rows[0]))
    with pytest.raises(GptFastError, match="No prompt can be used") as raised:
        judged(request)
    assert "\nprompts.jsonl:1: The model's logits are NaN" in raised.value.message


def test_a_target_that_says_nothing_cannot_be_judged(asked: SpeculateRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: Any) -> Any:
        yield Progress("write texts", 0, 1, "tokens")
        return [], []

    monkeypatch.setattr("gptfast_cli.core.jobs.speculate.write_texts", silent)
    with pytest.raises(UsageError, match="tiny generates no text"):
        judged(asked)


def test_a_shape_is_judged_by_assumed_acceptance(asked: SpeculateRequest) -> None:
    output = judged(
        asked, model=f"{SMALL}:int8", drafts=(SMALL, "self:int4"), alpha=0.8, temperatures=(0.0,), max_new_tokens=40
    )
    assert (output.target, output.scheme) == (f"{SMALL}:int8", "int8")
    assert [(each.draft, each.basis, each.alpha.value) for each in output.drafts] == [
        (SMALL, "assumed", pytest.approx(0.8)),
        ("self:int4", "assumed", pytest.approx(0.8)),
    ]
    for draft in output.drafts:
        assert draft.tau[3].value == pytest.approx(1 + 0.8 + 0.8**2 + 0.8**3, rel=0.05)
    assert {run.draft for run in output.validation_runs} == {None, SMALL, "self:int4"}


def test_a_shape_can_draft_for_a_model(asked: SpeculateRequest) -> None:
    draft = "layers=1,dim=64,heads=2,ffn=160,vocab=1536"
    output = judged(asked, drafts=(draft,), alpha=0.5, temperatures=(0.0,), batch_sizes=(1,), draft_lengths=(1,))
    assert [(each.draft, each.basis) for each in output.drafts] == [(draft, "assumed"), ("ngram", "on-policy")]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": SMALL, "drafts": (SMALL,)}, "has random weights: its acceptance cannot be measured"),
        ({"model": SMALL, "temperatures": (0.0,), "alpha": 0.5}, "requires --draft"),
        ({"drafts": (SMALL,), "alpha": 0.5, "temperatures": (0.0,)}, "it has 300 tokens, and the target 1,536"),
        ({"alpha": 0.5}, "requires temperature 0"),
        ({"alpha": 1.5, "temperatures": (0.0,)}, "from 0 to 1"),
        ({"draft_lengths": (0, 1)}, "--k must be at least 1"),
        ({"batch_sizes": ()}, "--batch-size must be at least 1"),
        ({"drafts": ("self:int9",)}, "no quantized scheme"),
        ({"max_new_tokens": 1}, "--max-new-tokens must be at least 2"),
        ({"temperatures": ()}, "--temperature requires a number"),
        ({"model": f"{SMALL}:int4-gx", "drafts": (SMALL,), "alpha": 0.5, "temperatures": (0.0,)}, "called 'int4-gx'"),
    ],
)
def test_what_cannot_be_judged_is_refused(asked: SpeculateRequest, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        judged(asked, **changes)


def test_advice_is_what_generate_then_takes(asked: SpeculateRequest, tmp_path: Path) -> None:
    settings: Settings = asked.settings
    wanted = requested(
        GenerateRequest,
        prompt="Once upon a time",
        settings=settings,
        model="tiny",
        runtime=asked.runtime,
        sampling=Sampling(temperature=0),
        max_new_tokens=30,
        drafting=DraftOptions("auto", has_own_draft_length=False),
    )
    with pytest.raises(UsageError, match="no drafts have been judged for tiny here"):
        drained(generate.run(wanted))
    output = judged(asked, save_advice=True, force=True, batch_sizes=(1,), temperatures=(0.0,))
    (recommendation,) = output.recommendations
    events, generation = drained(generate.run(wanted))
    if recommendation.draft is None:
        assert any(isinstance(event, Note) and "Draft: none, as advised" in event.text for event in events)
    else:
        assert (generation.speculation.draft, generation.speculation.k) == (recommendation.draft, recommendation.k)
    plain = drained(generate.run(changed(wanted, drafting=None)))[1]
    assert generation.samples == plain.samples


@pytest.mark.parametrize("is_noisy_from", ["the first", "later"])
def test_advice_from_a_noisy_machine_is_kept_by_force_alone(
    asked: SpeculateRequest, monkeypatch: pytest.MonkeyPatch, is_noisy_from: str
) -> None:
    def measured(meter: CostMeter, *_: Any) -> None:
        meter.costs.drifts += [0.7, 1.4] * 500 if is_noisy_from == "the first" else [1.0] * 3

    monkeypatch.setattr(CostMeter, "check_noise", measured)
    short = replace(asked, draft_lengths=(1,), batch_sizes=(1,), temperatures=(0.0,), save_advice=True)
    if is_noisy_from == "the first":
        with pytest.raises(GptFastError, match="Noisy machine"):
            judged(short)
    else:
        monkeypatch.setattr(Costs, "noise", property(lambda costs: Noise(0.7, 1.4) if costs.rounds else None))
        events, output = drained(run(short))
        assert any(isinstance(event, Note) and event.text.startswith("No advice was saved") for event in events)
        assert output.is_noisy and output.verdict.startswith("Noisy machine")
    assert not (asked.settings.home / "advice").exists()
    judged(short, force=True)
    assert len(list((asked.settings.home / "advice").iterdir())) == 1


def test_advice_of_the_nearest_temperature_and_batch_size_counts(tmp_path: Path) -> None:
    from gptfast_cli.core.engine.load import load
    from gptfast_cli.core.engine.speculative.drafting import Advice, find_advice, save_advice
    from gptfast_cli.core.errors import CorruptError

    target = drained(load("tiny", settings_in(tmp_path), RuntimeConfig("cpu", "float32")))[1]
    kept = [Advice(0.0, 1, "a", 4), Advice(0.0, 4, "b", 2), Advice(0.8, 2, None, None)]
    assert find_advice(tmp_path, target, 0.0, 1) is None
    file = save_advice(tmp_path, target, kept)
    found = {(t, b): find_advice(tmp_path, target, t, b) for t in (0.0, 0.3, 0.7) for b in (1, 3, 4, 9)}
    assert [found[0.0, b].draft for b in (1, 3, 4, 9)] == ["a", "a", "b", "b"]
    assert found[0.3, 1] == kept[0] and found[0.7, 1] == kept[2] == found[0.7, 9]
    file.write_text('{"schema": "gptfast.advice/1", "advice": [3]}')
    with pytest.raises(CorruptError, match="is not an object"):
        find_advice(tmp_path, target, 0.0, 1)
