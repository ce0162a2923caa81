"""Files that torch.save wrote, read without running anything in them and without reading the tensors.

Such a file is a zip archive with a pickle, `data.pkl`, that describes the tensors, and a record, `data/KEY`, of each
tensor's bytes. A pickle can carry a program, so a file is opened only where a person allows it, and then by torch's
restricted unpickler alone: what that refuses is refused. It makes tensors without numbers here; where their bytes
lie is checked against the archive, and they are mapped one by one as those of a safetensors file are.
"""

import math
import shlex
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from gptfast_cli.core.checkpoints.download_source import FETCH_AGAIN
from gptfast_cli.core.checkpoints.hub_cache import snapshot_at
from gptfast_cli.core.checkpoints.shard import CODES, Shard, StoredTensor
from gptfast_cli.core.errors import CorruptError, UsageError

_OLDEST_SAFE_TORCH = (2, 10)  # weights_only could be broken before: CVE-2025-32434, CVE-2026-24747
_MAX_PICKLE_BYTES = 32_000_000  # 400 tensors take 50,000
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip record: signature, lengths of its name and of the extra field


def refuse_pickle(path: Path, source: Path) -> CorruptError:
    """The error for a pickle that nobody has allowed to be opened; `source` is what a person would convert."""
    snapshot = snapshot_at(source)
    named = str(source) if snapshot is None else f"{snapshot.repo}@{snapshot.commit}"
    command = f"gptfast convert {shlex.quote(named)} --allow-pickle"
    return CorruptError(
        f"{path.name}: is a pickle, which can carry a program, and is not opened unless you say so.",
        f"Take a revision with safetensors, or, if you trust its makers: {command}",
    )


def open_pickle(path: Path) -> Shard:
    """The tensors of a file by their names, none of them read yet.

    Raises CorruptError where the file is damaged or its pickle holds more than tensors, UsageError where it was
    written in torch's format of before 1.6 or the installed torch cannot be trusted with it.
    """
    _check_torch()
    records = _records(path)
    try:
        content = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a damaged pickle makes of it
        raise CorruptError(
            f"{path.name}: holds more than tensors, or is damaged: {str(error).strip().partition(chr(10))[0]:.200}",
            "Nothing in it was run. Do not trust the file: take the model from its makers, with safetensors.",
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise CorruptError(f"{path.name}: holds no tensors by name", FETCH_AGAIN)
    return Shard(path, {name: _stored(f"{path.name}: {name}", value, records) for name, value in content.items()})


def _check_torch() -> None:
    version = tuple(int(number) for number in torch.__version__.split("+")[0].split(".")[:2])
    if version < _OLDEST_SAFE_TORCH:
        raise UsageError(
            f"torch {torch.__version__} can be made to run what a pickle carries.",
            "Upgrade it: pip install --upgrade 'torch>=2.11'",
        )


def _no_archive(path: Path) -> CorruptError | UsageError:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80":
        return UsageError(
            f"{path.name}: was written in the format of torch before 1.6.",
            "Load it with that program and save it once more, best as safetensors.",
        )
    return CorruptError(f"{path.name}: is no file of torch.save, or was cut short", FETCH_AGAIN)


def _records(path: Path) -> dict[int, int]:
    """Bytes of each record of the archive, by the position of the first of them in the file."""
    records = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise CorruptError(f"{path.name}: {info.filename}: is compressed, as torch never does", FETCH_AGAIN)
                start = _start(file, info.header_offset)
                if start is None or start + info.file_size > archive.start_dir:
                    raise CorruptError(f"{path.name}: {info.filename}: does not lie in the file", FETCH_AGAIN)
                records[start] = info.file_size
                _check_record(path, archive, info)
    except zipfile.BadZipFile as error:
        raise _no_archive(path) from error
    except (OSError, ValueError, NotImplementedError, RuntimeError, struct.error) as error:
        raise CorruptError(f"{path.name}: is no readable archive: {error!s:.100}", FETCH_AGAIN) from error
    return records


def _check_record(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    match info.filename.rpartition("/")[2]:
        case "data.pkl" if info.file_size > _MAX_PICKLE_BYTES:
            raise CorruptError(f"{path.name}: {info.filename}: {info.file_size} bytes describe no model", FETCH_AGAIN)
        case "byteorder" if info.file_size > 10 or archive.read(info) != sys.byteorder.encode():
            raise UsageError(f"{path.name}: was saved on a machine of the other byte order.", "Save it as safetensors.")


def _start(file: BinaryIO, header: int) -> int | None:
    """Where a record's bytes begin behind its local header; None where there is no such header."""
    file.seek(header)
    content = file.read(_LOCAL_HEADER.size)
    if len(content) < _LOCAL_HEADER.size:
        return None
    signature, n_name, n_extra = _LOCAL_HEADER.unpack(content)
    return header + _LOCAL_HEADER.size + n_name + n_extra if signature == b"PK\x03\x04" else None


def _stored(place: str, value: object, records: Mapping[int, int]) -> StoredTensor:
    if not isinstance(value, Tensor):
        raise CorruptError(f"{place}: is no tensor", FETCH_AGAIN)
    if value.layout is not torch.strided or value.dtype not in CODES or not value.is_contiguous():
        raise UsageError(f"{place}: is stored in a form that is not read.", "Save the model as safetensors.")
    record = getattr(value.untyped_storage(), "_checkpoint_offset", None)
    start = int(value.storage_offset()) * value.dtype.itemsize
    n_bytes = math.prod(value.shape) * value.dtype.itemsize
    if not isinstance(record, int) or start + n_bytes > records.get(record, -1):
        raise CorruptError(f"{place}: its bytes are not in the file", FETCH_AGAIN)
    return StoredTensor(CODES[value.dtype], tuple(value.shape), record + start, record + start + n_bytes)
