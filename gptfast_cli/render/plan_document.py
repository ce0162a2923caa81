"""A plan as one JSON document; what is not known of the machine, and what depends on it, is null."""

from dataclasses import asdict
from typing import Any, TextIO

from gptfast_cli.core.jobs.plan import Plan
from gptfast_cli.core.measure.planning import RESERVE, PlanRow
from gptfast_cli.render.json import write_document


def write_json(plan: Plan, command: str, stream: TextIO) -> None:
    """Write it; `command` is what made it."""
    write_document("gptfast.plan/1", document(plan, command), stream)


def document(plan: Plan, command: str) -> dict[str, Any]:
    """The plan as JSON values."""
    hardware = plan.hardware
    return {
        "command": command,
        "model": plan.model,
        "scheme": plan.scheme,
        "head_scheme": plan.head_scheme,
        "n_params": plan.n_params,
        "dtype": plan.dtype,
        "kv_dtype": plan.kv_dtype,
        "hardware": {
            "bandwidth_gbps": hardware.bandwidth and hardware.bandwidth / 1e9,
            "bandwidth_is_measured": plan.is_measured,
            "memory_bytes": hardware.memory_bytes,
            "reserve": RESERVE,
            "link_gbps": hardware.link_bandwidth and hardware.link_bandwidth / 1e9,
            "link_latency_s": hardware.link_latency,
        },
        "efficiency": asdict(plan.reach),
        "rows": [_row(row) for row in plan.rows],
    }


def _row(row: PlanRow) -> dict[str, Any]:
    fields = asdict(row)
    time = fields.pop("time")
    return {**fields, "fits": row.fits, **time, "step_s": row.time.seconds}
