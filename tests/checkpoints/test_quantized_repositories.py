"""Quantized repositories give the weights that they stand for, bit for bit, and the logits of such a model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import foreign_files as foreign
from gptfast_cli.core.checkpoints.foreign import ForeignCheckpoint
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.writer import tensor_sha256
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.families import families
from gptfast_cli.core.schemes import Weight, forms, schemes
from model_files import converted, edit_json, edit_tensors, settings_in
from quantized_repositories import FORMATS, OWN_SIZES, saved

WEIGHTS = "model.safetensors"


def dense(weight: Weight) -> torch.Tensor:
    return schemes[weight.scheme].dense(weight, torch.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_weights_and_logits_are_those_that_the_format_stands_for(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path / "model", name)
    checkpoint = open_checkpoint(tmp_path / "model")
    assert isinstance(checkpoint, ForeignCheckpoint)
    expected = model.state_dict()
    for ours, theirs in families["llama"].sources(checkpoint.config).items():
        whole = torch.cat([expected[tensor] for tensor in theirs])
        weight = checkpoint.weight(ours)
        assert schemes[weight.scheme].is_whole(weight), ours
        assert forms(checkpoint.outline(ours)) == forms(weight), ours
        if name == "bitsandbytes int8":  # code * (SCB / 127) against code * SCB / 127 rounded once
            torch.testing.assert_close(dense(weight), whole, rtol=2e-7, atol=0)
        else:
            assert torch.equal(dense(weight), whole), ours
    tokens = torch.randint(104, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(tokens).logits
        torch.testing.assert_close(foreign.logits_of(checkpoint, tokens), logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", OWN_SIZES)
@pytest.mark.parametrize("name", ["gptq, act-order", "ct NVFP4", "fp8 blocks", "mlx"])
def test_so_are_those_of_other_families(tmp_path: Path, family: str, name: str) -> None:
    model = saved(tmp_path / "model", name, family)
    checkpoint = open_checkpoint(tmp_path / "model")
    tokens = torch.randint(104, (2, 60), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(tokens).logits
        torch.testing.assert_close(foreign.logits_of(checkpoint, tokens), expected, rtol=0, atol=1e-5)


def test_a_multimodal_models_text_model_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model = saved(folder, "ct mixed", "gemma3_text")
    edit_json(
        folder / "config.json",
        lambda v: v.update(model_type="gemma3", text_config=dict(v), architectures=["Gemma3ForConditionalGeneration"]),
    )
    edit_tensors(
        folder / WEIGHTS,
        lambda t: t.update({f"language_model.{name}": t.pop(name) for name in list(t)}),
    )
    tokens = torch.randint(104, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model(tokens).logits
    torch.testing.assert_close(foreign.logits_of(open_checkpoint(folder), tokens), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FORMATS)
def test_converting_keeps_every_weight_as_it_is(tmp_path: Path, name: str) -> None:
    saved(tmp_path / "model", name)
    source = open_checkpoint(tmp_path / "model")
    made = converted(tmp_path / "model", settings_in(tmp_path), verify=True)
    written = open_checkpoint(made.path)
    for ours in source.parts:
        before, after = source.weight(ours), written.weight(ours)
        assert forms(before) == forms(after)
        assert {key: tensor_sha256(part) for key, part in before.parts.items()} == {
            key: tensor_sha256(part) for key, part in after.parts.items()
        }
    assert written.dtype == torch.bfloat16
    assert made.n_params == source.n_params
    assert (written.scheme, written.stored_as) == (source.scheme, source.stored_as) != ("plain", "plain")


def test_rows_of_the_same_format_are_one_matrix(tmp_path: Path) -> None:
    for name in ("gptq", "fp8 matrix", "awq gemm", "ct W4A16", "bitsandbytes nf4", "mlx, 3 bits"):
        saved(tmp_path / name, name)
        assert open_checkpoint(tmp_path / name).weight("layers.0.qkv").scheme == "grouped", name
    saved(tmp_path / "act", "gptq, act-order")
    assert open_checkpoint(tmp_path / "act").weight("layers.1.qkv").scheme == "grouped"  # one order for all three
    edit_tensors(tmp_path / "act" / WEIGHTS, lambda t: t[f"{QUERY}.g_idx"].copy_(t[f"{QUERY}.g_idx"].flip(0)))
    assert open_checkpoint(tmp_path / "act").weight("layers.1.qkv").scheme == "stacked"


QUERY = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize("name", FORMATS)
def test_every_tensor_of_a_module_is_needed_and_checked(tmp_path: Path, name: str) -> None:
    """Without it, or with one row more, the error names it; but for what formats may leave out."""
    folder = tmp_path / "model"
    saved(folder, name)
    whole = (folder / WEIGHTS).read_bytes()
    with safe_open(folder / WEIGHTS, "pt") as file:
        tensors = [tensor for tensor in file.keys() if tensor.startswith(f"{QUERY}.")]  # noqa: SIM118
    checked = 0
    for tensor in tensors:
        own = tensor.removeprefix(f"{QUERY}.")
        if own in MAY_BE_MISSING:
            continue
        for damage in (lambda t, at: t.pop(at), lambda t, at: t.update({at: torch.zeros(7, 3, 2, dtype=t[at].dtype)})):
            (folder / WEIGHTS).write_bytes(whole)
            edit_tensors(folder / WEIGHTS, lambda t, damage=damage, at=tensor: damage(t, at))
            with pytest.raises(CorruptError) as caught:
                open_checkpoint(folder)
            assert QUERY in str(caught.value), own
            assert own in str(caught.value) or not tensors[1:], (own, str(caught.value))
            checked += 1
    assert checked >= 2


MAY_BE_MISSING = {
    *("g_idx", "weight_g_idx", "weight_shape", "weight_zero_point", "weight_format"),
    *("input_scale", "input_global_scale", "k_scale"),
}


DAMAGES = {
    "a group that is not there": (
        "gptq, act-order",
        lambda t: t[f"{QUERY}.g_idx"].fill_(9),
        f"{QUERY}.g_idx: names group 9",
    ),
    "another shape": (
        "ct W4A16",
        lambda t: t[f"{QUERY}.weight_shape"].fill_(5),
        f"{QUERY}.weight_shape: is \\[5, 5\\], and config.json makes it \\[128, 128\\]",
    ),
    "another blocksize": (
        "bitsandbytes nf4",
        lambda t: t.update({STATE: encoded(t[STATE], blocksize=32)}),
        f"{QUERY}.weight.absmax: is float32 \\[256\\], and config.json makes it float32 \\[512\\]",
    ),
    "no JSON": ("bitsandbytes nf4", lambda t: t[STATE].fill_(65), "bitsandbytes__nf4: not readable as JSON"),
    "a bias that the model has not": (
        "gptq",
        lambda t: t.update({f"{QUERY}.bias": torch.ones(128)}),
        f"{QUERY}.bias: not a tensor of this model",
    ),
    "an unknown tensor": (
        "awq gemm",
        lambda t: t.update({f"{QUERY}.weight_extra": torch.ones(128)}),
        f"{QUERY}.weight_extra: not a tensor of this model",
    ),
}
STATE = f"{QUERY}.weight.quant_state.bitsandbytes__nf4"


def encoded(state: torch.Tensor, **changes: object) -> torch.Tensor:
    return torch.tensor(list(json.dumps(json.loads(bytes(state.tolist())) | changes).encode()), dtype=torch.uint8)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_tensor_is_named(tmp_path: Path, damage: str) -> None:
    name, change, message = DAMAGES[damage]
    saved(tmp_path / "model", name)
    edit_tensors(tmp_path / "model" / WEIGHTS, change)
    with pytest.raises(CorruptError, match=message):
        open_checkpoint(tmp_path / "model")


def test_a_scale_that_is_no_number_is_found_by_convert(tmp_path: Path) -> None:
    saved(tmp_path / "model", "gptq")
    edit_tensors(tmp_path / "model" / WEIGHTS, lambda t: t[f"{QUERY}.scales"].fill_(torch.nan))
    with pytest.raises(CorruptError, match=r"layers\.1\.qkv\.scales: holds NaN"):
        converted(tmp_path / "model", settings_in(tmp_path))


REFUSED = {
    "a method": ("gptq", {"quant_method": "aqlm"}, "config.json: quantization_config: weights in the format aqlm"),
    "a layout of GPTQ": ("gptq", {"checkpoint_format": "marlin"}, "the GPTQ layout marlin is not supported"),
    "an older word for it": ("gptq", {"is_marlin_format": True}, "the GPTQ layout marlin is not supported"),
    "bits of GPTQ": ("gptq", {"bits": 5}, "GPTQ of 5 bits is not supported"),
    "a layout of AWQ": ("awq gemm", {"version": "marlin"}, "the AWQ layout marlin is not supported"),
    "bits of compressed-tensors": (
        "ct W4A16",
        {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 3, "group_size": 32}}}},
        "pack-quantized of 3 bits is not supported",
    ),
    "sparse matrices": ("ct W4A16", {"format": "marlin-24"}, "the format marlin-24 of compressed-tensors"),
    "sparse matrices, dense codes": (
        "ct W4A16",
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
        "sparsity_config",
    ),
    "rotations": ("ct W4A16", {"transform_config": {"config_groups": {"u": {}}}}, "transform_config"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_refused_by_name_and_not_called_damaged(tmp_path: Path, case: str) -> None:
    name, change, message = REFUSED[case]
    saved(tmp_path / "model", name)
    edit_json(tmp_path / "model" / "config.json", lambda v: v["quantization_config"].update(change))
    with pytest.raises(UsageError, match=message) as caught:
        open_checkpoint(tmp_path / "model")
    assert "gptfast reads GPTQ, AWQ" in caught.value.hint


def test_a_method_whose_files_have_other_names_is_refused_by_name_too(tmp_path: Path) -> None:
    saved(tmp_path / "model", "gptq")
    edit_json(tmp_path / "model" / "config.json", lambda v: v["quantization_config"].update(quant_method="exl2"))
    (tmp_path / "model" / WEIGHTS).rename(tmp_path / "model" / "output-00001-of-00001.safetensors")
    with pytest.raises(UsageError, match="weights in the format exl2 are not supported"):
        open_checkpoint(tmp_path / "model")


def test_factors_of_the_input_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model", "modelopt NVFP4 by hf_quant_config.json")
    edit_tensors(tmp_path / "model" / WEIGHTS, lambda t: t.update({f"{QUERY}.pre_quant_scale": torch.ones(128)}))
    with pytest.raises(UsageError, match="pre_quant_scale of ModelOpt is not supported"):
        open_checkpoint(tmp_path / "model")


def test_zero_biases_of_older_autogptq_are_left_out(tmp_path: Path) -> None:
    saved(tmp_path / "model", "gptq")
    edit_tensors(tmp_path / "model" / WEIGHTS, lambda t: t.update({f"{QUERY}.bias": torch.zeros(128).half()}))
    assert open_checkpoint(tmp_path / "model").weight("layers.1.qkv").shape == (256, 128)


def test_scales_of_activations_are_left_out_and_a_note_says_so(tmp_path: Path) -> None:
    saved(tmp_path / "model", "modelopt FP8")
    checkpoint = open_checkpoint(tmp_path / "model")
    assert [note.partition(" are not used")[0] for note in checkpoint.notes] == [
        "Scales that are stored for activations",
        "Scales that are stored for the KV cache",
    ]
    saved(tmp_path / "other", "gptq")
    assert open_checkpoint(tmp_path / "other").notes == ()


def test_it_tells_its_format_size_and_dtype(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", "gptq")
    checkpoint = open_checkpoint(tmp_path / "model")
    assert (checkpoint.scheme, checkpoint.dtype) == ("gptq-4bit-g32", torch.bfloat16)
    assert checkpoint.n_params == sum(parameter.numel() for parameter in model.parameters())
    assert checkpoint.n_bytes < (tmp_path / "model" / WEIGHTS).stat().st_size


def test_a_plain_model_may_declare_a_method(tmp_path: Path) -> None:
    """All modules ignored: the tensors decide."""
    saved(tmp_path / "model", "gptq")
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "model"))
    save_file(
        {name: tensor.float() for name, tensor in model.state_dict().items()},
        tmp_path / "model" / WEIGHTS,
    )
    assert open_checkpoint(tmp_path / "model").scheme == "plain"
