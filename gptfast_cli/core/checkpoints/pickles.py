"""PyTorch's pickled state dicts, read without unpickling: a small stack machine that only describes tensors.

A pickle is a program of opcodes (https://docs.python.org/3/library/pickletools.html). An unpickler calls the functions
that it names, and even PyTorch's restricted one can be made to allocate gigabytes (`bytearray(n)`). This machine calls
nothing: it interprets the opcodes of protocol 2 that torch.save writes, and limits their number.

Such a file is a zip archive with a pickle, `data.pkl`, and a record, `data/KEY`, for the bytes of each storage. It is
opened only if the user allows it. Byte ranges are checked against the archive, and tensors are memory-mapped one by one
like those of a safetensors file.
"""

import io
import math
import pickletools
import shlex
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch

from gptfast_cli.core.checkpoints.downloads import FETCH_AGAIN, snapshot_at
from gptfast_cli.core.checkpoints.shard import CODES, Shard, TensorInfo
from gptfast_cli.core.errors import CorruptError, UsageError

_MAX_OPCODES = 300_000  # a tensor takes about 40

_STORAGES: Final[Mapping[str, torch.dtype]] = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
}


class StateDictError(Exception):
    """The pickle is damaged, or describes more than tensors."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage that tensors share, record `data/KEY`; `dtype` is None if it is not supported."""

    dtype: torch.dtype | None
    key: str
    n_elements: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A strided view of a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        """Whether its elements are contiguous in row-major order."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size > 1 and stride != expected:
                return 0 in self.shape
            expected *= size
        return True


@dataclass(frozen=True, slots=True)
class _Global:
    name: str  # "module name"


def read_pickle(pickled: bytes) -> object:
    """The object that a pickle describes: for a state dict, a dict of PickledTensor by name.

    Raises StateDictError for anything but tensors, containers, numbers and strings.
    """
    try:
        return _PickleMachine().run(pickled)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError, RecursionError) as error:
        raise StateDictError(f"{type(error).__name__}: {error}") from error  # a misplaced opcode


@dataclass(slots=True)
class _PickleMachine:
    """State of a pickle machine, with the names of Python's pickle module: stack, metastack, memo."""

    stack: list[Any] = field(default_factory=list)
    metastack: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, pickled: bytes) -> object:
        for n, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(pickled))):
            if n >= _MAX_OPCODES:
                raise StateDictError(f"more than {_MAX_OPCODES:,} opcodes describe no model")
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name](argument))
            elif opcode.name in _ACTIONS:
                _ACTIONS[opcode.name](self, argument)
            else:
                raise StateDictError(f"{opcode.name} is no opcode of a state dict")
        raise StateDictError("no end")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def mark(self, _: object) -> None:
        self.metastack.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.metastack.pop()
        return items

    def pop(self, n: int) -> tuple[Any, ...]:
        if len(self.stack) < n:
            raise StateDictError("the stack is empty")
        items = tuple(self.stack[-n:])
        del self.stack[-n:]
        return items

    def put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise StateDictError("an item is appended to no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise StateDictError("an item is set in no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise StateDictError("a key is no text")
            target[key] = value

    def build(self, _: object) -> None:
        """Attributes of a dict, such as the versions of modules, are ignored."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise StateDictError("an attribute is set")

    def persistent_load(self, _: object) -> None:
        kind, storage, key, _location, n_elements = self.stack.pop()
        if (
            kind != "storage"
            or not isinstance(storage, _Global)
            or not isinstance(key, str)
            or not _is_size(n_elements)
        ):
            raise StateDictError("a storage is malformed")
        self.stack.append(Storage(_STORAGES.get(storage.name), key, n_elements))

    def reduce(self, _: object) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise StateDictError("something is called that is no function")
        self.stack.append(_result_of(function.name, arguments))


def _result_of(function: str, arguments: tuple[Any, ...]) -> object:
    """The result of one of the functions that torch.save refers to."""
    match function, arguments:
        case "collections OrderedDict", ():
            return {}
        case "torch._utils _rebuild_tensor_v2" | "torch._utils _rebuild_tensor_v3", (
            storage,
            offset,
            shape,
            strides,
            *_,
        ):
            return _tensor(storage, offset, shape, strides)
        case "torch._utils _rebuild_parameter" | "torch._utils _rebuild_parameter_with_state", (
            PickledTensor() as data,
            *_,
        ):
            return data
        case "torch._tensor _rebuild_from_type_v2", (_Global(name), _Global(), tuple(inner), dict()):
            return _result_of(name, inner)
        case "torch Size", (tuple(sizes),):
            return sizes
    raise StateDictError(f"{function.replace(' ', '.')} is not a function that builds tensors")


def _tensor(storage: object, offset: object, shape: object, strides: object) -> PickledTensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise StateDictError("a tensor is malformed")
    if not all(map(_is_size, (offset, *shape, *strides))) or len(shape) != len(strides):
        raise StateDictError("a tensor's shape is malformed")
    assert isinstance(offset, int)
    return PickledTensor(storage, offset, shape, strides)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


_CONSTANTS: Final[Mapping[str, Callable[[Any], object]]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "EMPTY_LIST": lambda _: [],
    "EMPTY_DICT": lambda _: {},
    "GLOBAL": _Global,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), lambda argument: argument),
}

_ACTIONS: Final[Mapping[str, Callable[[_PickleMachine, Any], None]]] = {
    "PROTO": lambda *_: None,
    "MARK": _PickleMachine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.push(machine.pop(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.pop(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.pop(3)),
    "APPEND": lambda machine, _: machine.append(list(machine.pop(1))),
    "APPENDS": lambda machine, _: machine.append(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items(list(machine.pop(2))),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _PickleMachine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _PickleMachine.get),
    "BUILD": _PickleMachine.build,
    "BINPERSID": _PickleMachine.persistent_load,
    "REDUCE": _PickleMachine.reduce,
}


_PICKLE = "data.pkl"
_MAX_PICKLE_BYTES = 16_000_000  # 400 tensors take 50,000
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip record: signature, lengths of its name and of the extra field


@dataclass(frozen=True, slots=True)
class _Record:
    """Byte range of a record of the archive."""

    start: int
    n_bytes: int


def pickle_refused(path: Path, source: Path) -> CorruptError:
    """The error for a pickle that the user has not allowed; `source` is what the hint converts."""
    snapshot = snapshot_at(source)
    named = str(source) if snapshot is None else f"{snapshot.repo}@{snapshot.commit}"
    command = f"gptfast convert {shlex.quote(named)} --allow-pickle"
    return CorruptError(
        f"{path.name}: is a pickle, which can contain a program, and is not opened without --allow-pickle.",
        f"Use a revision with safetensors, or, if you trust its authors: {command}",
    )


def open_pickle(path: Path) -> Shard:
    """Describe the tensors of a file, by name.

    Raises CorruptError if the file is damaged or its pickle holds more than tensors, UsageError for the format of
    torch before 1.6.
    """
    root, pickled, records = _opened(path)
    try:
        content = read_pickle(pickled)
    except StateDictError as error:
        raise CorruptError(
            f"{path.name}: holds more than tensors, or is damaged: {error!s:.200}",
            "Nothing in it was executed. Do not trust the file: get the model from its authors, as safetensors.",
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
            "Load it with PyTorch and save it as safetensors.",
        )
    return CorruptError(f"{path.name}: is no file of torch.save, or was cut short", FETCH_AGAIN)


def _opened(path: Path) -> tuple[str, bytes, dict[str, _Record]]:
    """The archive's root folder, the pickle, and the byte range of every record by name."""
    records: dict[str, _Record] = {}
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise CorruptError(f"{path.name}: {info.filename}: is compressed", FETCH_AGAIN)
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
    """Offset of a record's bytes, after its local header; None if there is no such header."""
    file.seek(header)
    content = file.read(_LOCAL_HEADER.size)
    if len(content) < _LOCAL_HEADER.size:
        return None
    signature, n_name, n_extra = _LOCAL_HEADER.unpack(content)
    return header + _LOCAL_HEADER.size + n_name + n_extra if signature == b"PK\x03\x04" else None


def _stored(place: str, value: object, root: str, records: Mapping[str, _Record]) -> TensorInfo:
    if not isinstance(value, PickledTensor):
        raise CorruptError(f"{place}: is no tensor", FETCH_AGAIN)
    dtype = value.storage.dtype
    if dtype is None or not value.is_contiguous:
        raise UsageError(f"{place}: is stored in a form that is not read.", "Save the model as safetensors.")
    record = records.get(f"{root}data/{value.storage.key}")
    start, n_bytes = value.offset * dtype.itemsize, math.prod(value.shape) * dtype.itemsize
    if record is None or start + n_bytes > record.n_bytes:
        raise CorruptError(f"{place}: its bytes are not in the file", FETCH_AGAIN)
    return TensorInfo(CODES[dtype], value.shape, record.start + start, record.start + start + n_bytes)
