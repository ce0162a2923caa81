"""Two schemes for tests that are not affine: a codebook with a scale per group, and one with a second scale per matrix.

nf4    value = scale * NF4[code]            groups of 32, bfloat16 scales     (Dettmers et al. 2023, arXiv:2305.14314)
fp4    value = outer * scale * FP4[code]    groups of 16, e4m3 scales, and one float32 `outer` for the matrix (NVFP4)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gptfast_cli.core.schemes import GroupParams, Weight, is_like, select_part_rows

NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
FP4 = (-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

STRETCHES = (1.0, 0.95, 0.9, 0.85, 0.8)
_SMALLEST = 1e-30  # a scale that values can be divided by


@dataclass(frozen=True, slots=True)
class CodebookParams:
    """Scales [..., n_groups] as they are stored, in float32; `outer` of the same shape is 1 for one level."""

    scales: Tensor
    outer: Tensor
    table: tuple[float, ...]
    lowest: int = 0

    @property
    def highest(self) -> int:
        return len(self.table) - 1

    def encode(self, values: Tensor) -> Tensor:
        table = torch.tensor(self.table)
        share = values / (self.scales * self.outer).unsqueeze(-1)
        return torch.bucketize(share, (table[1:] + table[:-1]) / 2).to(torch.int8)

    def decode(self, codes: Tensor) -> Tensor:
        return torch.tensor(self.table)[codes.long()] * (self.scales * self.outer).unsqueeze(-1)


@dataclass(frozen=True, slots=True)
class CodebookFitter:
    """Scales from the largest magnitude of each group; candidates shrink it and refit it by least squares."""

    table: tuple[float, ...]
    outer: float
    store: Callable[[Tensor], Tensor]

    def fit(self, groups: Tensor) -> CodebookParams:
        return self._params(groups.abs().amax(-1) / max(self.table))

    def candidates(self, groups: Tensor, importance: Tensor) -> Iterator[CodebookParams]:
        for stretch in STRETCHES:
            params = self._params(groups.abs().amax(-1) / max(self.table) * stretch)
            values = torch.tensor(self.table)[params.encode(groups).long()]
            scales = (importance * groups * values).sum(-1) / (importance * values.square()).sum(-1)
            yield replace(params, scales=torch.where(scales > 0, self._params(scales).scales, params.scales))

    def _params(self, scales: Tensor) -> CodebookParams:
        outer = torch.full_like(scales, self.outer)
        return CodebookParams(self.store(scales / outer).clamp(min=_SMALLEST), outer, self.table)


@dataclass(frozen=True, slots=True)
class CodebookScheme:
    """Parts: codes int8 [out, n_groups, group_size], scales in `scale_dtype` [out, n_groups], outer float32 [out]."""

    name: str
    table: tuple[float, ...]
    group_sizes: tuple[int, ...]
    scale_dtype: torch.dtype
    is_two_level: bool

    shared_parts: tuple[str, ...] = ()

    def is_whole(self, weight: Weight) -> bool:
        return is_like(weight, self.meta_weight(weight.shape, self.group_sizes[0]))

    def dense(self, weight: Weight, dtype: torch.dtype) -> Tensor:
        scales = weight.parts["scales"].float()
        outer = weight.parts["outer"].unsqueeze(-1).expand_as(scales)
        values = CodebookParams(scales, outer, self.table).decode(weight.parts["codes"])
        return values.flatten(1)[:, : weight.shape[1]].to(dtype)

    def rows(self, weight: Weight, index: Tensor, dtype: torch.dtype) -> Tensor:
        return self.dense(weight, dtype)[index]

    def select_rows(self, weight: Weight, ranges: tuple[slice, ...]) -> Weight:
        return select_part_rows(weight, ranges)

    def columns(self, weight: Weight, columns: slice) -> Weight:
        raise NotImplementedError

    def to(self, weight: Weight, device: torch.device, dtype: torch.dtype) -> Weight:
        return Weight(weight.scheme, weight.shape, {name: part.to(device) for name, part in weight.parts.items()})

    def meta_weight(self, shape: tuple[int, ...], group_size: int | None) -> Weight:
        assert group_size in self.group_sizes
        out_features, in_features = shape
        n_groups = -(-in_features // group_size)
        parts = {
            "codes": torch.empty(out_features, n_groups, group_size, dtype=torch.int8, device="meta"),
            "scales": torch.empty(out_features, n_groups, dtype=self.scale_dtype, device="meta"),
            "outer": torch.empty(out_features, device="meta"),
        }
        return Weight(self.name, shape, parts)

    def fitter(self, matrix: Tensor) -> CodebookFitter:
        highest = torch.finfo(self.scale_dtype).max
        outer = float(matrix.abs().amax()) / max(self.table) / highest if self.is_two_level else 1.0
        return CodebookFitter(self.table, outer or 1.0, lambda scales: scales.to(self.scale_dtype).float())

    def pack(self, codes: Tensor, params: GroupParams, in_features: int) -> Weight:
        assert isinstance(params, CodebookParams)
        parts = {"codes": codes, "scales": params.scales.to(self.scale_dtype), "outer": params.outer[:, 0]}
        return Weight(self.name, (len(codes), in_features), parts)


NF4_SCHEME = CodebookScheme("nf4", NF4, (32,), torch.bfloat16, is_two_level=False)
FP4_SCHEME = CodebookScheme("fp4", FP4, (16,), torch.float8_e4m3fn, is_two_level=True)
