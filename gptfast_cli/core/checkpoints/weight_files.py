"""The safetensors files of a Hugging Face folder: one, or shards under an index that says which tensor is where."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from gptfast_cli.core.checkpoints.shard import Shard, open_shard
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.fields import Fields, read_fields

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

_FETCH = "Fetch the repository again."


def open_weight_files(folder: Path) -> dict[str, Shard]:
    """The shard of every tensor in the folder, by the tensor's name.

    Raises CorruptError where files are missing or the index and the shards contradict each other, UsageError where
    the folder has its weights in a format that is not read.
    """
    if (folder / SINGLE_FILE).is_file():  # as transformers has it: the single file before the index
        shard = open_shard(folder / SINGLE_FILE)
        return dict.fromkeys(shard.tensors, shard)
    if (folder / INDEX_FILE).is_file():
        return _indexed(folder)
    raise _no_weights(folder)


def refuse(where: str, names: Collection[str], what: str) -> None:
    """Raise CorruptError that names the first few of `names`, and how many there are, if there are any."""
    if names:
        shown = ", ".join(sorted(names)[:3]) + (f" … ({len(names)} in all)" if len(names) > 3 else "")
        raise CorruptError(f"{where}: {shown}: {what}", _FETCH)


def _indexed(folder: Path) -> dict[str, Shard]:
    weight_map = read_fields(folder / INDEX_FILE).section("weight_map")
    files = {tensor: _plain_name(weight_map, tensor) for tensor in weight_map}
    missing = {file for file in files.values() if not (folder / file).is_file()}
    refuse(str(folder), missing, f"missing, and {INDEX_FILE} names it")
    shards = {file: open_shard(folder / file) for file in sorted(set(files.values()))}
    for file, shard in shards.items():
        _check_against_index(file, shard, files)
    return {tensor: shards[file] for tensor, file in files.items()}


def _check_against_index(file: str, shard: Shard, files: Mapping[str, str]) -> None:
    promised = {tensor for tensor, place in files.items() if place == file}
    refuse(file, promised - set(shard.tensors), f"not in the file, and {INDEX_FILE} says it is")
    refuse(file, set(shard.tensors) - promised, f"in the file, and {INDEX_FILE} does not say so")


def _plain_name(weight_map: Fields, tensor: str) -> str:
    file = weight_map.text(tensor)
    if not re.fullmatch(r"[\w.-]+\.safetensors", file):
        raise weight_map.corrupt(tensor, f"{file!r} is not the name of a safetensors file in the folder")
    return file


def _no_weights(folder: Path) -> CorruptError | UsageError:
    if next(folder.glob("pytorch_model*.bin"), None) or next(folder.glob("*.pth"), None):
        return UsageError(
            f"{folder}: has its weights in pickled files only, and gptfast does not unpickle.",
            "Take a revision with safetensors, or save it once more with transformers: model.save_pretrained(folder).",
        )
    return CorruptError(
        f"{folder}: has a config.json but no weights (looked for {SINGLE_FILE} and {INDEX_FILE}).", _FETCH
    )
