"""Models in the files of other programs give transformers' logits, or an error that names the file and what to do."""

import codecs
import json
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import foreign_files as foreign
from gptfast_cli.core.checkpoints.foreign import ForeignCheckpoint
from gptfast_cli.core.checkpoints.pickles import open_pickle
from gptfast_cli.core.checkpoints.reader import open_checkpoint
from gptfast_cli.core.checkpoints.sources import sources, sources_by_rank
from gptfast_cli.core.errors import CorruptError, NotFoundError, UsageError
from llama_oracle import SHAPES, random_llama
from model_files import cached_repo, converted, edit_json, settings_in
from spoiling import bounded_memory

Write = Callable[[Path, LlamaForCausalLM], Path]

EVEN = {"vocab_size": 102, "num_attention_heads": 6, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
WRITERS: dict[str, Write] = {
    "pytorch_model": foreign.write_pytorch_model,
    "pytorch_model of three files": lambda folder, model: foreign.write_pytorch_model(folder, model, 3),
    "gpt_fast": foreign.write_gpt_fast,
    "gpt_fast, not fused": lambda folder, model: foreign.write_gpt_fast(folder, model, fused=False),
    "meta": foreign.write_meta,
    "meta of two files": lambda folder, model: foreign.write_meta(folder, model, 2),
    "meta of two files, Llama 3": lambda folder, model: foreign.write_meta(folder, model, 2, llama_3=True),
    "llama2_c 0": lambda folder, model: foreign.write_llama2_c(folder / "model.bin", model, 0).parent,
    "llama2_c 1": lambda folder, model: foreign.write_llama2_c(folder / "model.bin", model, 1).parent,
}
PICKLED = [name for name in WRITERS if not name.startswith("llama2_c")]
FIRST_FILE = {
    "pytorch_model": "pytorch_model.bin",
    "gpt_fast": "model.pth",
    "meta": "consolidated.00.pth",
    "llama2_c 0": "model.bin",
    "llama2_c 1": "model.bin",
}


def check_logits(checkpoint: Any, model: LlamaForCausalLM) -> None:
    tokens = torch.randint(model.config.vocab_size, (2, 60))
    with torch.inference_mode():
        expected = model(tokens).logits
    torch.testing.assert_close(foreign.logits_of(checkpoint, tokens), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 6}])
def test_logits_equal_those_of_transformers(tmp_path: Path, layout: str, changes: dict[str, Any]) -> None:
    model = random_llama(**EVEN | changes)
    source = WRITERS[layout](tmp_path / "model", model)
    made = converted(source, settings_in(tmp_path), allow_pickle=True, verify=True)
    check_logits(open_checkpoint(made.path), model)
    opened = open_checkpoint(source, allow_pickle=True)
    assert isinstance(opened, ForeignCheckpoint)
    check_logits(opened, model)
    assert (opened.n_params, opened.dtype) == (made.n_params, torch.float32)


@pytest.mark.parametrize("layout", ["pytorch_model", "gpt_fast"])
@pytest.mark.parametrize("shape", ["grouped-query", "llama-3.1", "linear-rope", "one-layer"])
def test_a_config_beside_the_weights_says_the_rest(tmp_path: Path, layout: str, shape: str) -> None:
    model = random_llama(**SHAPES[shape])
    check_logits(open_checkpoint(WRITERS[layout](tmp_path / "model", model), allow_pickle=True), model)


def test_metas_files_may_have_a_config_beside_them_instead(tmp_path: Path) -> None:
    model = random_llama(**SHAPES["llama-3.1"])
    source = foreign.write_meta(tmp_path / "model", model, use_scaled_rope=True)
    with pytest.raises(UsageError, match="use_scaled_rope") as caught:
        open_checkpoint(source, allow_pickle=True)
    assert "config.json" in caught.value.hint
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(source)
    check_logits(open_checkpoint(source, allow_pickle=True), model)


def test_every_layout_is_written_in_these_tests() -> None:
    others = {"huggingface", "gguf"}  # test_gguf_source.py
    assert set(sources) - others == {name.split()[0].rstrip(",") for name in WRITERS}


def test_a_rank_is_used_once() -> None:
    ranks = [source.rank for source in sources_by_rank()]
    assert sorted(set(ranks)) == ranks


@pytest.mark.parametrize("layout", FIRST_FILE)
def test_a_file_stands_for_the_folder_that_it_is_in(tmp_path: Path, layout: str) -> None:
    source = WRITERS[layout](tmp_path / "model", random_llama(**EVEN))
    by_folder = converted(source, settings_in(tmp_path), allow_pickle=True, out=tmp_path / "one")
    by_file = converted(source / FIRST_FILE[layout], settings_in(tmp_path), allow_pickle=True, out=tmp_path / "two")
    assert by_file.name == by_folder.name == "model"
    for file in by_folder.path.iterdir():
        assert file.read_bytes() == (by_file.path / file.name).read_bytes()


@pytest.mark.parametrize("layout", PICKLED)
def test_a_pickle_is_refused_unless_it_is_allowed(tmp_path: Path, layout: str) -> None:
    source = WRITERS[layout](tmp_path / "model", random_llama(**EVEN))
    for refuse in (lambda: converted(source, settings_in(tmp_path)), lambda: open_checkpoint(source)):
        with pytest.raises(CorruptError, match="is a pickle") as caught:
            refuse()
        assert f"gptfast convert {source} --allow-pickle" in caught.value.hint
        assert caught.value.exit_code == 6


def test_a_pickled_repository_is_allowed_under_its_own_name(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    snapshot = cached_repo(settings.hf_cache, "Org/Model", commit="abc123")
    (snapshot / "model.safetensors").unlink()
    foreign.write_pytorch_model(snapshot, random_llama())
    with pytest.raises(CorruptError) as caught:
        converted("Org/Model", settings)
    assert caught.value.hint.endswith("gptfast convert Org/Model@abc123 --allow-pickle")
    assert converted("Org/Model@abc123", settings, allow_pickle=True).name == "Org/Model"


@pytest.mark.parametrize("layout", FIRST_FILE)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_file_cut_short_is_corrupt(tmp_path: Path, layout: str, share: float) -> None:
    file = WRITERS[layout](tmp_path / "model", random_llama(**EVEN)) / FIRST_FILE[layout]
    content = file.read_bytes()
    file.write_bytes(content[: max(int(share * len(content)), 40 if "llama2" in layout else 0)])
    with pytest.raises(CorruptError, match=file.name):
        open_checkpoint(file.parent, allow_pickle=True)


@pytest.mark.parametrize("layout", ["pytorch_model", "gpt_fast", "meta"])
@pytest.mark.parametrize("where", ["alone", "among tensors"])
def test_a_malicious_pickle_never_runs(tmp_path: Path, layout: str, where: str) -> None:
    file = WRITERS[layout](tmp_path / "model", random_llama(**EVEN)) / FIRST_FILE[layout]
    victim = tmp_path / "victim"
    malice = foreign.Malice(victim)
    torch.save(malice if where == "alone" else torch.load(file) | {"norm.weight": malice}, file)
    with pytest.raises(CorruptError, match=f"{file.name}: holds more than tensors"):
        converted(file.parent, settings_in(tmp_path), allow_pickle=True)
    assert not victim.exists()
    torch.load(file, weights_only=False)  # the trap itself works
    assert victim.exists()


class Call:
    """Pickled as a call of a function with these arguments."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.function, self.arguments


LARGE = 3_000_000_000
BOMBS = {
    "bytearray": Call(bytearray, LARGE),
    "tensor": Call(torch.Tensor, LARGE),
    "storage": Call(torch.UntypedStorage, LARGE),
    "text": Call(codecs.encode, "x" * 1000, "utf-32"),
    "copies": [Call(OrderedDict, {n: n for n in range(1000)}) for _ in range(100)],
    "set": set(range(10)),
    "containers": [[] for _ in range(600_000)],
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_pickle_that_would_take_memory_is_refused_before_it_does(tmp_path: Path, bomb: str) -> None:
    source = foreign.write_pytorch_model(tmp_path / "model", random_llama())
    torch.save(torch.load(source / "pytorch_model.bin") | {"more": BOMBS[bomb]}, source / "pytorch_model.bin")
    with bounded_memory(), pytest.raises(CorruptError, match="holds more than tensors"):
        open_checkpoint(source, allow_pickle=True)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path) -> None:
    source = foreign.write_pytorch_model(tmp_path / "model", random_llama())
    file = source / "pytorch_model.bin"
    replace(file, **{"model.norm.weight": torch.ones(1).expand(36)})
    with pytest.raises(UsageError, match=r"model\.norm\.weight: is stored in a form"):
        open_checkpoint(source, allow_pickle=True)
    replace(file, **{"model.norm.weight": torch.ones(36)})
    with zipfile.ZipFile(file) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            before, _, after = content.partition(b"model.norm.weight")
            # BININT1 36, TUPLE1: its shape
            archive.writestr(
                name, before + b"model.norm.weight" + after.replace(b"K$\x85", b"K\x25\x85", 1) if after else content
            )
    with pytest.raises(CorruptError, match=r"model\.norm\.weight: its bytes are not in the file"):
        open_checkpoint(source, allow_pickle=True)


def test_parameters_views_and_attributes_are_read_as_torch_reads_them(tmp_path: Path) -> None:
    source = foreign.write_pytorch_model(tmp_path / "model", random_llama())
    whole = torch.load(source / "pytorch_model.bin")
    joined = torch.cat([tensor.flatten() for tensor in whole.values()])  # one storage for all
    views, start = OrderedDict(), 0
    for n, (name, tensor) in enumerate(whole.items()):
        views[name] = joined[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
        if n % 3 == 0:
            views[name] = torch.nn.Parameter(views[name])
        if n % 3 == 1:
            views[name].remark = {"of": [1, 2.5, None, True]}
    views._metadata = {"": {"version": 1}}
    torch.save(views, source / "pytorch_model.bin")
    shard = open_pickle(source / "pytorch_model.bin")
    assert shard.tensors.keys() == whole.keys()
    assert all(torch.equal(shard.tensor(name), tensor) for name, tensor in whole.items())


def test_a_pickle_of_old_torch_is_named(tmp_path: Path) -> None:
    source = foreign.write_pytorch_model(tmp_path / "model", random_llama())
    torch.save({"norm": torch.ones(3)}, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(UsageError, match=r"before 1\.6"):
        open_checkpoint(source, allow_pickle=True)


def replace(file: Path, **tensors: Any) -> None:
    torch.save({**torch.load(file), **tensors}, file)


SPOILT: dict[str, tuple[str, Callable[[Path], object], type[Exception], str]] = {
    "a tensor missing": (
        "gpt_fast",
        lambda f: torch.save(
            {k: v for k, v in torch.load(f / "model.pth").items() if k != "norm.weight"}, f / "model.pth"
        ),
        CorruptError,
        r"model\.pth: norm\.weight: missing",
    ),
    "a tensor too many": ("gpt_fast", lambda f: replace(f / "model.pth", more=torch.ones(2)), CorruptError, "more"),
    "rows too many in the fused tensor": (
        "gpt_fast",
        lambda f: replace(f / "model.pth", **{"layers.1.attention.wqkv.weight": torch.ones(63, 36)}),
        CorruptError,
        r"layers\.1\.attention\.wqkv\.weight: shape is",
    ),
    "no config beside gpt-fast's file": (
        "gpt_fast",
        lambda f: (f / "config.json").unlink(),
        UsageError,
        "number of heads",
    ),
    "quantized by gpt-fast": (
        "gpt_fast",
        lambda f: replace(f / "model.pth", **{"layers.0.attention.wo.scales": torch.ones(2)}),
        UsageError,
        "quantized by gpt-fast",
    ),
    "a value that is no tensor": (
        "pytorch_model",
        lambda f: replace(f / "pytorch_model.bin", n=3),
        CorruptError,
        "n: is",
    ),
    "a list of tensors": (
        "pytorch_model",
        lambda f: torch.save([torch.ones(2)], f / "pytorch_model.bin"),
        CorruptError,
        "holds no tensors by name",
    ),
    "integer weights": (
        "pytorch_model",
        lambda f: replace(f / "pytorch_model.bin", **{"model.norm.weight": torch.ones(36, dtype=torch.int8)}),
        UsageError,
        r"model\.norm\.weight: dtype int8",
    ),
    "a file of Meta's missing between others": (
        "meta of two files",
        lambda f: (f / "consolidated.01.pth").rename(f / "consolidated.02.pth"),
        CorruptError,
        r"consolidated\.01\.pth: missing",
    ),
    "the last of Meta's files missing": (
        "meta of two files",
        lambda f: (f / "consolidated.01.pth").unlink(),
        CorruptError,
        "shape is",
    ),
    "no params": ("meta", lambda f: (f / "params.json").unlink(), UsageError, r"no params\.json"),
    "another vocabulary in the params": (
        "meta",
        lambda f: edit_json(f / "params.json", lambda v: v.update(vocab_size=7)),
        CorruptError,
        r"params\.json: vocab_size: is 7",
    ),
    "heads that cannot be": (
        "meta",
        lambda f: edit_json(f / "params.json", lambda v: v.update(n_heads=5)),
        CorruptError,
        r"params\.json: n_kv_heads",
    ),
    "experts": ("meta", lambda f: edit_json(f / "params.json", lambda v: v.update(moe={"n": 8})), UsageError, "moe"),
    "a version of llama2.c that is quantized": (
        "llama2_c 1",
        lambda f: (f / "model.bin").write_bytes(struct.pack("<Ii", 0x616B3432, 2) + bytes(300)),
        UsageError,
        "version 2",
    ),
    "two models of llama2.c": (
        "llama2_c 1",
        lambda f: (f / "other.bin").write_bytes((f / "model.bin").read_bytes()),
        UsageError,
        r"model\.bin, other\.bin",
    ),
    "bytes behind the last tensor": (
        "llama2_c 0",
        lambda f: (f / "model.bin").write_bytes((f / "model.bin").read_bytes() + b"1234"),
        CorruptError,
        "4 bytes follow",
    ),
    "implausible sizes": (
        "llama2_c 1",
        lambda f: (f / "model.bin").write_bytes(struct.pack("<Ii7i", 0x616B3432, 1, *[-1] * 7).ljust(400, b"\0")),
        CorruptError,
        "implausible sizes",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_source_is_named(tmp_path: Path, case: str) -> None:
    layout, spoil, kind, named = SPOILT[case]
    source = WRITERS[layout](tmp_path / "model", random_llama(**EVEN))
    spoil(source)
    with pytest.raises(kind, match=named):
        open_checkpoint(source, allow_pickle=True)


def test_a_missing_context_is_what_metas_program_takes_and_is_reported(tmp_path: Path) -> None:
    source = foreign.write_meta(tmp_path / "model", random_llama(**EVEN))
    opened = open_checkpoint(source, allow_pickle=True)
    assert opened.config.max_context == 2048
    assert "2,048 tokens" in opened.notes[0]
    edit_json(source / "params.json", lambda values: values.update(max_seq_len=512))
    opened = open_checkpoint(source, allow_pickle=True)
    assert (opened.config.max_context, opened.notes) == (512, ())


def test_a_file_of_no_model_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(NotFoundError, match="holds no model"):
        converted(tmp_path / "letter.txt", settings_in(tmp_path))


def test_safetensors_are_taken_before_pickles(tmp_path: Path) -> None:
    model = random_llama()
    foreign.write_pytorch_model(tmp_path / "model", random_llama(seed=1))
    model.save_pretrained(tmp_path / "model")
    check_logits(open_checkpoint(tmp_path / "model"), model)


def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    source = foreign.write_pytorch_model(tmp_path / "model", random_llama(), 2)
    index = source / "pytorch_model.bin.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["lm_head.weight"] = "../other.bin"
    index.write_text(json.dumps(values))
    with pytest.raises(CorruptError, match=r"lm_head\.weight.*is not the name of a bin file"):
        open_checkpoint(source, allow_pickle=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    model = random_llama(**EVEN).to(dtype)
    source = foreign.write_gpt_fast(tmp_path / "model", model)
    made = open_checkpoint(converted(source, settings_in(tmp_path), allow_pickle=True, verify=True).path)
    assert made.dtype is dtype
    assert torch.equal(made.weight("layers.1.down").parts["weight"], model.model.layers[1].mlp.down_proj.weight)
