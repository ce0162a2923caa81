"""LoRA adapters as PEFT saves them, and what merging them gives, computed from the file's tensors in float64."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX = "base_model.model."
RANK, ALPHA = 4, 6
MLP = ("gate_proj", "up_proj", "down_proj")


def saved_adapter(
    folder: Path, base: Mapping[str, Tensor], targets: tuple[str, ...], ranks: Mapping[str, int] = {}, **config: Any
) -> Path:
    """A random adapter of the base's modules of these names; `ranks` of modules, where they are not RANK."""
    tensors: dict[str, Tensor] = {}
    torch.manual_seed(1)
    for name, weight in base.items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] not in targets or weight.ndim != 2:
            continue
        rank = ranks.get(module, RANK)
        if "embed" in module:
            tensors[f"{PREFIX}{module}.lora_embedding_A"] = torch.randn(rank, weight.shape[0])
            tensors[f"{PREFIX}{module}.lora_embedding_B"] = torch.randn(weight.shape[1], rank)
        else:
            tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(rank, weight.shape[1])
            tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.randn(weight.shape[0], rank)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA", "base_model_name_or_path": "org/base", "r": RANK, "lora_alpha": ALPHA, "bias": "none",
        "target_modules": list(targets), "use_rslora": False, "use_dora": False, "fan_in_fan_out": False,
        "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "init_lora_weights": True,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(fields | config))
    return folder


def merged(base: Mapping[str, Tensor], adapter: Path, scales: Mapping[str, float]) -> dict[str, Tensor]:
    """The base's tensors with the adapter's, float64; `scales` of modules, where they are not ALPHA / RANK."""
    tensors = {name: tensor.double() for name, tensor in load_file(adapter / "adapter_model.safetensors").items()}
    result = {name: weight.double() for name, weight in base.items()}
    for name, tensor in tensors.items():
        path = name.removeprefix(PREFIX)
        if path in base:
            result[path] = tensor
    for name, a in tensors.items():
        for suffix, other in ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B")):
            if not name.endswith(suffix):
                continue
            module = name.removeprefix(PREFIX).removesuffix(suffix)
            b = tensors[name.removesuffix(suffix) + other]
            change = torch.einsum("or,ri->oi", b, a) * scales.get(module, ALPHA / RANK)
            result[f"{module}.weight"] += change.T if "embedding" in suffix else change
    return result
