"""Stop strings: text ends before the first of them, wherever token edges fall, and no part of one is ever shown."""

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
        if (start := self._first_stop()) is not None:
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

    def _first_stop(self) -> int | None:
        starts = [start for stop in self._stops if (start := self._held.find(stop)) >= 0]
        return min(starts, default=None)

    def _undecided(self) -> int:
        """Length of the longest ending of the held text with which a stop string begins."""
        longest = max(map(len, self._stops), default=0)
        lengths = range(min(longest - 1, len(self._held)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)
