"""A tokenizer as the rest of gptfast sees it: a vocabulary with its rules about the beginning and the end."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.token_ids import check_token_ids
from gptfast_cli.core.tokenizers.special_tokens import SpecialTokens
from gptfast_cli.core.tokenizers.stream import StreamDecoder
from gptfast_cli.core.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Text to token ids and back, for one model; `path` is the file of its vocabulary."""

    vocabulary: Vocabulary
    special: SpecialTokens
    n_embeddings: int | None = None  # rows of the model's embedding; None where ids are not fed to a model
    path: Path | None = None

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id; the model's own vocabulary may be larger."""
        return self.vocabulary.vocab_size

    @property
    def bos_id(self) -> int | None:
        """The token that begins a sequence, whether or not `encode` adds it."""
        return self.special.bos_id

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a generation."""
        return self.special.stop_ids

    def encode(self, text: str, *, bos: bool = True) -> list[int]:
        """The token ids of `text`, led by BOS where the model expects one, and by exactly one.

        Each of them has a row in the model's embedding.

        A text that already begins with BOS, written out as chat templates do, gets no second one. Special tokens
        written out in the text become those tokens. With `bos=False` nothing is added.

        Raises UsageError where the text is not well-formed Unicode, TokenIdError where the model lacks a token.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"The text is not valid Unicode: half a character (a lone surrogate) at position {error.start}.",
                "Save the text as UTF-8 and pass it with --prompt-file.",
            ) from error
        ids = self.vocabulary.encode(text)
        bos_id = self.special.bos_id
        if bos and self.special.add_bos and bos_id is not None and ids[:1] != [bos_id]:
            ids = [bos_id, *ids]
        self.check_ids(ids)
        return ids

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raise TokenIdError for the first id that has no row in the model's embedding."""
        if self.n_embeddings is not None:
            check_token_ids(ids, self.n_embeddings, self.vocabulary.token_of)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a sequence, without its special tokens; ids outside of the vocabulary have no text.

        There is one way from ids to text: this is a stream, run to its end.
        """
        stream = self.stream()
        return "".join([*map(stream.push, ids), stream.finish()])

    def stream(self, after: Iterable[int] = ()) -> StreamDecoder:
        """A decoder for tokens that come one at a time, at the beginning of a text or after those of a prompt.

        After a prompt the first word keeps the space that it would lose at the beginning of a text; a character that
        the prompt left incomplete stays the prompt's.
        """
        stream = self.vocabulary.stream()
        for token_id in after:
            stream.push(token_id)
        stream.finish()
        return stream
