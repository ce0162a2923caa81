"""Write a quantized model block by block, and measure its KLD to the original."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.checkpoints.resumable import resumable_checkpoint
from gptfast_cli.core.checkpoints.writer import Contents
from gptfast_cli.core.evals.divergence import BlockwiseKLD, Divergence
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.models.weights import weight_blocks
from gptfast_cli.core.quantize.allocation import Storage
from gptfast_cli.core.quantize.model_quantizer import FALLBACK, ModelQuantizer, OutputError
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.stopwatch import Stopwatch


@dataclass(frozen=True, slots=True)
class QuantizePlan:
    """Source, storages, contents and target of a quantization."""

    checkpoint: Checkpoint
    storages: Mapping[str, Storage]
    contents: Contents
    target: Path

    @property
    def identity(self) -> str:
        """Identity of the work, for resuming: a part of the recipe hash."""
        recipe = self.contents.provenance.recipe
        assert recipe is not None
        return recipe[:16]


def write_blocks(
    plan: QuantizePlan,
    quantizer: ModelQuantizer,
    fidelity: BlockwiseKLD[None] | None,
    watch: Stopwatch,
    *,
    force: bool,
) -> Job[Divergence | None]:
    """Quantize and write the blocks that an earlier run has not written; measure the KLD over all of them.

    Raises CorruptError with file and tensor for non-finite weights, UsageError, DiskFullError.
    """
    blocks = weight_blocks(plan.checkpoint.config)
    found: Mapping[None, Divergence] = {}
    resumed = resumable_checkpoint(plan.target, plan.contents, blocks, identity=plan.identity, force=force)
    try:
        with resumed as writer:
            if writer.n_found:
                yield Note(f"Resuming: {writer.n_found} of {len(blocks)} blocks were finished by an earlier run.")
            yield Progress("quantize", 0, len(blocks), "blocks")
            for number, block in enumerate(blocks):
                seconds = watch.seconds
                with watch:
                    if quantizer.calibration is not None:
                        is_there = writer.has(number)
                        quantizer.calibration.enter(
                            writer.weights(number) if is_there else _read(plan.checkpoint, block)
                        )
                    if not writer.has(number):
                        writer.write(number, partial(_quantized, plan, quantizer))
                    if quantizer.calibration is not None:
                        quantizer.calibration.leave()
                    if fidelity is not None:
                        found = fidelity.add(_read(plan.checkpoint, block), {None: writer.weights(number)})
                yield from _notes(
                    f"layer {number} of {len(blocks) - 2}", quantizer.take_errors(), watch.seconds - seconds
                )
                yield Progress("quantize", number + 1, len(blocks), "blocks")
    except KeyboardInterrupt:
        yield Note("Interrupted. Finished blocks are kept: run the same command again to resume.")
        raise
    return found.get(None)


def compare_blocks(
    plan: QuantizePlan, existing: Checkpoint, fidelity: BlockwiseKLD[None] | None, watch: Stopwatch
) -> Job[Divergence | None]:
    """Measure the KLD of a checkpoint that an earlier run of the same plan has written."""
    if fidelity is None:
        return None
    found: Mapping[None, Divergence] = {}
    blocks = weight_blocks(plan.checkpoint.config)
    for number, block in enumerate(blocks):
        yield Progress("measure", number, len(blocks), "blocks")
        with watch:
            found = fidelity.add(_read(plan.checkpoint, block), {None: _read(existing, block)})
    yield Progress("measure", len(blocks), len(blocks), "blocks")
    return found.get(None)


def _read(checkpoint: Checkpoint, block: tuple[str, ...]) -> dict[str, Weight]:
    return {name: checkpoint.weight(name) for name in block}


def _quantized(plan: QuantizePlan, quantizer: ModelQuantizer, name: str) -> Weight:
    _check_finite(plan.checkpoint, name)
    weight, storage = plan.checkpoint.weight(name), plan.storages[name]
    if storage.scheme == PLAIN:
        return weight
    (matrix,) = weight.parts.values()
    return quantizer.quantize(name, matrix, storage)


def _notes(layer: str, errors: Sequence[OutputError], seconds: float) -> Iterator[Note]:
    """Fallbacks, seconds and output errors of one calibrated layer."""
    for error in errors:
        if error.fallback is not None:
            yield Note(f"{error.name}: rounded by {FALLBACK}, as {error.fallback}.")
    if errors:
        by_matrix = ", ".join(f"{error.name.split('.')[2]} {error.relative:.1%}" for error in errors)
        yield Note(f"{layer}: {seconds:.1f} s, off by {by_matrix}")


def _check_finite(checkpoint: Checkpoint, name: str) -> None:
    for piece in checkpoint.tensors(name):
        piece.check_finite()
