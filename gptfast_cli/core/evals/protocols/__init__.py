"""Perplexity protocols: how a text is cut into windows, and which tokens of each are predicted. One file each.

The file name is the protocol's name, with dashes on the command line and followed by a size if it has one: gptq-2048.
Perplexities are comparable only within one protocol and size.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.passages import Window
from gptfast_cli.core.registry import Plugs

DEFAULT_PROTOCOL = "llamacpp-512"
"""It fits most models, has at least 256 tokens of context, and is the common measure for quantized models."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """A tokenized text.

    tokens:      with a leading BOS if the tokenizer adds one
    bos_id:      that BOS; None if the tokenizer adds none
    prefix_id:   context of the first token; None if the model has no token for that
    n_words:     whitespace-separated words
    max_context: context length of the model, in tokens
    """

    tokens: Sequence[int]
    bos_id: int | None
    prefix_id: int | None
    n_words: int
    max_context: int


class Windowing(Protocol):
    """How a protocol cuts a text into windows; `size` is the number after its name (unused if it has none)."""

    usual_size: int | None
    """Default size; None for a protocol without a size."""

    smallest_size: int

    counts_words: bool
    """Whether perplexity is per word instead of per token."""

    def least_tokens(self, size: int) -> int:
        """Minimum length of a text, in tokens."""
        ...

    def n_windows(self, text: TokenText, size: int) -> int:
        """Number of windows."""
        ...

    def window(self, text: TokenText, size: int, number: int) -> Window:
        """Window `number`, from 0."""
        ...


protocols: Plugs[Windowing] = Plugs(__name__)


@dataclass(frozen=True, slots=True)
class PerplexityProtocol:
    """A protocol with its size, and its full name."""

    name: str
    windowing: Windowing
    size: int


@dataclass(frozen=True, slots=True)
class ProtocolText:
    """A text and the protocol to read it by."""

    protocol: PerplexityProtocol
    text: TokenText

    def check(self, model: str) -> None:
        """Raise UsageError if the model's context or the text is too short."""
        name, size, n_tokens = self.protocol.name, self.protocol.size, len(self.text.tokens)
        if size > self.text.max_context:
            family = name.removesuffix(f"-{size}")
            raise UsageError(
                f"{name} needs a context of {size:,} tokens, and {model} has {self.text.max_context:,}.",
                f"Use --protocol {family}-{self.text.max_context}, or lm-eval-word, which fits any context.",
            )
        least = self.protocol.windowing.least_tokens(size)
        if n_tokens < least:
            raise UsageError(
                f"The text has {n_tokens:,} tokens, and {name} needs {least:,}.",
                "Use a longer text, or --protocol lm-eval-word, which fits any length.",
            )

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return self.protocol.windowing.n_windows(self.text, self.protocol.size)

    def windows(self) -> Iterator[Window]:
        """All windows, in order."""
        windowing, size = self.protocol.windowing, self.protocol.size
        return (windowing.window(self.text, size, number) for number in range(self.n_windows))


def usual_protocols() -> list[str]:
    """Names of all protocols, in their default size."""
    sizes = {name: windowing.usual_size for name, windowing in protocols.items()}
    return [_public(name) if size is None else f"{_public(name)}-{size}" for name, size in sizes.items()]


def protocol_of(name: str) -> PerplexityProtocol:
    """The protocol of a name such as `gptq-2048`. Raises UsageError for an unknown name or size."""
    match = re.fullmatch(r"([a-z-]+?)(?:-(\d{1,9}))?", name)
    windowing = None if match is None else protocols.get(match[1].replace("-", "_"))
    if match is None or windowing is None or (match[2] is None) != (windowing.usual_size is None):
        raise UsageError(
            f"There is no protocol called {name!r}.", f"Protocols: {', '.join(usual_protocols())}, or of another size."
        )
    size = 0 if match[2] is None else int(match[2])
    if size < windowing.smallest_size:
        raise UsageError(f"{name}: the smallest size is {windowing.smallest_size}.")
    return PerplexityProtocol(name, windowing, size)


def _public(name: str) -> str:
    return name.replace("_", "-")
