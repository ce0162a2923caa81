"""How a model is divided among the devices of tensor parallelism, of which each gets an equal part of every layer.

Query, key and value heads, the rows of gate and up and those of the embedding and the head are dealt out. The output
and down projections are cut along their inputs: a device multiplies what it has itself, and an all-reduce adds up what
all have (Megatron-LM, Shoeybi et al. 2019, arXiv:1909.08053). Devices beyond the number of key and value heads hold
copies of these; norms are on every device.

A part is the shape of a narrower model. What is known of a shape, such as the shapes of its weights and the bytes of
its keys and values, is thereby known of a part.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from gptfast_cli.core.config import ModelConfig
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.formats import quantized
from gptfast_cli.core.model.weights import weight_shapes
from gptfast_cli.core.quant.allocation import Storage

CUT_ALONG_INPUTS: Final = ("attention_output", "down")
"""Matrices of a layer of which a device has some columns, and not some rows."""

_MOST_DEVICES = 64


def part_of(config: ModelConfig, storages: Mapping[str, Storage], n_devices: int) -> ModelConfig:
    """The shape of each device's part; a vocabulary that does not divide is padded.

    storages: of every weight by its name, as in `weight_shapes`
    Raises UsageError where heads, the feed-forward width or the groups of a quantised matrix do not divide.
    """
    obstacle = next(_obstacles(config, storages, n_devices), None)
    if obstacle is not None:
        even = [n for n in range(1, _MOST_DEVICES + 1) if not any(_obstacles(config, storages, n))]
        raise UsageError(f"--tp {n_devices}: {obstacle}.", f"It divides among {', '.join(map(str, even))}.")
    return _part(config, n_devices)


def _part(config: ModelConfig, n_devices: int) -> ModelConfig:
    return replace(
        config,
        n_heads=config.n_heads // n_devices,
        n_kv_heads=max(1, config.n_kv_heads // n_devices),
        ffn_dim=config.ffn_dim // n_devices,
        vocab_size=-(-config.vocab_size // n_devices),
    )


def _obstacles(config: ModelConfig, storages: Mapping[str, Storage], n_devices: int) -> Iterator[str]:
    if config.n_heads % n_devices:
        yield f"{config.n_heads} query heads do not divide among {n_devices} devices"
    if config.n_kv_heads % n_devices and n_devices % config.n_kv_heads:
        yield f"{config.n_kv_heads} key and value heads do not divide among {n_devices} devices"
    if config.ffn_dim % n_devices:
        yield f"{config.ffn_dim} elements of the feed-forward do not divide among {n_devices} devices"
    elif n_devices > 1:  # whole, a matrix may end within a group
        yield from _broken_groups(config, storages, n_devices)


def _broken_groups(config: ModelConfig, storages: Mapping[str, Storage], n_devices: int) -> Iterator[str]:
    """A group has one scale, so that a cut through it would give two devices half of what neither can be without."""
    for name, shape in weight_shapes(_part(config, n_devices)).items():
        size = storages[name].group_size
        if name.endswith(CUT_ALONG_INPUTS) and size is not None and shape[1] % size:
            sizes = [str(other) for other in quantized(storages[name].scheme).group_sizes if shape[1] % other == 0]
            others = f"; groups of {' or '.join(sizes)} would" if sizes else ""
            yield f"{name} has {shape[1]} columns a device, which groups of {size} do not divide{others}"
