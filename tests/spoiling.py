"""Files of models spoilt at random, and the bounds within which opening them must stay."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck
from hypothesis import strategies as st

from gptfast_cli.core.errors import GptFastError

MOST_BYTES = 300_000_000  # that opening a file of some kilobytes may take: libraries come in with the first
UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spoilt_json(draw: st.DrawFn, content: bytes) -> bytes:
    """JSON in which up to three values, anywhere, are others, are gone or are where another was."""
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        at = value
        while isinstance(at, dict | list) and at:
            key = draw(st.sampled_from(list(at) if isinstance(at, dict) else range(min(len(at), 50))))
            if isinstance(at[key], dict | list) and at[key] and draw(st.integers(0, 3)):
                at = at[key]
                continue
            match draw(st.sampled_from(["replace", "remove", "move"])):
                case "replace":
                    at[key] = draw(VALUES)
                case "remove":
                    del at[key]
                case "move":
                    other = draw(st.sampled_from(list(at) if isinstance(at, dict) else range(len(at))))
                    at[key] = at[other]
            break
    return json.dumps(value).encode()


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes of which some are others, are gone or are there twice; most of it near the beginning or the end."""
    spoilt = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        n = len(spoilt)
        near = st.integers(0, min(n, 400)) | st.integers(max(0, n - 400), n) | st.integers(0, n)
        start = draw(near)
        match draw(st.sampled_from(["change", "insert", "remove", "cut"])):
            case "change":
                new = draw(st.binary(min_size=1, max_size=8) | st.just(b"\xff" * 8) | st.just(b"\0" * 8))
                spoilt[start : start + len(new)] = new
            case "insert":
                spoilt[start:start] = draw(st.binary(max_size=16))
            case "remove":
                del spoilt[start : start + draw(st.integers(1, 64))]
            case "cut":
                del spoilt[start:]
    return bytes(spoilt)


@st.composite
def spoilt_header(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file with a spoilt header of the right length."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = draw(spoilt_json(content[8:end]))
    return len(header).to_bytes(8, "little") + header + content[end:]


def spoilt(file: str, content: bytes) -> st.SearchStrategy[bytes]:
    ways = [spoilt_bytes(content)]
    if file.endswith(".json"):
        ways.append(spoilt_json(content))
    if file.endswith(".safetensors"):
        ways.append(spoilt_header(content))
    return st.one_of(ways)


def check(path: Path, use: Callable[[Path], object], data: Any) -> None:
    """Spoil a file, use its folder, which ends well or in an error of ours, and mend it."""
    content = path.read_bytes()
    try:
        path.write_bytes(data.draw(spoilt(path.name, content)))
        with contextlib.suppress(GptFastError):
            use(path.parent)
    finally:
        path.write_bytes(content)


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Fail where the peak of this process's memory grows by more than MOST_BYTES meanwhile."""
    if sys.platform != "linux":
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = _memory("VmRSS")
    yield
    assert _memory("VmHWM") - before < MOST_BYTES


def _memory(kind: str) -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(kind))
