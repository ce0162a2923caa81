"""`gptfast convert`: writes a checkpoint from a model in another format."""

import sys
from typing import Annotated

import typer

from gptfast_cli.completion.answer import Paths
from gptfast_cli.core.settings import load_settings
from gptfast_cli.options import (
    NoUseOption,
    OutOption,
    OutputOptions,
    OverwriteOption,
    complete_model,
    dtype_option,
    name_option,
)
from gptfast_cli.render.json import write_document
from gptfast_cli.render.numbers import count, size
from gptfast_cli.render.progress import progress_view, show
from gptfast_cli.tree import command


def _complete_cached(incomplete: str) -> list[str | tuple[str, str]]:
    """Names of models in the Hugging Face cache, and folders."""
    from gptfast_cli.core.checkpoints.downloads import cached_repos

    return [*cached_repos(load_settings().hf_cache), (incomplete, Paths.FOLDERS)]


@command(
    "convert",
    "gptfast convert meta-llama/Llama-2-7b-chat-hf",
    "gptfast convert ./stories15M.pt --out ./stories15M",
    "gptfast convert meta-llama/Llama-2-7b-hf --lora ./my-adapter",
)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            autocompletion=_complete_cached,
            show_default=False,
            help="Folder, file, or org/name in the Hugging Face cache.",
        ),
    ],
    *,
    out: OutOption = None,
    dtype: Annotated[str | None, dtype_option("Dtype of the stored weights: bfloat16, float16 or float32.")] = None,
    tokenizer_from: Annotated[str | None, name_option("MODEL", complete_model, "Model whose tokenizer to use.")] = None,
    lora: Annotated[
        str | None,
        name_option(
            "ADAPTER",
            _complete_cached,
            "LoRA adapter of PEFT to merge into the weights: folder, or org/name in the Hugging Face cache.",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Check the SHA-256 of all files, and the logits against transformers if installed."
        ),
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pickle files (.bin, .pth); only from sources you trust.")
    ] = False,
    no_use: NoUseOption = False,
    force: OverwriteOption = False,
    printing: OutputOptions,
) -> None:
    """Convert a Hugging Face, Meta, gpt-fast or llama2.c model to a checkpoint, and make it the current model.

    Prints the folder of the new checkpoint.
    """
    with progress_view(sys.stderr, quiet=printing.quiet) as show_progress:
        from gptfast_cli.core.jobs.convert import ConvertRequest, run

        request = ConvertRequest(
            source=source,
            settings=load_settings(),
            out=out,
            dtype=dtype,
            tokenizer_from=tokenizer_from,
            verify=verify,
            allow_pickle=allow_pickle,
            force=force,
            lora=lora,
            use=not no_use,
        )
        converted = show(run(request), show_progress)
    if printing.json:
        from gptfast_cli.render.checkpoints import KEYS

        write_document("gptfast.convert/1", converted, sys.stdout, KEYS)
        return
    sys.stdout.write(f"{converted.path}\n")
    if not printing.quiet:
        n_params = count(converted.n_params)
        is_current = "; now the current model" if converted.is_current else ""
        sys.stderr.write(f"{converted.name}: {n_params} parameters, {size(converted.n_bytes)}{is_current}\n")
