"""Calibration texts: the bundled documents, a text file, or documents of lm-evaluation-harness tasks."""

import gzip
import hashlib
import importlib.resources
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from gptfast_cli.core.checkpoints.manifest import CalibrationText
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import NetworkError, UsageError
from gptfast_cli.core.evals.held_out import read_text, sketch
from gptfast_cli.core.quantize.quantizers import Compensation
from gptfast_cli.core.settings import check_hub_environment
from gptfast_cli.core.tokenizers import Tokenizer

_MOST = 10_000  # documents of a task


def documents_of_tasks(names: Sequence[str]) -> list[str]:
    """Question and answer of the first documents of each task, joined by a space.

    Raises UsageError if lm_eval is not installed, and for a task that it does not know or that has test documents
    only; NetworkError where a task's data cannot be downloaded.
    """
    check_hub_environment()
    try:
        from lm_eval.tasks import TaskManager  # noqa: PLC0415  (an extra that most people have no need of)
    except ImportError as error:
        raise UsageError(
            "--calibration-tasks: tasks come from lm_eval, which is not installed.", "pip install lm_eval 'datasets>=4'"
        ) from error
    manager = TaskManager()
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise UsageError(f"--calibration-tasks: lm_eval has no task called {unknown[0]!r}.", "For example: wikitext.")
    try:
        tasks = [(name, task) for name in names for task in _tasks(manager.load_task_or_group(name))]
        return [text for name, task in tasks for text in _texts(name, task)]
    except OSError as error:  # what datasets and huggingface_hub raise without a network is one
        raise NetworkError(
            f"--calibration-tasks: the data of {', '.join(names)} could not be downloaded: {type(error).__name__}.",
            "Check the network, or use a text file: --calibration FILE.",
        ) from error


def _tasks(loaded: object) -> Iterator[Any]:
    """The tasks of a name; a group contains others."""
    if isinstance(loaded, Mapping):
        for inner in loaded.values():
            yield from _tasks(inner)
    else:
        yield loaded


def _texts(name: str, task: Any) -> Iterator[str]:  # noqa: ANN401  (lm_eval has no types)
    if task.has_training_docs():
        documents = task.training_docs()
    elif task.has_validation_docs() and task.has_test_docs():
        documents = task.validation_docs()
    else:
        raise UsageError(f"--calibration-tasks: {name} has only test documents.", "Use another task, such as wikitext.")
    for document in islice(documents, _MOST):
        parts = (task.doc_to_text(document), task.doc_to_target(document))
        yield " ".join(part for part in parts if isinstance(part, str) and part)


_BUNDLED = "bundled"
_SEQ_LENGTH = 512
_TOKEN_CHARACTERS = 64  # no token of a text is longer on average

_TOKENS_PER_COLUMN = 12
"""Default number of tokens for each column of the widest matrix: 67,584 for 5,632 columns."""


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """The calibration options of the command line; None is the default.

    text, tasks: a text file or "bundled" (the default); or tasks of lm_eval, such as `wikitext,lambada`
    limit:       maximum number of texts; default: enough for 12 tokens for each column of the widest matrix
    seq_length:  maximum tokens of a text, default 512; a longer document is split
    damping, block_size: see Compensation
    """

    text: str | None = None
    tasks: str | None = None
    limit: int | None = None
    seq_length: int | None = None
    damping: float | None = None
    block_size: int | None = None

    @property
    def compensation(self) -> Compensation:
        """Damping and block size of GPTQ."""
        usual = Compensation()
        return Compensation(self.damping or usual.damping, self.block_size or usual.block_size)

    def check(self) -> None:
        """Raise UsageError for options that exclude each other or are out of range."""
        if self.text is not None and self.tasks is not None:
            raise UsageError("--calibration and --calibration-tasks exclude each other.", "Leave out one of them.")
        for option, value, least in (
            ("--calibration-limit", self.limit, 1),
            ("--calibration-seq-length", self.seq_length, 2),
            ("--blocksize", self.block_size, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{option} {value}: it must be {least} or more.", "Leave it out for the default.")
        if self.damping is not None and not 0 < self.damping <= 1:
            raise UsageError(
                f"--percdamp {self.damping:g}: it must be above 0 and at most 1.", "Leave it out for the default, 0.01."
            )


@dataclass(frozen=True, slots=True)
class CalibrationTexts:
    """Token ids of the texts, each with its BOS token, and their record in the manifest."""

    texts: list[list[int]]
    record: CalibrationText


def read_calibration(options: CalibrationOptions, tokenizer: Tokenizer, config: ModelConfig) -> CalibrationTexts:
    """Read and tokenize as many texts as are requested, or all there are.

    Raises UsageError if the text cannot be read, is too short or needs lm_eval; NetworkError.
    """
    source, documents = _documents(options)
    n = min(options.seq_length or _SEQ_LENGTH, config.max_context)
    usual = _TOKENS_PER_COLUMN * config.widest_input
    n_wanted = n * options.limit if options.limit else usual
    texts: list[list[int]] = []
    used: list[str] = []
    n_tokens = 0
    for document in documents:
        used.append(document)
        for text in _cut(tokenizer, document[: _TOKEN_CHARACTERS * n_wanted], n):
            if n_tokens < n_wanted and (options.limit is None or len(texts) < options.limit):
                texts.append(text)
                n_tokens += len(text)
        if n_tokens >= n_wanted or len(texts) == options.limit:
            break
    if not texts:
        raise UsageError(f"{source}: is too short to calibrate on.", "Take a text of several pages.")
    content = "\n\n".join(used)
    sha256 = hashlib.sha256(content.encode()).hexdigest()
    return CalibrationTexts(texts, CalibrationText(source, sha256, n_tokens, sketch(content)))


def _documents(options: CalibrationOptions) -> tuple[str, Iterable[str]]:
    """The name of the source, and its documents."""
    if options.tasks is not None:
        return options.tasks, documents_of_tasks([name.strip() for name in options.tasks.split(",")])
    if options.text is None or options.text == _BUNDLED:
        return _BUNDLED, bundled_calibration()
    file = Path(options.text).expanduser()
    return file.name, [read_text(file)]


def bundled_calibration() -> list[str]:
    """The bundled documents to calibrate on, 1 MB; none shares a run of words with the held-out text."""
    compressed = (importlib.resources.files("gptfast_cli") / "bundled" / "calibration.txt.gz").read_bytes()
    return gzip.decompress(compressed).decode().strip().split("\n\n")


def _cut(tokenizer: Tokenizer, document: str, n_tokens: int) -> Iterator[list[int]]:
    """Split a document into texts of at most `n_tokens`, BOS included; a rest of one token is dropped."""
    bos = tokenizer.encode("")
    n = n_tokens - len(bos)
    tokens = tokenizer.encode(document, bos=False)
    for first in range(0, len(tokens), n):
        if len(tokens) - first > 1:
            yield [*bos, *tokens[first : first + n]]
