"""The weight files of a Hugging Face folder: one, or shards under an index that says which tensor is where."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from gptfast_cli.core.checkpoints.download_source import FETCH_AGAIN
from gptfast_cli.core.checkpoints.pickles import open_pickle
from gptfast_cli.core.checkpoints.shard import Shard, open_shard
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.fields import Fields, read_fields


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """How a kind of weight files is called and opened."""

    single: str
    index: str
    open: Callable[[Path], Shard]

    @property
    def suffix(self) -> str:
        """What the name of a shard ends in."""
        return Path(self.single).suffix

    def are_in(self, folder: Path) -> bool:
        """Whether a folder has such files."""
        return (folder / self.single).is_file() or (folder / self.index).is_file()

    def read(self, folder: Path) -> dict[str, Shard]:
        """The shard of every tensor in the folder, by the tensor's name.

        Raises CorruptError where files are missing or the index and the shards contradict each other.
        """
        if (folder / self.single).is_file():  # as transformers has it: the single file before the index
            shard = self.open(folder / self.single)
            return dict.fromkeys(shard.tensors, shard)
        return self._indexed(folder)

    def _indexed(self, folder: Path) -> dict[str, Shard]:
        weight_map = read_fields(folder / self.index).section("weight_map")
        files = {tensor: self._plain_name(weight_map, tensor) for tensor in weight_map}
        missing = {file for file in files.values() if not (folder / file).is_file()}
        refuse(str(folder), missing, f"missing, and {self.index} names it")
        shards = {file: self.open(folder / file) for file in sorted(set(files.values()))}
        for file, shard in shards.items():
            self._check_against_index(file, shard, files)
        return {tensor: shards[file] for tensor, file in files.items()}

    def _check_against_index(self, file: str, shard: Shard, files: Mapping[str, str]) -> None:
        promised = {tensor for tensor, place in files.items() if place == file}
        refuse(file, promised - set(shard.tensors), f"not in the file, and {self.index} says it is")
        refuse(file, set(shard.tensors) - promised, f"in the file, and {self.index} does not say so")

    def _plain_name(self, weight_map: Fields, tensor: str) -> str:
        file = weight_map.text(tensor)
        if not re.fullmatch(rf"[\w.-]+{re.escape(self.suffix)}", file):
            kind = self.suffix.removeprefix(".")
            raise weight_map.corrupt(tensor, f"{file!r} is not the name of a {kind} file in the folder")
        return file


SAFETENSORS = WeightFiles("model.safetensors", "model.safetensors.index.json", open_shard)
PICKLES = WeightFiles("pytorch_model.bin", "pytorch_model.bin.index.json", open_pickle)


def refuse(where: str, names: Collection[str], what: str) -> None:
    """Raise CorruptError that names the first few of `names`, and how many there are, if there are any."""
    if names:
        shown = ", ".join(sorted(names)[:3]) + (f" … ({len(names)} in all)" if len(names) > 3 else "")
        raise CorruptError(f"{where}: {shown}: {what}", FETCH_AGAIN)
