"""tokenizer.json, the format of the `tokenizers` library: byte-level BPE, or a converted SentencePiece model.

It is preferred to a SentencePiece file beside it: it includes added tokens and the BOS rule, and if the two differ, it
is the file that a fine-tuned model was trained with.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import tokenizers

from gptfast_cli.core.fields import distinct
from gptfast_cli.core.tokenizers import library
from gptfast_cli.core.tokenizers.declarations import Declarations, Matching, damaged
from gptfast_cli.core.tokenizers.json_streams import json_stream
from gptfast_cli.core.tokenizers.limits import check_limits
from gptfast_cli.core.tokenizers.tokenizer import Definition, StreamDecoder, Vocabulary


class JsonVocabulary:
    """The vocabulary of a tokenizer.json; of its post-processor only the BOS rule is used."""

    own_stop_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: tokenizers.Tokenizer, pieces: Mapping[str, int] | Sequence[Sequence[Any]]) -> None:
        """`pieces`: of the file's model: ids by piece, or (piece, score) by id for a unigram model.

        Raises ValueError if there are no tokens.
        """
        self._tokenizer = tokenizer
        # the pickled state of a decoder is its JSON
        decoder = tokenizer.decoder
        self._decoder = None if decoder is None else json.loads(decoder.__getstate__())
        added = tokenizer.get_added_tokens_decoder()
        self.added_tokens = {token.content: token_id for token_id, token in added.items()}
        self._special = frozenset(token.content for token in added.values() if token.special)
        if not pieces and not added:
            raise ValueError("it has no tokens")
        largest = max(pieces.values(), default=0) if isinstance(pieces, Mapping) else len(pieces) - 1
        self.vocab_size = 1 + max([largest, *added])
        names = pieces if isinstance(pieces, Mapping) else (piece for piece, _ in pieces)
        sample = next((piece for piece in names if piece not in self._special), "")
        self.own_bos_id = _opening_id(tokenizer, sample)
        self.adds_bos = self.own_bos_id is not None

    def definition(self) -> Definition:
        file = json.loads(self._tokenizer.to_str())
        model = file["model"]
        pieces = model.pop("vocab")
        rules = {"merge": model.pop("merges", [])}
        rules["score"] = [score for _, score in pieces] if isinstance(pieces, list) else []  # of a unigram model
        rules |= {"model": model, "normalizer": file["normalizer"], "pre-tokenizer": file["pre_tokenizer"]}
        rules["added token"] = file["added_tokens"]
        tokens = {token_id: token for token, token_id in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        special = frozenset(self.added_tokens[token] for token in self._special)
        return Definition("tokenizer.json", tokens, special, rules)

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def token_of(self, token_id: int) -> str | None:
        return self._tokenizer.id_to_token(token_id) if 0 <= token_id < self.vocab_size else None

    def encode(self, text: str) -> list[int]:
        """Raises UsageError if the text is too long, or the vocabulary lacks a token for a part of it."""
        return library.encode(self._tokenizer, text)

    def stream(self) -> StreamDecoder:
        return json_stream(self._decoder, token_of=self._token, decode=partial(library.decode, self._tokenizer))

    def _token(self, token_id: int) -> str | None:
        token = self._tokenizer.id_to_token(token_id)
        return None if token in self._special else token


def _opening_id(tokenizer: tokenizers.Tokenizer, sample: str) -> int | None:
    """The token that the post-processor adds before a text, found by encoding a known sample."""
    framed = tokenizer.encode(sample)
    before = list(takewhile(lambda pair: pair[1] == 1, zip(framed.ids, framed.special_tokens_mask, strict=True)))
    return before[0][0] if before else None


def _mark(tokenizer: tokenizers.Tokenizer, declared: Declarations) -> None:
    """Add the declared tokens, or mark them as special, as transformers does.

    Flags listed in tokenizer_config.json replace those of the tokenizer.json; the older files only add tokens. A token
    is added only if it gets its declared id.
    """
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    n_tokens = tokenizer.get_vocab_size()
    tokens = []
    for token in declared.added:
        token_id = tokenizer.token_to_id(token.content)
        if token.content in known:
            is_taken = declared.lists_added
        else:
            is_taken = token.id == (n_tokens if token_id is None else token_id)
            n_tokens += is_taken and token_id is None
        if is_taken:
            tokens.append(_as_library_has_it(token.content, token.matching, special=token.special))
    known |= {token.content for token in declared.added}
    for text, matching in declared.named.items():
        if text not in known and tokenizer.token_to_id(text) is not None:
            tokens.append(_as_library_has_it(text, matching, special=True))
    tokenizer.add_tokens(tokens)  # all at once: the cost of a call grows with the vocabulary


def _as_library_has_it(text: str, matching: Matching, *, special: bool) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(
        text,
        special=special,
        lstrip=matching.lstrip,
        rstrip=matching.rstrip,
        single_word=matching.single_word,
        normalized=matching.normalized,
    )


def _read(content: bytes, declared: Declarations) -> JsonVocabulary:
    with library.gc_disabled():  # many thousand small lists, none of which is garbage
        file = json.loads(content, object_pairs_hook=distinct)
    check_limits(file)
    tokenizer = tokenizers.Tokenizer.from_buffer(content)
    tokenizer.no_truncation()  # left on by training scripts, it would silently truncate prompts
    tokenizer.no_padding()
    _mark(tokenizer, declared)
    return JsonVocabulary(tokenizer, file["model"]["vocab"])


class TokenizerJson:
    """The format of tokenizer.json."""

    file_names = ("tokenizer.json",)
    rank = 10

    def read(self, path: Path, declared: Declarations) -> Vocabulary:
        try:
            with library.stderr_silenced():
                return library.catch_panic(partial(_read, path.read_bytes(), declared))
        except Exception as error:  # the library raises nothing narrower
            raise damaged(path, f"not a tokenizer ({error!s:.200})") from error


PLUG = TokenizerJson()
