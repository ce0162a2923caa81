"""`gptfast generate`: text that continues a prompt, as it comes, and how fast it came."""

import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gptfast_cli.commands.prompt import DEFAULT, PromptSources
from gptfast_cli.core.errors import ExitCode
from gptfast_cli.core.settings import load_settings
from gptfast_cli.options import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    QuietOption,
    ThreadsOption,
)
from gptfast_cli.render.json import write_document
from gptfast_cli.render.samples import SamplesView
from gptfast_cli.render.show import View, nothing, progress_view, show

_PROMPT = "Prompt"
_LENGTH = "Length and number"
_SAMPLING = "Sampling"


def generate(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", show_default=DEFAULT, help="The text to continue; - reads stdin.")
    ] = None,
    *,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", rich_help_panel=_PROMPT, help="Read the prompt from a file.")
    ] = None,
    prompt_ids: Annotated[
        str | None, typer.Option(metavar="1,2,3", rich_help_panel=_PROMPT, help="Give the prompt as token ids.")
    ] = None,
    prompt_length: Annotated[
        int | None, typer.Option(metavar="N", rich_help_panel=_PROMPT, help="Make up a prompt of N tokens.")
    ] = None,
    model: ModelOption = None,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=_LENGTH, help="Most tokens to generate for a sample.")
    ] = 200,
    stop: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", rich_help_panel=_LENGTH, help="End before this text; may be repeated."),
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", rich_help_panel=_LENGTH, help="Go on after an end-of-sequence token.")
    ] = False,
    max_context: Annotated[
        int | None,
        typer.Option(
            metavar="N", show_default="the model's", rich_help_panel=_LENGTH, help="Most tokens, prompt included."
        ),
    ] = None,
    num_samples: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=_LENGTH, help="Continue the prompt N times.")
    ] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", show_default="all", rich_help_panel=_LENGTH, help="Samples made side by side."),
    ] = None,
    temperature: Annotated[
        float, typer.Option(metavar="T", rich_help_panel=_SAMPLING, help="0 always takes the likeliest token.")
    ] = 0.8,
    top_k: Annotated[
        int, typer.Option(metavar="K", rich_help_panel=_SAMPLING, help="Draw from the K likeliest tokens; 0 is all.")
    ] = 200,
    top_p: Annotated[
        float, typer.Option(metavar="P", rich_help_panel=_SAMPLING, help="Draw from the likeliest that sum up to P.")
    ] = 1.0,
    min_p: Annotated[
        float, typer.Option(metavar="P", rich_help_panel=_SAMPLING, help="Drop those under P times the likeliest.")
    ] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(metavar="R", rich_help_panel=_SAMPLING, help="Above 1, repeat less.")
    ] = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(
            metavar="N", show_default="a fresh one", rich_help_panel=_SAMPLING, help="The same seed, the same text."
        ),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Continue a prompt with text, and show how fast.

    The text goes to stdout, all else to stderr. Ctrl-C keeps the text and shows its numbers.
    """
    source = PromptSources(prompt, prompt_file, prompt_ids, prompt_length).read()
    text = _text_view(source, n_samples=num_samples, batch_size=batch_size, json=json)
    with progress_view(sys.stderr, quiet=quiet) as show_progress:
        from gptfast_cli.core.decode.loading import Placing
        from gptfast_cli.core.decode.sampling import Sampling
        from gptfast_cli.core.jobs.generate import GenerateRequest, run
        from gptfast_cli.render.generation import write_numbers

        request = GenerateRequest(
            prompt=source,
            prompt_length=prompt_length,
            model=model,
            settings=load_settings(),
            placing=Placing(device=device, dtype=dtype, threads=threads),
            sampling=Sampling(temperature, top_k, top_p, min_p, repetition_penalty),
            max_new_tokens=max_new_tokens,
            stop=tuple(stop or ()),
            ignore_eos=ignore_eos,
            max_context=max_context,
            seed=seed,
            num_samples=num_samples,
            batch_size=batch_size,
        )
        with text as show_text:
            generation = show(run(request), show_progress, show_text)
    if json:
        write_document("gptfast.generate/1", asdict(generation), sys.stdout)
    elif not quiet:
        write_numbers(generation, sys.stderr)
    if any(sample.finish_reason == "interrupted" for sample in generation.samples):
        raise typer.Exit(ExitCode.INTERRUPTED)


def _text_view(
    prompt: str | tuple[int, ...] | None, *, n_samples: int, batch_size: int | None, json: bool
) -> AbstractContextManager[View]:
    if json:
        return nullcontext(nothing)
    shown_prompt = prompt if isinstance(prompt, str) else ""
    return SamplesView(sys.stdout, prompt=shown_prompt, n_samples=n_samples, batch_size=batch_size or n_samples)
