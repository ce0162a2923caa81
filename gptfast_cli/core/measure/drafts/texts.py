"""Texts that drafts are judged on: what the target itself says after each prompt, its end token with it.

A draft's agreement depends on the text: on what a target would never say itself, it says little about decoding.
"""

from collections import deque
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from gptfast_cli.core.decode.generator import Generator
from gptfast_cli.core.decode.runner import Runner
from gptfast_cli.core.decode.sampler import Sampler
from gptfast_cli.core.decode.sampling import Sampling
from gptfast_cli.core.decode.sequence import Limits, Sequence
from gptfast_cli.core.events import Job, Progress, result_of


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a text begins with, and the kind of text that it is; a `completion` is taken as it is, not written anew."""

    ids: tuple[int, ...]
    category: str = ""
    completion: tuple[int, ...] | None = None
    name: str = ""  # its file and line


@dataclass(frozen=True, slots=True)
class FailedPrompt:
    """A prompt that is left out of the judgement, by its file and line, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and the tokens after it, the end token among them; `most` is how many there might have been."""

    prompt: Prompt
    tokens: tuple[int, ...]
    most: int
    sampler: Sampler


def sequences(prompts: Rows[Prompt], sampling: Sampling, seed: int, limits: Limits) -> list[Sequence]:
    """A sequence for each prompt, which draws what it draws in every run of the same seed."""
    return [Sequence(n, each.ids, Sampler(sampling, seed, n), limits) for n, each in enumerate(prompts)]


def write_texts(
    runner: Runner, prompts: Rows[Prompt], sampling: Sampling, seed: int, limits: Limits
) -> Job[tuple[list[Text], list[FailedPrompt]]]:
    """Let the target write, as many texts side by side as the runner has rows; some prompts may fail."""
    endless = Limits(limits.max_new_tokens, limits.max_context, frozenset())  # a sequence does not keep its end token
    wanted = sequences(prompts, sampling, seed, endless)
    generator, waiting = Generator(runner, isolates_failures=True), deque(wanted)
    n_most, n_written = sum(each.n_left for each in wanted), 0
    while waiting or generator.active:
        advanced = []
        while waiting and generator.has_room:
            advanced.append(waiting.popleft())
            result_of(generator.admit(advanced[-1]))
        if generator.active:
            advanced += result_of(generator.step()).advanced
        for sequence in advanced:
            _end(sequence, limits.stop_ids)
            if sequence.finish_reason is not None:
                n_written += len(sequence.generated) + sequence.n_left
        yield Progress("write texts", n_written, n_most, "tokens")
    texts, failed = [], []
    for prompt, each in zip(prompts, wanted, strict=True):
        if each.failure is not None:
            failed.append(FailedPrompt(prompt.name, each.failure.message))
            continue
        most = endless.most_tokens(len(prompt.ids)) - len(prompt.ids)
        texts.append(Text(prompt, tuple(each.generated), most, each.sampler))
    return texts, failed


def given_texts(prompts: Rows[Prompt], sampling: Sampling, seed: int, limits: Limits) -> list[Text]:
    """The completions of prompts, as if the target had written them."""
    texts = []
    for n, prompt in enumerate(prompts):
        assert prompt.completion is not None
        most = limits.most_tokens(len(prompt.ids)) - len(prompt.ids)
        texts.append(Text(prompt, prompt.completion[:most], most, Sampler(sampling, seed, n)))
    return texts


def _end(sequence: Sequence, stop_ids: frozenset[int]) -> None:
    """End a sequence at its first end token, where it has come to one."""
    n = next((n for n, token in enumerate(sequence.generated) if token in stop_ids), None)
    if n is not None:
        del sequence.generated[n + 1 :]
        sequence.finish_reason = "eos"
