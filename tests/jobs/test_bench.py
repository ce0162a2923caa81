"""On a machine of known costs every number of a benchmark comes out exactly; what failed has an error and no number."""

import itertools
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fake_machine import BYTES_PER_SECOND, EMBED_SECONDS, HEAD_SECONDS, KEY_SECONDS, Machine
from gptfast_cli.core.bench.record import Bench, BenchRow
from gptfast_cli.core.bench.repetitions import Spread
from gptfast_cli.core.bench.workload import Case, CaseOptions
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.compiled import Compiling
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.errors import OutOfMemoryError, UsageError
from gptfast_cli.core.events import Measured
from gptfast_cli.core.jobs import bench as job
from gptfast_cli.core.jobs.bench import BenchRequest, Instruments, run
from gptfast_cli.core.quantize.allocation import AllocationOptions
from model_files import drained, settings_in

SHAPE = "layers=2,dim=8,heads=2,kv_heads=1,ffn=12,vocab=10,context=2000"
N_LAYERS = 2
# by hand, in elements of 4 bytes: a layer has norms 2 * 8, query/key/value (8 + 2 * 4) * 8, output 8 * 8, gate and up
# 24 * 8, down 8 * 12; then a last norm of 8 and a head of 10 * 8; of the embedding a row of 8 for each sequence; a key
# and a value of 4 each in 2 layers for each token before
STEP_BYTES = 4 * (2 * (16 + 128 + 64 + 192 + 96) + 8 + 80)
ROW_BYTES, KV_BYTES = 4 * 8, 4 * 16


def request(**changes: Any) -> BenchRequest:
    cases = CaseOptions((700, 8), (3,), (0, 600), (1, 4))
    runtime = RuntimeConfig(device="cpu", dtype="float32", threads=1, backend="reference")
    return replace(
        BenchRequest(settings_in(Path("unused")), arch=SHAPE, cases=cases, runtime=runtime, n_rounds=2), **changes
    )


def bench(machine: Machine, **changes: Any) -> Bench:
    return drained(run(request(**changes), machine.instruments()))[1]


def prompt_seconds(n_tokens: int, depth: int) -> float:
    """What one prompt costs: its tokens, a head for each chunk of 512, and the keys that each token sees."""
    keys = sum(range(depth + 1, depth + n_tokens + 1))
    return n_tokens * EMBED_SECONDS + math.ceil(n_tokens / 512) * HEAD_SECONDS + N_LAYERS * keys * KEY_SECONDS


def steps_seconds(n_steps: int, batch_size: int, n_before: int) -> float:
    keys = batch_size * sum(n_before + step + 1 for step in range(n_steps))
    return n_steps * (batch_size * EMBED_SECONDS + HEAD_SECONDS) + N_LAYERS * keys * KEY_SECONDS


def only(measured: Bench, test: str, batch_size: int) -> BenchRow:
    (row,) = [row for row in measured.rows if (row.test, row.batch_size) == (test, batch_size)]
    return row


@pytest.fixture(scope="module")
def measured() -> Bench:
    return bench(Machine())


def test_a_row_tells_what_keys_and_values_are_kept_in(measured: Bench) -> None:
    assert {row.kv_dtype for row in measured.rows} == {measured.kv_dtype} == {"float32"}
    coded = bench(Machine(), runtime=replace(request().runtime, kv_dtype="int8"))
    assert {row.kv_dtype for row in coded.rows} == {coded.kv_dtype} == {"int8"}


@pytest.mark.parametrize(("n_tokens", "depth", "batch_size"), list(itertools.product((700, 8), (0, 600), (1, 4))))
def test_prompts_have_the_speed_that_the_machine_gives(
    measured: Bench, n_tokens: int, depth: int, batch_size: int
) -> None:
    row = only(measured, f"pp{n_tokens}@d{depth}" if depth else f"pp{n_tokens}", batch_size)
    seconds = batch_size * prompt_seconds(n_tokens, depth)
    assert row.repetitions == (seconds, seconds)
    rate = batch_size * n_tokens / seconds
    assert row.tok_s == Spread(rate, 0, rate)
    assert row.gbps is row.mbu is row.error is None


@pytest.mark.parametrize(("depth", "batch_size"), list(itertools.product((0, 600), (1, 4))))
def test_generation_has_the_speed_and_the_share_of_bandwidth_that_the_machine_gives(
    measured: Bench, depth: int, batch_size: int
) -> None:
    row = only(measured, f"tg3@d{depth}" if depth else "tg3", batch_size)
    n_before = max(depth, 1)
    seconds = steps_seconds(3, batch_size, n_before)
    assert row.repetitions == (seconds, seconds)
    rate = batch_size * 3 / seconds
    assert row.tok_s == Spread(rate, 0, rate)
    n_bytes = sum(STEP_BYTES + batch_size * (ROW_BYTES + KV_BYTES * (n_before + step)) for step in range(3))
    assert row.gbps == n_bytes / seconds / 1e9
    assert row.mbu == n_bytes / seconds / BYTES_PER_SECOND


def test_the_record_says_what_was_measured(measured: Bench) -> None:
    assert [row.test for row in measured.rows[::2]] == ["pp700", "pp700@d600", "pp8", "pp8@d600", "tg3", "tg3@d600"]
    assert (measured.model, measured.scheme, measured.seed) == (SHAPE, "plain", 0)
    assert measured.n_bytes == STEP_BYTES + 4 * 80 == 4 * measured.n_params
    assert measured.bandwidth is not None and measured.bandwidth.median_gbps == BYTES_PER_SECOND / 1e9
    assert measured.compile_s is None
    assert not measured.is_interrupted
    assert {(row.n_prompt, row.n_gen) for row in measured.rows} == {(700, 0), (8, 0), (0, 3)}


def test_what_does_not_fit_has_an_error_and_no_number_and_the_others_run() -> None:
    measured = bench(Machine(most_rows=2), cases=CaseOptions((8,), (3, 1999, 2000), (0,), (2, 4)))
    failed = {(row.test, row.batch_size): row.error for row in measured.rows if row.error}
    short = "needs 2001 tokens of context, and the model has 2000"
    assert failed == {
        ("tg3", 4): "OOM", ("tg1999", 4): "OOM", ("tg2000", 2): short, ("tg2000", 4): short,
    }  # fmt: skip
    for row in measured.rows:
        numbers = (row.tok_s, row.gbps, row.mbu, row.peak_memory_bytes)
        assert (row.error is None) == bool(row.tok_s)
        assert row.error is None or (numbers == (None,) * 4 and row.repetitions == ())
    assert measured.has_numbers and not measured.is_out_of_memory


def test_where_every_row_lacks_memory_the_record_says_so() -> None:
    measured = bench(Machine(most_rows=0))
    assert measured.is_out_of_memory and not measured.has_numbers


def test_an_interrupt_keeps_what_was_measured_and_says_what_is_missing() -> None:
    running = run(request(cases=CaseOptions((8,), (3,), (0,), (1,))), Machine().instruments())
    while not isinstance(next(running), Measured):
        pass
    running.throw(KeyboardInterrupt)
    with pytest.raises(StopIteration) as end:
        next(running)
    pp, tg = end.value.value.rows
    assert (len(pp.repetitions), tg.error, end.value.value.is_interrupted) == (1, "interrupted", True)


def fed(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[tuple[int, ...]]:
    """All pieces of prompts that a benchmark feeds, in their order."""
    pieces: list[tuple[int, ...]] = []
    prefill = Runner.prefill

    def noted(runner: Runner, row: int, tokens: tuple[int, ...]) -> torch.Tensor:
        pieces.append(tuple(tokens))
        return prefill(runner, row, tokens)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "prefill", noted)
        bench(Machine(), arch=SHAPE.replace("vocab=10", "vocab=5000"), **changes)
    return pieces


def test_no_prompt_is_fed_twice_and_a_seed_gives_the_same_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = CaseOptions((8,), (3,), (6,), (2,))
    pieces = fed(monkeypatch, cases=cases)
    assert len(set(pieces)) == len(pieces) == 3 * (2 * 2 + 2)
    assert fed(monkeypatch, cases=cases) == pieces
    assert not set(fed(monkeypatch, cases=cases, seed=1)) & set(pieces)


def test_without_compiled_steps_rows_share_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    made, ended = Runner.__init__, lambda runner: alive.pop()

    def counted(runner: Runner, model: Any, n_rows: int) -> None:
        assert not alive
        alive.append(n_rows)
        made(runner, model, n_rows)

    monkeypatch.setattr(Runner, "__init__", counted)
    monkeypatch.setattr(Runner, "__del__", ended, raising=False)
    assert all(row.error is None for row in bench(Machine()).rows)


def test_compiled_rows_run_the_compiled_step_and_give_the_tokens_of_the_plain_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[int, ...]] = []
    answers: dict[bool, list[int]] = {False: [], True: []}
    compiling = False

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        def counted(*arguments: torch.Tensor) -> Any:
            calls.append(tuple(arguments[0].shape))
            return graph(*arguments)

        return counted

    step = Engine.step

    def noted(engine: Engine, max_steps: int) -> Any:
        done = yield from step(engine, max_steps)
        for n in range(done.counts[0], 0, -1):
            answers[compiling] += [sequence.generated[-n] for sequence in done.advanced]
        return done

    monkeypatch.setattr(Engine, "step", noted)
    cases = CaseOptions((), (4,), (0, 5), (1, 3))
    shape = "layers=2,dim=32,heads=2,ffn=48,vocab=200"
    torch.compiler.reset()
    for compiling in (False, True):
        asked = request(arch=shape, cases=cases, compiling=Compiling(decode=compiling, backend=backend))
        measured = drained(run(asked, Instruments(probe=Machine().probe)))[1]
        assert [row.error for row in measured.rows] == [None] * 4
    torch.compiler.reset()
    assert answers[True] == answers[False] != []
    n_steps = 3 * 4 * 2 * 2
    assert len(calls) == n_steps + 2, "two warm-ups, and every step"
    assert measured.compile_s is not None and sorted(measured.compile_s) == [1, 3]


def test_a_compiled_runner_has_room_for_the_longest_of_its_cases_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool, bool, int]] = []

    def compile_steps(runner: Runner, compiling: Compiling, *, n_tokens: int, settings: Any) -> Any:
        asked.append((runner.n_rows, compiling.prefill, compiling.decode, n_tokens))
        yield from ()
        return 0.5

    monkeypatch.setattr("gptfast_cli.core.bench.workload.compile_steps", compile_steps)
    cases = CaseOptions((8, 3000), (3,), (0, 600), (1, 4))
    measured = bench(Machine(), cases=cases, compiling=Compiling(decode=True, prefill=True))
    assert asked == [(1, True, False, 608), (4, True, False, 608), (1, False, True, 603), (4, False, True, 603)]
    assert measured.compile_s == {1: 1.0, 4: 1.0}
    assert only(measured, "pp8", 1).repetitions == (prompt_seconds(8, 0),) * 2, "its rows were not emptied"


def test_a_batch_that_cannot_be_compiled_for_lack_of_memory_is_a_row_without_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def compile_steps(runner: Runner, compiling: Compiling, *, n_tokens: int, settings: Any) -> Any:
        yield from ()
        if runner.n_rows == 4:
            raise MemoryError
        return 0.5

    monkeypatch.setattr("gptfast_cli.core.bench.workload.compile_steps", compile_steps)
    measured = bench(Machine(), cases=CaseOptions((), (3,), (0,), (1, 4)), compiling=Compiling(decode=True))
    assert [row.error for row in measured.rows] == [None, "OOM"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cases": CaseOptions((), ())}, "nothing to measure"),
        ({"cases": CaseOptions(batch_sizes=(1, 0))}, "--batch-size must be at least 1, not 0"),
        ({"cases": CaseOptions(batch_sizes=())}, "--batch-size must be at least 1"),
        ({"cases": CaseOptions(prompt_lens=(-1,))}, "--prompt-len must be at least 1, not -1"),
        ({"cases": CaseOptions(depths=(-1,))}, "--depth must be at least 0, not -1"),
        ({"n_rounds": 0}, "--reps must be at least 1, not 0"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"arch": "llama-9"}, "no shape called 'llama-9'"),
        ({"allocation": AllocationOptions("int3")}, "no scheme called 'int3'"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        bench(Machine(), **changes)


def test_a_shape_larger_than_memory_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "available_memory_bytes", lambda: 39_000_000_000)
    with pytest.raises(OutOfMemoryError, match=r"llama-2-70b take 4\d\.\d GB, and 39\.0 GB"):
        bench(Machine(), arch="llama-2-70b", allocation=AllocationOptions("int4"))


def test_a_checkpoint_is_measured_as_it_is_stored(tmp_path: Path) -> None:
    cases = CaseOptions((8,), (2,))
    asked = BenchRequest(
        settings_in(tmp_path), model="tiny", cases=cases, n_rounds=1, runtime=RuntimeConfig(device="cpu")
    )
    measured = drained(run(asked))[1]
    assert (measured.model, measured.scheme, measured.head_scheme) == ("tiny", "plain", "plain")
    assert [row.error for row in measured.rows] == [None, None]
    assert all(row.peak_memory_bytes for row in measured.rows)
    assert measured.rows[0].tok_s is not None and measured.rows[0].tok_s.sd is None
    assert asdict(measured)["rows"][1]["mbu"] > 0


def test_cases_are_named_as_in_llama_bench_and_know_the_context_that_they_need() -> None:
    assert Case("decode", 128, 4096, 8).name == "tg128@d4096"
    assert Case("prefill", 512, 0, 1).name == "pp512"
    assert (Case("decode", 128, 0, 1).n_context, Case("prefill", 512, 64, 1).n_context) == (129, 576)
