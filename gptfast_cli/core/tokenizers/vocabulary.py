"""What one tokenizer file gives: its tokens, text to their ids and back, and no rule about where a prompt begins.

The rules (BOS once, which ids stop a generation) are the same for every format and live in `Tokenizer`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from gptfast_cli.core.tokenizers.stream import StreamDecoder


@dataclass(frozen=True, slots=True)
class Definition:
    """All that a vocabulary is made of, to be compared with another's.

    format:  of the file, whose rules can be compared with those of the same format
    tokens:  every token by its id, as the `tokenizers` library and SentencePiece write it
    special: ids of tokens without a text
    rules:   what else decides which tokens a text has, by name, such as merges
    """

    format: str
    tokens: Mapping[int, str]
    special: frozenset[int]
    rules: Mapping[str, Any]


class Vocabulary(Protocol):
    """The tokens of one tokenizer file.

    A special token that is written out in a text is that token, in every format, as transformers has it: chat
    templates are written that way, and the same model must not read a prompt differently in its two file formats.
    """

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id; a model's own vocabulary may be larger."""
        ...

    @property
    def own_bos_id(self) -> int | None:
        """The token that this file itself takes for the beginning of a text, if it names one."""
        ...

    @property
    def own_stop_ids(self) -> frozenset[int]:
        """The tokens that this file itself takes for the end of a text."""
        ...

    @property
    def adds_bos(self) -> bool | None:
        """Whether the file says that `own_bos_id` opens every text; None where it leaves that open."""
        ...

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """The ids of the tokens that are matched in a text as a whole, by how they are written.

        Special ones are among them, which have no text when they are decoded.
        """
        ...

    def definition(self) -> Definition:
        """All of it; made when it is asked for, which takes up to a second."""
        ...

    def id_of(self, token: str) -> int | None:
        """The id of a token given as it is written in the vocabulary, or None."""
        ...

    def token_of(self, token_id: int) -> str | None:
        """The token of an id as it is written in the vocabulary, or None."""
        ...

    def encode(self, text: str) -> list[int]:
        """The tokens of well-formed Unicode text, with nothing added at either end."""
        ...

    def stream(self) -> StreamDecoder:
        """A new stream, at the beginning of a text."""
        ...
