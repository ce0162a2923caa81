"""Frequencies and attention factors of every kind of RoPE are those of transformers."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gptfast_cli.core.families import families
from gptfast_cli.core.models.rope import frequencies

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
LONG = {"short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 3.0, 4.0], "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "factor": 3.0},
        {"rope_type": "dynamic", "factor": 3.0},
        {"rope_type": "llama3", **LLAMA3},
        YARN,
        YARN | {"factor": 0.5},
        YARN | {"factor": None},
        YARN | {"rope_theta": 50.0, "beta_slow": 0.2},  # the blend ends beyond the last pair
        YARN | {"original_max_position_embeddings": 8, "beta_fast": 1.0, "beta_slow": 1.0},  # it has no width
        YARN | {"truncate": False, "mscale": 0.8, "mscale_all_dim": 0.5},
        YARN | {"attention_factor": 1.3, "mscale": 0.8},
        {"rope_type": "proportional", "partial_rotary_factor": 0.3, "factor": 2.0},
    ],
    ids=str,
)
def test_frequencies_of_whole_heads(parameters: dict[str, Any]) -> None:
    config = LlamaConfig(
        head_dim=64, max_position_embeddings=16_384, rope_parameters={"rope_theta": 10_000.0, **parameters}
    )
    check(families["llama"].config(config.to_dict()).layers[0].attention.rope, 64, config)


@pytest.mark.parametrize("name", ["longrope", "su", "yarn"])
@pytest.mark.parametrize(
    ("max_context", "more"), [(4096, {}), (131_072, {}), (131_072, {"factor": 2.0}), (8192, {"attention_factor": 1.4})]
)
def test_frequencies_of_a_part_of_a_head_with_longrope(name: str, max_context: int, more: dict[str, float]) -> None:
    config = Phi3Config(
        hidden_size=80,
        num_attention_heads=8,
        max_position_embeddings=max_context,
        partial_rotary_factor=0.6,
        rope_scaling={"type": name, **LONG, **more},
    )
    ours = families["phi3"].config(config.to_dict())
    assert (ours.max_context, ours.longest_context) == (4096, max_context)  # longer texts have other frequencies
    check(ours.layers[0].attention.rope, 10, config)
    longer = ours.for_context(max_context)
    assert longer.max_context == max_context and ours.for_context(4096) == ours
    if max_context > 4096:
        check(longer.layers[0].attention.rope, 10, config, seq_len=4097)


def check(rope: Any, head_dim: int, config: Any, *, seq_len: int | None = None) -> None:
    find = ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]]
    radians, attention_factor = find(config, torch.device("cpu"), seq_len=seq_len)
    ours = frequencies(head_dim, rope)
    torch.testing.assert_close(ours.radians, radians, rtol=1e-6, atol=0)
    assert ours.attention_factor == pytest.approx(attention_factor, rel=1e-12)
