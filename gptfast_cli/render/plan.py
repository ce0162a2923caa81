"""Results of `bench --plan`: memory and predicted speed of each case, as tables and as JSON."""

from collections.abc import Iterator
from typing import Final, TextIO

from gptfast_cli.core.bench.plan import Hardware, PlanRow
from gptfast_cli.core.engine.runner import PREFILL_CHUNK
from gptfast_cli.core.jobs.plan import BenchPlan
from gptfast_cli.render.bench import schemes_of
from gptfast_cli.render.json import Keys, to_document, write_document
from gptfast_cli.render.numbers import count, digits, duration, gigabytes_per_second, size
from gptfast_cli.render.terminal import Table, aligned, write_dim

_CASE = ("tp", "batch", "context")
_MEMORY = (*_CASE, "weights", "KV", "buffers", "headroom", "max context", "max batch")
_SPEED = (*_CASE, "step", "reads", "kernels", "all-reduce", "tok/s", "each", "MBU")


def write_table(plan: BenchPlan, stream: TextIO) -> None:
    """Write the tables of memory and of speed; all bytes are those of one device."""
    schemes = schemes_of(plan.scheme, plan.head_scheme)
    kept = "" if plan.kv_dtype == plan.dtype else f"; {plan.kv_dtype} keys and values"
    write_dim(f"{plan.model}: {count(plan.n_params)} parameters, {schemes}, {plan.dtype}{kept}", stream)
    for headings, cells in ((_MEMORY, _memory), (_SPEED, _speed)):
        rows = tuple((*_case(row), *cells(row)) for row in plan.rows)
        stream.write("\n" + "".join(f"{line}\n" for line in aligned(Table(headings, rows, ">" * len(headings)))))
    stream.write("\n")
    for sentence in _assumptions(plan):
        write_dim(sentence, stream)
    stream.flush()


def _case(row: PlanRow) -> tuple[str, ...]:
    return str(row.tp), str(row.batch_size), f"{row.context:,}"


def _memory(row: PlanRow) -> Iterator[str]:
    yield from (size(n_bytes) for n_bytes in (row.weight_bytes, row.kv_bytes, row.buffer_bytes))
    if row.headroom_bytes is None or row.max_context is None or row.max_batch_size is None:
        return
    yield size(row.headroom_bytes) if row.headroom_bytes >= 0 else f"-{size(-row.headroom_bytes)}"
    yield f"{row.max_context:,}"
    yield f"{row.max_batch_size:,}"


def _speed(row: PlanRow) -> Iterator[str]:
    if row.fits is False:
        yield "no room"
        return
    time = row.time
    yield size(row.step_bytes)
    yield "" if time.read_s is None else duration(time.read_s)
    yield duration(time.layers_s) if time.layers_s else ""
    yield duration(time.exchange_s) if time.exchange_s else ""
    if row.tok_s is not None and row.mbu is not None:
        yield digits(row.tok_s)
        yield digits(row.tok_s / row.batch_size)
        yield f"{row.mbu:.0%}"


def _assumptions(plan: BenchPlan) -> Iterator[str]:
    """The assumptions, and the options that would give the missing numbers."""
    hardware, efficiency = plan.hardware, plan.efficiency
    has_links = any(row.tp > 1 for row in plan.rows)
    yield f"a device: {'; '.join(_figures(hardware, has_links=has_links))}"
    names = {scheme: f" ({scheme})" if len(efficiency.shares) > 1 else "" for scheme in efficiency.shares}
    shares = ", ".join(f"{share:.0%}{names[scheme]}" for scheme, share in efficiency.shares.items())
    besides = (
        f", and each layer takes {1e6 * efficiency.layer_seconds:.3g} us besides" if efficiency.layer_seconds else ""
    )
    yield f"decoding reads at {shares} of the bandwidth{besides}; tok/s are those at the end of the context"
    yield f"buffers: activations of {PREFILL_CHUNK} tokens, logits; MBU: bytes of a step / its time / bandwidth"
    if hardware.bandwidth is None:
        yield "tok/s needs --device-bandwidth"
    if hardware.memory_bytes is None:
        yield "whether it fits needs --device-memory"
    if has_links and hardware.link_bandwidth is None:
        yield "tok/s with --tp above 1 needs --link-bandwidth"


def _figures(hardware: Hardware, *, has_links: bool) -> Iterator[str]:
    read, free = (" (measured here, now)", " free") if hardware.is_measured else ("", "")
    if hardware.bandwidth_gbps is not None:
        yield f"{gigabytes_per_second(hardware.bandwidth_gbps)}{read}"
    if hardware.memory_bytes is not None:
        yield f"{size(hardware.memory_bytes)}{free}, less a reserve of {hardware.reserve:.0%}"
    if has_links and hardware.link_gbps is not None:
        link = gigabytes_per_second(hardware.link_gbps)
        yield f"{link} to the others, {1e6 * hardware.link_latency:.3g} us a message"


_KEYS: Final[Keys] = {
    BenchPlan: "model scheme head_scheme n_params dtype kv_dtype hardware efficiency rows",
    Hardware: (
        "bandwidth_gbps bandwidth_is_measured=is_measured memory_bytes reserve link_gbps link_latency_s=link_latency"
    ),
    PlanRow: "* -time fits *time step_s=time.seconds",
}


def write_json(plan: BenchPlan, command: str, stream: TextIO) -> None:
    """Write the plan as one document; `command` is the command line."""
    write_document("gptfast.plan/1", {"command": command, **to_document(plan, _KEYS)}, stream)
