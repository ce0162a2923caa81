"""Random weights as the formats store them that the grouped scheme holds."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gptfast_cli.core.schemes import Weight, schemes
from gptfast_cli.core.schemes.grouped import grouped

E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().nan_to_num()


def drawn(name: str, *, rows: int = 6, in_features: int = 512, seed: int = 0) -> Weight:
    """A weight as some format stores it, with random codes and params."""
    generator = torch.Generator().manual_seed(seed)
    bits, group_size, make = FORMATS[name]
    n_groups = -(-in_features // group_size)
    codes = torch.randint(0, 1 << bits, (rows, n_groups, group_size), generator=generator).to(torch.uint8)
    values, params = make(generator, rows, n_groups, in_features)
    if values is E4M3:
        codes[codes % 128 == 127] = 0  # NaN
    return grouped(codes, values, (rows, in_features), **params)


def some(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return (torch.rand(shape, generator=generator) + 0.5).to(dtype)


def integers(generator: torch.Generator, low: int, high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def consecutive(first: int, bits: int) -> Tensor:
    return torch.arange(first, first + (1 << bits), dtype=torch.float32)


Made = tuple[Tensor, dict[str, Tensor]]
Make = Callable[[torch.Generator, int, int, int], Made]


def symmetric(bits: int) -> Make:
    return lambda g, rows, n, _: (consecutive(-(1 << bits - 1), bits), {"scales": some(g, rows, n)})


def two_levels(bits: int, per_super: int, dtype: torch.dtype) -> Make:
    def make(g: torch.Generator, rows: int, n: int, _: int) -> Made:
        of_super = (rows, -(-n // per_super))
        params = {"scales": integers(g, 1, 64, rows, n, dtype=dtype), "super_scales": some(g, *of_super)}
        if dtype is torch.uint8:
            params |= {"offsets": integers(g, 0, 64, rows, n), "super_offsets": -some(g, *of_super)}
        return consecutive(0, bits), params

    return make


def zero_points(g: torch.Generator, rows: int, n: int, in_features: int) -> Made:
    order = torch.randperm(in_features, generator=g).int()
    return consecutive(0, 4), {"scales": some(g, rows, n), "zeros": integers(g, 0, 17, rows, n), "order": order}


def micro_scaled(g: torch.Generator, rows: int, n: int, _: int) -> Made:
    scales = integers(g, 120, 134, rows, n).view(torch.float8_e8m0fnu)
    return torch.randn(16, generator=g), {"scales": scales}


def global_scale(g: torch.Generator, rows: int, n: int, _: int) -> Made:
    scales = some(g, rows, n).to(torch.float8_e4m3fn)
    return torch.randn(16, generator=g), {"scales": scales, "matrix_scale": 1 / some(g, 1, dtype=torch.float64)}


FORMATS: dict[str, tuple[int, int, Make]] = {
    "8 bits": (8, 32, symmetric(8)),
    "6 bits, two levels": (6, 16, two_levels(6, 16, torch.int8)),
    "5 bits": (5, 32, symmetric(5)),
    "4 bits, two levels, offsets": (4, 32, two_levels(4, 8, torch.uint8)),
    "3 bits, two levels": (3, 16, two_levels(3, 16, torch.int8)),
    "2 bits, two levels, offsets": (2, 16, two_levels(2, 16, torch.uint8)),
    "zero points, ordered": (4, 64, zero_points),
    "e2m1, powers of two": (4, 32, micro_scaled),
    "a scale of the matrix": (4, 16, global_scale),
    "e4m3": (8, 128, lambda g, rows, n, _: (E4M3, {"scales": some(g, rows, n, dtype=torch.float32)})),
    "float offsets": (
        *(4, 64),
        lambda g, rows, n, _: (
            consecutive(0, 4),
            {"scales": some(g, rows, n, dtype=torch.bfloat16), "offsets": -some(g, rows, n, dtype=torch.bfloat16)},
        ),
    ),
}

IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def with_values(weight: Weight, values: tuple[float, ...]) -> Weight:
    """The same codes on another table."""
    return Weight(weight.scheme, weight.shape, weight.parts | {"values": torch.tensor(values, dtype=torch.float32)})


def scaled(weight: Weight, std: float) -> Weight:
    """The weight times the power of two that brings its standard deviation near `std`."""
    found = float(schemes[weight.scheme].dense(weight, torch.float32).std())
    exponent = round(math.log2(std / found))
    parts = dict(weight.parts)
    for kind in ("scale", "offset"):
        name = next((each for each in (f"super_{kind}s", f"matrix_{kind}", f"{kind}s") if each in parts), None)
        if name is None:
            continue
        if parts[name].dtype is torch.float8_e8m0fnu:
            parts[name] = (parts[name].view(torch.uint8) + exponent).view(torch.float8_e8m0fnu)
        else:
            parts[name] = parts[name] * 2.0**exponent
    return Weight(weight.scheme, weight.shape, parts)
