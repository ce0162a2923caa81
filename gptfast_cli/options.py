"""Options that several commands share, each defined once: name, help, environment variable and completion.

`DeviceOptions`, `EngineOptions` and `OutputOptions` are groups of them, which `tree.command` expands.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gptfast_cli.completion.answer import Paths
from gptfast_cli.core.cpus import most_threads
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.registry import plug_names
from gptfast_cli.core.settings import load_settings
from gptfast_cli.numbers import Integer, IntegerList, Integers, Number

MODEL_VARIABLE: Final = "GPTFAST_MODEL"
"""The variable that names the model where --model does not."""

CASES = "Measurement"
CHAT = "Chat"
MACHINE = "Machine"
OUTPUT = "Output"
SAMPLING = "Sampling"
SPEED = "Speed"
_MODEL_HELP = "Checkpoint folder, name in the store or in the Hugging Face cache, or tiny."


@dataclass(frozen=True, slots=True)
class OutsideValue:
    """An option's value from outside the command line; `origin`: the variable, or the table of the settings file."""

    flag: str
    value: object
    origin: str


@dataclass(slots=True)
class Invocation:
    """State of a run that `main` needs for its error messages; the context of every command carries it."""

    debug: bool = False
    outside_values: tuple[OutsideValue, ...] = ()
    flags: frozenset[str] = frozenset()


def _set_debug(context: typer.Context, value: bool) -> bool:  # noqa: FBT001  # typer's signature of a callback
    invocation = context.obj
    if isinstance(invocation, Invocation):
        invocation.debug |= value
    return value


def complete_model(incomplete: str) -> list[str | tuple[str, str]]:
    """Names of models, and folders."""
    from gptfast_cli.core.checkpoints.store import model_names

    return [*model_names(load_settings()), (incomplete, Paths.FOLDERS)]


def complete_draft(incomplete: str) -> list[str | tuple[str, str]]:
    """Drafts: prompt lookup, the target itself in a scheme, or any model."""
    itself = [f"self:{scheme}" for scheme in complete_scheme() if scheme != "plain"]
    return ["ngram", *itself, *complete_model(incomplete)]


def complete_draft_or_advice(incomplete: str) -> list[str | tuple[str, str]]:
    """Drafts, and `auto` for the saved advice."""
    return ["auto", *complete_draft(incomplete)]


def complete_cached(incomplete: str) -> list[str | tuple[str, str]]:
    """Names of models in the Hugging Face cache, and folders."""
    from gptfast_cli.core.checkpoints.downloads import cached_repos

    return [*cached_repos(load_settings().hf_cache), (incomplete, Paths.FOLDERS)]


def complete_file(incomplete: str) -> list[tuple[str, str]]:
    """Files: the shell completes them."""
    return [(incomplete, Paths.FILES)]


def complete_folder(incomplete: str) -> list[tuple[str, str]]:
    """Folders: the shell completes them."""
    return [(incomplete, Paths.FOLDERS)]


def complete_scheme() -> list[str]:
    """Names of the schemes, from the names of their files."""
    return list(plug_names("gptfast_cli.core.schemes"))


def _complete_stored() -> list[str]:
    from gptfast_cli.core.checkpoints.downloads import bucket_paths, cached_repos
    from gptfast_cli.core.checkpoints.store import open_store

    settings = load_settings()
    stored = [entry.name for entry in open_store(settings).entries()]
    return [*stored, *cached_repos(settings.hf_cache), *(str(path) for path, _ in bucket_paths(settings.home))]


def _complete_device() -> list[str]:
    return ["auto", "cpu", "cuda", "mps"]


def complete_backend() -> list[str]:
    """Names of the backends."""
    return ["cpu", "reference"]


def _complete_activations() -> list[str]:
    return ["float"]


def _complete_group_size() -> list[str]:
    return ["32", "64", "128", "256"]


def complete_dtype() -> list[str]:
    """Names of the dtypes to compute in."""
    return ["bfloat16", "float16", "float32"]


def _complete_kv_dtype() -> list[str]:
    return ["auto", "int8"]


DebugOption = Annotated[
    bool,
    typer.Option("--debug", is_eager=True, callback=_set_debug, help="Print the traceback of an error."),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        envvar=MODEL_VARIABLE,
        autocompletion=complete_model,
        show_default="the current one",
        help=_MODEL_HELP,
    ),
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", autocompletion=complete_model, show_default="the current one", help=_MODEL_HELP),
]


def model_given(context: typer.Context, argument: str | None, option: str | None) -> str | None:
    """The MODEL of a command that takes it as its argument and as --model; UsageError where the two differ."""
    if argument is not None and option not in (None, argument) and is_given(context, "model"):
        raise UsageError(f"{argument} and --model {option} are two models.", "Name one of them.")
    return option if argument is None else argument


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line, not set by the settings file or the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


StoredNameOption = Annotated[
    str | None,
    typer.Option(
        "--remove",
        metavar="NAME",
        autocompletion=_complete_stored,
        help="Remove a model from the store, the Hugging Face cache or the S3 downloads, after confirmation.",
    ),
]

ShownModelOption = Annotated[
    str | None,
    typer.Option(
        "--show", metavar="MODEL", autocompletion=complete_model, help="Print a model's scheme, size and path."
    ),
]
UsedModelOption = Annotated[
    str | None,
    typer.Option("--use", metavar="MODEL", autocompletion=complete_model, help="Make a model the current one."),
]

# chat, for generate, speculate and eval

ChatOption = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        show_default="on if the model has a chat template",
        rich_help_panel=CHAT,
        help="Format the prompt as a user message with the chat template.",
    ),
]
SystemOption = Annotated[str | None, typer.Option(metavar="TEXT", rich_help_panel=CHAT, help="System message.")]
ChatTemplateOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        autocompletion=complete_file,
        show_default="the model's",
        rich_help_panel=CHAT,
        help="Chat template: the name of another one of the model, or a Jinja file.",
    ),
]

# sampling, for generate and speculate

TopKOption = Annotated[
    int,
    typer.Option(
        parser=Integer(), metavar="K", rich_help_panel=SAMPLING, help="Sample from the K most likely tokens; 0: off."
    ),
]
TopPOption = Annotated[
    float,
    typer.Option(
        parser=Number(0, 1, is_closed=False),
        metavar="P",
        rich_help_panel=SAMPLING,
        help="Sample from the most likely tokens with total probability P; 1: off.",
    ),
]
MinPOption = Annotated[
    float,
    typer.Option(
        parser=Number(0, 1),
        metavar="P",
        rich_help_panel=SAMPLING,
        help="Minimum probability of a token, relative to the most likely one; 0: off.",
    ),
]

# schemes of weights, for quantize and bench


def group_size_option(panel: str | None = None) -> Any:  # noqa: ANN401  # typer's Option returns Any
    """--groupsize, in a help panel."""
    return typer.Option(
        parser=Integer(1),
        metavar="N",
        autocompletion=_complete_group_size,
        show_default="32, for schemes with groups",
        rich_help_panel=panel,
        help="Group size: weights that share a scale (32, 64, 128 or 256).",
    )


def scheme_option(tensor: str, panel: str | None = None) -> Any:  # noqa: ANN401
    """--head or --embeddings, in a help panel."""
    return typer.Option(
        metavar="SCHEME",
        autocompletion=complete_scheme,
        show_default="int8, or plain with --mode plain",
        rich_help_panel=panel,
        help=f"Scheme of the {tensor}.",
    )


# checkpoints that are written, for convert and quantize

OutOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", autocompletion=complete_folder, show_default="the store", help="Folder of the new checkpoint."
    ),
]
OverwriteOption = Annotated[bool, typer.Option("--force", help="Replace an existing checkpoint.")]

# device, engine and output, for all commands that run a model

BatchSizesOption = Annotated[
    IntegerList,
    typer.Option(
        "--batch-size",
        parser=Integers(Integer(1)),
        metavar="1,2,4",
        rich_help_panel=CASES,
        help="Batch sizes to measure: sequences decoded together.",
    ),
]
CompileOption = Annotated[
    bool,
    typer.Option("--compile", rich_help_panel=SPEED, help="Compile the decode step; the first run takes a minute."),
]
CompilePrefillOption = Annotated[
    bool, typer.Option("--compile-prefill", rich_help_panel=SPEED, help="Compile the prefill too.")
]
KvDtypeOption = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        envvar="GPTFAST_KV_DTYPE",
        autocompletion=_complete_kv_dtype,
        rich_help_panel=MACHINE,
        help="KV-cache dtype: int8, or auto (same as the compute dtype).",
    ),
]
TpOption = Annotated[
    int | None,
    typer.Option(
        "--tp",
        parser=Integer(1),
        metavar="N",
        show_default="1, or the ranks that torchrun started",
        rich_help_panel=MACHINE,
        help="Tensor parallelism over N processes.",
    ),
]


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """The device, the compute dtype and the CPU threads."""

    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            envvar="GPTFAST_DEVICE",
            autocompletion=_complete_device,
            rich_help_panel=MACHINE,
            help="Device: auto, cpu, cuda or mps.",
        ),
    ] = "auto"
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            envvar="GPTFAST_DTYPE",
            autocompletion=complete_dtype,
            show_default="the checkpoint's",
            rich_help_panel=MACHINE,
            help="Compute dtype: bfloat16, float16 or float32.",
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            "-t",
            parser=Integer(1, most_threads()),
            metavar="N",
            envvar="GPTFAST_THREADS",
            show_default="all cores",
            rich_help_panel=MACHINE,
            help="Number of CPU threads.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The backend, and how it multiplies quantized weights."""

    backend: Annotated[
        str | None,
        typer.Option(
            metavar="BACKEND",
            envvar="GPTFAST_BACKEND",
            autocompletion=complete_backend,
            show_default="the fastest",
            rich_help_panel=MACHINE,
            help="Backend: cpu (native engine) or reference (plain PyTorch).",
        ),
    ] = None
    activations: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            autocompletion=_complete_activations,
            show_default="8-bit where the CPU supports it",
            rich_help_panel=MACHINE,
            help="float: keep the activations of quantized layers in floating point.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What is printed: JSON, no notes, tracebacks of errors."""

    json: Annotated[
        bool, typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON document on stdout, nothing else.")
    ] = False
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", rich_help_panel=OUTPUT, help="Print results and errors only.")
    ] = False
    debug: DebugOption = False
