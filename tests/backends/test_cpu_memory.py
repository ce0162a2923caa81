"""Where the system refuses memory or threads, the CPU engine raises an error, and goes on once there is some."""

import contextlib
import gc
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cpu_engine import fed, native, weights_of
from gptfast_cli.core.errors import OutOfMemoryError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TESTS = Path(__file__).parents[1]
SHAPE = "grouped heads, odd sizes"
WIDE = {"hidden_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@contextlib.contextmanager
def no_more_than(n_bytes: int) -> Iterator[None]:
    """The process can map so many bytes more, and no others."""
    gc.collect()  # what earlier tests have left would be given back within the block, and taken for room
    before = resource.getrlimit(resource.RLIMIT_AS)
    n_mapped = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (n_mapped + n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def feed_with_little_memory() -> None:
    """Of this model a token takes 2 MB of scratch, and 64 tokens 128 MB."""
    with torch.inference_mode():
        model = native(*weights_of(SHAPE, "bfloat16", intermediate_size=100_000, **WIDE), torch.bfloat16)
        text = [n % 90 for n in range(64)]
        with no_more_than(40 << 20):
            one_by_one = fed(model, text, [1] * 64)
            with pytest.raises(MemoryError, match="could not get the memory"):
                fed(model, text, [64])
        assert torch.equal(fed(model, text, [64])[-1], one_by_one[-1])


def test_scratch_is_taken_for_the_tokens_that_are_fed() -> None:
    """In a process of its own: the heap of this one may have as much room left from earlier tests, within any limit."""
    code = "from backends.test_cpu_memory import feed_with_little_memory as feed; feed()"
    path = os.pathsep.join(map(str, (TESTS, TESTS.parent)))
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_wide_model_takes_fewer_tokens_at_once() -> None:
    """Of this model a token takes 8 MB of scratch: 32 at once are what the limit of 256 MB has room for."""
    model = native(*weights_of(SHAPE, "bfloat16", intermediate_size=400_000, **WIDE), torch.bfloat16)
    text = [n % 90 for n in range(100)]
    with no_more_than(300 << 20):
        batched = fed(model, text, [100])
    assert torch.equal(batched[-1], fed(model, text, [1, 98, 1])[-1])


def test_a_refused_thread_is_an_error_and_those_that_were_started_end() -> None:
    config, weights = weights_of(SHAPE, "bfloat16")
    n_before = len(list(Path("/proc/self/task").iterdir()))
    with no_more_than(50 << 20), pytest.raises(OutOfMemoryError, match="starts no more threads"):
        native(config, weights, torch.bfloat16, n_threads=61)
    assert len(list(Path("/proc/self/task").iterdir())) == n_before
    model = native(config, weights, torch.bfloat16, n_threads=2)
    assert fed(model, [1, 2, 3], [3]).isfinite().all()


def test_a_process_that_may_map_little_runs_a_small_model() -> None:
    """Memory for weights is taken in pieces of 256 MB where the system gives these."""
    config, weights = weights_of(SHAPE, "bfloat16")
    expected = fed(native(config, weights, torch.bfloat16), [1, 2, 3], [3])
    with no_more_than(100 << 20):
        assert torch.equal(fed(native(config, weights, torch.bfloat16), [1, 2, 3], [3]), expected)


def test_a_matrix_without_memory_is_an_error() -> None:
    config, weights = weights_of(SHAPE, "bfloat16")
    with no_more_than(1 << 20), pytest.raises(MemoryError, match="could not get the memory"):
        native(config, weights, torch.bfloat16)
