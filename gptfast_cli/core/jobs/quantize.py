"""`quantize`: write a checkpoint with fewer bits per weight, and measure its KLD to the original on the way."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from gptfast_cli import __version__
from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.checkpoints.downloads import find_snapshot
from gptfast_cli.core.checkpoints.identity import existing_checkpoint, with_recipe
from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE, Provenance
from gptfast_cli.core.checkpoints.reader import ManifestCheckpoint, open_checkpoint, open_manifest_checkpoint
from gptfast_cli.core.checkpoints.resolve import Resolved, resolve, source_of
from gptfast_cli.core.checkpoints.store import free_name, make_current, open_store, record_source, store_name
from gptfast_cli.core.checkpoints.writer import Contents, check_space, check_target, plan_weight
from gptfast_cli.core.device import dtype_name, peak_memory_bytes, pick_device, pick_dtype, set_threads
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import special_tokens_of
from gptfast_cli.core.errors import DiskFullError, GptFastError, UsageError
from gptfast_cli.core.evals.divergence import BlockwiseKLD, Divergence
from gptfast_cli.core.evals.held_out import bundled_texts, measured_content, refuse_overlap, texts_of_file
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.jobs.calibration_text import CalibrationOptions, CalibrationTexts, read_calibration
from gptfast_cli.core.jobs.convert import tokenizer_of
from gptfast_cli.core.jobs.mixed_precision import AllocationContext, ChosenAllocation, Goal, choose
from gptfast_cli.core.jobs.quantize_blocks import QuantizePlan, compare_blocks, write_blocks
from gptfast_cli.core.models.weights import weight_shapes
from gptfast_cli.core.quantities import count
from gptfast_cli.core.quantize import NEAREST
from gptfast_cli.core.quantize.allocation import Allocation, AllocationOptions
from gptfast_cli.core.quantize.calibration import Calibration
from gptfast_cli.core.quantize.model_quantizer import FALLBACK, ModelQuantizer
from gptfast_cli.core.quantize.quantizers import CalibratedQuantizer, quantizers
from gptfast_cli.core.quantize.sizes import PartSize, part_sizes
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.stopwatch import Stopwatch
from gptfast_cli.core.token_ids import TokenIdError
from gptfast_cli.core.tokenizers import Tokenizer, open_tokenizer, tokenizer_folder


@dataclass(frozen=True, slots=True)
class QuantizeRequest:
    """Options of quantize.

    model:         None: the current model
    rounding:      name of the quantizer, such as "nearest"
    goal:          maximum size or KLD, for which the scheme of each layer is chosen; None: `storage` as it is
    calibration:   text for a calibrated quantizer or a goal; must be the default otherwise
    out:           folder to write; None: the store, under the model's name with a variant such as `:int4-g32`
    use:           make it the current model
    force:         replace an existing checkpoint
    dry_run:       report the sizes and write nothing
    fidelity:      measure the KLD to the original, on `fidelity_text` or the bundled text
    runtime:       device and dtype of that measurement; default dtype as for inference
    """

    settings: Settings
    model: str | None = None
    storage: AllocationOptions = AllocationOptions("int8")
    rounding: str = NEAREST
    goal: Goal | None = None
    calibration: CalibrationOptions = CalibrationOptions()
    out: Path | None = None
    use: bool = True
    force: bool = False
    dry_run: bool = False
    fidelity: bool = True
    fidelity_text: Path | None = None
    runtime: RuntimeConfig = RuntimeConfig()


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Divergence from the original model; `dtype`: compute dtype of both models in the measurement."""

    divergence: Divergence
    dtype: str


@dataclass(frozen=True, slots=True)
class Quantized:
    """The written checkpoint (with dry_run: the one that would be written); `fidelity` None: not measured.

    was_there: written by an earlier run with the same source and options
    chosen:    the scheme of each layer and its measurements, if there was a goal
    seconds:   of work, including fidelity
    peak_memory_bytes: of the process
    """

    path: Path
    name: str
    scheme: str
    parts: tuple[PartSize, ...]
    is_written: bool
    is_current: bool
    was_there: bool
    chosen: ChosenAllocation | None
    fidelity: Fidelity | None
    seconds: float
    peak_memory_bytes: int

    @property
    def n_params(self) -> int:
        """Parameters of the model; tied embedding and head count once."""
        return sum(part.n_params for part in self.parts)

    @property
    def n_bytes_before(self) -> int:
        """Bytes of the original weights."""
        return sum(part.n_bytes_before for part in self.parts)

    @property
    def n_bytes(self) -> int:
        """Bytes of the quantized weights."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def bits_per_weight(self) -> float:
        """Average bits per parameter, including scales and zero points."""
        return 8 * self.n_bytes / self.n_params


def run(request: QuantizeRequest) -> Job[Quantized]:
    """Quantize a model block by block, and make the result the current model.

    Memory holds two blocks at a time and the hidden states of the fidelity text. A run that is interrupted or killed
    leaves its finished blocks, from which the next run resumes.

    Raises UsageError for an unknown scheme, group size or rounding, a model that is already quantized, or a target that
    exists; CorruptError with file and tensor for NaN or infinite weights; NotFoundError, DiskFullError.
    """
    set_threads(request.runtime.threads)
    device = pick_device(request.runtime.device)
    watch = Stopwatch(device)
    found = resolve(request.model, request.settings)
    checkpoint = open_checkpoint(found.path)
    yield Note(f"Model: {found.name} ({found.origin}), {count(checkpoint.n_params)} parameters")
    named, (found, checkpoint) = found, _source(request, found, checkpoint)
    dtype = pick_dtype(request.runtime.dtype, checkpoint.dtype, device)
    folder = tokenizer_folder(checkpoint.path, request.settings.home)
    special = special_tokens_of(checkpoint, folder)
    tokenizer = open_tokenizer(folder, special, n_embeddings=checkpoint.config.vocab_size)
    _check_plain(found, checkpoint)
    calibration_texts = _read_texts(request, checkpoint, tokenizer)
    chosen = None
    if request.goal is not None:
        assert calibration_texts is not None
        with watch:
            context = AllocationContext(calibration_texts.texts, device, _quantizer(request))
            chosen = yield from choose(checkpoint, request.storage, request.goal, context)
    allocation = request.storage.allocation(checkpoint.config) if chosen is None else chosen.allocation
    plan = _plan(request, found, checkpoint, allocation, calibration_texts)
    plan = replace(plan, contents=with_recipe(plan.contents, checkpoint, _options(request, allocation, device, dtype)))
    existing = yield from _existing(request, plan, named)
    for n_columns, storage in allocation.smaller_groups(checkpoint.config).items():
        yield Note(f"Matrices of {n_columns:,} columns get {storage}: they do not fill larger groups.")
    divergence, is_current = None, False
    if request.dry_run:
        yield from _obstacles(plan, force=request.force or existing is not None)
    else:
        texts = yield from _texts(request, checkpoint, tokenizer, calibration_texts)
        fidelity, calibration = None, None
        if texts is not None:
            fidelity = BlockwiseKLD[None](checkpoint.config, texts, device=device, dtype=dtype)
        if existing is not None:
            divergence = yield from compare_blocks(plan, existing, fidelity, watch)
        else:
            if calibration_texts is not None and _is_calibrated(request):
                calibration = Calibration(checkpoint.config, calibration_texts.texts, device=device, dtype=dtype)
            quantizer = _quantizer(request, calibration)
            divergence = yield from write_blocks(plan, quantizer, fidelity, watch, force=request.force)
        provenance = plan.contents.provenance
        if provenance.revision is None:
            record_source(request.settings.home, provenance.recipe, found.path)
        is_current = yield from _make_current(request, plan)
    return Quantized(
        path=plan.target,
        name=plan.contents.name,
        scheme=plan.contents.name.rpartition(":")[2],
        parts=part_sizes(checkpoint, plan.contents, plan.storages),
        is_written=not request.dry_run,
        is_current=is_current,
        was_there=existing is not None,
        chosen=chosen,
        fidelity=None if divergence is None else Fidelity(divergence, dtype_name(dtype)),
        seconds=watch.seconds,
        peak_memory_bytes=peak_memory_bytes(device),
    )


def _make_current(request: QuantizeRequest, plan: QuantizePlan) -> Job[bool]:
    if not request.use:
        return False
    return (yield from make_current(request.settings.home, request.out or plan.contents.name))


def _read_texts(
    request: QuantizeRequest, checkpoint: Checkpoint, tokenizer: Tokenizer | None
) -> CalibrationTexts | None:
    """The calibration texts for a calibrated quantizer or a goal; None if neither is requested."""
    if request.rounding not in quantizers:
        raise UsageError(
            f"--rounding: there is no quantizer called {request.rounding!r}.", f"Quantizers: {', '.join(quantizers)}."
        )
    if not _is_calibrated(request) and request.goal is None:
        if request.calibration != CalibrationOptions():
            raise UsageError(
                f"{request.rounding} rounding uses no calibration text, so calibration options have no effect.",
                "Leave them out, or use --rounding gptq.",
            )
        return None
    request.calibration.check()
    if request.dry_run and request.goal is None:
        return None
    if tokenizer is None:
        raise UsageError(
            "Calibration requires a tokenizer, and the model has none.",
            f"Add one with gptfast convert --tokenizer-from MODEL, or use --mode and --rounding {FALLBACK}.",
        )
    return read_calibration(request.calibration, tokenizer, checkpoint.config)


def _is_calibrated(request: QuantizeRequest) -> bool:
    return isinstance(quantizers[request.rounding], CalibratedQuantizer)


def _quantizer(request: QuantizeRequest, calibration: Calibration | None = None) -> ModelQuantizer:
    return ModelQuantizer(quantizers[request.rounding], calibration, request.calibration.compensation)


def _check_plain(found: Resolved, checkpoint: Checkpoint) -> None:
    if checkpoint.stored_as != PLAIN:
        raise _quantized(found, checkpoint)


def _quantized(found: Resolved, checkpoint: Checkpoint) -> UsageError:
    return UsageError(
        f"{found.name}: is already quantized ({checkpoint.stored_as}); quantizing it again would only lose accuracy.",
        "Quantize the original model.",
    )


def _source(request: QuantizeRequest, found: Resolved, checkpoint: Checkpoint) -> tuple[Resolved, Checkpoint]:
    """The model to quantize: the one found, or the source of the current model if that is quantized.

    The current model may be the result of an earlier run of the same command; `_existing` compares the recipes.
    """
    if request.model is not None or request.force or checkpoint.stored_as == PLAIN:
        return found, checkpoint
    source = source_of(open_manifest_checkpoint(found.path).manifest.provenance, request.settings)
    try:
        return (found, checkpoint) if source is None else (source, open_checkpoint(source.path))
    except GptFastError:  # damaged
        return found, checkpoint


def _plan(
    request: QuantizeRequest,
    found: Resolved,
    checkpoint: Checkpoint,
    allocation: Allocation,
    calibration_texts: CalibrationTexts | None,
) -> QuantizePlan:
    storages = allocation.of(checkpoint.config)
    if all(storage.scheme == PLAIN for storage in storages.values()):
        raise UsageError("--mode plain quantizes nothing.", "Use --mode int8 or --mode int4.")
    base, revision = _origin(found, checkpoint, request.settings)
    learned = None if calibration_texts is None else calibration_texts.record
    variant = "-".join([str(allocation), *([request.rounding] if request.rounding != NEAREST else [])])
    name = f"{base}-{variant}" if ":" in base else f"{base}:{variant}"
    contents = Contents(
        name=name,
        config=checkpoint.config,
        dtype=checkpoint.dtype,
        weights={
            weight: plan_weight(checkpoint.weight(weight) if at.scheme == PLAIN else at.meta_weight(shape))
            for (weight, shape), at in zip(weight_shapes(checkpoint.config).items(), storages.values(), strict=True)
        },
        tokenizer=tokenizer_of(tokenizer_folder(checkpoint.path, request.settings.home)),
        provenance=Provenance(base, revision, f"gptfast {__version__}", request.rounding, learned),
        generation_config=checkpoint.generation_config,
    )
    if contents.n_bytes >= checkpoint.n_bytes:
        raise UsageError(
            f"{allocation} does not make {found.name} smaller: {contents.n_bytes:,} bytes instead of "
            f"{checkpoint.n_bytes:,}.",
            "Its matrices have too few columns to fill groups: use --mode int8.",
        )
    return QuantizePlan(checkpoint, storages, contents, request.out or open_store(request.settings).folder(name))


def _options(request: QuantizeRequest, allocation: Allocation, device: torch.device, dtype: torch.dtype) -> str:
    """Options that affect the bytes and are in neither the contents nor their provenance."""
    asked = request.calibration
    if not _is_calibrated(request):
        return f"{allocation.others}"
    return f"{allocation.others} {asked.limit} {asked.seq_length} {asked.compensation} {device} {dtype}"


def _origin(found: Resolved, checkpoint: Checkpoint, settings: Settings) -> tuple[str, str | None]:
    """(model name, commit of a Hugging Face snapshot or None)."""
    if (found.path / MANIFEST_FILE).is_file():
        return checkpoint.name, None
    snapshot = find_snapshot(settings.hf_cache, found.name)
    if snapshot is not None and snapshot.path == found.path:
        return snapshot.repo, snapshot.commit
    return free_name(store_name(found.path.resolve().name)), None


def _existing(request: QuantizeRequest, plan: QuantizePlan, named: Resolved) -> Job[ManifestCheckpoint | None]:
    """The checkpoint of an earlier run with the same recipe. Raises UsageError if the target holds anything else.

    named: the model that the command named; if it is quantized, it must be this checkpoint itself
    """
    if request.force:
        return None
    existing = existing_checkpoint(plan.target, plan.contents, plan.checkpoint)
    is_source = open_checkpoint(named.path).stored_as == PLAIN
    if not is_source and (existing is None or plan.target.resolve() != named.path.resolve()):
        raise _quantized(named, open_checkpoint(named.path))
    if existing is not None:
        yield Note(f"{plan.target}: already exists, made from the same source with the same options")
    elif not request.dry_run:
        check_target(plan.target, force=False)
    return existing


def _obstacles(plan: QuantizePlan, *, force: bool) -> Iterator[Note]:
    """Notes on what would prevent the plan from being carried out."""
    for check in (
        partial(check_target, plan.target, force=force),
        partial(check_space, plan.target, plan.contents.n_bytes),
    ):
        try:
            check()
        except (UsageError, DiskFullError) as error:
            yield Note(error.message)


def _texts(
    request: QuantizeRequest,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer | None,
    calibration_texts: CalibrationTexts | None,
) -> Job[list[list[int]] | None]:
    """Token ids of the texts to measure fidelity on; None if it is not wanted or not possible."""
    if not request.fidelity:
        return None
    if tokenizer is None:
        yield Note("Fidelity is not measured: the model has no tokenizer.")
        return None
    try:
        if request.fidelity_text is not None:
            texts = texts_of_file(request.fidelity_text, tokenizer, checkpoint.config.max_context)
        else:
            texts = bundled_texts(tokenizer, checkpoint.config.max_context)
    except TokenIdError as error:
        yield Note(f"Fidelity is not measured: {error.message}")
        return None
    if calibration_texts is not None:
        what = "The bundled held-out text" if request.fidelity_text is None else str(request.fidelity_text)
        refuse_overlap(measured_content(request.fidelity_text), calibration_texts.record, what=what)
    return texts
