"""The pickle of a state dict, read by a stack machine that knows tensors and containers, and nothing else.

A pickle is a program of opcodes (https://docs.python.org/3/library/pickletools.html). An unpickler calls what it names,
and even PyTorch's restricted one makes gigabytes of a few bytes (`bytearray(n)`, copies of copies). This one calls
nothing: it follows the opcodes of protocol 2 that torch.save writes, describes tensors by place and shape, and stops
where there are more opcodes than any model needs.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

_MOST_OPCODES = 300_000  # a tensor takes about 40

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
    """The pickle is damaged, or describes something else than tensors."""


@dataclass(frozen=True, slots=True)
class Storage:
    """Memory of a file that tensors share; `dtype` is None where it is one that this program does not read."""

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
        """Whether its elements lie in their order, one straight after the other."""
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
    """What a pickle describes: of a state dict a dict of PickledTensor by name.

    Raises StateDictError for what is made of anything but tensors, containers, numbers and texts.
    """
    try:
        return _Machine().run(pickled)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError, RecursionError) as error:
        raise StateDictError(f"{type(error).__name__}: {error}") from error  # of an opcode where it does not belong


@dataclass(slots=True)
class _Machine:
    """What opcodes work on: a stack, the stacks below its marks, and values by the numbers that they were given."""

    stack: list[Any] = field(default_factory=list)
    below: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self, pickled: bytes) -> object:
        for n, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(pickled))):
            if n >= _MOST_OPCODES:
                raise StateDictError(f"more than {_MOST_OPCODES:,} opcodes describe no model")
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
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def take(self, n: int) -> tuple[Any, ...]:
        if len(self.stack) < n:
            raise StateDictError("the stack is empty")
        items = tuple(self.stack[-n:])
        del self.stack[-n:]
        return items

    def keep(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def recall(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise StateDictError("an item is appended to no list")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise StateDictError("an item is set in no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int):
                raise StateDictError("a key is no text")
            target[key] = value

    def build(self, _: object) -> None:
        """Give a dict attributes, such as the versions of modules: nothing is done with them."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise StateDictError("an attribute is set")

    def load(self, _: object) -> None:
        kind, storage, key, _location, n_elements = self.stack.pop()
        if (
            kind != "storage"
            or not isinstance(storage, _Global)
            or not isinstance(key, str)
            or not _is_size(n_elements)
        ):
            raise StateDictError("a storage is malformed")
        self.stack.append(Storage(_STORAGES.get(storage.name), key, n_elements))

    def call(self, _: object) -> None:
        function, arguments = self.take(2)
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise StateDictError("something is called that is no function")
        self.stack.append(_made(function.name, arguments))


def _made(function: str, arguments: tuple[Any, ...]) -> object:
    """What a function of torch.save's gives."""
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
            return _made(name, inner)
        case "torch Size", (tuple(sizes),):
            return sizes
    raise StateDictError(f"{function.replace(' ', '.')} is none of a tensor's functions")


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

_ACTIONS: Final[Mapping[str, Callable[[_Machine, Any], None]]] = {
    "PROTO": lambda *_: None,
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(machine.take(1)),
    "TUPLE2": lambda machine, _: machine.push(machine.take(2)),
    "TUPLE3": lambda machine, _: machine.push(machine.take(3)),
    "APPEND": lambda machine, _: machine.extend(list(machine.take(1))),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.update(list(machine.take(2))),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.keep),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.load,
    "REDUCE": _Machine.call,
}
