"""Stop strings: text ends before the first one that is complete, however it is cut into tokens, and none is shown.

Read character by character, the stop string that is complete first ends the text. Of several that end with the same
character the longest counts. So of the stops "aXb" and "X" it is "X" that ends "aXb", and of "ab" and "b" it is "ab":
whether tokens are "a", "X", "b" or "aXb" makes no difference, as nothing behind the end of a stop is looked at.
"""

from collections.abc import Sequence


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
