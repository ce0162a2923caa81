"""`convert`: a model's folder or file, or a repository in the Hugging Face cache, to a checkpoint."""

import functools
import hashlib
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gptfast_cli import __version__
from gptfast_cli.core.checkpoints.checkpoint import Checkpoint, LocatedTensor, outline_of
from gptfast_cli.core.checkpoints.downloads import S3, find_bucket_path, find_snapshot, parse_repo
from gptfast_cli.core.checkpoints.foreign import ForeignCheckpoint
from gptfast_cli.core.checkpoints.identity import existing_checkpoint, with_recipe
from gptfast_cli.core.checkpoints.lora import Adapter, open_adapter
from gptfast_cli.core.checkpoints.manifest import MANIFEST_FILE, Provenance, read_manifest
from gptfast_cli.core.checkpoints.reader import ManifestCheckpoint, open_checkpoint, open_manifest_checkpoint
from gptfast_cli.core.checkpoints.resolve import as_path, one_of_several, resolve
from gptfast_cli.core.checkpoints.resumable import write_checkpoint
from gptfast_cli.core.checkpoints.store import BUNDLED, free_name, make_current, open_store, record_source, store_name
from gptfast_cli.core.checkpoints.writer import Contents, PlannedWeight, TokenizerFiles, check_target, plan_weight
from gptfast_cli.core.device import DTYPES, dtype_name
from gptfast_cli.core.errors import GptFastError, NotFoundError, UsageError
from gptfast_cli.core.evals.conversion import LARGEST_DIFFERENCE, logit_difference, why_not
from gptfast_cli.core.events import Job, Note
from gptfast_cli.core.families import families
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.schemes.plain import plain
from gptfast_cli.core.settings import Settings
from gptfast_cli.core.tokenizers import disagreements, open_tokenizer, special_tokens, tokenizer_files, tokenizer_folder


@dataclass(frozen=True, slots=True)
class ConvertRequest:
    """Source and options of a conversion.

    source:         a folder, a file, or `org/name[@revision]` in the Hugging Face cache
    out:            folder to write; None: in the store, under the source's name
    dtype:          bfloat16, float16 or float32; None: that of each tensor
    tokenizer_from: model whose tokenizer is copied; None: the source's own
    verify:         afterwards compare all bytes with their SHA-256, and logits with those of transformers
    allow_pickle:   open pickled files, without unpickling (see `checkpoints.pickles`)
    force:          replace an existing checkpoint
    lora:           LoRA adapter to merge into the weights: a folder, or `org/name[@revision]` likewise
    use:            make it the current model
    """

    source: str
    settings: Settings
    out: Path | None = None
    dtype: str | None = None
    tokenizer_from: str | None = None
    verify: bool = False
    allow_pickle: bool = False
    force: bool = False
    lora: str | None = None
    use: bool = True


@dataclass(frozen=True, slots=True)
class Converted:
    """The written checkpoint; `was_there`: it existed, written with the same source and options."""

    path: Path
    name: str
    n_bytes: int
    n_params: int
    is_current: bool
    was_there: bool = False


@dataclass(frozen=True, slots=True)
class _Source:
    """A repository, a folder or a file."""

    path: Path
    repo: str | None = None
    revision: str | None = None


def run(request: ConvertRequest) -> Job[Converted]:
    """Convert a model, one weight at a time, and make it the current one.

    Raises NotFoundError, CorruptError with file and tensor for damaged or non-finite weights and for a pickle that is
    not allowed, UsageError for an unsupported model, DiskFullError, and what `open_adapter` raises. The target is
    replaced as a whole at the end; the finished files of an interrupted run are kept beside it, and the same command
    resumes.
    """
    source = _find(request.source, request.settings)
    checkpoint = open_checkpoint(source.path, allow_pickle=request.allow_pickle)
    origin = source.repo or store_name(source.path.name if source.path.is_dir() else checkpoint.name)
    adapter = _adapter(request, checkpoint)
    name = origin if request.out else free_name(origin)
    if adapter is not None:
        name = f"{name}:{store_name(adapter.entry.name)}"
    target = request.out or open_store(request.settings).folder(name)
    folder = _tokenizer_folder(request, checkpoint.path)
    tokenizer = _tokenizer(request, folder)
    dtype = _dtype(request.dtype)
    contents = Contents(
        name=name,
        config=checkpoint.config,
        dtype=dtype or checkpoint.dtype,
        weights=_plan(checkpoint, dtype),
        tokenizer=tokenizer,
        provenance=Provenance(
            origin,
            source.revision,
            f"gptfast {__version__}",
            adapter=None if adapter is None else adapter.entry,
            format=None if checkpoint.scheme == PLAIN else checkpoint.scheme,
        ),
        generation_config=checkpoint.generation_config,
    )
    contents = with_recipe(contents, checkpoint)
    made = None if request.force else existing_checkpoint(target, contents, checkpoint)
    if made is not None:
        yield Note(f"{target}: already exists, made from the same source with the same options")
        manifest = made.manifest
    else:
        check_target(target, force=request.force)
        yield from map(Note, checkpoint.notes)
        yield from _notes(tokenizer, checkpoint)
        yield from (Note(str(disagreement)) for disagreement in disagreements(folder))
        read = functools.partial(_read, checkpoint, contents, adapter)
        identity = _identity(checkpoint, contents)
        manifest = yield from write_checkpoint(target, contents, read, identity=identity, force=request.force)
    if request.verify:
        yield from _verify(checkpoint, open_manifest_checkpoint(target), is_merged=adapter is not None)
    if source.repo is None:
        record_source(request.settings.home, contents.provenance.recipe, source.path)
    if adapter is not None:
        record_source(request.settings.home, adapter.entry.sha256, adapter.folder)
    is_current = False
    if request.use:
        is_current = yield from make_current(request.settings.home, request.out or name)
    return Converted(
        target, manifest.name, manifest.n_bytes, manifest.n_params, is_current=is_current, was_there=made is not None
    )


def _verify(source: Checkpoint, written: ManifestCheckpoint, *, is_merged: bool) -> Job[None]:
    yield from written.verify()
    if not isinstance(source, ForeignCheckpoint):
        return
    obstacle = "a LoRA adapter was merged" if is_merged else why_not(source)
    if obstacle is not None:
        yield Note(f"Logits are not compared: {obstacle}.")
        return
    difference = logit_difference(source, written)
    if not difference <= LARGEST_DIFFERENCE:  # also for NaN
        raise GptFastError(
            f"{written.path}: logits are not those of transformers: they differ by {difference:.2g} of the largest.",
            "Every weight is as it was read, so this is a fault of gptfast: please report it with the model's name.",
        )
    yield Note(f"Logits are those of transformers; the largest difference is {difference:.1g} of the largest.")


def _adapter(request: ConvertRequest, base: Checkpoint) -> Adapter | None:
    if request.lora is None:
        return None
    found = _find(request.lora, request.settings)
    name = found.path.name if found.repo is None else found.repo.rpartition("/")[2]
    return open_adapter(found.path, name, base.config, families[base.config.family].sources(base.config))


def _find(text: str, settings: Settings) -> _Source:
    path = as_path(text)
    if path is not None:
        # links to files are not followed: in the Hugging Face cache they lead to hashes
        return _Source(path.resolve() if path.is_dir() else path.absolute())
    snapshot = find_snapshot(settings.hf_cache, text)
    if snapshot is not None:
        return _Source(snapshot.path, snapshot.repo, snapshot.commit)
    fetched = find_bucket_path(settings.home, text)
    if fetched is not None:
        return _Source(fetched)
    if (chosen := one_of_several(text, settings)) is not None:
        snapshot = find_snapshot(settings.hf_cache, text.rpartition(":")[0])
        return _Source(chosen.path) if snapshot is None else _Source(chosen.path, snapshot.repo, snapshot.commit)
    raise NotFoundError(
        f"{text}: no such folder or file, and not downloaded from the Hub or S3.", _fetch(text, settings)
    )


def _fetch(text: str, settings: Settings) -> str:
    """Hint for a source that was not found."""
    if text in BUNDLED or open_store(settings).find(text) is not None:
        return f"It is a checkpoint already: gptfast generate -m {shlex.quote(text)}"
    repo = parse_repo(text)
    if text.startswith(S3) or (repo is not None and "/" in repo.repo and not text.startswith((".", "/", "~"))):
        return f"Fetch it: gptfast download {shlex.quote(text)}"
    return "Name a folder or a file that is there, or fetch a model by its whole name: gptfast download org/name"


def _identity(checkpoint: Checkpoint, contents: Contents) -> str:
    """Identity of a conversion, for resuming."""
    stats = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in checkpoint.files]
    return hashlib.sha256(f"{stats} {checkpoint.name} {contents}".encode()).hexdigest()[:16]


def _dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in DTYPES:
        raise UsageError(f"There is no dtype called {name!r}.", f"Dtypes: {', '.join(DTYPES)}.")
    return DTYPES[name] if name is not None else None


def _tokenizer_folder(request: ConvertRequest, own: Path) -> Path:
    other = request.tokenizer_from
    path = own if other is None else resolve(other, request.settings).path
    return tokenizer_folder(path, request.settings.home)


def _tokenizer(request: ConvertRequest, folder: Path) -> TokenizerFiles:
    """The tokenizer to copy. Raises NotFoundError if --tokenizer-from names a model without one."""
    tokenizer = tokenizer_of(folder)
    if request.tokenizer_from is not None and not tokenizer.files:
        raise NotFoundError(f"{request.tokenizer_from}: has no tokenizer.", "Name another model with --tokenizer-from.")
    return tokenizer


def tokenizer_of(folder: Path) -> TokenizerFiles:
    """Tokenizer files and special tokens of a model's folder, which may lack the files. Raises CorruptError."""
    if (folder / MANIFEST_FILE).is_file():
        entry = read_manifest(folder).tokenizer
        if entry is not None:
            files = tuple(folder / name for name in entry.files)
            return TokenizerFiles(files, entry.bos_id, entry.stop_ids, entry.add_bos)
    files = tokenizer_files(folder) if open_tokenizer(folder) else ()
    special = special_tokens(folder)
    return TokenizerFiles(files, special.bos_id, tuple(sorted(special.stop_ids)), special.add_bos)


def _notes(tokenizer: TokenizerFiles, checkpoint: Checkpoint) -> Iterator[Note]:
    if not tokenizer.files:
        yield Note("No tokenizer was found: the checkpoint takes token ids only (give one with --tokenizer-from).")
    foreign = [token for token in (tokenizer.bos_id, *tokenizer.stop_ids) if token is not None]
    if any(token >= checkpoint.config.vocab_size for token in foreign):
        yield Note(f"The tokenizer has special tokens beyond the model's vocabulary of {checkpoint.config.vocab_size}.")


def _plan(checkpoint: Checkpoint, dtype: torch.dtype | None) -> dict[str, PlannedWeight]:
    if checkpoint.stored_as != PLAIN and not isinstance(checkpoint, ForeignCheckpoint):
        raise UsageError(
            f"{checkpoint.name}: is quantized ({checkpoint.stored_as}), and a checkpoint of gptfast already.",
            "Convert the model that it was made from.",
        )
    plan = {}
    for name, weight in outline_of(checkpoint).items():
        is_cast = dtype is not None and weight.scheme == PLAIN  # what is quantized stays as it is
        cast = plain(torch.empty(weight.shape, dtype=dtype, device="meta"))
        plan[name] = plan_weight(cast if is_cast else weight)
    return plan


def _read(checkpoint: Checkpoint, contents: Contents, adapter: Adapter | None, name: str) -> Weight:
    """A weight in its planned dtype; copied only if it is stacked, merged or its dtype changes."""
    if contents.weights[name].scheme != PLAIN:
        return _read_quantized(checkpoint, adapter, name)
    (plan,) = contents.weights[name].parts.values()
    tensors = checkpoint.tensors(name)
    first = next(tensors)
    is_merged = adapter is not None and name in adapter.changes
    if (first.tensor.dtype, first.tensor.shape) == (plan.dtype, plan.shape) and not is_merged:
        _check_finite(first, first.tensor)
        return plain(first.tensor)
    stacked = torch.empty(plan.shape, dtype=torch.float32 if is_merged else plan.dtype)
    end = 0
    for each in (first, *tensors):
        start, end = end, end + len(each.tensor)
        _check_finite(each, stacked[start:end].copy_(each.tensor))
    if adapter is not None and is_merged:
        adapter.merge(name, stacked)
        merged, stacked = stacked, stacked.to(plan.dtype)
        _check_finite(LocatedTensor(f"{name} with the adapter", merged), stacked)
    return plain(stacked)


def _read_quantized(checkpoint: Checkpoint, adapter: Adapter | None, name: str) -> Weight:
    if adapter is not None and name in adapter.changes:
        raise UsageError(
            f"{checkpoint.name}: {name} is quantized, and an adapter cannot be merged into it.",
            "Merge the adapter into the model that it was made from, and quantize that.",
        )
    weight = checkpoint.weight(name)
    for part, tensor in weight.parts.items():
        if tensor.is_floating_point() and part.rpartition(".")[2] != "values":  # not every code has a finite value
            LocatedTensor(f"{name}.{part}", tensor.float()).check_finite()
    return weight


def _check_finite(source: LocatedTensor, converted: Tensor) -> None:
    if not LocatedTensor(source.location, converted).is_finite:
        source.check_finite()
        dtype = dtype_name(converted.dtype)
        raise UsageError(f"{source.location}: has values too large for {dtype}.", "Convert with --dtype bfloat16.")
