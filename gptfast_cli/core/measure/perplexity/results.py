"""What is asked about a text, and what a model's perplexity on it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gptfast_cli.core.measure.perplexity.protocols import DEFAULT_PROTOCOL, protocol_of


@dataclass(frozen=True, slots=True)
class TextOptions:
    """A text file, and the protocol by its name."""

    file: Path
    protocol: str = DEFAULT_PROTOCOL

    def check(self) -> None:
        """Raise UsageError for a protocol that there is not."""
        protocol_of(self.protocol)


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Perplexity by a protocol, infinite where the model rules out what stands in the text.

    unit:           what the perplexity is of
    stderr:         standard error, from the means of 20 batches of tokens in a row; None for too few tokens
    stderr_tokens:  the same as if each token stood for itself, as llama.cpp prints it; None for a single token
    n_tokens:       that were predicted, in `n_windows` of the text's `n_windows_all`
    is_partial:     whether an interrupt came before the last window
    """

    protocol: str
    value: float
    unit: Literal["token", "word"]
    stderr: float | None
    stderr_tokens: float | None
    n_tokens: int
    n_windows: int
    n_windows_all: int

    @property
    def is_partial(self) -> bool:
        """See above."""
        return self.n_windows < self.n_windows_all
