"""Perplexity of a loaded model on a text, group by group of its windows; memory holds the text and one group."""

from array import array
from re import finditer

from gptfast_cli.core.decode.loading import LoadedModel
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.measure.perplexity.protocols import ProtocolText, TokenText, protocol_of
from gptfast_cli.core.measure.perplexity.results import Perplexity
from gptfast_cli.core.measure.perplexity.tally import Tally
from gptfast_cli.core.measure.scoring.reading import room_of
from gptfast_cli.core.measure.scoring.scores import scores
from gptfast_cli.core.measure.tasks.beginnings import beginnings_of
from gptfast_cli.core.measure.windows import groups
from gptfast_cli.core.model.logits import NonFiniteLogitsError


def protocol_text(text: str, protocol: str, loaded: LoadedModel) -> ProtocolText:
    """A text as a model has it; raises UsageError where the model cannot have it, or not by this protocol."""
    if loaded.tokenizer is None:
        raise UsageError(f"{loaded.name} has no tokenizer, and so cannot read a text.", "Take a model with one.")
    if not text:
        raise UsageError("The text is empty.", "Take a text of a page or more.")
    tokens = array("i", loaded.tokenizer.encode(text))
    beginnings = beginnings_of(loaded, loaded.tokenizer)
    found = TokenText(
        tokens=tokens,
        bos_id=beginnings.prefix_id if beginnings.adds_bos else None,
        prefix_id=beginnings.prefix_id,
        n_words=1 + sum(1 for _ in finditer(r"\s+", text)),
        max_context=loaded.config.max_context,
    )
    whole = ProtocolText(protocol_of(protocol), found)
    whole.check(loaded.name)
    loaded.check_ids(next(whole.windows()).passage.tokens)  # a protocol may put a prefix before the text
    return whole


def measure(loaded: LoadedModel, text: ProtocolText) -> Job[Perplexity | None]:
    """Perplexity on a text that has been checked; an interrupt ends it early, None before the first window is done."""
    tally = Tally(text)
    n_all = text.n_windows
    try:
        for group in groups(text.windows(), room_of(loaded.model).cache_tokens):
            yield Progress("perplexity", tally.n_windows, n_all, "windows", so_far=tally.value)
            found = dict(scores(loaded.model, [window.passage for window in group]))
            for number, window in enumerate(group):
                if not found[number].is_defined:
                    where = f"in window {tally.n_windows + 1:,} of the text's {n_all:,}"
                    raise NonFiniteLogitsError(loaded.model.dtype, where)
                tally.add(window.weight, found[number].logprobs)
        yield Progress("perplexity", n_all, n_all, "windows", so_far=tally.value)
    except KeyboardInterrupt:
        yield Note(f"Interrupted: this is the perplexity of {tally.n_windows:,} of {n_all:,} windows.")
    return tally.result() if tally.n_windows else None
