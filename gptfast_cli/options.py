"""Options that several commands share, each defined once: name, help, environment variable and completion.

The options of a help panel are the fields of a frozen dataclass, whose `panel` is the title; `tree.command` expands it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

import typer

from gptfast_cli.completion.answer import Paths
from gptfast_cli.core.backends import BACKENDS, REFERENCE
from gptfast_cli.core.cpus import most_threads
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.registry import plug_names
from gptfast_cli.core.settings import load_settings
from gptfast_cli.numbers import LARGEST_INTEGER, LARGEST_SEED, Integer, IntegerList, Integers, Number

MODEL_VARIABLE: Final = "GPTFAST_MODEL"
"""The variable that names the model where --model does not."""

CASES = "Measurement"
CHAT = "Chat"
MACHINE = "Machine"
OUTPUT = "Output"
SAMPLING = "Sampling"
SPEED = "Speed"
USUAL_TP = "1, or the ranks that torchrun started"
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


def complete_file(incomplete: str) -> list[tuple[str, str]]:
    """Files: the shell completes them."""
    return [(incomplete, Paths.FILES)]


def complete_folder(incomplete: str) -> list[tuple[str, str]]:
    """Folders: the shell completes them."""
    return [(incomplete, Paths.FOLDERS)]


def complete_scheme() -> list[str]:
    """Names of the schemes that a quantizer can write, from the names of their files."""
    return [name for name in plug_names("gptfast_cli.core.schemes") if name not in ("grouped", "stacked")]


def choices(*names: str) -> Callable[[], list[str]]:
    """A completion of fixed names."""
    return lambda: list(names)


complete_backend = choices(*BACKENDS)
complete_dtype = choices("bfloat16", "float16", "float32")

# kinds of options; `usual` describes a default that depends on something else


def integer_option(
    least: int,
    help: str,  # noqa: A002  # typer's name
    *flags: str,
    most: int = LARGEST_INTEGER,
    usual: str | None = None,
    panel: str | None = None,
) -> Any:  # noqa: ANN401  # typer's Option returns Any
    """An option that takes a whole number."""
    parser = Integer(least, most)
    return typer.Option(
        *flags, parser=parser, metavar="N", show_default=usual or True, rich_help_panel=panel, help=help
    )


def integers_option(
    least: int,
    metavar: str,
    help: str,  # noqa: A002
    *flags: str,
    usual: str | None = None,
    panel: str | None = None,
) -> Any:  # noqa: ANN401
    """An option that takes a list of whole numbers."""
    parser = Integers(Integer(least))
    return typer.Option(
        *flags, parser=parser, metavar=metavar, show_default=usual or True, rich_help_panel=panel, help=help
    )


def seed_option(help: str = "Random seed.", usual: str | None = None) -> Any:  # noqa: A002, ANN401
    """--seed."""
    return integer_option(0, help, "--seed", most=LARGEST_SEED, usual=usual)


def number_option(parser: Number, metavar: str, help: str, *flags: str, usual: str | None = None) -> Any:  # noqa: A002, ANN401
    """An option that takes a number in the range of the parser."""
    return typer.Option(*flags, parser=parser, metavar=metavar, show_default=usual or True, help=help)


def path_option(metavar: Literal["FILE", "FOLDER"], help: str, usual: str | None = None) -> Any:  # noqa: A002, ANN401
    """An option that takes a path, completed by the shell."""
    return name_option(metavar, complete_file if metavar == "FILE" else complete_folder, help, usual=usual)


def name_option(
    metavar: str,
    complete: Callable[..., Any],
    help: str,  # noqa: A002
    *flags: str,
    usual: str | None = None,
    envvar: str | None = None,
    panel: str | None = None,
) -> Any:  # noqa: ANN401
    """An option that takes a name that the shell completes; `envvar`: the variable that sets it too."""
    return typer.Option(
        *flags,
        metavar=metavar,
        autocompletion=complete,
        show_default=usual or True,
        envvar=envvar,
        rich_help_panel=panel,
        help=help,
    )


def group_size_option() -> Any:  # noqa: ANN401
    """--groupsize."""
    return typer.Option(
        "--groupsize",
        parser=Integer(1),
        metavar="N",
        autocompletion=choices("32", "64", "128", "256"),
        show_default="32, for schemes with groups",
        help="Group size: weights that share a scale (32, 64, 128 or 256).",
    )


def dtype_option(help: str) -> Any:  # noqa: A002, ANN401
    """--dtype."""
    return name_option("DTYPE", complete_dtype, help, usual="the checkpoint's", envvar="GPTFAST_DTYPE")


def scheme_option(tensor: str) -> Any:  # noqa: ANN401
    """--head or --embeddings."""
    return name_option("SCHEME", complete_scheme, f"Scheme of the {tensor}.", usual="int8, or plain with --mode plain")


# the model

ModelOption = Annotated[
    str | None,
    name_option("MODEL", complete_model, _MODEL_HELP, "--model", "-m", usual="the current one", envvar=MODEL_VARIABLE),
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


def check_output_file(flag: str, file: Path | None, suffixes: tuple[str, ...]) -> None:
    """Raise UsageError, before any work, for a file that cannot be written or is of no format in `suffixes`."""
    if file is None:
        return
    if file.suffix not in suffixes:
        raise UsageError(f"{flag} writes {', '.join(suffixes)}, not {str(file)!r}.", f"Name a {suffixes[0]} file.")
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise UsageError(f"{flag} cannot write to {str(file)!r}.", "Name a file in an existing folder.")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line, not set by the settings file or the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


DebugOption = Annotated[
    bool,
    typer.Option("--debug", is_eager=True, callback=_set_debug, help="Print the traceback of an error."),
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


@dataclass(frozen=True, slots=True)
class TemplateOptions:
    """The chat template and its system message."""

    panel: ClassVar = CHAT
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message.")] = None
    chat_template: Annotated[
        str | None,
        name_option(
            "NAME|FILE",
            complete_file,
            "Chat template: the name of another one of the model, or a Jinja file.",
            usual="the model's",
        ),
    ] = None


# truncation of the sampled distribution, for generate and speculate


def top_k_option(usual: str | None = None) -> Any:  # noqa: ANN401
    """--top-k."""
    help = "Sample from the K most likely tokens; 0: off."  # noqa: A001  # typer's name
    return typer.Option(parser=Integer(), metavar="K", show_default=usual or True, help=help)


def top_p_option(usual: str | None = None) -> Any:  # noqa: ANN401
    """--top-p."""
    above_0 = Number(0, 1, is_closed=False)
    return number_option(
        above_0, "P", "Sample from the most likely tokens with total probability P; 1: off.", usual=usual
    )


def min_p_option(usual: str | None = None) -> Any:  # noqa: ANN401
    """--min-p."""
    return number_option(
        Number(0, 1), "P", "Minimum probability of a token, relative to the most likely one; 0: off.", usual=usual
    )


# checkpoints that are written, for convert and quantize

OutOption = Annotated[Path | None, path_option("FOLDER", "Folder of the new checkpoint.", usual="the store")]
NoUseOption = Annotated[bool, typer.Option("--no-use", help="Leave the current model as it is.")]
OverwriteOption = Annotated[bool, typer.Option("--force", help="Replace an existing checkpoint.")]

# device, engine and output, for all commands that run a model

BatchSizesOption = Annotated[
    IntegerList,
    integers_option(1, "1,2,4", "Batch sizes to measure: sequences decoded together.", "--batch-size"),
]
KvDtypeOption = Annotated[
    str,
    name_option(
        "DTYPE",
        choices("auto", "int8"),
        "KV-cache dtype: int8, or auto (same as the compute dtype).",
        envvar="GPTFAST_KV_DTYPE",
        panel=MACHINE,
    ),
]
TpOption = Annotated[
    int | None, integer_option(1, "Tensor parallelism over N processes.", usual=USUAL_TP, panel=MACHINE)
]


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """The device, the compute dtype and the CPU threads."""

    panel: ClassVar = MACHINE
    device: Annotated[
        str,
        name_option(
            "DEVICE",
            choices("auto", "cpu", "cuda", "mps"),
            "Device: auto, cpu, cuda or mps.",
            envvar="GPTFAST_DEVICE",
        ),
    ] = "auto"
    dtype: Annotated[str | None, dtype_option("Compute dtype: bfloat16, float16 or float32.")] = None
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            "-t",
            parser=Integer(1, most_threads()),
            metavar="N",
            envvar="GPTFAST_THREADS",
            show_default="all cores",
            help="Number of CPU threads.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """The backend, and how it multiplies quantized weights."""

    panel: ClassVar = MACHINE
    backend: Annotated[
        str | None,
        name_option(
            "BACKEND",
            complete_backend,
            "Backend: cpu (native engine) or reference (plain PyTorch).",
            usual="the fastest",
            envvar="GPTFAST_BACKEND",
        ),
    ] = None
    activations: Annotated[
        str | None,
        name_option(
            "DTYPE",
            choices("float"),
            "float: keep the activations of quantized layers in floating point.",
            usual="8-bit where the CPU supports it",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """Which steps torch.compile compiles."""

    panel: ClassVar = SPEED
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the decode step; the first run takes a minute.")
    ] = False
    compile_prefill: Annotated[bool, typer.Option("--compile-prefill", help="Compile the prefill too.")] = False

    def engine(self, asked: EngineOptions) -> EngineOptions:
        """The engine asked for, on the reference backend where it names none and torch.compile has work."""
        is_reference = asked.backend is None and (self.compile or self.compile_prefill)
        return replace(asked, backend=REFERENCE) if is_reference else asked


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What is printed: JSON, no notes, tracebacks of errors."""

    panel: ClassVar = OUTPUT
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")] = False
    debug: DebugOption = False
