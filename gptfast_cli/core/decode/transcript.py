"""The text of one sequence under way: tokens become text, and text ends before a stop string."""

from collections.abc import Iterator
from collections.abc import Sequence as Texts

from gptfast_cli.core.decode.sequence import Sequence
from gptfast_cli.core.decode.stopping import StopStrings
from gptfast_cli.core.events import Finished, Text
from gptfast_cli.core.tokenizers import Tokenizer


class Transcript:
    """Follows a sequence; without a tokenizer its text stays empty."""

    def __init__(self, sequence: Sequence, tokenizer: Tokenizer | None, stops: Texts[str]) -> None:
        self.sequence = sequence
        self.text = ""
        self._stops = StopStrings(stops)
        self._n_read = 0
        self._is_told = False  # that the sequence is over
        self._stream = None if tokenizer is None else tokenizer.stream(after=sequence.prompt)

    def read(self) -> str:
        """The text of the tokens generated since the last call; all of it once the sequence is over.

        A stop string that completes ends the sequence.
        """
        if self._stream is None:
            return ""
        text = ""
        for token in self.sequence.generated[self._n_read :]:
            self._n_read += 1
            text += self._stops.push(self._stream.push(token))
            if self._stops.found:
                del self.sequence.generated[self._n_read :]  # as if they had been looked at one by one
                break
        if self.sequence.finish_reason is not None and not self._stops.found:
            text += self._stops.push(self._stream.finish())
            text += self._stops.finish()
            self._stream = None  # at its end
        if self._stops.found:
            self.sequence.finish_reason = "stop"
        self.text += text
        return text

    def follow(self) -> Iterator[Text | Finished]:
        """What is new in the text, and once that the sequence is over."""
        if text := self.read():
            yield Text(self.sequence.id, text)
        if self.sequence.finish_reason is not None and not self._is_told:
            self._is_told = True
            yield Finished(self.sequence.id)

    def interrupt(self) -> Iterator[Text | Finished]:
        """End the sequence where it stands, unless it is over; what `follow` gives for that."""
        self.sequence.finish_reason = self.sequence.finish_reason or "interrupted"
        yield from self.follow()
