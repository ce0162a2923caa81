"""GGUF headers: all that the `gguf` package writes is read back; whatever else a file holds ends in CorruptError."""

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.gguf import GgufArray, GgufFile, parse_shard_name, read_gguf, starts_as_gguf
from spoiling import bounded_memory

TOKENS = ["<unk>", "<s>", "▁the", "日本", ""]


def write(path: Path, *, n_tensors: int = 3, **more: Any) -> Path:
    """A small file with every kind of value."""
    writer = gguf.GGUFWriter(path, "llama")
    for kind, value in {"uint8": 255, "int8": -3, "uint16": 65_535, "int16": -4, "uint32": 7, "int32": -5}.items():
        getattr(writer, f"add_{kind}")(f"test.{kind}", value)
    writer.add_uint64("test.uint64", 2**63)
    writer.add_int64("test.int64", -(2**40))
    writer.add_float32("test.float32", 0.5)
    writer.add_float64("test.float64", 0.1)
    writer.add_bool("test.bool", True)
    writer.add_array("test.numbers", [1, 2, 3])
    writer.add_array("test.flags", [True, False])
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0, -1.0, -2.5, -3.0, -4.0])
    for name, value in more.items():
        writer.add_string(name, value)
    for number in range(n_tensors):
        writer.add_tensor(f"blk.{number}.weight", np.full((number + 1, 32), number, np.float32))
    writer.add_tensor(
        "quantized",
        gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0),
        raw_dtype=gguf.GGMLQuantizationType.Q8_0,
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_is_what_was_written(tmp_path: Path) -> None:
    metadata = read_gguf(write(tmp_path / "model.gguf")).metadata.values
    assert {name.removeprefix("test."): value for name, value in metadata.items() if name.startswith("test.")} == {
        "uint8": 255,
        "int8": -3,
        "uint16": 65_535,
        "int16": -4,
        "uint32": 7,
        "int32": -5,
        "uint64": 2**63,
        "int64": -(2**40),
        "float32": 0.5,
        "float64": 0.1,
        "bool": True,
        "numbers": [1, 2, 3],
        "flags": [True, False],
    }
    assert metadata["general.architecture"] == "llama"
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, GgufArray)
    assert (list(tokens), len(tokens)) == (TOKENS, len(TOKENS))
    assert metadata["tokenizer.ggml.scores"] == [0.0, -1.0, -2.5, -3.0, -4.0]


def test_tensors_lie_where_the_gguf_package_finds_them(tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf")
    tensors = read_gguf(path).tensors
    content = path.read_bytes()
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert tensors.keys() == theirs.keys()
    for name, tensor in tensors.items():
        assert tensor.shape == tuple(reversed([int(size) for size in theirs[name].shape]))
        assert tensor.type.name == theirs[name].tensor_type.name
        assert content[tensor.start : tensor.end] == theirs[name].data.tobytes()


def test_a_long_array_of_numbers_is_decoded_on_access(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("test.types", list(range(10_000)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    values = read_gguf(path).metadata.values["test.types"]
    assert isinstance(values, GgufArray)
    assert (list(values), values[3], values[5:7]) == (list(range(10_000)), 3, [5, 6])


def header(*entries: bytes, version: int = 3, n_tensors: int = 0, n_keys: int | None = None) -> bytes:
    n_keys = len(entries) - n_tensors if n_keys is None else n_keys
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(entries)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


LARGE = 2**62
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "another format": (b"GGML" + bytes(40), "not a GGUF file"),
    "a header cut short": (b"GGUF\3\0\0\0\0", "8 bytes cannot follow"),
    "version 1": (header(version=1), "version 1 of GGUF; gptfast reads 2 and 3"),
    "big-endian": (header(version=3 << 24), "big-endian"),
    "so many keys": (header(n_keys=LARGE), "it cannot have 4611686018427387904 keys"),
    "so many tensors": (header(n_tensors=LARGE, n_keys=0), "it cannot have 4611686018427387904 tensors"),
    "a name longer than the file": (header(struct.pack("<Q", 900) + bytes(20)), "key 1 of 1: 900 bytes cannot follow"),
    "an absurd name": (header(struct.pack("<Q", LARGE) + bytes(20)), "a text of 4611686018427387904 bytes"),
    "a name that is not UTF-8": (header(struct.pack("<Q", 1) + b"\xff" + bytes(20)), "is not UTF-8"),
    "no name": (header(key("", 0, b"\1")), "a key without a name"),
    "a key twice": (header(key("a", 0, b"\1"), key("a", 0, b"\2")), "a: is there twice"),
    "an unknown type": (header(key("a", 13, bytes(8))), "a: has a value of the unknown type 13"),
    "a string longer than the file": (
        header(key("a", 8, struct.pack("<Q", LARGE))),
        "a: a text of 4611686018427387904",
    ),
    "neither true nor false": (header(key("a", 7, b"\2")), "a: is 2, and neither true nor false"),
    "an array of arrays": (header(key("a", 9, struct.pack("<IQ", 9, 1) + bytes(16))), "a: is an array of arrays"),
    "an array of nothing known": (header(key("a", 9, struct.pack("<IQ", 99, 1) + bytes(16))), "unknown type 99"),
    "an absurd array": (
        header(key("a", 9, struct.pack("<IQ", 4, LARGE) + bytes(8))),
        "an array of 4611686018427387904",
    ),
    "a string of an array": (
        header(key("a", 9, struct.pack("<IQQ", 8, 2, LARGE) + bytes(16))),
        "a: element 0 of 2 does not end within the file",
    ),
    "no alignment": (header(key("general.alignment", 4, bytes(4))), "general.alignment: 0 is not a multiple of 8"),
    "no dimensions": (header(tensor("a", ()), n_tensors=1), "a: has 0 dimensions"),
    "too many dimensions": (header(tensor("a", (1,) * 5), n_tensors=1), "a: has 5 dimensions"),
    "an empty tensor": (header(tensor("a", (0, 2)), n_tensors=1), r"a: its shape cannot be \[2, 0\]"),
    "an absurd shape": (header(tensor("a", (2**40, 2**40)), n_tensors=1), "a: its shape cannot be"),
    "half a block": (header(tensor("a", (48, 1), 8), n_tensors=1), "rows of 48 elements are no blocks of 32"),
    "a tensor twice": (
        header(tensor("a", (8,)), tensor("a", (8,), 0, 32), n_tensors=2) + bytes(99),
        "a: is there twice",
    ),
    "a tensor past the end": (header(tensor("a", (80,)), n_tensors=1) + bytes(99), "bytes are missing at the end"),
    "a misplaced tensor": (header(tensor("a", (8,), 0, 4), n_tensors=1) + bytes(99), "4 is not a multiple of 32"),
    "tensors that overlap": (
        header(tensor("a", (16,)), tensor("b", (8,), 0, 32), n_tensors=2) + bytes(150),
        "b: overlaps the one before it",
    ),
    "a gap": (header(tensor("a", (8,)), tensor("b", (8,), 0, 64), n_tensors=2) + bytes(150), "b: leaves a gap"),
    "more than it should have": (header(tensor("a", (8,)), n_tensors=1) + bytes(199), "bytes follow the last tensor"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_named(tmp_path: Path, name: str) -> None:
    content, why = DAMAGED[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=why) as damaged:
        read_gguf(path)
    assert damaged.value.message.startswith("model.gguf: ")


def test_a_tensor_of_an_unknown_type_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(tensor("a", (8, 2), 77), tensor("b", (8,), 0, 96), n_tensors=2) + bytes(199))
    tensors = read_gguf(path).tensors
    assert (tensors["a"].type.name, tensors["a"].shape) == ("number 77", (2, 8))


def test_a_token_that_is_not_utf8_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(header(key("a", 9, struct.pack("<IQQ", 8, 1, 1) + b"\xff")))
    with pytest.raises(CorruptError, match=r"model\.gguf: a: element 0 is not UTF-8"):
        list(read_gguf(path).metadata.values["a"])


def test_a_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    assert starts_as_gguf(write(tmp_path / "model.gguf"))
    (tmp_path / "other.gguf").write_bytes(b"PK")
    assert not starts_as_gguf(tmp_path / "other.gguf")
    assert not starts_as_gguf(tmp_path)


def test_names_of_split_files() -> None:
    name = parse_shard_name("Q4_K_M/big-00002-of-00003.gguf")
    assert name is not None
    assert (name.number, name.siblings()[0]) == (2, "Q4_K_M/big-00001-of-00003.gguf")
    assert parse_shard_name("big-2-of-3.gguf") is None


def spoil(content: bytes, draw: random.Random) -> bytes:
    """Bytes of which some, in the header, are others: single bits, whole numbers, a piece cut out or doubled."""
    spoilt = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(len(spoilt)) if spoilt else 0
        match draw.randrange(6):
            case 0:
                spoilt[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                spoilt[at : at + 1] = bytes([spoilt[at] ^ 1 << draw.randrange(8)]) if spoilt else b""
            case 2:
                spoilt[at : at + 8] = draw.choice((b"\xff" * 8, bytes(8), struct.pack("<Q", 2 ** draw.randrange(64))))
            case 3:
                del spoilt[at : at + draw.randrange(1, 40)]
            case 4:
                spoilt[at:at] = spoilt[at : at + draw.randrange(1, 40)]
            case 5:
                del spoilt[at:]
    return bytes(spoilt)


def read_all(file: GgufFile) -> None:
    for value in file.metadata.values.values():
        if isinstance(value, GgufArray):
            list(value)


def fuzz(path: Path, n: int, use: Callable[[GgufFile], None]) -> int:
    """Read so many spoilt files; the number of those that are damaged."""
    content, draw, n_damaged = write(path).read_bytes(), random.Random(0), 0
    for _ in range(n):
        path.write_bytes(spoil(content, draw))
        try:
            use(read_gguf(path))
        except CorruptError:
            n_damaged += 1
    return n_damaged


def test_a_spoilt_file_is_read_or_called_damaged(tmp_path: Path) -> None:
    with bounded_memory():
        assert 1000 < fuzz(tmp_path / "model.gguf", 4000, read_all) < 4000


@pytest.mark.slow
def test_two_hundred_thousand_spoilt_files_are_read_or_called_damaged(tmp_path: Path) -> None:
    with bounded_memory():
        assert fuzz(tmp_path / "model.gguf", 200_000, read_all) > 50_000
