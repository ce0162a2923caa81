"""The reasoning of a thinking model, told apart from its answer while the text comes.

Reasoning stands between two delimiters, such as `<think>` and `</think>`, at the beginning of an answer; the chat
template may have written the first one at the end of the prompt. Later in an answer they are text, as in llama.cpp.

Delimiters that are special tokens have no text. Inside of this module each of them is a lone surrogate, which no text
of a tokenizer contains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Final

from gptfast_cli.core.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """How a model marks its reasoning.

    openings: texts, each of which begins it
    closing:  ends it
    headings: texts that may stand before the answer itself, and are no part of it
    """

    openings: tuple[str, ...]
    closing: str
    headings: tuple[str, ...] = ()


_THOUGHT, _FINAL = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
_FORMATS: Final = (
    ReasoningFormat(("<think>",), "</think>"),  # DeepSeek, Qwen, GLM, SmolLM, MiniMax ...
    ReasoningFormat(("[THINK]",), "[/THINK]"),  # Mistral
    ReasoningFormat(("<|START_THINKING|>",), "<|END_THINKING|>", ("<|START_RESPONSE|>",)),  # Cohere
    ReasoningFormat(("<seed:think>",), "</seed:think>"),  # Seed-OSS
    ReasoningFormat(("<thought>",), "</thought>"),  # EXAONE Deep
    ReasoningFormat(("<|channel>thought",), "<channel|>"),  # Gemma 4
    ReasoningFormat(  # gpt-oss (Harmony)
        (_THOUGHT, f"<|start|>assistant{_THOUGHT}"), "<|end|>", (_FINAL, f"<|start|>assistant{_FINAL}")
    ),
)
_FIRST_SURROGATE = 0xD800
_OPENING_TOKENS = 64  # of the end of a prompt, in which an opening delimiter is looked for


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The formats of a model, with surrogates for special tokens; `surrogates`: by token id."""

    formats: tuple[ReasoningFormat, ...]
    surrogates: Mapping[int, str]

    def parser(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> "ReasoningParser":
        """A parser of an answer to a prompt, which may end with an opening delimiter."""
        stream, text = tokenizer.stream(), ""
        for token in prompt[-_OPENING_TOKENS:]:
            text += stream.push(token) + self.surrogates.get(token, "")
        end = text.rstrip()
        opened = [each for each in self.formats if end.endswith(each.openings)]
        return ReasoningParser(self, opened[0] if opened else None)


def find_reasoning(template: str, tokenizer: Tokenizer) -> Reasoning | None:
    """The formats that a model uses: those in its chat template or among its added tokens; None if there are none."""
    added = tokenizer.vocabulary.added_tokens
    used = tuple(each for each in _FORMATS if _is_used(each, template, added))
    texts = [text for each in used for text in (*each.openings, each.closing, *each.headings)]
    special = [
        token
        for token, token_id in added.items()
        if token and any(token in text for text in texts) and not tokenizer.decode([token_id])
    ]
    surrogates = {token: chr(_FIRST_SURROGATE + n) for n, token in enumerate(special)}

    def marked(text: str) -> str:
        longest_first = sorted(surrogates, key=len, reverse=True)
        return reduce(lambda done, token: done.replace(token, surrogates[token]), longest_first, text)

    formats = tuple(
        replace(
            each,
            openings=tuple(map(marked, each.openings)),
            closing=marked(each.closing),
            headings=tuple(map(marked, each.headings)),
        )
        for each in used
    )
    return Reasoning(formats, {added[token]: mark for token, mark in surrogates.items()}) if used else None


def closing_tokens(template: str, added: Mapping[str, int]) -> frozenset[str]:
    """The closing delimiters of a model: a token that ends its reasoning does not end its answer."""
    return frozenset(each.closing for each in _FORMATS if _is_used(each, template, added))


def _is_used(form: ReasoningFormat, template: str, added: Mapping[str, int]) -> bool:
    opening = form.openings[0]
    return opening in template or (form.closing in added and any(opening.startswith(token) for token in added))


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer's text."""

    text: str
    is_reasoning: bool = False


class ReasoningParser:
    """Splits the text of one answer; `push` takes what `mark` has marked."""

    def __init__(self, reasoning: Reasoning, opened: ReasoningFormat | None) -> None:
        """`opened`: the prompt ends with an opening delimiter of this format."""
        self._reasoning = reasoning
        self._open = opened
        self._is_answer = False  # the beginning, where delimiters are looked for, is over
        self._held = ""  # may be, or become, a delimiter
        self._thoughts: list[str] = []
        self._answer = ""
        if opened is not None:
            self._thoughts.append("")

    @property
    def reasoning(self) -> str | None:
        """The reasoning so far, without delimiters and white space around it; None if there is none."""
        return "\n\n".join(thought.strip() for thought in self._thoughts) if self._thoughts else None

    @property
    def content(self) -> str:
        """The answer so far, without delimiters and white space before it."""
        return unmarked(self._answer).lstrip() if self._thoughts else unmarked(self._answer)

    def mark(self, token: int) -> str:
        """What stands for a token in marked text, besides its own text."""
        return self._reasoning.surrogates.get(token, "")

    def push(self, marked: str) -> list[Piece]:
        """Add marked text; returns the pieces that are certain."""
        self._held += marked
        return self._pieces(is_end=False)

    def finish(self) -> list[Piece]:
        """The pieces that are still held back, at the end of the text."""
        return self._pieces(is_end=True)

    def _pieces(self, *, is_end: bool) -> list[Piece]:
        pieces: list[Piece] = []
        is_certain = True
        while self._held and is_certain:
            if self._is_answer:
                self._answer += self._held
                pieces.append(Piece(self._take(len(self._held))))
            elif self._open is None:
                pieces.append(self._begin(is_end=is_end))
                is_certain = self._is_answer or self._open is not None
            else:
                pieces.append(self._think(self._open, is_end=is_end))
                is_certain = self._open is None
        return [piece for piece in pieces if piece.text]

    def _begin(self, *, is_end: bool) -> Piece:
        """At the beginning: take a delimiter, after white space, or find that the answer begins."""
        text = self._held.lstrip()
        formats = self._reasoning.formats
        starts: dict[str, ReasoningFormat | None] = {opening: each for each in formats for opening in each.openings}
        starts |= dict.fromkeys(heading for each in formats for heading in each.headings)
        found = next((start for start in starts if text.startswith(start)), None)
        if found is None:
            self._is_answer = is_end or not any(start.startswith(text) for start in starts)
            return Piece("")
        self._open = starts[found]
        self._is_answer = self._open is None
        if self._open is not None:
            self._thoughts.append("")
        return Piece(self._take(len(self._held) - len(text) + len(found)), is_reasoning=True)

    def _think(self, form: ReasoningFormat, *, is_end: bool) -> Piece:
        """Inside of reasoning: take its text up to the closing delimiter, and that."""
        end = self._held.find(form.closing)
        n_held = 0 if is_end else _n_undecided(self._held, form.closing)
        thought = self._take(end if end >= 0 else len(self._held) - n_held)
        self._thoughts[-1] += thought
        if end < 0:
            return Piece(thought, is_reasoning=True)
        self._open = None
        return Piece(thought + self._take(len(form.closing)), is_reasoning=True)

    def _take(self, n: int) -> str:
        taken, self._held = self._held[:n], self._held[n:]
        return unmarked(taken)


def unmarked(text: str) -> str:
    """The text without surrogates."""
    return "".join(character for character in text if not "\ud800" <= character <= "\udfff")


def _n_undecided(text: str, delimiter: str) -> int:
    """Length of the longest suffix of a text that begins a delimiter."""
    lengths = range(min(len(delimiter) - 1, len(text)), 0, -1)
    return next((n for n in lengths if delimiter.startswith(text[-n:])), 0)
