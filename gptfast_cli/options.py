"""Option types that the commands share, so that each is spelled, explained and completed alike everywhere."""

from dataclasses import dataclass
from typing import Annotated, Final

import typer

from gptfast_cli.completion.answer import Paths
from gptfast_cli.core.cpus import most_threads
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.registry import plug_names
from gptfast_cli.core.settings import load_settings
from gptfast_cli.numbers import Integer

MODEL_VARIABLE: Final = "GPTFAST_MODEL"
"""The variable that names the model where --model does not."""

_CHAT = "Chat"
_MACHINE = "Machine"
_OUTPUT = "Output"


@dataclass(frozen=True, slots=True)
class OutsideValue:
    """The value of an option that was not typed: `origin` names the variable, or the table of the settings file."""

    flag: str
    value: object
    origin: str


@dataclass(slots=True)
class Invocation:
    """What `main` has to know of a run before its command has returned; the context of every command carries it."""

    debug: bool = False
    outside_values: tuple[OutsideValue, ...] = ()
    flags: frozenset[str] = frozenset()


def _set_debug(context: typer.Context, value: bool) -> bool:  # noqa: FBT001  # typer's signature of a callback
    invocation = context.obj
    if isinstance(invocation, Invocation):
        invocation.debug |= value
    return value


def complete_model(incomplete: str) -> list[str | tuple[str, str]]:
    """Names of models that begin so, and folders, as the shell's completion asks for them."""
    from gptfast_cli.core.checkpoints.store import model_names

    return [*model_names(load_settings()), (incomplete, Paths.FOLDERS)]


def complete_draft(incomplete: str) -> list[str | tuple[str, str]]:
    """What can draft, and be judged: any model, the target itself with a scheme, or prompt lookup."""
    itself = [f"self:{scheme}" for scheme in complete_scheme() if scheme != "plain"]
    return ["ngram", *itself, *complete_model(incomplete)]


def complete_draft_or_advice(incomplete: str) -> list[str | tuple[str, str]]:
    """What can draft, and `auto` for what advice says."""
    return ["auto", *complete_draft(incomplete)]


def complete_cached(incomplete: str) -> list[str | tuple[str, str]]:
    """Names of models in the Hugging Face cache that begin so, and folders."""
    from gptfast_cli.core.checkpoints.downloads import cached_repos

    return [*cached_repos(load_settings().hf_cache), (incomplete, Paths.FOLDERS)]


def complete_file(incomplete: str) -> list[tuple[str, str]]:
    """Files, for which the shell is asked."""
    return [(incomplete, Paths.FILES)]


def complete_folder(incomplete: str) -> list[tuple[str, str]]:
    """Folders, for which the shell is asked."""
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


def complete_dtype() -> list[str]:
    """Names of the dtypes to compute in."""
    return ["bfloat16", "float16", "float32"]


def _complete_kv_dtype() -> list[str]:
    return ["auto", "int8"]


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        envvar=MODEL_VARIABLE,
        autocompletion=complete_model,
        show_default="the current one",
        help="A folder, a name in the store or in the Hugging Face cache, or tiny.",
    ),
]


def model_given(context: typer.Context, argument: str | None, option: str | None) -> str | None:
    """The MODEL of a command that takes it as its argument and as --model; UsageError where both name one."""
    source = context.get_parameter_source("model")
    if argument is not None and option not in (None, argument) and source is not None and source.name == "COMMANDLINE":
        raise UsageError(f"{argument} and --model {option} are two models.", "Name one of them.")
    return option if argument is None else argument


StoredNameOption = Annotated[
    str | None,
    typer.Option(
        "--remove",
        metavar="NAME",
        autocompletion=_complete_stored,
        help="Remove a model from the store, the Hugging Face cache or S3's downloads; asks first.",
    ),
]
ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        autocompletion=complete_model,
        show_default="the current one",
        help="A folder, a name in the store or in the Hugging Face cache, or tiny.",
    ),
]
ChatOption = Annotated[
    bool | None,
    typer.Option(
        "--chat/--no-chat",
        show_default="where the model has a template",
        rich_help_panel=_CHAT,
        help="Take the prompt as a message to answer.",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="DEVICE",
        envvar="GPTFAST_DEVICE",
        autocompletion=_complete_device,
        rich_help_panel=_MACHINE,
        help="auto, cpu, cuda or mps.",
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        envvar="GPTFAST_DTYPE",
        autocompletion=complete_dtype,
        show_default="the checkpoint's",
        rich_help_panel=_MACHINE,
        help="bfloat16, float16 or float32.",
    ),
]
KvDtypeOption = Annotated[
    str,
    typer.Option(
        metavar="DTYPE",
        envvar="GPTFAST_KV_DTYPE",
        autocompletion=_complete_kv_dtype,
        rich_help_panel=_MACHINE,
        help="Of keys and values: int8, or auto for that of computing.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        parser=Integer(1, most_threads()),
        metavar="N",
        envvar="GPTFAST_THREADS",
        show_default="the cores that there are",
        rich_help_panel=_MACHINE,
        help="CPU threads to compute with.",
    ),
]
TpOption = Annotated[
    int | None,
    typer.Option(
        "--tp",
        parser=Integer(1),
        metavar="N",
        show_default="1, or as many as torchrun has started",
        rich_help_panel=_MACHINE,
        help="Deal the model out to N processes, each with a device or a part of the cores.",
    ),
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        metavar="BACKEND",
        envvar="GPTFAST_BACKEND",
        autocompletion=complete_backend,
        show_default="the fastest",
        rich_help_panel=_MACHINE,
        help="cpu is the native engine, reference PyTorch's own operations.",
    ),
]
ActivationsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FORM",
        autocompletion=_complete_activations,
        show_default="8 bits, where the CPU multiplies these",
        rich_help_panel=_MACHINE,
        help="float: what quantised weights are multiplied with is not rounded.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", rich_help_panel=_OUTPUT, help="Print one JSON document and nothing else on stdout.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", rich_help_panel=_OUTPUT, help="Show results and errors only.")
]
DebugOption = Annotated[
    bool,
    typer.Option(
        "--debug",
        is_eager=True,
        callback=_set_debug,
        help="Show where in the code an error arose.",
    ),
]
