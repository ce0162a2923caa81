"""Layers get their schemes one by one: as a person says, or as they can least afford to lose them."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.command_line import CommandLine, environment_of
from gptfast_cli.core.checkpoints.reader import open_manifest_checkpoint
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.jobs.mixed_precision import Goal
from gptfast_cli.core.jobs.quantize import Quantized, QuantizeRequest, run
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.render.checkpoints import write_allocation
from model_files import drained, settings_in


def quantize(folder: Path, goal: Goal | None = None, **options: Any) -> Quantized:
    return drained(run(QuantizeRequest(settings_in(folder), model="tiny", goal=goal, **options)))[1]


def schemes_of_layers(quantized: Quantized) -> list[str]:
    weights = open_manifest_checkpoint(quantized.path).manifest.weights
    return [weights[f"layers.{layer}.down"].scheme for layer in range(4)]


def test_single_layers_are_stored_as_asked(tmp_path: Path) -> None:
    quantized = quantize(tmp_path, storage=AllocationOptions("int4", layers="0=int8,3=plain"), fidelity=False)
    assert schemes_of_layers(quantized) == ["int8", "int4", "int4", "plain"]
    assert quantized.name == "tiny:int4-g32-1-layer-int8-1-layer-plain"
    assert [part.scheme for part in quantized.parts if part.part == "layers"] == ["int8", "int4-g32", "plain"]
    assert sum(part.n_params for part in quantized.parts if part.part == "layers") == 4 * 466_944


def test_a_size_is_kept_and_goes_to_the_layers_that_need_it(tmp_path: Path) -> None:
    smallest = quantize(tmp_path / "a", storage=AllocationOptions("int4"), fidelity=False)
    largest = quantize(tmp_path / "b", storage=AllocationOptions("int8"), fidelity=False)
    budget = (smallest.n_bytes + largest.n_bytes) // 2
    quantized = quantize(tmp_path / "c", Goal(n_bytes=budget), runtime=RuntimeConfig(dtype="float32"))
    assert smallest.n_bytes < quantized.n_bytes <= budget
    chosen = quantized.chosen
    assert chosen is not None
    schemes = schemes_of_layers(quantized)
    gain = [options[0].kld - options[1].kld for options in chosen.options]
    upgraded = {layer for layer in range(4) if schemes[layer] == "int8"}
    assert upgraded == set(sorted(range(4), key=gain.__getitem__)[-len(upgraded) :]), "those that gain most"
    assert chosen.measured_kld == pytest.approx(chosen.predicted_kld, rel=0.3)
    assert quantized.fidelity is not None and quantized.fidelity.divergence.kld_mean < 3 * chosen.measured_kld


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_kld_is_kept_in_as_few_bytes_as_it_takes(tmp_path: Path, rounding: str) -> None:
    loose, tight = (
        quantize(tmp_path / name, Goal(kld=kld), rounding=rounding, dry_run=True)
        for name, kld in (("loose", 1.0), ("tight", 0.00012))
    )
    assert loose.chosen is not None and tight.chosen is not None
    assert {loose.chosen.allocation.of_layer(layer).scheme for layer in range(4)} == {"int4"}
    assert tight.chosen.measured_kld <= 0.00012 < loose.chosen.measured_kld
    assert loose.n_bytes < tight.n_bytes and not tight.is_written


def test_a_choice_whose_parts_cost_more_together_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptfast_cli.core.jobs import mixed_precision

    measured = mixed_precision._measured

    def worse(*arguments: Any) -> Any:
        return 2 * (yield from measured(*arguments))

    monkeypatch.setattr(mixed_precision, "_measured", worse)
    chosen = quantize(tmp_path, Goal(kld=0.0002), dry_run=True).chosen
    assert chosen is not None and chosen.measured_kld <= 0.0002 and chosen.predicted_kld < 0.00015


@pytest.mark.parametrize(
    ("goal", "says", "hint"),
    [
        (Goal(n_bytes=1_000_000), "the smallest choice takes 0.00138", "--head int4"),
        (Goal(kld=1e-9), "the embedding and the head alone come to", "--head plain"),
        (Goal(n_bytes=0), "--target-size must be above 0", "--target-size 3.5"),
        (Goal(kld=float("nan")), "--target-kld must be above 0", "--target-kld 0.01"),
    ],
)
def test_a_goal_out_of_reach_says_what_is_in_reach(tmp_path: Path, goal: Goal, says: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        quantize(tmp_path, goal)
    assert says in caught.value.message and hint in caught.value.hint


def test_the_table_says_what_each_layer_got_and_why(tmp_path: Path) -> None:
    chosen = quantize(tmp_path, Goal(n_bytes=1_700_000), dry_run=True).chosen
    assert chosen is not None
    shown = io.StringIO()
    write_allocation(chosen, shown)
    lines = shown.getvalue().splitlines()
    assert lines[0].split("  ")[0] == "LAYER" and "KLD IN INT4-G32" in lines[0] and "KLD IN INT8" in lines[0]
    assert [line.split()[1] for line in lines[1:5]] == [str(chosen.allocation.of_layer(layer)) for layer in range(4)]
    assert "over 1,024 tokens" in lines[5]


@pytest.fixture
def gptfast(tmp_path: Path) -> CommandLine:
    return CommandLine((sys.executable, "-m", "gptfast_cli"), environment_of(tmp_path / "home"))


def test_the_command_chooses_and_tells_it_as_json(gptfast: CommandLine) -> None:
    outcome = gptfast.run("quantize", "tiny", "--target-size", "0.0017", "--no-fidelity", "--threads", "1", "--json")
    assert outcome.returncode == 0, outcome.stderr
    document = json.loads(outcome.stdout)
    layers = document["allocation"]["layers"]
    assert document["bytes"] <= 1_700_000 and [each["layer"] for each in layers] == [0, 1, 2, 3]
    assert all(each["scheme"] in each["kld"] for each in layers)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--layers", "0=int8", "--target-size", "1"], "--layers and --target-size exclude each other"),
        (["--target-size", "1", "--target-kld", "1"], "--target-size and --target-kld exclude each other"),
        (["--target-kld", "1", "--mode", "int4"], "--mode and --target-kld exclude each other"),
        (["--layers", "9=int8"], "layers that the model does not have"),
    ],
)
def test_what_contradicts_itself_is_a_usage_error(gptfast: CommandLine, arguments: list[str], says: str) -> None:
    outcome = gptfast.run("quantize", "tiny", *arguments)
    assert outcome.returncode == 2 and says in outcome.stderr.decode()
