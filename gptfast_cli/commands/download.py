"""`gptfast download`: fetches a model from the Hugging Face Hub or from S3."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gptfast_cli.core.settings import check_hub_environment, load_settings
from gptfast_cli.numbers import Integer
from gptfast_cli.options import (
    DebugOption,
    JsonOption,
    QuietOption,
    complete_folder,
)
from gptfast_cli.render.json import write_document
from gptfast_cli.render.progress import progress_view, show


def download(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", show_default=False, help="org/name, hf://org/name@revision or s3://bucket/prefix."
        ),
    ],
    *,
    revision: Annotated[
        str | None, typer.Option(metavar="REVISION", show_default="main", help="A branch, a tag or a commit.")
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", show_default="what a model needs", help="Fetch these files; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave out these files; may be repeated.")
    ] = None,
    local_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            autocompletion=complete_folder,
            show_default="the Hugging Face cache, or for S3 gptfast's own",
            help="A plain folder to put the files into.",
        ),
    ] = None,
    max_workers: Annotated[
        int, typer.Option(metavar="N", parser=Integer(1, 64), help="Files to fetch side by side.")
    ] = 8,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files, sizes, free disk and memory to run it; fetch nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Compare the files that are here by their hashes; fetch those that differ.")
    ] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Fetch a model from the Hugging Face Hub or from S3, verified, and make it the current one.

    The folder that holds it goes to stdout. A download that was stopped goes on when the command is given again.
    """
    check_hub_environment()
    with progress_view(sys.stderr, quiet=quiet) as show_progress:
        from gptfast_cli.core.jobs.download import DownloadRequest, run
        from gptfast_cli.core.jobs.origins import DownloadOptions

        request = DownloadRequest(
            source=source,
            settings=load_settings(),
            revision=revision,
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            local_dir=local_dir,
            dry_run=dry_run,
            terms=DownloadOptions(n_workers=max_workers, force=force),
        )
        downloaded = show(run(request), show_progress)
    from gptfast_cli.render.download import document, write_downloaded, write_plan

    if json:
        write_document("gptfast.download/1", document(downloaded), sys.stdout)
    elif dry_run:
        write_plan(downloaded, sys.stdout)
    else:
        sys.stdout.write(f"{downloaded.path}\n")
        if not quiet:
            write_downloaded(downloaded, sys.stderr)
