"""Prompts that drafts are judged on: the bundled ones, those of a file, or made-up ones for a model that has no words.

A file has a JSON object on each line: `prompt`, or `prompt_ids`; a `category`, by which agreement is told apart; and a
`completion`, where a given text is to be judged on in place of one that the target writes itself.
"""

import importlib.resources
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from gptfast_cli.core.decode.loading import LoadedModel
from gptfast_cli.core.decode.prompter import ChatOptions, Prompter, open_prompter
from gptfast_cli.core.decode.randomness import uniform
from gptfast_cli.core.errors import CorruptError, NotFoundError, UsageError
from gptfast_cli.core.fields import Fields, parse_fields
from gptfast_cli.core.measure.drafts.texts import FailedPrompt, Prompt

_BUNDLED = "prompts.jsonl"
_N_SYNTHETIC, _SYNTHETIC_TOKENS = 16, 32
_SUCH_AS = 'A line is such as {"prompt": "Once upon a time", "category": "stories"}'
_KNOWN = ("id", "category", "completion", "prompt", "prompt_ids")


def read_prompts(
    loaded: LoadedModel, file: Path | None, limit: int | None, chat: ChatOptions
) -> tuple[list[Prompt], list[FailedPrompt]]:
    """The first prompts of a file, or of the bundled one, as the model is given them; and those that it cannot take.

    Raises NotFoundError and UsageError for a file without prompts, or with a line that is none.
    """
    if file is None and loaded.tokenizer is None:
        return synthetic_prompts(loaded.config.vocab_size)[:limit], []
    prompts: list[Prompt] = []
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


def synthetic_prompts(vocab_size: int) -> list[Prompt]:
    """Tokens at random, the same ones each time."""
    return [
        Prompt(
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


def _prompt(fields: Fields, loaded: LoadedModel, prompter: Prompter) -> Prompt:
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
    return Prompt(tuple(ids), fields.text("category", ""), completion, fields.where)
