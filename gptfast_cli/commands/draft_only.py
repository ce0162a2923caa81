"""`gptfast speculate --draft-only`: how fast a draft is by itself, at each batch size."""

import shlex
import sys
from typing import TYPE_CHECKING

from gptfast_cli.commands.bench import exit_code
from gptfast_cli.core.errors import ExitCode
from gptfast_cli.core.settings import load_settings
from gptfast_cli.render.progress import progress_view, show

if TYPE_CHECKING:
    from gptfast_cli.core.engine.build import RuntimeConfig


def bench_draft(
    draft: str, runtime: "RuntimeConfig", batch_sizes: tuple[int, ...], *, n_rounds: int, json: bool, quiet: bool
) -> ExitCode:
    """Measure a MODEL or a SHAPE and write its numbers; returns the exit code."""
    with progress_view(sys.stderr, quiet=quiet) as show_progress:
        from gptfast_cli.core.bench.workload import CaseOptions
        from gptfast_cli.core.drafts.candidates import is_shape, shape_and_storage
        from gptfast_cli.core.jobs.bench import BenchRequest, run
        from gptfast_cli.core.quantize.allocation import AllocationOptions

        shape, storage = shape_and_storage(draft) if is_shape(draft) else (None, AllocationOptions("plain"))
        request = BenchRequest(
            settings=load_settings(),
            model=draft if shape is None else None,
            arch=shape,
            allocation=storage,
            runtime=runtime,
            cases=CaseOptions(prompt_lens=(), batch_sizes=batch_sizes),
            n_rounds=n_rounds,
        )
        bench = show(run(request), show_progress)
    if json:
        from gptfast_cli.render.bench import write_json

        write_json(bench, shlex.join(["gptfast", *sys.argv[1:]]), sys.stdout)
    else:
        from gptfast_cli.render.bench import write_table

        write_table(bench, sys.stdout)
    return exit_code(bench)
