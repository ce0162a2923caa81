"""A Hugging Face model folder with pickled weights: `config.json` beside `pytorch_model.bin`, or several with an index.

Tensor names are the same as in safetensors files.
"""

from pathlib import Path

from gptfast_cli.core.checkpoints.foreign import CONFIG_FILE, PICKLES, ForeignCheckpoint
from gptfast_cli.core.checkpoints.pickles import pickle_refused
from gptfast_cli.core.checkpoints.sources.huggingface import open_folder


class PytorchModel:
    """Source of Hugging Face folders with pickled weights, as transformers wrote them until 2023."""

    looks_for = f"{CONFIG_FILE} with {PICKLES.single}"
    rank = 20

    def holds(self, path: Path) -> bool:
        folder = path.parent if path.name in (PICKLES.single, PICKLES.index) else path
        return (folder / CONFIG_FILE).is_file() and PICKLES.are_in(folder)

    def open(self, path: Path, *, allow_pickle: bool) -> ForeignCheckpoint:
        folder = path if path.is_dir() else path.parent
        if not allow_pickle:
            is_single = (folder / PICKLES.single).is_file()
            raise pickle_refused(folder / (PICKLES.single if is_single else PICKLES.index), path)
        return open_folder(folder, PICKLES)


PLUG = PytorchModel()
