"""A Hugging Face model folder of before safetensors: `config.json` beside `pytorch_model.bin`, or several such files.

They are pickles: see `checkpoints.pickles`. The tensors have the names that they have in a safetensors file.
"""

from pathlib import Path

from gptfast_cli.core.checkpoints.foreign import CONFIG_FILE, PICKLES, ForeignCheckpoint
from gptfast_cli.core.checkpoints.pickles import refuse_pickle
from gptfast_cli.core.checkpoints.sources.huggingface import from_shards, read_config


class PytorchModel:
    """Folders as transformers wrote them until 2023; see Source."""

    looks_for = f"{CONFIG_FILE} with {PICKLES.single}"
    rank = 20

    def holds(self, path: Path) -> bool:
        folder = path.parent if path.name in (PICKLES.single, PICKLES.index) else path
        return (folder / CONFIG_FILE).is_file() and PICKLES.are_in(folder)

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:
        folder = path if path.is_dir() else path.parent
        if not allow_pickle:
            is_single = (folder / PICKLES.single).is_file()
            raise refuse_pickle(folder / (PICKLES.single if is_single else PICKLES.index), path)
        family, config = read_config(folder)
        return from_shards(folder, family, config, PICKLES.read(folder))


PLUG = PytorchModel()
