"""How long a decode step should take on a device that is known by a few figures only: the model behind a plan.

    step = sum over schemes of bytes / (bandwidth * share) + layers * seconds besides + messages between the devices

The first term is the roofline. Without the second, a layer's kernels starting, its norms and its attention, no single
share of the bandwidth fits a small and a large model: gpt-fast's figures lie between 51 and 87 % of what they read.
A message costs a latency and its bytes over the link's bandwidth, as in Thakur, Rabenseifner and Gropp 2005,
"Optimization of collective communication operations in MPICH". Arithmetic is not counted: a plan holds as long as a
step is bound by what it reads, which large batches are not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gptfast_cli.core.formats.plain import NAME as PLAIN

LINK_LATENCY: Final = 10e-6
"""Seconds of a small all-reduce among GPUs that read one another's memory over NVLink: up to 32 kB it took 11 to 14 us
on A100s and 4 to 12 us on H100s, two to eight of them (SGLang, pull requests 2688 and 2904)."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """One of several equal devices; None is not known.

    bandwidth:      bytes that it reads of its own memory in a second
    memory_bytes:   that it has
    link_bandwidth: bytes that it sends to the others in a second, to all of them together
    link_latency:   seconds of a message without its bytes
    """

    bandwidth: float | None = None
    memory_bytes: int | None = None
    link_bandwidth: float | None = None
    link_latency: float = LINK_LATENCY


@dataclass(frozen=True, slots=True)
class Reach:
    """How near decoding comes to the roofline.

    shares:        of the bandwidth, 0..1, by the scheme of what is read; a scheme without one has the lowest
    layer_seconds: that each layer takes besides reading
    """

    shares: Mapping[str, float]
    layer_seconds: float = 0.0

    def share(self, scheme: str) -> float:
        """The share of the bandwidth at which weights of a scheme are read."""
        return self.shares.get(scheme, min(self.shares.values()))


COMPILED: Final = Reach({PLAIN: 0.98, "int8": 0.84, "int4": 0.71}, layer_seconds=48e-6)
"""A GPU and compiled PyTorch: fitted to gpt-fast's five rows for one A100 (Llama-2-7B and 70B; bf16, int8, int4)."""

NATIVE: Final = Reach({PLAIN: 0.95})
"""A CPU and this program's engine, without pauses between layers: the median of the README's rows, 0.87 to 1.06."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a decode step makes each of `n_devices` read and send.

    weight_bytes:  by scheme
    kv_bytes:      keys and values of the tokens so far
    n_all_reduces: of `message_bytes` each; gathered_bytes: of one all-gather, all devices' parts together
    """

    n_devices: int
    n_layers: int
    weight_bytes: Mapping[str, int]
    kv_bytes: int
    n_all_reduces: int = 0
    message_bytes: int = 0
    gathered_bytes: int = 0

    @property
    def n_bytes(self) -> int:
        """All that a device reads."""
        return sum(self.weight_bytes.values()) + self.kv_bytes


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of a step: reading, what layers take besides, messages; None where the hardware is not known for it."""

    read_s: float | None
    layers_s: float
    exchange_s: float | None

    @property
    def seconds(self) -> float | None:
        """All of it."""
        if self.read_s is None or self.exchange_s is None:
            return None
        return self.read_s + self.layers_s + self.exchange_s


def step_time(step: Step, hardware: Hardware, reach: Reach) -> StepTime:
    """How long a step takes there."""
    read = None
    if hardware.bandwidth is not None:
        weights = sum(n_bytes / reach.share(scheme) for scheme, n_bytes in step.weight_bytes.items())
        read = (weights + step.kv_bytes / reach.share(PLAIN)) / hardware.bandwidth
    return StepTime(read, step.n_layers * reach.layer_seconds, _exchange_seconds(step, hardware))


def all_reduce_seconds(n_bytes: int, n_devices: int, latency: float, bandwidth: float) -> float:
    """Seconds until each device has the sum of a message that each of them had; the faster one of two ways.

    One shot: everyone sends all of it to everyone, one latency. Two shots: everyone adds up a part and sends that on.
    """
    one_shot = latency + (n_devices - 1) * n_bytes / bandwidth
    two_shots = 2 * latency + 2 * (n_devices - 1) / n_devices * n_bytes / bandwidth
    return min(one_shot, two_shots)


def _exchange_seconds(step: Step, hardware: Hardware) -> float | None:
    if step.n_devices == 1:
        return 0.0
    latency, bandwidth = hardware.link_latency, hardware.link_bandwidth
    if bandwidth is None:
        return None
    n = step.n_devices
    seconds = step.n_all_reduces * all_reduce_seconds(step.message_bytes, n, latency, bandwidth)
    if step.gathered_bytes:
        seconds += latency + (n - 1) / n * step.gathered_bytes / bandwidth
    return seconds
