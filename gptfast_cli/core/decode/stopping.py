"""Stop strings: text ends before the first one that is complete, however it is cut into tokens, and none is shown.

Read character by character, the stop string that is complete first ends the text. Of several that end with the same
character the longest counts. So of the stops "aXb" and "X" it is "X" that ends "aXb", and of "ab" and "b" it is "ab":
whether tokens are "a", "X", "b" or "aXb" makes no difference, as nothing behind the end of a stop is looked at.

A special token has no text, so a stop string that is written as one ends the text at the token itself.
"""

from collections.abc import Iterator, Sequence

from gptfast_cli.core.tokenizers import Tokenizer


class StopStrings:
    """Passes text through piece by piece, holding back what may turn out to be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Take the next piece; return what is certain to be output. Once `found`, that is nothing more."""
        if self.found:
            return ""
        self._held += text
        if (start := self._start_of_first()) is not None:
            self.found = True
            shown, self._held = self._held[:start], ""
            return shown
        certain = len(self._held) - self._undecided()
        shown, self._held = self._held[:certain], self._held[certain:]
        return shown

    def finish(self) -> str:
        """What is still held when no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _start_of_first(self) -> int | None:
        """Where the stop string begins that is complete first."""
        found = ((start, stop) for stop in self._stops if (start := self._held.find(stop)) >= 0)
        return min(((start + len(stop), start) for start, stop in found), default=(0, None))[1]

    def _undecided(self) -> int:
        """Length of the longest ending of the held text with which a stop string begins."""
        longest = max(map(len, self._stops), default=0)
        lengths = range(min(longest - 1, len(self._held)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)


def stop_token_ids(stops: Sequence[str], tokenizer: Tokenizer | None) -> frozenset[int]:
    """The ids of the stop strings that are written as special or added tokens."""
    if tokenizer is None:
        return frozenset()
    added = tokenizer.vocabulary.added_tokens
    return frozenset(added[stop] for stop in stops if stop in added)


def unmatched_stops(stops: Sequence[str], tokenizer: Tokenizer | None, given_as: str = "--stop") -> Iterator[str]:
    """A sentence for each stop string that cannot end an answer of a model with this tokenizer, saying why.

    given_as: the option, or the field of a row, that names them
    """
    for stop in dict.fromkeys(stops):
        if (why := _why_unmatched(stop, stops, tokenizer)) is not None:
            yield f"{given_as} {stop!r} can never match: {why}."


def _why_unmatched(stop: str, stops: Sequence[str], tokenizer: Tokenizer | None) -> str | None:
    if tokenizer is None:
        return "the model has no tokenizer, so there is no text to look in"
    if not _is_unicode(stop):
        return "it is not valid Unicode"
    added = tokenizer.vocabulary.added_tokens
    if stop in added:
        return None
    if (earlier := next((other for other in stops if other in stop[:-1]), None)) is not None:
        return f"{earlier!r}, another stop string, is complete before it"
    special = next(
        (text for text, token_id in added.items() if text in stop and not tokenizer.decode([token_id])), None
    )
    if special is not None:
        return f"the special token {special!r} has no text; to stop at the token itself, give it alone"
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
