"""Files that torch.save wrote, read without running anything in them and without reading the tensors.

Such a file is a zip archive with a pickle, `data.pkl`, that describes the tensors, and a record, `data/KEY`, of each
storage's bytes. A pickle can carry a program, so a file is opened only where a person allows it, and even then nothing
is unpickled: see `state_dict`. Where the tensors' bytes lie is checked against the archive, and they are mapped one by
one as those of a safetensors file are.
"""

import math
import shlex
import struct
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gptfast_cli.core.checkpoints.download_source import FETCH_AGAIN
from gptfast_cli.core.checkpoints.hub_cache import snapshot_at
from gptfast_cli.core.checkpoints.shard import CODES, Shard, StoredTensor
from gptfast_cli.core.checkpoints.state_dict import PickledTensor, StateDictError, read_pickle
from gptfast_cli.core.errors import CorruptError, UsageError

_PICKLE = "data.pkl"
_MAX_PICKLE_BYTES = 16_000_000  # 400 tensors take 50,000
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip record: signature, lengths of its name and of the extra field


@dataclass(frozen=True, slots=True)
class _Record:
    """Bytes of the file that hold a record of the archive."""

    start: int
    n_bytes: int


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
    written in torch's format of before 1.6.
    """
    root, pickled, records = _opened(path)
    try:
        content = read_pickle(pickled)
    except StateDictError as error:
        raise CorruptError(
            f"{path.name}: holds more than tensors, or is damaged: {error!s:.200}",
            "Nothing in it was run. Do not trust the file: take the model from its makers, with safetensors.",
        ) from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CorruptError(f"{path.name}: holds no tensors by name", FETCH_AGAIN)
    return Shard(path, {name: _stored(f"{path.name}: {name}", value, root, records) for name, value in content.items()})


def _no_archive(path: Path) -> CorruptError | UsageError:
    with path.open("rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80":
        return UsageError(
            f"{path.name}: was written in the format of torch before 1.6.",
            "Load it with that program and save it once more, best as safetensors.",
        )
    return CorruptError(f"{path.name}: is no file of torch.save, or was cut short", FETCH_AGAIN)


def _opened(path: Path) -> tuple[str, bytes, dict[str, _Record]]:
    """The folder of the archive that holds the pickle, the pickle, and every record by its name."""
    records: dict[str, _Record] = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise CorruptError(f"{path.name}: {info.filename}: is compressed, as torch never does", FETCH_AGAIN)
                start = _start(file, info.header_offset)
                if start is None or start + info.file_size > archive.start_dir or info.filename in records:
                    raise CorruptError(f"{path.name}: {info.filename}: does not lie in the file", FETCH_AGAIN)
                records[info.filename] = _Record(start, info.file_size)
            return _pickle(path, archive, records)
    except zipfile.BadZipFile as error:
        raise _no_archive(path) from error
    except (OSError, ValueError, NotImplementedError, RuntimeError, struct.error) as error:
        raise CorruptError(f"{path.name}: is no readable archive: {error!s:.100}", FETCH_AGAIN) from error


def _pickle(path: Path, archive: zipfile.ZipFile, records: dict[str, _Record]) -> tuple[str, bytes, dict[str, _Record]]:
    names = [name for name in records if name.rpartition("/")[2] == _PICKLE]
    if len(names) != 1:
        raise CorruptError(f"{path.name}: has {len(names)} records {_PICKLE}, not one", FETCH_AGAIN)
    root, n_bytes = names[0].removesuffix(_PICKLE), records[names[0]].n_bytes
    if n_bytes > _MAX_PICKLE_BYTES:
        raise CorruptError(f"{path.name}: {names[0]}: {n_bytes} bytes describe no model", FETCH_AGAIN)
    order = records.get(f"{root}byteorder")
    if order and (order.n_bytes > 10 or archive.read(f"{root}byteorder") != sys.byteorder.encode()):
        raise UsageError(f"{path.name}: was saved on a machine of the other byte order.", "Save it as safetensors.")
    return root, archive.read(names[0]), records


def _start(file: BinaryIO, header: int) -> int | None:
    """Where a record's bytes begin behind its local header; None where there is no such header."""
    file.seek(header)
    content = file.read(_LOCAL_HEADER.size)
    if len(content) < _LOCAL_HEADER.size:
        return None
    signature, n_name, n_extra = _LOCAL_HEADER.unpack(content)
    return header + _LOCAL_HEADER.size + n_name + n_extra if signature == b"PK\x03\x04" else None


def _stored(place: str, value: object, root: str, records: Mapping[str, _Record]) -> StoredTensor:
    if not isinstance(value, PickledTensor):
        raise CorruptError(f"{place}: is no tensor", FETCH_AGAIN)
    dtype = value.storage.dtype
    if dtype is None or not value.is_contiguous:
        raise UsageError(f"{place}: is stored in a form that is not read.", "Save the model as safetensors.")
    record = records.get(f"{root}data/{value.storage.key}")
    start, n_bytes = value.offset * dtype.itemsize, math.prod(value.shape) * dtype.itemsize
    if record is None or start + n_bytes > record.n_bytes:
        raise CorruptError(f"{place}: its bytes are not in the file", FETCH_AGAIN)
    return StoredTensor(CODES[dtype], value.shape, record.start + start, record.start + start + n_bytes)
