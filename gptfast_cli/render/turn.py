"""The numbers of a chat's turn, in one line."""

from collections.abc import Iterator
from typing import TextIO

from gptfast_cli.core.jobs.chat import Turn
from gptfast_cli.render.numbers import duration, tokens_per_second
from gptfast_cli.render.terminal import styled

_DIM = "2"


def write_turn(turn: Turn, stream: TextIO) -> None:
    """Write the line, `42 tokens · 178 tok/s · TTFT 12.0 ms · context 310 of 2,048`, and what cut the answer short."""
    lines = [" \N{MIDDLE DOT} ".join(_parts(turn)), *_reasons(turn)]
    stream.write("".join(styled(line, _DIM, stream) + "\n" for line in lines))
    stream.flush()


def _parts(turn: Turn) -> Iterator[str]:
    yield f"{turn.n_generated:,} token{'' if turn.n_generated == 1 else 's'}"
    if turn.decode_tok_s is not None:
        yield tokens_per_second(turn.decode_tok_s)
    if turn.ttft_s is not None:
        yield f"TTFT {duration(turn.ttft_s)}"
    yield f"context {turn.context_used:,} of {turn.max_context:,}"


def _reasons(turn: Turn) -> Iterator[str]:
    match turn.finish_reason:
        case "interrupted" if turn.is_kept:
            yield "Stopped; the answer is kept as far as it came."
        case "interrupted":
            yield "Stopped before it began; the message is not kept."
        case "length" if not turn.filled_the_context:
            yield "Cut at --max-new-tokens."
