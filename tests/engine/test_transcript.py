"""A transcript shows each character once, ends before a stop string, and goes on where the prompt ended."""

from collections.abc import Mapping

from gptfast_cli.core.engine.request import Limits, Request, Transcript
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.events import Finished, TextChunk
from gptfast_cli.core.tokenizers import SpecialTokens, StreamDecoder, Tokenizer

PIECES = ["Once", " upon", " a", " ti", "me", "\n", "\nEnd"]


class LateStream:
    """Gives each piece one token late, and the first without its space, as SentencePiece does."""

    def __init__(self) -> None:
        self._held: str | None = None

    def push(self, token_id: int) -> str:
        ready, self._held = self._held, PIECES[token_id] if self._held is not None else PIECES[token_id].lstrip(" ")
        return ready or ""

    def finish(self) -> str:
        text, self._held = self._held or "", "" if self._held is not None else None
        return text


class Pieces:
    """A vocabulary of a few pieces."""

    vocab_size = len(PIECES)
    own_bos_id = adds_bos = None
    own_stop_ids: frozenset[int] = frozenset()
    added_tokens: Mapping[str, int] = {}

    def encode(self, text: str) -> list[int]:
        raise AssertionError("transcripts read tokens only")

    def id_of(self, text: str) -> int | None:
        return None

    def stream(self) -> StreamDecoder:
        return LateStream()


TOKENIZER = Tokenizer(Pieces(), SpecialTokens(bos_id=None, add_bos=False, stop_ids=frozenset()))


def transcript(*tokens: int, stops: tuple[str, ...] = (), over: bool = True, batched: bool = False) -> Transcript:
    """A transcript of a prompt, "Once", and these tokens, which came one by one or together."""
    sequence = Request(0, (0,), Sampler(Sampling(), seed=0), Limits(99, 99, frozenset()))
    followed = Transcript(sequence, TOKENIZER, stops)
    for token in tokens:
        if not batched:
            followed.read()
        sequence.generated.append(token)
    if over:
        sequence.finish_reason = "eos"
    followed.read()
    return followed


def test_the_first_word_keeps_its_space_and_the_prompt_is_not_repeated() -> None:
    assert transcript(1, 2, 3, 4).text == " upon a time"


def test_text_held_back_by_the_tokenizer_comes_out_at_the_end() -> None:
    assert transcript(1, 2, over=False).text == " upon"
    assert transcript(1, 2).text == " upon a"


def test_text_that_might_have_begun_a_stop_string_comes_out_at_the_end() -> None:
    assert transcript(3, 4, 5, stops=("\n\n",)).text == " time\n"


def test_a_stop_string_that_the_last_piece_completes_is_not_shown() -> None:
    followed = transcript(3, 4, 5, 6, stops=("\n\n",))
    assert followed.text == " time"
    assert followed.request.finish_reason == "stop"


def test_tokens_that_came_after_a_stop_string_are_dropped() -> None:
    one_by_one, batched = (
        transcript(3, 4, 1, 2, 5, stops=("me u",), over=False, batched=both) for both in (False, True)
    )
    assert batched.text == " ti"
    assert batched.request.generated == [3, 4, 1, 2]
    assert batched.request.finish_reason == one_by_one.request.finish_reason == "stop"
    assert batched.text == one_by_one.text


def test_a_transcript_that_is_over_gives_its_last_text_once() -> None:
    followed = transcript(1, 2)
    assert followed.read() == []
    assert followed.text == " upon a"


def test_an_interrupt_gives_what_was_held_back_and_tells_once_that_it_is_over() -> None:
    followed = transcript(1, 2, over=False)
    assert list(followed.interrupt()) == [TextChunk(0, " a"), Finished(0)]
    assert list(followed.interrupt()) == []
    assert followed.request.finish_reason == "interrupted"
    ended = transcript(1, over=False)
    ended.request.finish_reason = "length"  # by a step whose text nobody has read yet
    assert list(ended.interrupt()) == [TextChunk(0, " upon"), Finished(0)]
    assert ended.request.finish_reason == "length"
