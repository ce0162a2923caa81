"""Prompt cache: the keys and values of a prompt in a file, so that another run need not prefill it.

The format is safetensors: `model` [32] uint8 is the hash of model and dtype, `tokens` [tokens] int64 the prompt,
`keys.N` and `values.N` [kv_heads, tokens, head_dim] those of layer N, with a window those of the last blocks; in int8
they are the tensors of an Int8Cache, for whole blocks of tokens. `sha256` [32] uint8 is the SHA-256 of all these
tensors, as altered keys would silently give another text. A prompt reuses the prefix that it has in common with the
file; with windows only if that ends where the file's prompt does. With several ranks each has a file with its heads:
`FILE.1-of-2` and `FILE.2-of-2`.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from gptfast_cli.core.backends.base import KEY_BLOCK
from gptfast_cli.core.checkpoints.identity import fingerprint
from gptfast_cli.core.checkpoints.shard import CODES, open_shard
from gptfast_cli.core.checkpoints.writer import PlannedTensor, tensor_sha256, write_shard
from gptfast_cli.core.engine.load import LoadedModel
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.events import Note
from gptfast_cli.core.files import staged_file
from gptfast_cli.core.quantities import size

_ROW = 0
_OTHER_FILE = "Name another file with --prompt-cache, or delete this one."
_HEADING = {"model": (torch.uint8, 1), "tokens": (torch.int64, 1), "sha256": (torch.uint8, 1)}  # dtype, number of axes


class PromptCache:
    """The file of one prompt and model: `load` before the prefill, `keep` right after it, and then `save`."""

    def __init__(self, file: Path, loaded: LoadedModel, runner: Runner, prompt: tuple[int, ...]) -> None:
        model = loaded.model
        self._runner = runner
        self._group = model.group
        self._file = file
        if self._group.size > 1:
            self._file = file.with_name(f"{file.name}.{self._group.rank + 1}-of-{self._group.size}")
        dtypes = dict.fromkeys((model.dtype, model.kv_dtype))  # one if equal
        place = (self._group.rank, self._group.size) if self._group.size > 1 else ()
        key = " ".join(map(str, (fingerprint(loaded.checkpoint), model.config.max_context, *dtypes, *place)))
        self._model = torch.frombuffer(bytearray(sha256(key.encode()).digest()), dtype=torch.uint8)
        self._prompt = prompt
        self._n_shared = 0  # leading tokens of the prompt that the file holds
        self._kept: dict[str, Tensor] | None = None  # what `Runner.save` gave

    def load(self) -> Iterator[Note]:
        """Load the file into the runner, unless there is none or the ranks' files differ.

        Raises UsageError for a file of another model or dtype, CorruptError for one that is no prompt cache.
        """
        if not all(self._group.exchange(self._file.exists())):
            return
        saved = self._read()
        if not torch.equal(saved.pop("model"), self._model):
            raise UsageError(f"{self._file}: is the prompt cache of another model, or of another dtype.", _OTHER_FILE)
        tokens = saved["tokens"].tolist()
        if any(other != tokens for other in self._group.exchange(tokens)):
            return  # a run was interrupted between writing them
        try:
            self._runner.restore(_ROW, saved)
        except ValueError as error:
            raise CorruptError(f"{self._file}: holds {error}.", _OTHER_FILE) from error
        self._n_shared = self._runner.reusable_length(_ROW, self._prompt)
        yield Note(f"Prompt cache: {self._file} holds {self._n_shared:,} of the prompt's {len(self._prompt):,} tokens")

    def _read(self) -> dict[str, Tensor]:
        try:
            shard = open_shard(self._file)
        except CorruptError as error:
            raise CorruptError(
                f"{self._file}: is damaged, or no prompt cache.\n{error.message}", _OTHER_FILE
            ) from error
        for name, (dtype, n_axes) in _HEADING.items():
            stored = shard.tensors.get(name)
            if stored is None or (stored.dtype, len(stored.shape)) != (CODES[dtype], n_axes):
                raise CorruptError(f"{self._file}: is no prompt cache: {name!r} is missing or malformed.", _OTHER_FILE)
        saved = {name: shard.tensor(name) for name in shard.tensors}
        if not torch.equal(saved.pop("sha256"), _sha256_of(saved)):
            raise CorruptError(f"{self._file}: has been altered or damaged (SHA-256 differs).", _OTHER_FILE)
        return saved

    def keep(self) -> None:
        """Copy keys and values of the prompt, just prefilled, if later tokens would displace some."""
        if self._runner.forgets and self._is_wanted:
            self._kept = self._runner.save(_ROW, len(self._prompt))

    @property
    def _is_wanted(self) -> bool:
        """Whether the prompt is to be written: the file keeps serving a long prefix that many prompts share."""
        return 2 * self._n_shared < len(self._prompt)

    def save(self) -> Iterator[Note]:
        """Write the prompt, which the runner has prefilled, unless the file holds at least half of it already."""
        if not self._is_wanted:
            return
        kept = self._runner.save(_ROW, len(self._prompt)) if self._kept is None else self._kept
        tensors: dict[str, Tensor] = {"model": self._model, **kept}
        tensors["sha256"] = _sha256_of(tensors)
        n_kept = len(tensors["tokens"])
        if n_kept == 0:
            yield Note(f"Prompt cache: not kept, because a prompt in int8 needs {KEY_BLOCK} tokens for it")
            return
        planned = {name: PlannedTensor(tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
        with staged_file(self._file) as sibling:
            for _ in write_shard(sibling, planned, iter(tensors.items())):
                pass
        n_bytes = sum(plan.n_bytes for plan in planned.values())
        yield Note(f"Prompt cache: kept {n_kept:,} tokens in {self._file} ({size(n_bytes)})")


def _sha256_of(tensors: Mapping[str, Tensor]) -> Tensor:
    """SHA-256 of tensors with their names, dtypes and shapes: [32] uint8."""
    lines = [f"{name} {each.dtype} {tuple(each.shape)} {tensor_sha256(each)}" for name, each in sorted(tensors.items())]
    return torch.frombuffer(bytearray(sha256("\n".join(lines).encode()).digest()), dtype=torch.uint8)
