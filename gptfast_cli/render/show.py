"""Drives a job to its result while views show its events."""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from typing import TextIO, TypeAlias, TypeVar

from gptfast_cli.core.events import Event, Job
from gptfast_cli.render.terminal import shows_escapes

T = TypeVar("T")
View: TypeAlias = Callable[[Event], None]


def show(job: Job[T], *views: View) -> T:
    """The job's result, every event having passed through each view in turn.

    Ctrl-C is thrown into the job, at the event where it stands: a job that knows how to stop early returns what it
    has, any other ends in KeyboardInterrupt. However this ends, the job has been closed and has cleaned up.
    """
    with closing(job):
        advance = partial(next, job)
        while True:
            try:
                event = advance()
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # StopIteration does not say what it carries
            advance = partial(next, job)
            try:
                for view in views:
                    view(event)
            except KeyboardInterrupt as interrupt:
                advance = partial(job.throw, interrupt)


def progress_view(stream: TextIO, *, quiet: bool) -> AbstractContextManager[View]:
    """The view of everything but the results: live on a terminal, lines elsewhere, nothing when quiet."""
    if quiet:
        return nullcontext(nothing)
    if shows_escapes(stream):
        from gptfast_cli.render.live import LiveView

        return LiveView(stream)
    from gptfast_cli.render.plain import PlainView

    return PlainView(stream)


def nothing(event: Event) -> None:
    """Show nothing."""
