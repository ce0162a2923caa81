"""Weights as the native library reads them: pointers to their parts, for each scheme that it knows."""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

from gptfast_cli.core.backends.cpu.library import CodeValues, Groups, ScaleForm, WeightKind, WeightView
from gptfast_cli.core.schemes import Weight
from gptfast_cli.core.schemes.grouped import NAME as GROUPED
from gptfast_cli.core.schemes.grouped import layout, offsets, scales
from gptfast_cli.core.schemes.stacked import NAME as STACKED
from gptfast_cli.core.schemes.stacked import members

SCHEMES: Final = frozenset(("plain", "int8", "int4", GROUPED, STACKED))
"""The schemes whose weights the kernels read."""

UNIT: Final = 32
"""Rows that a kernel takes at a time; a stacked matrix changes its scheme at a multiple of them."""

_PLAIN_KINDS: Final = {
    torch.float32: WeightKind.FLOAT32,
    torch.bfloat16: WeightKind.BFLOAT16,
    torch.float16: WeightKind.FLOAT16,
}
_FORMS: Final = {
    torch.float16: ScaleForm.HALF,
    torch.bfloat16: ScaleForm.BF16,
    torch.float32: ScaleForm.FLOAT,
    torch.int8: ScaleForm.SIGNED,
    torch.uint8: ScaleForm.UNSIGNED,
    torch.float8_e4m3fn: ScaleForm.E4M3,
    torch.float8_e8m0fnu: ScaleForm.E8M0,
}
_SMALLEST_GROUP: Final = 16
_BLOCK: Final = 256  # columns that share a super scale, in a kernel
_TABLE: Final = 16  # values that a table has, at most
_E4M3: Final = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


class Views:
    """Views of a matrix, or of the members of a stacked one; they hold the memory that they point to."""

    def __init__(self, weight: Weight, *, is_interleaved: bool = False) -> None:
        self._held: list[object] = []
        parts = members(weight) if weight.scheme == STACKED else [weight]
        self.array = (WeightView * len(parts))(*(self._view(part, is_interleaved) for part in parts))

    def _view(self, weight: Weight, is_interleaved: bool) -> WeightView:  # noqa: FBT001
        parts = {name: part.contiguous() for name, part in weight.parts.items()}
        self._held.append(parts)
        view = WeightView(n_rows=weight.shape[0], n_columns=weight.shape[1], interleaved=is_interleaved)
        fill = {"plain": self._plain, "int8": self._int8, "int4": self._int4, GROUPED: self._grouped}[weight.scheme]
        fill(view, Weight(weight.scheme, weight.shape, parts))
        return view

    def _plain(self, view: WeightView, weight: Weight) -> None:
        (values,) = weight.parts.values()
        view.kind, view.values = _PLAIN_KINDS[values.dtype], values.data_ptr()

    def _int8(self, view: WeightView, weight: Weight) -> None:
        view.kind, view.values = WeightKind.INT8, weight.parts["codes"].data_ptr()
        view.scales = weight.parts["scales"].data_ptr()

    def _int4(self, view: WeightView, weight: Weight) -> None:
        parts = weight.parts
        view.kind, view.values, view.group = WeightKind.INT4, parts["codes"].data_ptr(), 2 * parts["codes"].shape[-1]
        view.scales, view.zeros = parts["scales"].data_ptr(), parts["zeros"].data_ptr()

    def _grouped(self, view: WeightView, weight: Weight) -> None:
        parts, form = weight.parts, layout(weight)
        groups = Groups(bits=form.bits, size=form.group_size, n_groups=parts["scales"].shape[1], multiplier=1)
        self._values(groups, parts["values"])
        multiplier = _multiplier(parts)
        groups.n_super = parts["super_scales"].shape[1] if "super_scales" in parts else 1
        groups.per_super = -(-groups.n_groups // groups.n_super)
        is_two_level = "super_scales" in parts and (groups.per_super * groups.size) % _BLOCK == 0
        is_two_level &= all(parts[name].dtype is torch.float16 for name in _SUPER if name in parts)
        if multiplier is None or ("super_scales" in parts and not is_two_level):
            own = {"scales": scales(parts)} | ({"offsets": offsets(parts)} if "offsets" in parts else {})
            groups.n_super, groups.per_super, multiplier = 1, groups.n_groups, 1.0
        else:
            own = {name: parts[name] for name in ("scales", "offsets", *_SUPER) if name in parts}
        groups.multiplier *= multiplier
        self._held.append(own)
        groups.scale_form = _FORMS[own["scales"].dtype]
        if "offsets" in own:
            groups.offset_form = _FORMS[own["offsets"].dtype]
        for name, tensor in own.items():
            setattr(groups, name, tensor.data_ptr())
        if "zeros" in parts:
            groups.zeros = parts["zeros"].data_ptr()
        if "order" in parts:
            view.order = parts["order"].data_ptr()
        view.kind, view.values, view.groups = WeightKind.GROUPED, parts["codes"].data_ptr(), ctypes.pointer(groups)
        self._held.append(groups)

    def _values(self, groups: Groups, values: Tensor) -> None:
        """What codes stand for, in the form that multiplies fastest."""
        if _is_consecutive(values):
            groups.values, groups.first = CodeValues.CONSECUTIVE, float(values[0])
        elif len(values) > _TABLE:
            groups.values = CodeValues.E4M3
        else:
            step = next((step for step in (1.0, 0.5, 0.25) if _are_bytes(values / step)), None)
            padded = torch.zeros(_TABLE)
            padded[: len(values)] = values if step is None else values / step
            groups.values = CodeValues.FLOATS if step is None else CodeValues.INTEGERS
            groups.multiplier = 1 if step is None else step
            own = padded if step is None else padded.to(torch.int8)
            self._held.append(own)
            setattr(groups, "floats" if step is None else "integers", own.data_ptr())


_SUPER: Final = ("super_scales", "super_offsets")


def _are_bytes(values: Tensor) -> bool:
    return torch.equal(values, values.round()) and float(values.abs().max()) <= 127


def _multiplier(parts: Mapping[str, Tensor]) -> float | None:
    """The float32 that stands for the scale of a matrix; None if no such number gives the same scales."""
    scale = parts.get("matrix_scale")
    if scale is None or scale.dtype is torch.float32:
        return 1.0 if scale is None else float(scale)
    wanted = parts["scales"].float()
    exact = (wanted.double() * scale).float()
    near = scale.float()
    candidates = (near, torch.nextafter(near, near.new_zeros(1)), torch.nextafter(near, 2 * near))
    return next((float(each) for each in candidates if torch.equal(wanted * each, exact)), None)


def unsupported_weights(outline: Mapping[str, Weight]) -> Iterator[str]:
    """What keeps the engine from reading these weights, on the meta device or not: the schemes, or why."""
    for name, weight in outline.items():
        parts = members(weight) if weight.scheme == STACKED else [weight]
        yield from (why for part in parts if (why := _unsupported(part)) is not None)
        if len(parts) > 1:
            yield from _unsupported_stack(name, parts)


def _unsupported(part: Weight) -> str | None:
    if part.scheme not in SCHEMES:
        return f"weights in {part.scheme}"
    if part.scheme == GROUPED and layout(part).group_size % _SMALLEST_GROUP:
        return f"groups of {layout(part).group_size}"
    if part.scheme == GROUPED and not _is_known(part.parts["values"]):
        return f"this table of {len(part.parts['values'])} values"
    return None


def _unsupported_stack(name: str, parts: Sequence[Weight]) -> Iterator[str]:
    if any(part.shape[0] % UNIT for part in parts[:-1]):
        yield "stacked matrices of these sizes"
    if name == "embedding":  # its rows are read one by one
        yield "an embedding in several schemes"
    if name.endswith("gate_up") or any("order" in part.parts for part in parts):
        yield "gate and up, or ordered columns, in several schemes"


def _is_consecutive(values: Tensor) -> bool:
    return torch.equal(values, torch.arange(len(values)) + values[0])


def _is_known(values: Tensor) -> bool:
    if values.is_meta or len(values) <= _TABLE or _is_consecutive(values):
        return True
    return len(values) == len(_E4M3) and torch.equal(values.nan_to_num(), _E4M3.nan_to_num())
