"""The numbers of a generation come out exactly from known times."""

from gptfast_cli.core.bench.throughput import Timings
from gptfast_cli.core.engine.engine import PrefillOutput, StepOutput
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.sampling import Sampler, Sampling

THREE = [Request(n, (1,), Sampler(Sampling(), seed=0), Limits(9, 9, frozenset())) for n in range(3)]


def test_each_number_counts_its_own_phase() -> None:
    timings = Timings()
    timings.add_prefill(PrefillOutput(n_fed=100, n_reused=20, prefill_seconds=0.5, first_token_seconds=0.125))
    timings.add_step(StepOutput(THREE, [1, 1, 1], 0.2, n_bytes=500_000_000))
    timings.add_step(StepOutput(THREE, [3, 3, 3], 0.375, n_bytes=1_500_000_000))
    metrics = timings.metrics(load_seconds=1.5, peak_memory_bytes=7)
    assert metrics.prefill_tok_s == 200
    assert metrics.ttft_s == 0.625
    assert metrics.decode_tok_s == 4 / 0.575
    assert metrics.aggregate_tok_s == 12 / 0.575
    assert (metrics.tpot_p50_s, metrics.tpot_p95_s) == (0.125, 0.2)
    assert metrics.decode_gbps == 2.0 / 0.575
    assert (metrics.load_s, metrics.peak_memory_bytes) == (1.5, 7)


def test_rounds_give_sequences_unlike_numbers_of_tokens() -> None:
    timings = Timings()
    timings.add_step(StepOutput(THREE, [1, 2, 6], 0.6, n_bytes=0))
    metrics = timings.metrics(load_seconds=0, peak_memory_bytes=0)
    assert metrics.aggregate_tok_s == 9 / 0.6
    assert metrics.decode_tok_s == 3 / 0.6, "of one sequence, on average"
    assert (metrics.tpot_p50_s, metrics.tpot_p95_s) == (0.6 / 6, 0.6)


def test_the_first_sequence_tells_the_time_to_the_first_token() -> None:
    timings = Timings()
    for seconds in (0.5, 0.25):
        timings.add_prefill(PrefillOutput(n_fed=10, n_reused=0, prefill_seconds=seconds, first_token_seconds=0.125))
    metrics = timings.metrics(load_seconds=0, peak_memory_bytes=0)
    assert metrics.ttft_s == 0.625
    assert metrics.prefill_tok_s == 20 / 0.75


def test_what_was_not_measured_is_none() -> None:
    metrics = Timings().metrics(load_seconds=0, peak_memory_bytes=0)
    assert metrics.ttft_s is metrics.prefill_tok_s is metrics.decode_tok_s is metrics.tpot_p50_s is metrics.decode_gbps
    assert metrics.ttft_s is None
