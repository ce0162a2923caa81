"""How long a step should take: by hand where everything is known, and beside what was measured where gpt-fast was.

gpt-fast's tables are those of its README (Llama-2, A100-80GB at 330 W, one prompt of 5 tokens and 200 more, read at up
to 1,700 GB/s by its own account). What its step reads is counted here from its own layout, not by this program.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import pytest

from gptfast_cli.core.bench.plan import (
    COMPILED,
    Efficiency,
    Hardware,
    ModelOutline,
    StepTime,
    StepWork,
    all_reduce_seconds,
    plan_rows,
    portion,
    step_time,
)
from gptfast_cli.core.engine.load import RANDOM_DTYPE
from gptfast_cli.core.engine.shapes import KNOWN_SHAPES
from gptfast_cli.core.quantize.allocation import AllocationOptions

BENCHMARKS = Path(__file__).parents[2] / "gptfast_cli" / "docs" / "benchmarks.md"
A100 = Hardware(bandwidth=1.7e12, memory_bytes=80_000_000_000, link_bandwidth=200e9)
CONTEXT = 208  # its cache has room for that many tokens, and each step reads all of it
BITS = {"plain": 16, "int8": 8, "int4": 5}  # its int4 has a scale and a zero point of 16 bits each for 32 weights


@dataclass(frozen=True)
class Published:
    shape: str
    scheme: str
    n_gpus: int
    tok_s: float

    @property
    def expected(self) -> float:
        """Of what gpt-fast's own step reads and sends."""
        seconds = step_time(self.step, A100, COMPILED).seconds
        assert seconds is not None
        return 1 / seconds

    @property
    def planned(self) -> float:
        """What `bench --plan` prints: this program packs int4 into 4.63 bits, and divides the head too."""
        config = KNOWN_SHAPES[self.shape]
        weights = AllocationOptions(self.scheme).allocation(config).outline(config, RANDOM_DTYPE)
        portions = [portion(ModelOutline(config, weights, RANDOM_DTYPE, RANDOM_DTYPE), self.n_gpus)]
        (row,) = plan_rows(portions, [1], [CONTEXT], A100, COMPILED)
        assert row.tok_s is not None and row.fits
        return row.tok_s

    @property
    def step(self) -> StepWork:
        config = KNOWN_SHAPES[self.shape]
        dim, kv_dim, n = config.dim, config.layers[0].attention.kv_dim, self.n_gpus
        layers = config.n_layers * (2 * dim * dim + 2 * dim * kv_dim + 3 * dim * config.layers[0].feed_forward.dim)
        head = config.vocab_size * dim  # whole on every device
        return StepWork(
            n_devices=n,
            n_layers=config.n_layers,
            weight_bytes={self.scheme: (layers // n + head) * BITS[self.scheme] // 8},
            kv_bytes=CONTEXT * config.n_layers * 2 * kv_dim * 2 // n,
            n_all_reduces=2 * config.n_layers,
            message_bytes=2 * dim,
        )

    @property
    def line(self) -> str:
        """Its row in the benchmarks."""
        scheme = {"plain": "bfloat16", "int4": "int4 g32"}.get(self.scheme, self.scheme)
        return (
            f"| {self.shape} | {scheme} | {self.n_gpus} | {self.tok_s:.4g} | {self.expected:.4g} | "
            f"{percent(self.error)} | {self.planned:.4g} | {percent(self.planned_error)} |"
        )

    @property
    def error(self) -> float:
        return self.expected / self.tok_s - 1

    @property
    def planned_error(self) -> float:
        return self.planned / self.tok_s - 1


ONE_GPU = [
    Published("llama-2-7b", "plain", 1, 104.9),
    Published("llama-2-7b", "int8", 1, 155.58),
    Published("llama-2-7b", "int4", 1, 196.80),
    Published("llama-2-70b", "int8", 1, 19.13),
    Published("llama-2-70b", "int4", 1, 25.25),
]
SEVERAL_GPUS = [
    Published("llama-2-7b", "plain", 2, 168.84),
    Published("llama-2-7b", "plain", 4, 254.02),
    Published("llama-2-7b", "plain", 8, 328.43),
    Published("llama-2-70b", "plain", 2, 21.32),
    Published("llama-2-70b", "plain", 4, 38.01),
    Published("llama-2-70b", "plain", 8, 62.50),
    Published("llama-2-70b", "int8", 8, 80.44),
    Published("llama-2-70b", "int4", 8, 90.77),
]


def percent(error: float) -> str:
    return f"{round(100 * error, 1) + 0:+.1f} %"  # no -0.0


def stated(errors: list[float]) -> str:
    sizes = [abs(100 * error) for error in errors]
    return f"{statistics.median(sizes):.1f} % in the median and {max(sizes):.1f} % at worst"


def test_a_step_takes_what_reading_layers_and_messages_take() -> None:
    step = StepWork(
        2, 3, {"plain": 800, "int4": 300}, kv_bytes=200, n_all_reduces=7, message_bytes=50, gathered_bytes=80
    )
    hardware = Hardware(bandwidth=1000, link_bandwidth=100, link_latency=0.25)
    efficiency = Efficiency({"plain": 0.5, "int4": 0.25}, layer_seconds=0.125)
    # 800 and 200 bytes at 500 bytes a second, 300 at 250; 50 bytes to one other device; half of 80 bytes
    assert step_time(step, hardware, efficiency) == StepTime(
        read_s=2.0 + 1.2, layers_s=3 * 0.125, exchange_s=7 * (0.25 + 0.5) + 0.25 + 0.4
    )
    assert step.n_bytes == 1300


def test_a_device_alone_exchanges_nothing_and_what_is_not_known_is_not_reported() -> None:
    step = StepWork(1, 1, {"plain": 100}, 0, n_all_reduces=3, message_bytes=10)
    assert step_time(step, Hardware(bandwidth=100), Efficiency({"plain": 1})).seconds == 1
    assert step_time(step, Hardware(), Efficiency({"plain": 1})).seconds is None
    two = StepWork(2, 1, {"plain": 100}, 0, n_all_reduces=3, message_bytes=10)
    assert step_time(two, Hardware(bandwidth=100), Efficiency({"plain": 1})) == StepTime(1, 0, None)


def test_a_scheme_that_nobody_measured_counts_as_the_slowest_one() -> None:
    assert COMPILED.share("nf4") == COMPILED.share("int4") < COMPILED.share("int8") < COMPILED.share("plain")


@pytest.mark.parametrize("n_devices", [2, 4, 8])
@pytest.mark.parametrize(("n_bytes", "is_small"), [(16, True), (10_000_000, False)])
def test_an_all_reduce_takes_the_faster_of_two_ways_played_through(
    n_devices: int, n_bytes: int, is_small: bool
) -> None:
    latency, bandwidth = 1e-5, 1e9
    others = range(n_devices - 1)
    one_shot = latency + sum(n_bytes / bandwidth for _ in others)
    two_shots = 2 * (latency + sum(n_bytes / n_devices / bandwidth for _ in others))
    assert (one_shot < two_shots) == (is_small or n_devices == 2)
    seconds = all_reduce_seconds(n_bytes, n_devices, latency, bandwidth)
    assert seconds == pytest.approx(min(one_shot, two_shots))


@pytest.mark.parametrize("published", [*ONE_GPU, *SEVERAL_GPUS], ids=str)
def test_the_benchmarks_say_how_far_the_plan_is_from_what_gpt_fast_measured(published: Published) -> None:
    assert published.line in BENCHMARKS.read_text()


def test_the_benchmarks_state_the_errors() -> None:
    text = " ".join(BENCHMARKS.read_text().split())
    rows = [*ONE_GPU, *SEVERAL_GPUS]
    assert f"for all rows by {stated([row.error for row in rows])}" in text
    assert f"which the fit did not use, by {stated([row.error for row in SEVERAL_GPUS])}" in text
    assert f"what `--plan` prints is wrong by {stated([row.planned_error for row in rows])}" in text


def test_the_errors_are_small() -> None:
    assert max(abs(row.error) for row in ONE_GPU) < 0.04
    assert max(abs(row.error) for row in SEVERAL_GPUS) < 0.10
    assert max(abs(row.planned_error) for row in (*ONE_GPU, *SEVERAL_GPUS)) < 0.15


def test_no_share_of_the_bandwidth_alone_explains_these_rows() -> None:
    """That is why a layer has a time of its own."""
    rows = [*ONE_GPU, *SEVERAL_GPUS]
    for percent in range(40, 101):
        alone = Efficiency({"plain": percent / 100})
        times = [step_time(row.step, A100, alone).seconds for row in rows]
        errors = [1 / (seconds * row.tok_s) - 1 for row, seconds in zip(rows, times, strict=True) if seconds]
        assert statistics.median(map(abs, errors)) > 0.125
