"""`gptfast generate --prompts-file`: an answer for each row of a file, as JSON lines."""

import sys
from dataclasses import replace

import typer

from gptfast_cli.core.batch.replica import own_part
from gptfast_cli.core.errors import ExitCode, GptFastError
from gptfast_cli.core.jobs.generate_batch import BatchRequest, run
from gptfast_cli.core.jobs.replicas import Replicas
from gptfast_cli.render.generation import records_view, without_records, write_batch
from gptfast_cli.render.progress import progress_view, show


def generate_batch(request: BatchRequest, n_replicas: int | None, *, quiet: bool) -> None:
    """Answer the rows and write their records to stdout, or to the file that the request names.

    With `n_replicas` so many processes answer them, each started by the command line of this one.

    Raises GptFastError where rows are bad, once the others are answered.
    """
    part = own_part()
    if part is not None:  # one of those processes; who has started it shows what there is to see
        request = replace(request, output=None, in_order=False, part=part)
        quiet = True
    elif n_replicas is not None:
        request = replace(request, replicas=Replicas(n_replicas, (sys.executable, "-m", "gptfast_cli", *sys.argv[1:])))
    with progress_view(sys.stderr, quiet=quiet) as show_progress:
        if request.output is None:
            batch = show(run(request), show_progress, records_view(sys.stdout))
        else:
            batch = show(run(request), without_records(show_progress))
    if not quiet:
        write_batch(batch, sys.stderr, can_go_on=request.output is not None)
    if batch.is_interrupted:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if batch.n_bad:
        raise GptFastError(
            f"{batch.n_bad:,} of {batch.n_rows:,} rows could not be answered.", "The `error` in their records says why."
        )
