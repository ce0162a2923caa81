"""`gptfast download`: a model from the Hugging Face Hub or S3."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from gptfast_cli.core.settings import check_hub_environment, load_settings
from gptfast_cli.options import OutputOptions, integer_option, path_option
from gptfast_cli.render.json import write_document
from gptfast_cli.render.progress import progress_view, show
from gptfast_cli.tree import command


@command(
    "download",
    "gptfast download meta-llama/Llama-2-7b-chat-hf",
    "gptfast download Qwen/Qwen3-8B --dry-run",
    "gptfast download s3://bucket/prefix --local-dir ./model",
)
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
        typer.Option(metavar="PATTERN", show_default="what a model needs", help="Files to fetch; repeatable."),
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Files to skip; repeatable.")] = None,
    local_dir: Annotated[
        Path | None,
        path_option("FOLDER", "Folder for the files.", usual="the Hugging Face cache; for S3, GPTFAST_HOME"),
    ] = None,
    max_workers: Annotated[int, integer_option(1, "Number of concurrent downloads.", most=64)] = 8,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print files, sizes, free disk space and memory needed; fetch nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Verify the hashes of existing files, and fetch those that differ.")
    ] = False,
    printing: OutputOptions,
) -> None:
    """Download a model from the Hugging Face Hub or S3, verify it, and make it the current model.

    Prints the folder of the model. An interrupted download resumes when the command is repeated.
    """
    check_hub_environment()
    with progress_view(sys.stderr, quiet=printing.quiet) as show_progress:
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
    from gptfast_cli.render.checkpoints import KEYS, write_downloaded, write_plan

    if printing.json:
        write_document("gptfast.download/1", downloaded, sys.stdout, KEYS)
    elif dry_run:
        write_plan(downloaded, sys.stdout)
    else:
        sys.stdout.write(f"{downloaded.path}\n")
        if not printing.quiet:
            write_downloaded(downloaded, sys.stderr)
