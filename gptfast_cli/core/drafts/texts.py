"""Prompts of the judge, and the texts that drafts are judged on: the target's own continuations, or given completions.

Acceptance depends on the text: text that the target would not generate says little about decoding.

A prompts file has a JSON object on each line: `prompt` or `prompt_ids`; optionally a `category`, by which acceptance is
also reported, and a `completion`, which replaces the target's continuation.
"""

import importlib.resources
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gptfast_cli.core.engine.chat import ChatOptions, Prompter, open_prompter
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.load import LoadedModel
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling, uniform
from gptfast_cli.core.errors import CorruptError, NotFoundError, UsageError
from gptfast_cli.core.events import Job, Progress, result_of
from gptfast_cli.core.fields import Fields, parse_fields


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """A prompt with its category; a `completion` replaces the target's continuation."""

    ids: tuple[int, ...]
    category: str = ""
    completion: tuple[int, ...] | None = None
    name: str = ""  # file:line


@dataclass(frozen=True, slots=True)
class FailedPrompt:
    """A prompt that is left out, by its file:line, and the reason."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class TargetText:
    """A prompt and the tokens after it, end token included; `most` is the maximum that the limits allow."""

    prompt: JudgePrompt
    tokens: tuple[int, ...]
    most: int
    sampler: Sampler


def sequences(prompts: Sequence[JudgePrompt], sampling: Sampling, seed: int, limits: Limits) -> list[Request]:
    """A request for each prompt; the same seed gives the same random numbers."""
    return [Request(n, each.ids, Sampler(sampling, seed, n), limits) for n, each in enumerate(prompts)]


def write_texts(
    runner: Runner, prompts: Sequence[JudgePrompt], sampling: Sampling, seed: int, limits: Limits
) -> Job[tuple[list[TargetText], list[FailedPrompt]]]:
    """Generate the target's continuations, in batches of the runner's rows; returns texts and failed prompts."""
    endless = Limits(limits.max_new_tokens, limits.max_context, frozenset())  # `generated` would not hold the end token
    wanted = sequences(prompts, sampling, seed, endless)
    n_most, n_written = sum(each.n_left for each in wanted), 0
    for step in Engine(runner, isolates_failures=True).generate(wanted):
        for request in result_of(step).advanced:
            _end(request, limits.stop_ids)
            if request.finish_reason is not None:
                n_written += len(request.generated) + request.n_left
        yield Progress("write texts", n_written, n_most, "tokens")
    texts, failed = [], []
    for prompt, each in zip(prompts, wanted, strict=True):
        if each.failure is not None:
            failed.append(FailedPrompt(prompt.name, each.failure.message))
            continue
        most = endless.most_tokens(len(prompt.ids)) - len(prompt.ids)
        texts.append(TargetText(prompt, tuple(each.generated), most, each.sampler))
    return texts, failed


def completion_texts(prompts: Sequence[JudgePrompt], sampling: Sampling, seed: int, limits: Limits) -> list[TargetText]:
    """The completions of prompts as texts."""
    texts = []
    for n, prompt in enumerate(prompts):
        assert prompt.completion is not None
        most = limits.most_tokens(len(prompt.ids)) - len(prompt.ids)
        texts.append(TargetText(prompt, prompt.completion[:most], most, Sampler(sampling, seed, n)))
    return texts


def _end(sequence: Request, stop_ids: frozenset[int]) -> None:
    """End a sequence at its first end token, if it has one."""
    n = next((n for n, token in enumerate(sequence.generated) if token in stop_ids), None)
    if n is not None:
        del sequence.generated[n + 1 :]
        sequence.finish_reason = "eos"


_BUNDLED = "prompts.jsonl"
_N_SYNTHETIC, _SYNTHETIC_TOKENS = 16, 32
_SUCH_AS = 'A line is such as {"prompt": "Once upon a time", "category": "stories"}'
_KNOWN = ("id", "category", "completion", "prompt", "prompt_ids")


def read_prompts(
    loaded: LoadedModel, file: Path | None, limit: int | None, chat: ChatOptions
) -> tuple[list[JudgePrompt], list[FailedPrompt]]:
    """Read and encode the first `limit` prompts of a file, or of the bundled one; returns them and the failed ones.

    Raises NotFoundError for a missing file and UsageError for one without prompts or with an invalid line.
    """
    if file is None and loaded.tokenizer is None:
        return synthetic_prompts(loaded.config.vocab_size)[:limit], []
    prompts: list[JudgePrompt] = []
    failed: list[FailedPrompt] = []
    with open_prompter(loaded, chat) as prompter:
        try:
            for fields in islice(_rows(file), limit):
                try:
                    prompts.append(_prompt(fields, loaded, prompter))
                except UsageError as error:
                    failed.append(FailedPrompt(fields.where, error.message))
        except CorruptError as error:
            raise UsageError(error.message, _SUCH_AS) from error
    if len({prompt.completion is None for prompt in prompts}) > 1:
        raise UsageError(f"{file}: some of its prompts have a completion, and others none.", "Give all of them one.")
    if not prompts and not failed:
        raise UsageError(f"{file}: has no prompts.", _SUCH_AS)
    return prompts, failed


def synthetic_prompts(vocab_size: int) -> list[JudgePrompt]:
    """Prompts of random tokens, the same in every run."""
    return [
        JudgePrompt(
            tuple(int(uniform(0, n, position) * vocab_size) for position in range(_SYNTHETIC_TOKENS)),
            name=f"synthetic prompt {n + 1}",
        )
        for n in range(_N_SYNTHETIC)
    ]


def _rows(file: Path | None) -> Iterator[Fields]:
    try:
        if file is None:
            content = (importlib.resources.files("gptfast_cli") / "bundled" / _BUNDLED).read_bytes()
        else:
            content = file.read_bytes()
    except FileNotFoundError as error:
        raise NotFoundError(f"There is no file of prompts {str(file)!r}.") from error
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}.", "Name a file of JSON lines.") from error
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield parse_fields(line, f"{file.name if file else _BUNDLED}:{number}")


def _prompt(fields: Fields, loaded: LoadedModel, prompter: Prompter) -> JudgePrompt:
    for name in fields:
        if name not in _KNOWN:
            raise fields.corrupt(name, f"no prompt has such a field; there are {', '.join(_KNOWN)}")
    if "prompt_ids" in fields:
        ids: Sequence[int] = fields.integers("prompt_ids")
        if not ids:
            raise fields.corrupt("prompt_ids", "is empty")
        loaded.check_ids(ids)
    else:
        ids = prompter.encode(prompter.text(fields.text("prompt")))
    completion = None
    if "completion" in fields:
        if loaded.tokenizer is None:
            raise fields.corrupt("completion", f"is text, and {loaded.name} has no tokenizer")
        completion = tuple(loaded.tokenizer.encode(fields.text("completion"), bos=False))
        if len(completion) < 2:  # the first one is not drafted
            raise fields.corrupt("completion", "is too short: nothing of it could be drafted")
    return JudgePrompt(tuple(ids), fields.text("category", ""), completion, fields.where)
