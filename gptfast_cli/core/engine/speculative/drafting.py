"""Opening a draft: a model, the target in another scheme (self:SCHEME), prompt lookup, or saved advice.

`$GPTFAST_HOME/advice` holds a JSON file for each target, device and dtype, named by a hash of the target's weights:
speed-ups measured on one machine do not hold on another.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from gptfast_cli.core.checkpoints.checkpoint import outline_of
from gptfast_cli.core.checkpoints.identity import fingerprint
from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.device import dtype_name
from gptfast_cli.core.engine.build import ModelSource, Outline, RuntimeConfig, build, check_sharded
from gptfast_cli.core.engine.load import LoadedModel, OpenedModel, load, open_model
from gptfast_cli.core.engine.speculative.draft_length import (
    ADVISED,
    AdaptiveDraftLength,
    BroadcastDraftLength,
    DraftedTexts,
    DraftLengthPolicy,
    DraftOptions,
    FixedDraftLength,
)
from gptfast_cli.core.engine.speculative.proposers import Proposer
from gptfast_cli.core.engine.speculative.proposers.draft_model import DraftModel
from gptfast_cli.core.engine.speculative.proposers.ngram import NGram
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.fields import Fields, read_fields
from gptfast_cli.core.files import is_file, write_whole
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.models.kv_blocks import MOST_ROLLBACK
from gptfast_cli.core.models.process_group import ALONE
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.quantize.quantizers import quantizers
from gptfast_cli.core.schemes import Block, Weight, quantized, quantized_names, schemes
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch
from gptfast_cli.core.tokenizers import vocabulary_difference

_SCHEMA = "gptfast.advice/1"


@dataclass(frozen=True, slots=True)
class Advice:
    """What to use at a temperature and batch size; `draft` and `k` are None if plain decoding is fastest."""

    temperature: float
    batch_size: int
    draft: str | None
    k: int | None


def save_advice(home: Path, target: LoadedModel, advice: Sequence[Advice]) -> Path:
    """Write the advice for a target, replacing older advice; returns the file."""
    path = _path(home, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [asdict(each) for each in advice]
    write_whole(path, json.dumps({"schema": _SCHEMA, "target": target.name, "advice": entries}, indent=1) + "\n")
    return path


def find_advice(home: Path, target: LoadedModel, temperature: float, batch_size: int) -> Advice | None:
    """Advice of the nearest temperature and the largest batch size up to `batch_size`; None without a file.

    Raises CorruptError for an invalid file.
    """
    path = _path(home, target)
    if not is_file(path):
        return None
    try:
        advice = _read(read_fields(path))
    except CorruptError as error:
        raise CorruptError(
            error.message, f"Judge drafts anew: gptfast speculate -m {target.name} --save-advice"
        ) from error
    nearest = min(abs(each.temperature - temperature) for each in advice)
    near = [each for each in advice if abs(each.temperature - temperature) == nearest]
    smaller = [each for each in near if each.batch_size <= batch_size]
    if smaller:
        return max(smaller, key=lambda each: each.batch_size)
    return min(near, key=lambda each: each.batch_size)


def _read(fields: Fields) -> list[Advice]:
    entries = fields.values.get("advice")
    if fields.values.get("schema") != _SCHEMA or not isinstance(entries, list) or not entries:
        raise fields.corrupt("advice", "is none of this version")
    return [_entry(Fields({"entry": entry}, fields.where).section("entry")) for entry in entries]


def _entry(entry: Fields) -> Advice:
    temperature, batch_size = entry.number("temperature", minimum=0), entry.integer("batch_size", minimum=1)
    if entry.values.get("draft") is None:
        return Advice(temperature, batch_size, None, None)
    return Advice(temperature, batch_size, entry.text("draft"), entry.integer("k", minimum=1))


def _path(home: Path, target: LoadedModel) -> Path:
    where = f"{target.model.device.type}-{dtype_name(target.model.dtype)}"
    return home / "advice" / f"{fingerprint(target.checkpoint)[:16]}-{where}.json"


NGRAM, SELF = "ngram", "self:"
_ROUNDING = "nearest"


def open_draft(
    drafting: DraftOptions | None,
    target: LoadedModel,
    drafted: DraftedTexts,
    *,
    settings: Settings,
    runtime: RuntimeConfig,
) -> Job[Speculation | None]:
    """Open a draft for a target; None if none is asked for or the advice is plain decoding.

    Raises UsageError for a draft that does not fit the target and for `auto` without saved advice, and what loading a
    model raises.
    """
    if drafting is not None and drafting.draft == ADVISED:
        drafting = yield from _resolve_advice(drafting, target, drafted, settings)
    if drafting is None:
        return None
    check_rollback("--speculate-k", drafting.draft_length, target.model)
    if drafting.draft == NGRAM:
        proposer: Proposer = NGram(drafted.n_rows)
        seconds, is_replicated = 0.0, False
    else:
        model, seconds = yield from open_draft_model(
            drafting.draft, target, n_tokens=drafted.n_tokens, settings=settings, runtime=runtime
        )
        check_rollback("--speculate-k", drafting.draft_length, model)
        proposer = DraftModel(model, drafted.n_rows)
        is_replicated = model.group.size < runtime.group.size
    policy: DraftLengthPolicy = BroadcastDraftLength(AdaptiveDraftLength(), runtime.group)
    if drafting.draft_length is not None:
        policy = FixedDraftLength(drafting.draft_length)
    return Speculation(proposer, policy, drafting=drafting, load_seconds=seconds, is_replicated=is_replicated)


def check_rollback(option: str, draft_length: int | None, model: Decoder) -> None:
    """Raise UsageError if a round of this length, given by `option`, drafts more than the KV cache can take back."""
    keeps_all = model.kv_dtype is not torch.int8 and not model.config.widest_window
    if not keeps_all and (draft_length or 0) > MOST_ROLLBACK:
        raise UsageError(
            f"{option} may be up to {MOST_ROLLBACK} with int8 keys and values or windows of attention, "
            f"not {draft_length}."
        )


def _resolve_advice(
    drafting: DraftOptions, target: LoadedModel, drafted: DraftedTexts, settings: Settings
) -> Job[DraftOptions | None]:
    advice = find_advice(settings.home, target, drafted.temperature, drafted.n_rows)
    if advice is None:
        raise UsageError(
            f"--draft {ADVISED}: no drafts have been judged for {target.name} here.",
            f"gptfast speculate -m {target.name} --save-advice",
        )
    if advice.draft is None:
        yield Note(f"Draft: none, as advised at batch {advice.batch_size}, temperature {advice.temperature:g}")
        return None
    return DraftOptions(advice.draft, drafting.draft_length if drafting.has_own_draft_length else advice.k)


def open_draft_model(
    name: str, target: LoadedModel, *, n_tokens: int, settings: Settings, runtime: RuntimeConfig
) -> Job[tuple[Decoder, float]]:
    """Load a MODEL or `self:SCHEME` that drafts texts of up to `n_tokens`; returns it and the loading time in seconds.

    It is sharded over the target's ranks where its shape allows; else each rank has a replica and all draft the same.
    Raises as `open_draft` does.
    """
    if name.startswith(SELF):
        return (yield from _requantized(name.removeprefix(SELF), target, settings, runtime))
    opened = open_model(name, settings)
    if target.tokenizer is None or opened.tokenizer is None:
        opened = _padded_alike(opened, target)
    _check_vocabulary(opened, target)  # before any weights are read
    _check_context(opened, target, n_tokens)
    own = _sharded_or_replicated(opened.config, partial(outline_of, opened.checkpoint), runtime)
    draft = yield from load(opened, settings, own, role="Draft")
    return draft.model, draft.seconds


def _requantized(
    scheme: str, target: LoadedModel, settings: Settings, runtime: RuntimeConfig
) -> Job[tuple[Decoder, float]]:
    """The target with its matrices quantized as they are read, and the time that this took in seconds."""
    if scheme not in quantized_names():
        known = ", ".join(f"{SELF}{each}" for each in quantized_names())
        raise UsageError(f"--draft {SELF}{scheme}: there is no quantized scheme of that name.", f"There are {known}.")
    config, checkpoint = target.config, target.checkpoint
    assert target.opened is not None
    as_stored = target.opened.read
    allocation = AllocationOptions(scheme).allocation(config)
    storages = allocation.of(config)

    def read(name: str, block: Block | None) -> Weight:
        storage = storages[name]
        if storage.scheme in (PLAIN, checkpoint.weight(name).scheme):
            return as_stored(name, block)
        weight = as_stored(name)  # quantize whole rows: the scale of a row does not depend on sharding
        matrix = schemes[weight.scheme].dense(weight, torch.float32)
        whole = quantizers[_ROUNDING].quantize(matrix, quantized(storage.scheme), storage.group_size)
        return whole if block is None else whole.block(block)

    yield Note(f"Draft: {target.name} itself, quantized to {scheme} as it is read")
    outline = partial(allocation.outline, config, checkpoint.dtype)
    parts = ModelSource(config, read, outline, checkpoint.n_bytes, target.model.device, target.model.dtype)
    watch = Stopwatch(target.model.device)
    own = _sharded_or_replicated(config, parts.outline, runtime)
    model = yield from build(parts, own, settings=settings, watch=watch)
    return model, watch.seconds


def _sharded_or_replicated(config: ModelConfig, outline: Outline, runtime: RuntimeConfig) -> RuntimeConfig:
    try:
        check_sharded(config, outline, runtime.group.size)
    except UsageError:
        return replace(runtime, group=ALONE)
    return runtime


def _padded_alike(draft: OpenedModel, target: LoadedModel) -> OpenedModel:
    """The draft with the target's vocabulary size, where both have as many rows and padding is unknown for one."""
    if draft.checkpoint.config.vocab_size != target.checkpoint.config.vocab_size:
        return draft
    return replace(draft, config=replace(draft.config, vocab_size=target.config.vocab_size))


def _check_vocabulary(draft: OpenedModel, target: LoadedModel) -> None:
    pair = f"{draft.found.name} cannot draft for {target.name}"
    if target.tokenizer is not None and draft.tokenizer is not None:
        other = vocabulary_difference(target.tokenizer, draft.tokenizer)
        if other is not None:
            raise UsageError(f"{pair}: its {other.what} {other.theirs}, the target's {other.ours}.", _VOCABULARY_HINT)
    ours, theirs = target.config.vocab_size, draft.config.vocab_size
    if ours != theirs:  # without padding, where the tokenizers define it
        raise UsageError(f"{pair}: it has {theirs:,} tokens, and the target {ours:,}.", _VOCABULARY_HINT)


def _check_context(draft: OpenedModel, target: LoadedModel, n_tokens: int) -> None:
    if draft.config.max_context < n_tokens:
        raise UsageError(
            f"{draft.found.name} cannot draft for {target.name} here: it holds {draft.config.max_context:,} tokens, "
            f"and the text may reach {n_tokens:,}.",
            f"Add --max-context {draft.config.max_context}, or lower --max-new-tokens.",
        )


_VOCABULARY_HINT = (
    "A draft has the very vocabulary of its target; --draft ngram and --draft self:int8 go with every model."
)
