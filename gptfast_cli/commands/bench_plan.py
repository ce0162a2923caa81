"""`gptfast bench --plan`: what a model would need, and how fast it should be, without loading it."""

import shlex
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gptfast_cli.core.errors import UsageError
from gptfast_cli.render.progress import View, show

if TYPE_CHECKING:
    from gptfast_cli.core.jobs.plan import BenchPlan, PlanRequest

OF_A_PLAN = ("device_bandwidth", "device_memory", "link_bandwidth", "link_latency", "efficiency")
"""Options that say something only beside --plan."""

_OF_A_MEASUREMENT = (
    "model_argument", "model", "arch", "reps", "seed", "compile", "compile_prefill", "backend", "activations", "output",
)  # fmt: skip
_OF_THIS_MACHINE = ("device", "threads")
_OF_ANOTHER_MACHINE = ("device_bandwidth", "device_memory")


def check_plan(flags: Mapping[str | None, str]) -> None:
    """Raise UsageError for an option beside --plan that would not be listened to.

    flags: what was given, as it is written, by the name of its parameter
    """
    for name in _OF_A_MEASUREMENT:
        if name in flags:
            hint = "Leave out one of them; a plan is printed as a table, or with --json."
            raise UsageError(f"{flags[name]} and --plan exclude each other.", hint)
    described = next((flags[name] for name in _OF_ANOTHER_MACHINE if name in flags), None)
    for name in _OF_THIS_MACHINE:
        if described and name in flags:
            raise UsageError(
                f"{flags[name]} is of this machine, and {described} describes another.", "Leave out one of them."
            )


def make_plan(request: "PlanRequest", show_progress: View) -> "BenchPlan":
    """What a model would need and do."""
    from gptfast_cli.core.jobs.plan import run

    return show(run(request), show_progress)


def write_plan(planned: "BenchPlan", *, json: bool) -> None:
    """Write it, once no progress is shown any more."""
    from gptfast_cli.render.plan import write_json, write_table

    if json:
        write_json(planned, shlex.join(["gptfast", *sys.argv[1:]]), sys.stdout)
    else:
        write_table(planned, sys.stdout)
