"""The tokenizer both models share: SentencePiece, pairs of bytes merged, learned from training documents."""

import io
from collections.abc import Iterable
from itertools import islice

import sentencepiece

from recipe.corpus import Document

VOCAB_SIZE = 1536
N_DOCUMENTS = 8_000


def learn_tokenizer(documents: Iterable[Document]) -> bytes:
    """A SentencePiece model file learned from the first documents; digits stand alone, any UTF-8 is representable.

    Spaces are kept as they are, so that indented code survives. A line break is the byte piece `<0x0A>`.
    """
    lines = [line for document in islice(documents, N_DOCUMENTS) for line in document.text.split("\n")]
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=file,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    return file.getvalue()
