"""Quantized Hugging Face repositories, written from the formats' specifications, with what their weights stand for.

A writer stores one matrix [out_features, in_features] and returns its tensors, by their own names, and the matrix that
they stand for: the formula of the format in float32. compressed-tensors and bitsandbytes write their formats
themselves. Codes are packed bit by bit here, so that nothing of how they are read is used twice.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import numpy as np
import torch
from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

Stored = tuple[dict[str, Tensor], Tensor]
Writer = Callable[[Tensor], Stored]

E2M1 = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@dataclass(frozen=True)
class Format:
    """How a repository declares its weights, and how it stores those of a module, if it is quantized.

    file:  the file of the declaration and the key in it; no key: the whole file
    every: whether embedding and head are quantized too
    """

    declared: Mapping[str, Any]
    write: Writer
    file: tuple[str, str] = ("config.json", "quantization_config")
    every: bool = False
    of_module: Mapping[str, Writer | None] = field(default_factory=dict)

    def writer(self, module: str, *, is_linear: bool) -> Writer | None:
        """The writer of a module; None if it is plain."""
        for part, writer in self.of_module.items():
            if part in module:
                return writer
        return self.write if self.every or (is_linear and module != "lm_head") else None


def packed(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., n], the first in the lowest bits, as [..., ceil(n bits / 32)] int32."""
    fields = np.unpackbits(codes.to(torch.uint8).numpy()[..., None], axis=-1, bitorder="little")[..., :bits]
    flat = fields.reshape(*codes.shape[:-1], -1)
    flat = np.pad(flat, [(0, 0)] * (flat.ndim - 1) + [(0, -flat.shape[-1] % 32)])
    return torch.from_numpy(np.packbits(flat, axis=-1, bitorder="little").view(np.int32).copy())


def grouped(matrix: Tensor, size: int) -> Tensor:
    """Rows cut into groups [out, n_groups, size], the last one filled up with zeros."""
    return torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % size)).unflatten(1, (-1, size))


def spread(of_groups: Tensor, size: int, in_features: int) -> Tensor:
    """What each group has [out, n_groups] for each of its elements."""
    return of_groups.repeat_interleave(size, 1)[:, :in_features]


def affine(matrix: Tensor, bits: int, size: int, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [out, in], scales and zero points [out, n_groups] of a matrix, zero points from 0 to 2^bits - 1."""
    low, high = grouped(matrix, size).aminmax(dim=-1)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scales = ((high - low) / ((1 << bits) - 1)).to(dtype)
    zeros = (-low / scales.float()).round().clamp(0, (1 << bits) - 1)
    n = matrix.shape[1]
    codes = (matrix / spread(scales.float(), size, n) + spread(zeros, size, n)).round().clamp(0, (1 << bits) - 1)
    return codes, scales, zeros


def symmetric(matrix: Tensor, bits: int, size: int, dtype: torch.dtype = torch.float16) -> tuple[Tensor, Tensor]:
    """Codes [out, in] from -2^(bits - 1) on, and scales [out, n_groups]."""
    half = 1 << bits - 1
    scales = (grouped(matrix, size).abs().amax(-1) / (half - 1)).to(dtype)
    return (matrix / spread(scales.float(), size, matrix.shape[1])).round().clamp(-half, half - 1), scales


def gptq(bits: int, size: int | None, *, stored_less: int = 1, in_order: bool = True, borrows: bool = False) -> Writer:
    def write(matrix: Tensor) -> Stored:
        n = matrix.shape[1]
        group_size = size or n
        generator = torch.Generator().manual_seed(n)
        columns = torch.arange(n) if in_order else torch.randperm(n, generator=generator)  # by importance
        codes, scales, zeros = affine(matrix[:, columns], bits, group_size)
        if not borrows and stored_less:
            zeros = zeros.clamp(min=1)
        dense = torch.empty_like(matrix)
        dense[:, columns] = (codes - spread(zeros, group_size, n)) * spread(scales.float(), group_size, n)
        groups, in_place = torch.empty(n, dtype=torch.int32), torch.empty_like(codes)
        groups[columns] = torch.arange(n, dtype=torch.int32) // group_size
        in_place[:, columns] = codes
        stored_zeros = zeros - stored_less
        if borrows:  # each word as a whole is less by a one in every field
            words = packed(zeros.t(), bits) - sum(1 << at for at in range(0, 32, bits))
        else:
            words = packed(stored_zeros.t(), bits)
        return {
            "qweight": packed(in_place, bits).t().contiguous(),
            "qzeros": words,
            "scales": scales.t().contiguous(),
            "g_idx": groups,
        }, dense

    return write


def awq_gemm(matrix: Tensor) -> Stored:
    codes, scales, zeros = affine(matrix, 4, 32)

    def words(by_columns: Tensor) -> Tensor:  # [n, out]
        eights = by_columns.to(torch.int64).unflatten(1, (-1, 8))
        word = sum(eights[..., row] << 4 * at for at, row in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))
        return (word - (word >> 31 << 32)).int()

    n = matrix.shape[1]
    dense = (codes - spread(zeros, 32, n)) * spread(scales.float(), 32, n)
    return {"qweight": words(codes.t()), "qzeros": words(zeros.t()), "scales": scales.t().contiguous()}, dense


def awq_gemv(matrix: Tensor) -> Stored:
    codes, scales, zeros = affine(matrix, 4, 64)
    n = matrix.shape[1]
    width = 2 * math.ceil(math.ceil(n / 64 / 8) / 2)
    wide = [torch.nn.functional.pad(part, (0, 8 * width - part.shape[1])) for part in (scales, zeros)]
    dense = (codes - spread(zeros, 64, n)) * spread(scales.float(), 64, n)
    return {"qweight": packed(codes, 4), "qzeros": packed(wide[1], 4), "scales": wide[0]}, dense


def awq_gemv_fast(matrix: Tensor) -> Stored:
    """Nibble by nibble: the place of an element is worked out from the writer of AutoAWQ, `pack_intweight`."""
    codes, scales, zeros = affine(matrix, 4, 64)
    out, n = matrix.shape
    row, column = torch.meshgrid(torch.arange(out), torch.arange(n), indexing="ij")
    a, b, c = column % 32 // 8, column % 8 // 2, column % 2
    place = column // 32 * 32 + 8 * b + 4 * c + a
    in_tile = row % 4 * 64 + place % 64
    at = row // 4 * n + place // 64 * 64 + in_tile // 4
    words = torch.zeros(out // 4 * n, dtype=torch.int64)
    words.index_add_(0, at.flatten(), (codes.long() << 4 * (in_tile % 4)).flatten())
    offsets = -(scales.float() * zeros).half()
    width = 16 * math.ceil(math.ceil(n / 64 / 8) / 2)
    tall = [
        torch.nn.functional.pad(part.t(), (0, 0, 0, width - part.shape[1])).contiguous() for part in (scales, offsets)
    ]
    dense = codes * spread(scales.float(), 64, n) + spread(offsets.float(), 64, n)
    return {
        "qweight": words.to(torch.int16).view(out // 4, n),
        "qzeros": tall[1],
        "scales": tall[0],
    }, dense


def fp8_blocks(rows: int, columns: int, scale: str, dtype: torch.dtype = torch.float32, **more: Tensor) -> Writer:
    def write(matrix: Tensor) -> Stored:
        out, n = matrix.shape
        height, width = min(rows, out), min(columns, n)
        padded = torch.nn.functional.pad(matrix, (0, -n % width, 0, -out % height))
        blocks = padded.unflatten(0, (-1, height)).unflatten(2, (-1, width))
        scales = blocks.abs().amax((1, 3)) / 448
        scales = scales.log2().ceil().exp2() if dtype == torch.float8_e8m0fnu else scales.to(dtype).float()
        whole = scales.repeat_interleave(height, 0)[:out].repeat_interleave(width, 1)[:, :n]
        codes = (matrix / whole).to(torch.float8_e4m3fn)
        return {"weight": codes, scale: scales.to(dtype), **more}, codes.float() * whole

    return write


EVER = 1 << 30  # rows or columns of a block that is as tall or wide as the matrix
INPUT_SCALE = {"input_scale": torch.tensor(0.01)}


def reshaped(writer: Writer, name: str, shape: Callable[[Tensor], tuple[int, ...]]) -> Writer:
    def write(matrix: Tensor) -> Stored:
        tensors, dense = writer(matrix)
        return tensors | {name: tensors[name].reshape(shape(tensors[name]))}, dense

    return write


def of_matrix(scale: str, shape: tuple[int, ...], **more: Tensor) -> Writer:
    """8-bit floats with one scale."""
    return reshaped(fp8_blocks(EVER, EVER, scale, **more), scale, lambda _: shape)


def as_bytes(writer: Writer, name: str) -> Writer:
    def write(matrix: Tensor) -> Stored:
        tensors, dense = writer(matrix)
        return tensors | {name: tensors[name].view(torch.uint8)}, dense

    return write


def pack_quantized(bits: int, size: int | None, *, in_order: bool = True) -> Writer:
    def write(matrix: Tensor) -> Stored:
        out, n = matrix.shape
        columns = torch.arange(n) if in_order else torch.randperm(n, generator=torch.Generator().manual_seed(n))
        codes, scales = symmetric(matrix[:, columns], bits, size or n, torch.bfloat16)
        dense, in_place, groups = torch.empty_like(matrix), torch.empty_like(codes), torch.empty(n, dtype=torch.int32)
        dense[:, columns] = codes * spread(scales.float(), size or n, n)
        in_place[:, columns] = codes
        groups[columns] = torch.arange(n, dtype=torch.int32) // (size or n)
        tensors = {
            "weight_packed": pack_to_int32(in_place.to(torch.int8), bits),
            "weight_scale": scales,
            "weight_shape": torch.tensor([out, n]),
        }
        return tensors if in_order else tensors | {"weight_g_idx": groups}, dense

    return write


def pack_quantized_asymmetric(matrix: Tensor) -> Stored:
    out, n = matrix.shape
    codes, scales, zeros = affine(matrix, 4, 32, torch.bfloat16)
    return {
        "weight_packed": pack_to_int32((codes - 8).to(torch.int8), 4),
        "weight_scale": scales,
        "weight_zero_point": pack_to_int32((zeros - 8).to(torch.int8), 4, packed_dim=0),
        "weight_shape": torch.tensor([out, n]),
    }, (codes - spread(zeros, 32, n)) * spread(scales.float(), 32, n)


def int8(dtype: torch.dtype, shape: tuple[int, ...], **more: Tensor) -> Writer:
    def write(matrix: Tensor) -> Stored:
        codes, scales = symmetric(matrix, 8, matrix.shape[1], dtype)
        tensors = {"weight": codes.to(torch.int8), "weight_scale": scales.reshape(shape), **more}
        return tensors, codes * scales.float()

    return write


def int8_asymmetric(matrix: Tensor) -> Stored:
    codes, scales, zeros = affine(matrix, 8, matrix.shape[1], torch.float32)
    tensors = {"weight": (codes - 128).to(torch.int8), "weight_scale": scales}
    return tensors | {"weight_zero_point": (zeros - 128).to(torch.int8)}, (codes - zeros) * scales


def e2m1(matrix: Tensor, scales: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Values of e2m1 nearest to a matrix over its scales, and their bytes."""
    steps = matrix / spread(scales, size, matrix.shape[1])
    values = E2M1[(steps.unsqueeze(-1) - E2M1).abs().argmin(-1)]
    return values, pack_fp4_to_uint8(values)


def nvfp4(names: tuple[str, str], shape: tuple[int, ...], *, divides: bool, **more: Tensor) -> Writer:
    def write(matrix: Tensor) -> Stored:
        of_matrix = (matrix.abs().amax() / 6 / 448).float()
        of_matrix = 1 / of_matrix if divides else of_matrix
        largest = grouped(matrix, 16).abs().amax(-1) / 6
        scales = (largest * of_matrix if divides else largest / of_matrix).to(torch.float8_e4m3fn)
        whole = scales.float() / of_matrix if divides else scales.float() * of_matrix
        values, raw = e2m1(matrix, whole.clamp(min=1e-9), 16)
        tensors = {names[0]: raw, "weight_scale": scales, names[1]: of_matrix.reshape(shape), **more}
        return tensors, values * spread(whole, 16, matrix.shape[1])

    return write


def mxfp4(packed_name: str, scale_name: str, shape: Callable[[int, int], tuple[int, ...]]) -> Writer:
    def write(matrix: Tensor) -> Stored:
        out, n = matrix.shape
        exponents = (grouped(matrix, 32).abs().amax(-1) / 6).log2().ceil()
        values, raw = e2m1(matrix, exponents.exp2(), 32)
        tensors = {packed_name: raw.view(shape(out, n)), scale_name: (exponents + 127).to(torch.uint8)}
        return tensors, values * spread(exponents.exp2(), 32, n)

    return write


def mlx(bits: int, size: int, dtype: torch.dtype = torch.bfloat16) -> Writer:
    def write(matrix: Tensor) -> Stored:
        low, high = grouped(matrix, size).aminmax(dim=-1)
        scales, biases = ((high - low) / ((1 << bits) - 1)).to(dtype), low.to(dtype)
        s, t = (spread(part.float(), size, matrix.shape[1]) for part in (scales, biases))
        codes = ((matrix - t) / s).round().clamp(0, (1 << bits) - 1)
        return {"weight": packed(codes, bits).view(torch.uint32), "scales": scales, "biases": biases}, codes * s + t

    return write


def mlx_mxfp4(matrix: Tensor) -> Stored:
    tensors, dense = mxfp4("weight", "scales", lambda out, n: (out, n // 2))(matrix)
    return tensors | {"weight": tensors["weight"].view(torch.uint32)}, dense


def four_bits(kind: str, *, nested: bool, storage: torch.dtype = torch.uint8) -> Writer:
    """bitsandbytes itself; the oracle is its own dequantization in float32."""

    def write(matrix: Tensor) -> Stored:
        raw, state = bnb.quantize_4bit(
            matrix, quant_type=kind, compress_statistics=nested, blocksize=64, quant_storage=storage
        )
        tensors = {f"weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
        return {"weight": raw, **tensors}, bnb.dequantize_4bit(raw, state)

    return write


def llm_int8(matrix: Tensor) -> Stored:
    largest = matrix.abs().amax(1)
    codes = (matrix * 127 / largest.unsqueeze(1)).round()
    dense = (codes.double() * largest.unsqueeze(1).double() / 127).float()
    return {"weight": codes.to(torch.int8), "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}, dense


def ct(layout: str, weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What compressed-tensors declares for all linear layers but the head."""
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
        **more,
    }


def ints(bits: int, size: int | None, *, sym: bool = True) -> dict[str, Any]:
    strategy = "channel" if size is None else "group"
    return {"num_bits": bits, "type": "int", "strategy": strategy, "group_size": size, "symmetric": sym}


def floats(bits: int, strategy: str, size: int | None = None, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": "float", "strategy": strategy, "group_size": size, "symmetric": True, **more}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "zero_point": True}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
MIXED = {
    "quant_method": "compressed-tensors",
    "format": "mixed-precision",
    "ignore": ["lm_head", "re:.*layers\\.1\\.mlp.*"],
    "config_groups": {
        "group_0": {"targets": ["re:.*self_attn.*"], "weights": floats(8, "channel"), "format": "float-quantized"},
        "group_1": {"targets": ["re:.*mlp.*"], "weights": ints(4, 32), "format": "pack-quantized"},
    },
}

CHANNEL_FP8 = fp8_blocks(1, EVER, "weight_scale", torch.bfloat16)

FORMATS: dict[str, Format] = {
    "gptq": Format(GPTQ, gptq(4, 32)),
    "gptq, act-order": Format({**GPTQ, "desc_act": True, "group_size": 64}, gptq(4, 64, in_order=False)),
    "gptq, 8 bits, rows": Format({**GPTQ, "bits": 8, "group_size": -1}, gptq(8, None)),
    "gptq, 3 bits": Format({**GPTQ, "bits": 3}, gptq(3, 32)),
    "gptq, 2 bits": Format({**GPTQ, "bits": 2}, gptq(2, 32)),
    "gptq_v2": Format({**GPTQ, "checkpoint_format": "gptq_v2", "sym": False}, gptq(4, 32, stored_less=0)),
    "gptq of GPTQModel, zeros that borrow": Format(
        {**GPTQ, "sym": False, "meta": {"quantizer": ["gptqmodel:5.0.0"]}}, gptq(4, 32, borrows=True)
    ),
    "gptq by quantize_config.json": Format(
        {key: value for key, value in GPTQ.items() if key != "quant_method"}, gptq(4, 32), ("quantize_config.json", "")
    ),
    "awq gemm": Format({**AWQ, "group_size": 32, "version": "gemm"}, awq_gemm),
    "awq gemv": Format({**AWQ, "group_size": 64, "version": "gemv"}, awq_gemv),
    "awq gemv_fast": Format({**AWQ, "group_size": 64, "version": "gemv_fast"}, awq_gemv_fast),
    "fp8 blocks": Format(
        {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"},
        fp8_blocks(128, 128, "weight_scale_inv"),
        of_module={"layers.1.mlp.down_proj": None},
    ),
    "fp8 blocks, e8m0": Format(
        {"quant_method": "fp8", "weight_block_size": [32, 64]},
        fp8_blocks(32, 64, "weight_scale_inv", torch.float8_e8m0fnu),
    ),
    "fp8 matrix": Format(
        {"quant_method": "fp8", "activation_scheme": "static"},
        of_matrix("weight_scale", (), **INPUT_SCALE),
    ),
    "ct W4A16": Format(ct("pack-quantized", ints(4, 32)), pack_quantized(4, 32)),
    "ct W4A16, act-order": Format(
        ct("pack-quantized", {**ints(4, 64), "actorder": "group"}), pack_quantized(4, 64, in_order=False)
    ),
    "ct W4A16, asymmetric": Format(ct("pack-quantized", ints(4, 32, sym=False)), pack_quantized_asymmetric),
    "ct W8A16, rows": Format(ct("pack-quantized", ints(8, None)), pack_quantized(8, None)),
    "ct W8A8": Format(ct("int-quantized", ints(8, None)), int8(torch.bfloat16, (-1, 1), **INPUT_SCALE)),
    "ct W8A8, asymmetric": Format(ct("int-quantized", ints(8, None, sym=False)), int8_asymmetric),
    "ct FP8, matrix": Format(
        ct("float-quantized", floats(8, "tensor")),
        of_matrix("weight_scale", (1,)),
    ),
    "ct FP8, rows": Format(ct("float-quantized", floats(8, "channel")), CHANNEL_FP8),
    "ct FP8, blocks": Format(
        ct("float-quantized", floats(8, "block", block_structure=[128, 128])), fp8_blocks(128, 128, "weight_scale")
    ),
    "ct NVFP4": Format(
        ct("nvfp4-pack-quantized", floats(4, "tensor_group", 16)),
        nvfp4(("weight_packed", "weight_global_scale"), (1,), divides=True, input_global_scale=torch.tensor([3.0])),
    ),
    "ct MXFP4": Format(
        ct("mxfp4-pack-quantized", floats(4, "group", 32)),
        mxfp4("weight_packed", "weight_scale", lambda out, n: (out, n // 2)),
    ),
    "ct MXFP8": Format(
        ct("mxfp8-quantized", floats(8, "group", 32)),
        as_bytes(fp8_blocks(1, 32, "weight_scale", torch.float8_e8m0fnu), "weight_scale"),
    ),
    "ct mixed": Format(MIXED, pack_quantized(4, 32), of_module={"layers.1.mlp": None, "self_attn": CHANNEL_FP8}),
    "modelopt FP8": Format(
        {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
        of_matrix("weight_scale", (), **INPUT_SCALE, k_scale=torch.tensor(1.0)),
    ),
    "modelopt NVFP4 by hf_quant_config.json": Format(
        {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head"]},
        nvfp4(("weight", "weight_scale_2"), (), divides=False, **INPUT_SCALE),
        ("hf_quant_config.json", "quantization"),
    ),
    "modelopt FP8_PB_WO": Format(
        {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"},
        reshaped(fp8_blocks(128, 128, "weight_scale"), "weight_scale", lambda s: (len(s), 1, s.shape[1], 1)),
    ),
    "modelopt W8A16": Format({"quant_method": "modelopt", "quant_algo": "W8A16"}, int8(torch.float32, (-1,))),
    "bitsandbytes nf4": Format(NF4, four_bits("nf4", nested=False)),
    "bitsandbytes nf4, nested": Format(NF4, four_bits("nf4", nested=True)),
    "bitsandbytes fp4, in bfloat16": Format(
        {**NF4, "bnb_4bit_quant_type": "fp4"}, four_bits("fp4", nested=False, storage=torch.bfloat16)
    ),
    "bitsandbytes int8": Format({"quant_method": "bitsandbytes", "load_in_8bit": True}, llm_int8),
    "mxfp4": Format(
        {"quant_method": "mxfp4"}, mxfp4("weight_blocks", "weight_scales", lambda out, n: (out, n // 32, 16))
    ),
    "mlx": Format(
        {"bits": 4, "group_size": 64, "model.layers.0.mlp.down_proj": {"bits": 8, "group_size": 32}},
        mlx(4, 64),
        ("config.json", "quantization"),
        every=True,
        of_module={"layers.0.mlp.down_proj": mlx(8, 32)},
    ),
    "mlx, 3 bits": Format(
        {"bits": 3, "group_size": 32}, mlx(3, 32, torch.float16), ("config.json", "quantization"), every=True
    ),
    "mlx mxfp4": Format(
        {"bits": 4, "group_size": 32, "mode": "mxfp4"}, mlx_mxfp4, ("config.json", "quantization"), every=True
    ),
}

SIZES: dict[str, Any] = {
    "vocab_size": 104,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN_SIZES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"tie_word_embeddings": True},
    "gemma3_text": {"query_pre_attn_scalar": 32, "sliding_window": 24, "sliding_window_pattern": 2},
}


def saved(folder: Path, name: str, family: str = "llama") -> PreTrainedModel:
    """A repository in a format, and the model of transformers with the weights that it stands for, in float32."""
    form = FORMATS[name]
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**SIZES | OWN_SIZES[family])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    tensors: dict[str, Tensor] = {}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.15)
        for module_name, module in model.named_modules():
            if module_name == "lm_head" and config.tie_word_embeddings:
                continue
            own = dict(module.named_parameters(recurse=False))
            writer = form.writer(module_name, is_linear=isinstance(module, torch.nn.Linear))
            if "weight" in own and own["weight"].ndim == 2 and writer is not None:
                stored, dense = writer(own.pop("weight").detach().clone())
                module.weight.copy_(dense)
                tensors |= {f"{module_name}.{part}": tensor.clone().contiguous() for part, tensor in stored.items()}
            tensors |= {f"{module_name}.{part}": tensor.detach().clone() for part, tensor in own.items()}
    folder.mkdir(parents=True)
    config.architectures = [type(model).__name__]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    file, key = form.file
    values = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    values |= {key: form.declared} if key else form.declared
    (folder / file).write_text(json.dumps(values))
    return model
