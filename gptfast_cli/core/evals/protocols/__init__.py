"""Protocols of perplexity: how a text is cut into windows, and what of each is predicted. One file each.

The file's name is the protocol's, with dashes on the command line, where a size may follow it: gptq-2048. A number is
comparable only to numbers of the same protocol and size.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.passages import Window
from gptfast_cli.core.registry import Plugs

DEFAULT_PROTOCOL = "llamacpp-512"
"""It fits most models, gives every token at least 256 others before it, and is what quantised models are told by."""


@dataclass(frozen=True, slots=True)
class TokenText:
    """A text as a model's tokenizer has it.

    tokens:      led by the beginning-of-sequence token where the tokenizer puts one
    bos_id:      that token; None where it puts none
    prefix_id:   what a text is predicted from where nothing stands before it; None where the model has nothing for it
    n_words:     what lies between white space
    max_context: tokens that the model holds
    """

    tokens: Sequence[int]
    bos_id: int | None
    prefix_id: int | None
    n_words: int
    max_context: int


class Windowing(Protocol):
    """How one protocol cuts a text; `size` is the number behind its name, and of no meaning where it has none."""

    usual_size: int | None
    """None of a protocol without a size."""

    smallest_size: int

    counts_words: bool
    """Whether perplexity is that of a word, not of a token."""

    def least_tokens(self, size: int) -> int:
        """Tokens that a text must have."""
        ...

    def n_windows(self, text: TokenText, size: int) -> int:
        """How many there are."""
        ...

    def window(self, text: TokenText, size: int, number: int) -> Window:
        """The window of that number, from 0 on."""
        ...


protocols: Plugs[Windowing] = Plugs(__name__)


@dataclass(frozen=True, slots=True)
class PerplexityProtocol:
    """A protocol and its size, by the name that stands beside every number."""

    name: str
    windowing: Windowing
    size: int


@dataclass(frozen=True, slots=True)
class ProtocolText:
    """A text that is read by a protocol."""

    protocol: PerplexityProtocol
    text: TokenText

    def check(self, model: str) -> None:
        """Raise UsageError where the model's context or the text is too short."""
        name, size, n_tokens = self.protocol.name, self.protocol.size, len(self.text.tokens)
        if size > self.text.max_context:
            family = name.removesuffix(f"-{size}")
            raise UsageError(
                f"{name} needs a context of {size:,} tokens, and {model} has {self.text.max_context:,}.",
                f"Take --protocol {family}-{self.text.max_context}, or lm-eval-word, which goes with any context.",
            )
        least = self.protocol.windowing.least_tokens(size)
        if n_tokens < least:
            raise UsageError(
                f"The text has {n_tokens:,} tokens, and {name} needs {least:,}.",
                "Take a longer text, or --protocol lm-eval-word, which goes with any length.",
            )

    @property
    def n_windows(self) -> int:
        """How many windows it makes."""
        return self.protocol.windowing.n_windows(self.text, self.protocol.size)

    def windows(self) -> Iterator[Window]:
        """Its windows, in their order."""
        windowing, size = self.protocol.windowing, self.protocol.size
        return (windowing.window(self.text, size, number) for number in range(self.n_windows))


def usual_protocols() -> list[str]:
    """Each protocol in its usual size."""
    sizes = {name: windowing.usual_size for name, windowing in protocols.items()}
    return [_public(name) if size is None else f"{_public(name)}-{size}" for name, size in sizes.items()]


def protocol_of(name: str) -> PerplexityProtocol:
    """A protocol by its name; raises UsageError where there is none of that name and size."""
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
