"""A model's perplexity on a text, for a person: the protocol beside the number, and how certain it is."""

from collections.abc import Iterator
from typing import Final

from gptfast_cli.core.measure.perplexity.results import Perplexity
from gptfast_cli.render.table import Table

_HEADINGS: Final = ("protocol", "perplexity", "± stderr", "tokens", "windows")


def perplexity_table(found: Perplexity) -> Table:
    """The table of one row."""
    windows = f"{found.n_windows:,}" + (f" of {found.n_windows_all:,}" if found.is_partial else "")
    row = (found.protocol, f"{found.value:,.4f}", _error(found.stderr), f"{found.n_tokens:,}", windows)
    return Table(_HEADINGS, (row,), "<" + ">" * (len(_HEADINGS) - 1))


def perplexity_notes(found: Perplexity) -> Iterator[str]:
    """What belongs to the number."""
    yield f"perplexity of a {found.unit}"
    if found.stderr is not None:
        yield "± from 20 batches of tokens in a row"
    if found.stderr_tokens is not None:
        yield f"± {_error(found.stderr_tokens)} if each token stood for itself"


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:,.4f}"
