"""A LoRA adapter is merged as PEFT defines it; what does not fit is refused by name, and no tensor is left unused."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from families.random_models import FIRST_CASES, saved_model
from gptfast_cli.core.checkpoints.manifest import read_manifest
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.errors import CorruptError, GptFastError, NotFoundError, UsageError
from gptfast_cli.core.events import Note
from gptfast_cli.core.families import families
from gptfast_cli.core.jobs.convert import ConvertRequest, run
from llama_oracle import SHAPES
from lora_adapters import ALPHA, MLP, PREFIX, RANK, merged, saved_adapter
from model_files import WEIGHTS, converted, drained, edit_json, edit_tensors, saved, settings_in

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
Q0, DOWN1 = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / WEIGHTS)


def check_merged(
    source: Path, adapter: Path, settings: Any, scales: dict[str, float], *, family: str = "llama", **options: Any
) -> None:
    """Every weight of the conversion is that of the float64 oracle, to the accuracy of its dtype."""
    ours = open_checkpoint(converted(source, settings, lora=str(adapter), **options).path)
    expected, base = merged(tensors_of(source), adapter, scales), tensors_of(source)
    changed = 0
    for name, sources in families[family].sources(ours.config).items():
        found = ours.weight(name).parts["weight"]
        wanted = torch.cat([expected[each] for each in sources])
        accuracy = torch.finfo(found.dtype).eps
        torch.testing.assert_close(found.double(), wanted, rtol=accuracy, atol=20 * torch.finfo(torch.float32).eps)
        changed += not torch.equal(wanted, torch.cat([base[each] for each in sources]).double())
    assert changed > 0


@pytest.mark.parametrize("targets", [("q_proj",), ATTENTION, (*ATTENTION, *MLP), ("lm_head", "embed_tokens")])
@pytest.mark.parametrize("shape", ["grouped-query", "biases"])
def test_the_weights_are_those_of_the_sum_in_float64(tmp_path: Path, shape: str, targets: tuple[str, ...]) -> None:
    source = saved(tmp_path / "model", **SHAPES[shape])
    adapter = saved_adapter(tmp_path / "adapter", tensors_of(source), targets)
    check_merged(source, adapter, settings_in(tmp_path), {})


@pytest.mark.parametrize(("family", "case"), FIRST_CASES)
def test_an_adapter_of_every_matrix_of_a_family_is_merged(tmp_path: Path, family: str, case: str) -> None:
    saved_model(tmp_path / "model", family, case)
    matrices = (*ATTENTION, *MLP, "qkv_proj", "gate_up_proj")
    adapter = saved_adapter(tmp_path / "adapter", tensors_of(tmp_path / "model"), matrices, target_modules=".*_proj")
    check_merged(tmp_path / "model", adapter, settings_in(tmp_path), {}, family=family)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_an_adapter_of_a_multimodal_model_is_merged_into_its_text_model(tmp_path: Path, prefix: str) -> None:
    source = saved(tmp_path / "model")
    adapter = saved_adapter(tmp_path / "adapter", tensors_of(source), ATTENTION)
    wrapped = shutil.copytree(adapter, tmp_path / "wrapped")

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.replace(f"{PREFIX}model.", f"{PREFIX}{prefix}")] = tensors.pop(name)

    edit_tensors(wrapped / "adapter_model.safetensors", rename)
    settings = settings_in(tmp_path)
    ours, theirs = (open_checkpoint(converted(source, settings, lora=str(each)).path) for each in (wrapped, adapter))
    for name in ("layers.0.qkv", "layers.2.attention_output"):
        assert torch.equal(ours.weight(name).parts["weight"], theirs.weight(name).parts["weight"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_sum_is_rounded_once_to_the_dtype_that_is_stored(tmp_path: Path, dtype: str) -> None:
    source = saved(tmp_path / "model")
    edit_tensors(source / WEIGHTS, lambda t: t.update({name: each.bfloat16() for name, each in t.items()}))
    adapter = saved_adapter(tmp_path / "adapter", tensors_of(source), ATTENTION)
    check_merged(source, adapter, settings_in(tmp_path), {}, dtype=dtype)


def test_rank_stabilised_lora_divides_by_the_root_of_the_rank(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    base = tensors_of(source)
    adapter = saved_adapter(tmp_path / "adapter", base, ("q_proj",), use_rslora=True, fan_in_fan_out=True)
    scales = {name.removesuffix(".weight"): ALPHA / math.sqrt(RANK) for name in base}
    check_merged(source, adapter, settings_in(tmp_path), scales)


def test_patterns_give_single_modules_their_rank_and_alpha(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    adapter = saved_adapter(
        tmp_path / "adapter",
        tensors_of(source),
        ("q_proj", "down_proj"),
        ranks={Q0: 2, DOWN1: 3},
        rank_pattern={"layers.0.self_attn.q_proj": 2, r".*\.1\.mlp.down_proj": 3},
        alpha_pattern={r"^model\.layers\.0\.self_attn\.q_proj": 5, "oj": 100},  # a pattern matches whole names
    )
    check_merged(source, adapter, settings_in(tmp_path), {Q0: 5 / 2, DOWN1: ALPHA / 3})


def test_modules_to_save_take_the_place_of_the_bases(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    base = tensors_of(source)
    adapter = saved_adapter(tmp_path / "adapter", base, ("q_proj",), modules_to_save=["lm_head", "norm"])
    for name in ("lm_head.weight", "model.norm.weight"):
        add_tensor(adapter, PREFIX + name, torch.randn_like(base[name]))
    check_merged(source, adapter, settings_in(tmp_path), {})


def test_a_checkpoint_of_our_own_is_a_base_too(tmp_path: Path) -> None:
    source, settings = saved(tmp_path / "model"), settings_in(tmp_path)
    adapter = saved_adapter(tmp_path / "adapter", tensors_of(source), ("k_proj", "up_proj"))
    directly = converted(source, settings, lora=str(adapter)).path
    plain = converted(source, settings, out=tmp_path / "plain").path
    again = converted(plain, settings, lora=str(adapter), out=tmp_path / "again").path
    for name in read_manifest(directly).weights:
        one, other = (open_checkpoint(path).weight(name).parts["weight"] for path in (directly, again))
        assert torch.equal(one, other), name


def test_the_result_has_a_name_of_its_own_and_names_the_adapter(tmp_path: Path) -> None:
    source, settings = saved(tmp_path / "model"), settings_in(tmp_path)
    adapter = saved_adapter(tmp_path / "my adapter", tensors_of(source), ("q_proj",))
    plain, result = converted(source, settings), converted(source, settings, lora=str(adapter), verify=True)
    assert (plain.name, result.name) == ("model", "model:my-adapter") and plain.path != result.path
    entry = read_manifest(result.path).provenance.adapter
    assert entry is not None and entry.name == "my adapter" and len(entry.sha256) == 64
    assert read_manifest(plain.path).provenance.adapter is None


def test_the_same_adapter_is_there_already_and_a_changed_one_is_not(tmp_path: Path) -> None:
    source, settings = saved(tmp_path / "model"), settings_in(tmp_path)
    adapter = saved_adapter(tmp_path / "adapter", tensors_of(source), ("q_proj",))
    request = ConvertRequest(str(source), settings, lora=str(adapter))
    assert not drained(run(request))[1].was_there
    events, again = drained(run(request))
    assert again.was_there and any(isinstance(event, Note) and "already exists" in event.text for event in events)
    edit_json(adapter / "adapter_config.json", lambda fields: fields.update(lora_alpha=7))
    with pytest.raises(UsageError, match="holds a checkpoint already"):
        drained(run(request))
    edit_json(adapter / "adapter_config.json", lambda fields: fields.update(lora_alpha=ALPHA))
    edit_tensors(adapter / "adapter_model.safetensors", lambda tensors: next(iter(tensors.values())).mul_(1.01))
    with pytest.raises(UsageError, match="holds a checkpoint already"):
        drained(run(request))


def add_tensor(adapter: Path, name: str, tensor: Tensor) -> None:
    edit_tensors(adapter / "adapter_model.safetensors", lambda tensors: tensors.update({name: tensor}))


def drop(name: str) -> Callable[[Path], None]:
    return lambda adapter: edit_tensors(adapter / "adapter_model.safetensors", lambda tensors: tensors.pop(name))


def add(name: str, *shape: int) -> Callable[[Path], None]:
    return lambda adapter: add_tensor(adapter, name, torch.ones(shape))


def fields(**changes: Any) -> Callable[[Path], None]:
    return lambda adapter: edit_json(adapter / "adapter_config.json", lambda values: values.update(changes))


A0, B0 = f"{PREFIX}{Q0}.lora_A.weight", f"{PREFIX}{Q0}.lora_B.weight"


@pytest.mark.parametrize(
    ("spoil", "kind", "says"),
    [
        (fields(use_dora=True), UsageError, "use_dora is not supported: gptfast does not merge DoRA"),
        (fields(bias="all"), UsageError, "bias 'all' is not supported"),
        (fields(peft_type="LOHA"), UsageError, "peft_type 'LOHA' is not supported"),
        (fields(init_lora_weights="pissa_niter_4"), UsageError, "init_lora_weights 'pissa_niter_4' changed the base"),
        (fields(layer_replication=[[0, 1]]), UsageError, "layer_replication is not supported"),
        (fields(r=5), UsageError, rf"{A0}: shape is \[4, 36\], and .* make it \[5, 36\]"),
        (fields(r=None), CorruptError, "adapter_config.json: r: missing"),
        (fields(lora_alpha="six"), CorruptError, 'lora_alpha: "six" is not a number'),
        (fields(rank_pattern={"(a+)+q_proj": 4}), CorruptError, "is too complex a pattern"),
        (fields(alpha_pattern={"[": 4}), CorruptError, "is no regular expression"),
        (fields(target_modules=["q_proj", "v_proj"]), CorruptError, r"no tensors of model.layers.0.self_attn.v_proj"),
        (fields(modules_to_save=["lm_head"]), CorruptError, "no tensors of lm_head"),
        (drop(A0), CorruptError, rf"{B0}: stands alone"),
        (lambda adapter: (drop(A0)(adapter), drop(B0)(adapter)), CorruptError, f"no tensors of {Q0}"),
        (add(f"{PREFIX}layers.9.q_proj.lora_A.weight", 4, 36), UsageError, r"layers\.9.*no such tensor"),
        (add(f"{PREFIX}{Q0}.lora_magnitude_vector", 36), UsageError, "magnitude_vector: gptfast does not merge"),
        (add(f"{PREFIX}model.norm.bias", 36), UsageError, r"model\.norm\.bias: the base model has no such tensor"),
        (add("model.norm.weight", 36), UsageError, r"model\.norm\.weight: the base model has no such tensor"),
        (add(f"{PREFIX}lm_head.weight", 102, 36), UsageError, r"lm_head\.weight: shape is \[102, 36\].*\[101, 36\]"),
        (lambda adapter: add_tensor(adapter, A0, torch.full((4, 36), torch.nan)), CorruptError, f"{A0}: holds NaN"),
        (lambda adapter: add_tensor(adapter, A0, torch.ones(4, 36, dtype=torch.int32)), CorruptError, "not floating"),
        (lambda adapter: (adapter / "adapter_config.json").unlink(), NotFoundError, "holds no LoRA adapter"),
        (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), NotFoundError, "no adapter_model.safetens"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, spoil: Callable[[Path], object], kind: type[GptFastError], says: str
) -> None:
    source, settings = saved(tmp_path / "model"), settings_in(tmp_path)
    adapter = saved_adapter(tmp_path / "adapter", tensors_of(source), ("q_proj",))
    spoil(adapter)
    with pytest.raises(kind, match=says) as refused:
        converted(source, settings, lora=str(adapter), out=tmp_path / "out")
    assert refused.value.hint and not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_an_embedding_that_is_also_the_head_cannot_be_changed_for_one_of_them(tmp_path: Path, target: str) -> None:
    untied, tied = saved(tmp_path / "untied"), saved(tmp_path / "tied", **SHAPES["llama-3.2"])
    adapter = saved_adapter(tmp_path / "adapter", tensors_of(untied), (target,))
    with pytest.raises(UsageError, match=f"{target}.*in the base model the head is tied to the embedding"):
        converted(tied, settings_in(tmp_path), lora=str(adapter))


def test_an_adapter_of_another_model_is_refused_with_the_name_of_its_own(tmp_path: Path) -> None:
    adapter = saved_adapter(tmp_path / "adapter", tensors_of(saved(tmp_path / "one")), ("q_proj",))
    other = saved(tmp_path / "other", hidden_size=48)
    with pytest.raises(UsageError, match=r"lora_A.weight: shape is \[4, 36\].*\[4, 48\]") as refused:
        converted(other, settings_in(tmp_path), lora=str(adapter))
    assert refused.value.hint == "The adapter was trained on org/base."


def test_an_adapter_in_place_of_a_model_is_recognized(tmp_path: Path) -> None:
    adapter = saved_adapter(tmp_path / "adapter", tensors_of(saved(tmp_path / "model")), ("q_proj",))
    with pytest.raises(UsageError, match="is a LoRA adapter, not a whole model") as refused:
        converted(adapter, settings_in(tmp_path))
    assert refused.value.hint == f"Merge it into its base model: gptfast convert org/base --lora {adapter}"


def test_a_sum_that_is_too_large_for_the_dtype_is_refused(tmp_path: Path) -> None:
    source = saved(tmp_path / "model")
    adapter = saved_adapter(tmp_path / "adapter", tensors_of(source), ("q_proj",), lora_alpha=1e6)
    with pytest.raises(UsageError, match=r"layers.0.qkv with the adapter: has values too large for float16"):
        converted(source, settings_in(tmp_path), lora=str(adapter), dtype="float16")
