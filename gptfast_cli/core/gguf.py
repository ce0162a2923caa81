"""A GGUF file: its metadata, and where its tensors lie; strict checks, and nothing allocated that the file cannot hold.

Format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian, versions 2 and 3:

    "GGUF", version uint32, number of tensors uint64, number of keys uint64
    each key:     name, type of its value uint32, value
    each tensor:  name, number of dimensions uint32, the dimensions uint64 (that of a row first), type uint32,
                  offset uint64 from the start of the data
    the data:     from the next multiple of the alignment on; each tensor starts at one

A string is its length in bytes, uint64, and UTF-8; an array the type of its elements, uint32, their number, uint64, and
the elements. The first file of a split model, NAME-00001-of-0000N.gguf, has the metadata, all of them have tensors.
"""

import math
import mmap
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.fields import DAMAGED, Fields
from gptfast_cli.core.files import is_file

SUFFIX: Final = ".gguf"

_MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_ALIGNMENT_KEY: Final = "general.alignment"
_DEFAULT_ALIGNMENT: Final = 32
_MOST_ALIGNMENT: Final = 1 << 16
_MOST_ENTRIES: Final = 200_000  # keys, or tensors: those of ten thousand layers
_MOST_NAME_BYTES: Final = 1024  # of a key or a tensor; ggml's own limits are 65,535 and 64
_MOST_DIMENSIONS: Final = 4
_MOST_ELEMENTS: Final = 2**48
_LISTED: Final = 4096  # elements of an array of numbers that is read at once: one for each layer

_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS: Final = {  # struct code by type
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    _BOOL: "B",
    10: "Q",
    11: "q",
    12: "d",
}


@dataclass(frozen=True, slots=True)
class TensorType:
    """How ggml stores the elements of a row: blocks of `block_size` elements, each of `block_bytes`."""

    name: str
    block_size: int = 1
    block_bytes: int = 0


TENSOR_TYPES: Final[Mapping[int, TensorType]] = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18),
    3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22),
    7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34),
    9: TensorType("Q8_1", 32, 36),
    10: TensorType("Q2_K", 256, 84),
    11: TensorType("Q3_K", 256, 110),
    12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176),
    14: TensorType("Q6_K", 256, 210),
    15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66),
    17: TensorType("IQ2_XS", 256, 74),
    18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50),
    20: TensorType("IQ4_NL", 32, 18),
    21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82),
    23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1),
    25: TensorType("I16", 1, 2),
    26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8),
    28: TensorType("F64", 1, 8),
    29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2),
    34: TensorType("TQ1_0", 256, 54),
    35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17),
    40: TensorType("NVFP4", 64, 36),
}
"""By the number in a file. Its source: ggml/include/ggml.h and gguf-py/gguf/constants.py of llama.cpp."""


PLAIN_TYPES: Final = ("F32", "F16", "BF16")
"""Names of the types whose elements are numbers, and are read as such."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor: its type, its shape with the rows first, its bytes `start` to `end` of the file.

    The type of a number that is not in TENSOR_TYPES has no block size, and the tensor no end.
    """

    type: TensorType
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class GgufArray(Sequence[Any]):
    """An array of metadata that is decoded on access: strings, or very many numbers; `where` is file and key."""

    where: str
    type: int
    content: bytes
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:  # noqa: ANN401  (an int or a slice, as of any sequence)
        return list(self)[index]

    def __iter__(self) -> Iterator[Any]:
        """The elements in order. Raises CorruptError for a string that is not UTF-8."""
        if self.type != _STRING:
            yield from struct.unpack(f"<{self.length}{_NUMBERS[self.type]}", self.content)
            return
        content, at = self.content, 0
        unpack = struct.Struct("<Q").unpack_from
        for number in range(self.length):
            (n_bytes,) = unpack(content, at)
            start, at = at + 8, at + 8 + n_bytes
            try:
                yield content[start:at].decode()
            except UnicodeDecodeError as error:
                raise CorruptError(f"{self.where}: element {number} is not UTF-8", DAMAGED) from error


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of a file; `metadata` has numbers, booleans, strings, and lists or GgufArrays of them."""

    path: Path
    metadata: Fields
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a file. Raises CorruptError with the file and the key or tensor, OSError if it is missing."""
    with path.open("rb") as file:
        if not (n_bytes := path.stat().st_size):
            raise CorruptError(f"{path.name}: is empty", DAMAGED)
        with mmap.mmap(file.fileno(), n_bytes, access=mmap.ACCESS_READ) as content:
            return _Reader(path, content, n_bytes).read()


def starts_as_gguf(path: Path) -> bool:
    """Whether a file begins with GGUF's magic number."""
    if not is_file(path):
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


_SHARD: Final = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class ShardName:
    """The parts of NAME-00001-of-00003.gguf."""

    stem: str
    number: int
    total: int

    def siblings(self) -> list[str]:
        """Names of all files of the model, in order."""
        return [f"{self.stem}-{number:05}-of-{self.total:05}{SUFFIX}" for number in range(1, self.total + 1)]


def parse_shard_name(name: str) -> ShardName | None:
    """The parts of the name of one file of several; None if it is a file of its own."""
    match = _SHARD.fullmatch(name)
    return None if match is None else ShardName(match["stem"], int(match["number"]), int(match["total"]))


class _Reader:
    """Reads from `at` on; whatever it is about to read, it first compares with what is left of the file."""

    def __init__(self, path: Path, content: mmap.mmap, n_bytes: int) -> None:
        self._path = path
        self._content = content
        self._n_bytes = n_bytes
        self._at = 0
        self._where = "header"

    def read(self) -> GgufFile:
        if self._bytes(len(_MAGIC)) != _MAGIC:
            raise self._corrupt("not a GGUF file")
        version = self._number("I")
        if version not in _VERSIONS:
            raise self._corrupt(self._why_not(version))
        n_tensors = self._count("tensors", least_bytes=32)
        n_keys = self._count("keys", least_bytes=13)
        metadata = dict(self._entries(n_keys, "key", self._value))
        alignment = metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= _MOST_ALIGNMENT or alignment % 8:
            raise self._corrupt(f"{alignment!r:.40} is not a multiple of 8 up to {_MOST_ALIGNMENT}", _ALIGNMENT_KEY)
        tensors = dict(self._entries(n_tensors, "tensor", self._tensor))
        data = _aligned(self._at, alignment)
        return GgufFile(self._path, Fields(metadata, self._path.name), self._placed(tensors, data, alignment))

    def _why_not(self, version: int) -> str:
        if version & 0xFFFF == 0:
            return "is a big-endian file, which gptfast does not read; or it is damaged"
        known = " and ".join(map(str, _VERSIONS))
        return f"version {version} of GGUF; gptfast reads {known}"

    def _entries(self, n: int, kind: str, read: Callable[[], Any]) -> Iterator[tuple[str, Any]]:
        names = set()
        for number in range(n):
            self._where = f"{kind} {number + 1} of {n}"
            name = self._text(_MOST_NAME_BYTES)
            self._where = name if len(name) <= 100 else f"{name[:100]} …"
            if name in names or not name:
                raise self._corrupt("is there twice" if name else f"a {kind} without a name")
            names.add(name)
            yield name, read()

    def _value(self) -> Any:  # noqa: ANN401  (whatever type the file says)
        match self._number("I"):
            case 8:
                return self._text(self._n_bytes)
            case 9:
                return self._array()
            case kind if kind in _NUMBERS:
                value = self._number(_NUMBERS[kind])
                return self._flag(value) if kind == _BOOL else value
            case kind:
                raise self._corrupt(f"has a value of the unknown type {kind}")

    def _array(self) -> list[Any] | GgufArray:
        kind, n = self._number("I"), self._number("Q")
        if kind == _ARRAY:
            raise self._corrupt("is an array of arrays, which no model has")
        if kind != _STRING and kind not in _NUMBERS:
            raise self._corrupt(f"is an array of the unknown type {kind}")
        element_bytes = 8 if kind == _STRING else struct.calcsize(_NUMBERS[kind])
        if n > self._left // element_bytes:
            raise self._corrupt(f"is an array of {n} elements, and {self._left} bytes of the file are left")
        start = self._at
        if kind == _STRING:
            self._skip_strings(n)
        else:
            self._skip(n * element_bytes)
        values = GgufArray(f"{self._path.name}: {self._where}", kind, self._content[start : self._at], n)
        if kind == _STRING or n > _LISTED:
            return values
        return [self._flag(value) for value in values] if kind == _BOOL else list(values)

    def _skip_strings(self, n: int) -> None:
        content, at, end = self._content, self._at, self._n_bytes
        unpack = struct.Struct("<Q").unpack_from  # 300,000 of them in a large vocabulary
        for number in range(n):
            at += 8 + unpack(content, at)[0] if at + 8 <= end else 8
            if at > end:
                raise self._corrupt(f"element {number} of {n} does not end within the file")
        self._at = at

    def _flag(self, value: int) -> bool:
        if value not in (0, 1):
            raise self._corrupt(f"is {value}, and neither true nor false")
        return value == 1

    def _tensor(self) -> tuple[int, tuple[int, ...], int]:
        """Number of its type, shape and offset."""
        n_dimensions = self._number("I")
        if not 0 < n_dimensions <= _MOST_DIMENSIONS:
            raise self._corrupt(f"has {n_dimensions} dimensions, and a tensor has 1 to {_MOST_DIMENSIONS}")
        shape = tuple(reversed([self._number("Q") for _ in range(n_dimensions)]))
        if not 0 < math.prod(shape) <= _MOST_ELEMENTS:
            raise self._corrupt(f"its shape cannot be {list(shape)}")
        return self._number("I"), shape, self._number("Q")

    def _placed(
        self, tensors: Mapping[str, tuple[int, tuple[int, ...], int]], data: int, alignment: int
    ) -> dict[str, GgufTensor]:
        """The tensors with their bytes, checked to follow one another up to the end of the file."""
        placed = {}
        for name, (number, shape, offset) in tensors.items():
            self._where = name
            kind = TENSOR_TYPES.get(number, TensorType(f"number {number}"))
            if shape[-1] % kind.block_size:
                raise self._corrupt(f"rows of {shape[-1]} elements are no blocks of {kind.block_size} ({kind.name})")
            start = data + offset
            placed[name] = GgufTensor(
                kind, shape, start, start + math.prod(shape) // kind.block_size * kind.block_bytes
            )
        self._check_layout(placed, data, alignment)
        return placed

    def _check_layout(self, tensors: Mapping[str, GgufTensor], data: int, alignment: int) -> None:
        are_known = all(tensor.type.block_bytes for tensor in tensors.values())
        end = data
        for self._where, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
            if (tensor.start - data) % alignment:
                raise self._corrupt(f"its offset {tensor.start - data} is not a multiple of {alignment}")
            if tensor.start < end:
                raise self._corrupt("overlaps the one before it")
            if tensor.start > _aligned(end, alignment) and are_known:
                raise self._corrupt("leaves a gap before it")
            end = tensor.end
            if end > self._n_bytes:
                raise self._corrupt(f"{end - self._n_bytes} bytes are missing at the end of the file")
        if tensors and are_known and self._n_bytes > _aligned(end, alignment):
            self._where = "header"
            raise self._corrupt(f"{self._n_bytes - end} bytes follow the last tensor")

    @property
    def _left(self) -> int:
        return self._n_bytes - self._at

    def _skip(self, n: int) -> None:
        if n > self._left:
            raise self._corrupt(f"{n} bytes cannot follow: {self._left} of the file are left")
        self._at += n

    def _bytes(self, n: int) -> bytes:
        self._skip(n)
        return self._content[self._at - n : self._at]

    def _number(self, code: str) -> Any:  # noqa: ANN401  (an int or a float)
        (value,) = struct.unpack(f"<{code}", self._bytes(struct.calcsize(code)))
        return value

    def _count(self, what: str, *, least_bytes: int) -> int:
        n: int = self._number("Q")
        if n > min(_MOST_ENTRIES, self._left // least_bytes):
            raise self._corrupt(f"it cannot have {n} {what}")
        return n

    def _text(self, most_bytes: int) -> str:
        n: int = self._number("Q")
        if n > most_bytes:
            raise self._corrupt(f"a text of {n} bytes")
        try:
            return self._bytes(n).decode()
        except UnicodeDecodeError as error:
            raise self._corrupt("is not UTF-8") from error

    def _corrupt(self, why: str, where: str | None = None) -> CorruptError:
        return CorruptError(f"{self._path.name}: {where or self._where}: {why}", DAMAGED)


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
