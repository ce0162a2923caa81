"""A model's card: what `gptfast --show` writes, as text and as JSON."""

from collections.abc import Iterator
from typing import Final, TextIO

from gptfast_cli.core.checkpoints.inventory import Entry
from gptfast_cli.core.engine.model_card import KnownDraft, MemoryUse, ModelCard, ShapeSummary
from gptfast_cli.render.inventory import ENTRY_KEYS
from gptfast_cli.render.json import Keys, write_document
from gptfast_cli.render.numbers import count, size
from gptfast_cli.render.terminal import Table, aligned, printable

_KEYS: Final[Keys] = {
    Entry: ENTRY_KEYS,
    ModelCard: "*entry shape memory device free_bytes chat_templates license source drafts",
    ShapeSummary: "* -n_layers -n_heads -n_kv_heads layers=n_layers heads=n_heads kv_heads=n_kv_heads",
    MemoryUse: "*",
    KnownDraft: "name kind parameters=n_params",
}


def write_json(card: ModelCard, stream: TextIO) -> None:
    """Write the card as one document."""
    write_document("gptfast.show/1", card, stream, _KEYS)


def write_card(card: ModelCard, stream: TextIO) -> None:
    """Write what is known of the model, and the memory that it takes by scheme and context."""
    facts = [(name, value) for name, value in _facts(card) if value]
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        stream.write(f"{name:<{width}}  {printable(value)}\n")
    if card.memory:
        stream.write("\n" + "".join(f"{line}\n" for line in aligned(_memory_table(card))))
        free = "" if card.free_bytes is None else f"; {size(card.free_bytes)} of memory are free on {card.device}"
        stream.write(f"memory of the weights, and with the KV cache of one text of so many tokens{free}\n")


def _facts(card: ModelCard) -> Iterator[tuple[str, str]]:
    entry = card.entry
    yield "name", entry.name + (", the current model" if entry.is_current else "")
    yield "cannot run", entry.problem or ""
    yield "where", entry.where
    yield "path", str(entry.path)
    yield "from", card.source or ""
    yield "license", card.license or "not known: no file of the model says"
    yield "family", entry.family or ""
    scheme, head = entry.scheme or "", entry.head_scheme
    yield "scheme", scheme if head in (None, scheme) else f"{scheme}, {head} head"
    n_params = "" if entry.n_params is None else f"{count(entry.n_params)} parameters, "
    yield "size", f"{n_params}{size(entry.n_bytes)} on disk"
    if card.shape is not None:
        yield from _shape(card.shape)
        names = "" if card.chat_templates == ("default",) else f": {', '.join(card.chat_templates)}"
        yield "chat template", f"yes{names}" if card.chat_templates else "none"
        drafts = "; ".join(_draft(draft) for draft in card.drafts)
        yield "drafts at hand", drafts or "none of this vocabulary; --draft ngram and --draft self:int8 need none"


def _shape(shape: ShapeSummary) -> Iterator[tuple[str, str]]:
    sharing = "" if shape.n_heads == shape.n_kv_heads else f" on {shape.n_kv_heads} key and value heads"
    yield "layers", f"{shape.n_layers} of width {shape.dim:,}, feed-forward {shape.ffn_dim:,}"
    yield "attention", f"{shape.n_heads} heads of {shape.head_dim}{sharing}"
    tied = ", its embedding is the head too" if shape.tied_embeddings else ""
    yield "vocabulary", f"{shape.vocab_size:,} tokens{tied}"
    windows = f"; {shape.n_windowed_layers} layers see the last {shape.window:,}" if shape.window else ""
    yield "context", f"{shape.max_context:,} tokens{windows}"


def _draft(draft: KnownDraft) -> str:
    kind = "a head for this model" if draft.kind == "head" else "same vocabulary"
    return f"{draft.name} ({kind if draft.n_params is None else f'{count(draft.n_params)} parameters, {kind}'})"


def _memory_table(card: ModelCard) -> Table:
    headings = ("SCHEME", "WEIGHTS", *(f"{context:,}" for context in card.memory[0].total_bytes))
    rows = tuple(
        (use.scheme, *(_memory(n_bytes, card.free_bytes) for n_bytes in (use.weight_bytes, *use.total_bytes.values())))
        for use in card.memory
    )
    return Table(headings, rows, "<" + ">" * (len(headings) - 1))


def _memory(n_bytes: int, free_bytes: int | None) -> str:
    return size(n_bytes) + ("" if free_bytes is None or n_bytes <= free_bytes else " no room")
