"""From a DRAFT as a person names it to a proposer that fits the target: a MODEL, `self:SCHEME` or `ngram`."""

from dataclasses import replace
from functools import partial

import torch

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.decode.advice import find_advice
from gptfast_cli.core.decode.building import Parts, Placing, build
from gptfast_cli.core.decode.dealing import Storages, check_dealt
from gptfast_cli.core.decode.depth import AdaptiveDepth, AgreedDepth, Depth, FixedDepth
from gptfast_cli.core.decode.drafts import ADVISED, Drafted, Drafting
from gptfast_cli.core.decode.loading import LoadedModel, OpenedModel, load, open_model
from gptfast_cli.core.decode.proposers import Proposer
from gptfast_cli.core.decode.proposers.draft_model import DraftModel
from gptfast_cli.core.decode.proposers.ngram import NGram
from gptfast_cli.core.decode.speculation import Speculation
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.formats import Block, Weight, quantized, schemes
from gptfast_cli.core.formats.plain import NAME as PLAIN
from gptfast_cli.core.kernels import KEY_BLOCK
from gptfast_cli.core.model.collective import ALONE
from gptfast_cli.core.model.decoder import Decoder
from gptfast_cli.core.quant.allocation import AllocationOptions
from gptfast_cli.core.quant.rounding import roundings
from gptfast_cli.core.quant.stored import stored
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch
from gptfast_cli.core.tokenizers import vocabulary_difference

NGRAM, SELF = "ngram", "self:"
_ROUNDING = "nearest"


def open_draft(
    drafting: Drafting | None, target: LoadedModel, drafted: Drafted, *, settings: Settings, placing: Placing
) -> Job[Speculation | None]:
    """Make a draft ready for texts of the target; None where none is asked for, or advised.

    Raises UsageError for a draft that does not fit, saying where it differs, and for advice that nobody has asked for
    yet; else what loading a model raises.
    """
    if drafting is not None and drafting.draft == ADVISED:
        drafting = yield from _advised(drafting, target, drafted, settings)
    if drafting is None:
        return None
    if target.model.kv_dtype is torch.int8 and (drafting.depth or 0) > KEY_BLOCK:
        raise UsageError(f"--speculate-k may be up to {KEY_BLOCK} with int8 keys and values, not {drafting.depth}.")
    if drafting.draft == NGRAM:
        proposer: Proposer = NGram(drafted.n_rows)
        seconds, is_replicated = 0.0, False
    else:
        model, seconds = yield from open_draft_model(
            drafting.draft, target, n_tokens=drafted.n_tokens, settings=settings, placing=placing
        )
        proposer = DraftModel(model, drafted.n_rows)
        is_replicated = model.together.size < placing.together.size
    depth: Depth = AgreedDepth(AdaptiveDepth(), placing.together)
    if drafting.depth is not None:
        depth = FixedDepth(drafting.depth)
    return Speculation(proposer, depth, drafting=drafting, load_seconds=seconds, is_replicated=is_replicated)


def _advised(drafting: Drafting, target: LoadedModel, drafted: Drafted, settings: Settings) -> Job[Drafting | None]:
    advice = find_advice(settings.home, target, drafted.temperature, drafted.n_rows)
    if advice is None:
        raise UsageError(
            f"--draft {ADVISED}: no drafts have been judged for {target.name} here.",
            f"gptfast speculate -m {target.name} --save-advice",
        )
    if advice.draft is None:
        yield Note(f"Draft: none, as advised at batch {advice.batch_size}, temperature {advice.temperature:g}")
        return None
    return Drafting(advice.draft, drafting.depth if drafting.has_own_depth else advice.k)


def open_draft_model(
    name: str, target: LoadedModel, *, n_tokens: int, settings: Settings, placing: Placing
) -> Job[tuple[Decoder, float]]:
    """The model of a MODEL or `self:SCHEME` that is to draft for texts of up to `n_tokens`, and the seconds it took.

    It is dealt out to the ranks of the target where it can be; else each of them has all of it, and they draft alike.
    Raises as `open_draft` does.
    """
    if name.startswith(SELF):
        return (yield from _requantized(name.removeprefix(SELF), target, settings, placing))
    opened = open_model(name, settings)
    if target.tokenizer is None or opened.tokenizer is None:
        opened = _padded_alike(opened, target)
    _check_vocabulary(opened, target)  # before anything large is read
    _check_context(opened, target, n_tokens)
    own = _dealt_out_or_replicated(opened.config, partial(stored, opened.checkpoint), placing)
    draft = yield from load(opened, settings, own, role="Draft")
    return draft.model, draft.seconds


def _requantized(scheme: str, target: LoadedModel, settings: Settings, placing: Placing) -> Job[tuple[Decoder, float]]:
    """The target once more, its matrices quantised as they are read, and the seconds that this took."""
    if scheme not in schemes or scheme == PLAIN:
        known = ", ".join(f"{SELF}{each}" for each in schemes if each != PLAIN)
        raise UsageError(f"--draft {SELF}{scheme}: there is no quantised scheme of that name.", f"There are {known}.")
    config, checkpoint = target.config, target.checkpoint
    as_stored = target.opened.read
    storages = AllocationOptions(scheme).allocation(config).of(config)

    def read(name: str, block: Block | None) -> Weight:
        storage = storages[name]
        if storage.scheme in (PLAIN, checkpoint.weight(name).scheme):
            return as_stored(name, block)
        weight = as_stored(name)  # whole: a row has one scale, whoever holds which part of it
        matrix = schemes[weight.scheme].dense(weight, torch.float32)
        whole = roundings[_ROUNDING].quantize(matrix, quantized(storage.scheme), storage.group_size)
        return whole if block is None else whole.block(block)

    yield Note(f"Draft: {target.name} itself, quantised to {scheme} as it is read")
    parts = Parts(config, read, lambda: storages, checkpoint.n_bytes, target.model.device, target.model.dtype)
    watch = Stopwatch(target.model.device)
    own = _dealt_out_or_replicated(config, parts.storages, placing)
    model = yield from build(parts, own, settings=settings, watch=watch)
    return model, watch.seconds


def _dealt_out_or_replicated(config: ModelConfig, storages: Storages, placing: Placing) -> Placing:
    try:
        check_dealt(config, storages, placing.together.size)
    except UsageError:
        return replace(placing, together=ALONE)
    return placing


def _padded_alike(draft: OpenedModel, target: LoadedModel) -> OpenedModel:
    """The draft with as many tokens as the target, where one of them does not say which of as many rows are padding."""
    if draft.checkpoint.config.vocab_size != target.checkpoint.config.vocab_size:
        return draft
    return replace(draft, config=replace(draft.config, vocab_size=target.config.vocab_size))


def _check_vocabulary(draft: OpenedModel, target: LoadedModel) -> None:
    pair = f"{draft.found.name} cannot draft for {target.name}"
    if target.tokenizer is not None and draft.tokenizer is not None:
        other = vocabulary_difference(target.tokenizer, draft.tokenizer)
        if other is not None:
            raise UsageError(f"{pair}: its {other.what} {other.theirs}, the target's {other.ours}.", _ANOTHER)
    ours, theirs = target.config.vocab_size, draft.config.vocab_size
    if ours != theirs:  # padding is left out of both where their tokenizers tell what is padding
        raise UsageError(f"{pair}: it has {theirs:,} tokens, and the target {ours:,}.", _ANOTHER)


def _check_context(draft: OpenedModel, target: LoadedModel, n_tokens: int) -> None:
    if draft.config.max_context < n_tokens:
        raise UsageError(
            f"{draft.found.name} cannot draft for {target.name} here: it holds {draft.config.max_context:,} tokens, "
            f"and the text may reach {n_tokens:,}.",
            f"Add --max-context {draft.config.max_context}, or lower --max-new-tokens.",
        )


_ANOTHER = "A draft has the very vocabulary of its target; --draft ngram and --draft self:int8 go with every model."
