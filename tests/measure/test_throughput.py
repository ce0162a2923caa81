"""The numbers of a generation come out exactly from known times."""

from gptfast_cli.core.measure.throughput import Timings


def test_each_number_counts_its_own_phase() -> None:
    timings = Timings()
    timings.add_prefill(100, 0.5)
    timings.add_first_token(0.6)
    for seconds in (0.1, 0.1, 0.2, 0.1):
        timings.add_step(n_tokens=3, seconds=seconds, n_bytes=500_000_000)
    metrics = timings.metrics(load_seconds=1.5, peak_memory_bytes=7)
    assert metrics.prefill_tok_s == 200
    assert metrics.ttft_s == 0.6
    assert metrics.decode_tok_s == 4 / 0.5
    assert metrics.aggregate_tok_s == 12 / 0.5
    assert (metrics.tpot_p50_s, metrics.tpot_p95_s) == (0.1, 0.2)
    assert metrics.decode_gbps == 4.0
    assert (metrics.load_s, metrics.peak_memory_bytes) == (1.5, 7)


def test_the_first_batch_tells_the_time_to_the_first_token() -> None:
    timings = Timings()
    timings.add_first_token(0.6)
    timings.add_first_token(0.1)
    assert timings.metrics(load_seconds=0, peak_memory_bytes=0).ttft_s == 0.6


def test_what_was_not_measured_is_none() -> None:
    timings = Timings()
    timings.add_prefill(10, 0.1)
    metrics = timings.metrics(load_seconds=0, peak_memory_bytes=0)
    assert metrics.ttft_s is metrics.decode_tok_s is metrics.tpot_p50_s is metrics.decode_gbps is None
