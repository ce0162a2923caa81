"""Two models are compared on the same tokens at the same places, and nothing is said that the noise could have made."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from chat_model import chat_model
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel, load
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals import comparison
from gptfast_cli.core.evals.comparison import CommonText, Compared, ReferenceRequest, common_text, compare
from gptfast_cli.core.evals.divergence import Comparison
from gptfast_cli.core.evals.passages import BatchBudget, Passage, Window
from gptfast_cli.core.evals.perplexity import TextOptions, protocol_text
from gptfast_cli.core.evals.tasks.requests import TaskOptions
from gptfast_cli.core.events import Note, Progress
from gptfast_cli.core.jobs.eval import EvalRequest, run
from gptfast_cli.core.jobs.quantize import QuantizeRequest
from gptfast_cli.core.jobs.quantize import run as quantize
from gptfast_cli.core.quantize.allocation import AllocationOptions
from model_files import WEIGHTS, drained, edit_json, edit_tensors, settings_in

PLACING = RuntimeConfig(device="cpu", dtype="float32", threads=1, backend="reference")
BATCH_SIZES = 8, 8
TEXT = "One day, a fox met a badger. They ran 12 miles. " * 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokens are bytes."""
    return chat_model(tmp_path_factory.mktemp("model") / "bytes", template=None)


@pytest.fixture(scope="module")
def other(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with somewhat other weights."""
    return noisy(model, tmp_path_factory.mktemp("other") / "bytes", 0.03)


def noisy(model: Path, folder: Path, scale: float) -> Path:
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    generator = torch.Generator().manual_seed(0)

    def add(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensors[name] = tensor + scale * torch.randn(tensor.shape, generator=generator) * tensor.std()

    edit_tensors(folder / WEIGHTS, add)
    return folder


def compared(tmp_path: Path, name: Path | str, against: ReferenceRequest, **options: Any) -> Compared:
    batch_size, runtime = options.pop("batch_size", 8), options.pop("runtime", PLACING)
    file = tmp_path / "text"
    file.write_text(TEXT)
    text = TextOptions(file, options.pop("protocol")) if "protocol" in options else None
    request = EvalRequest(
        settings_in(tmp_path), str(name), runtime, TaskOptions(batch_size=batch_size), text=text, against=against
    )
    evaluation = drained(run(request))[1]
    assert evaluation.tasks is None and (evaluation.perplexity is None) == (text is None)
    assert evaluation.comparison is not None
    return evaluation.comparison.first


@torch.no_grad()
def by_transformers(model: Path, other: Path, windows: Sequence[Tensor], n_context: int) -> tuple[float, ...]:
    comparison = Comparison()
    reference, second = (LlamaForCausalLM.from_pretrained(each, dtype=torch.float64) for each in (model, other))
    for window in windows:
        logits = (each(window[None]).logits[0, n_context - 1 : -1] for each in (reference, second))
        comparison.add(*logits, window[n_context:])
    return dataclasses.astuple(comparison.result())


def test_it_is_the_divergence_of_both_as_transformers_runs_them(tmp_path: Path, model: Path, other: Path) -> None:
    found = compared(tmp_path, other, ReferenceRequest(str(model)), protocol="gptq-50")
    tokens = torch.tensor([256, *(ids_of(model, TEXT))])
    windows = [window for window in tokens.split(50) if len(window) == 50]
    assert dataclasses.astuple(found.divergence) == pytest.approx(by_transformers(model, other, windows, 1), rel=2e-4)
    assert found.n_windows == found.n_windows_all == len(windows) and found.protocol == "gptq-50"
    assert (found.model.name, found.reference.name) == (str(other), str(model))


def ids_of(folder: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def test_passages_that_begin_alike_are_each_compared(tmp_path: Path, model: Path, other: Path) -> None:
    ids = ids_of(model, TEXT)
    passages = [(256, *ids[:40], *ids[at : at + 5]) for at in (40, 90, 140)] + [(256, *ids[:30])]
    measured, reference = (drained(load(str(each), settings_in(tmp_path), PLACING))[1] for each in (other, model))
    windows = [Window(Passage(passage, 20), 1) for passage in passages]
    found = drained(compare([measured], reference, CommonText(None, 4, iter(windows)), BATCH_SIZES))[1]
    expected = by_transformers(model, other, [torch.tensor(passage) for passage in passages], 20)
    assert found is not None and dataclasses.astuple(found.first.divergence) == pytest.approx(expected, rel=2e-4)


def test_the_pieces_that_are_held_change_nothing(tmp_path: Path, model: Path, other: Path) -> None:
    candidates = [drained(load(str(each), settings_in(tmp_path), PLACING))[1] for each in (other, model)]
    text = protocol_text(TEXT, "gptq-100", candidates[0])
    small = BatchBudget(cache_tokens=300, n_rows=8, piece_tokens=512, piece_rows=7)
    whole, pieces = (
        drained(compare(candidates[:1], candidates[1], common_text(candidates, text), BATCH_SIZES, budget))[1]
        for budget in (None, small)
    )
    values = [dataclasses.astuple(each.first.divergence) for each in (pieces, whole)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


def test_several_models_are_compared_as_each_alone_and_the_reference_reads_the_text_once(
    tmp_path: Path, model: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path)
    reference, first, second = (
        drained(load(str(each), settings, runtime))[1]
        for each, runtime in (
            (model, PLACING),
            (other, PLACING),
            (model, dataclasses.replace(PLACING, dtype="bfloat16")),
        )
    )
    text = protocol_text(TEXT, "gptq-100", reference)
    read: list[object] = []
    compute = comparison.passage_logits
    monkeypatch.setattr(
        comparison,
        "passage_logits",
        lambda decoder, *rest, **more: read.append(decoder) or compute(decoder, *rest, **more),
    )
    together = drained(compare([first, second], reference, common_text([first, reference], text), BATCH_SIZES))[1]
    assert together is not None
    assert read.count(reference.model) == read.count(first.model) == read.count(second.model) > 0
    for measured, found in zip((first, second), together.each, strict=True):
        alone = drained(compare([measured], reference, common_text([measured, reference], text), BATCH_SIZES))[1]
        assert alone is not None and alone.each == (found,)
    assert together.each[0].divergence.kld_mean > 0.001 > together.each[1].divergence.kld_mean > 0


def test_the_bundled_documents_are_read_where_there_is_no_text(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    tiny = drained(load("tiny", settings, PLACING))[1]
    text = common_text([tiny, tiny], None)
    first = next(text.windows).passage
    assert text.protocol is None and text.n_windows > 400
    assert tiny.tokenizer is not None
    assert first.tokens[0] == tiny.tokenizer.bos_id and first.n_context == 1
    assert tiny.tokenizer.decode(first.tokens).startswith("There once was a small badger")


def test_a_model_beside_itself_does_not_differ_at_all(tmp_path: Path, model: Path) -> None:
    found = compared(tmp_path, model, ReferenceRequest(str(model)), protocol="gptq-64")
    divergence = found.divergence
    assert found.is_itself and divergence.better is None
    assert (divergence.kld_mean, divergence.kld_max, divergence.rms_p_change, divergence.flips) == (0, 0, 0, 0)
    assert (divergence.same_top1, divergence.alpha, divergence.ppl_ratio) == (1, 1, 1)
    assert (divergence.ppl_ratio_low, divergence.ppl_ratio_high) == (1, 1)


def test_two_batch_sizes_and_two_backends_agree_in_float32(tmp_path: Path, model: Path) -> None:
    native = RuntimeConfig(device="cpu", dtype="float32", threads=1)
    alone = compared(
        tmp_path, "tiny-draft", ReferenceRequest("tiny-draft", batch_size=8), protocol="gptq-64", batch_size=1,
        runtime=native,
    )  # fmt: skip
    assert (alone.model.batch_size, alone.reference.batch_size, alone.is_itself) == (1, 8, False)
    assert (alone.divergence.kld_max, alone.divergence.ppl_ratio) == (0, 1)
    both = compared(
        tmp_path, "tiny-draft", ReferenceRequest("tiny-draft", backend="reference"), protocol="gptq-64", runtime=native
    )
    assert (both.model.backend, both.reference.backend) == ("cpu", "reference")
    assert 0 < both.divergence.kld_max < 1e-8 and both.divergence.same_top1 == 1


def test_batch_size_is_how_many_passages_are_computed_together(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptfast_cli.core.engine.runner import Runner

    rows: list[int] = []
    read = Runner.read

    def watched(self: Runner, *arguments: Any) -> Tensor:
        rows.append(len(arguments[1]))
        return read(self, *arguments)

    monkeypatch.setattr(Runner, "read", watched)
    loaded = drained(load(str(model), settings_in(tmp_path), PLACING))[1]
    drained(compare([loaded], loaded, documents(loaded, loaded, 4), (4, 2)))
    assert rows[:3] == [2, 2, 4]  # the reference's first piece, then the same of the model
    assert set(rows) <= {1, 2, 3, 4}


def test_two_dtypes_differ_by_the_noise_of_the_narrower(tmp_path: Path) -> None:
    narrow = RuntimeConfig(device="cpu", dtype="bfloat16", threads=1)
    found = compared(tmp_path, "tiny", ReferenceRequest("tiny", dtype="float32"), protocol="gptq-64", runtime=narrow)
    assert (found.model.dtype, found.reference.dtype, found.is_itself) == ("bfloat16", "float32", False)
    assert 1e-8 < found.divergence.kld_mean < 1e-2


def test_the_reference_runs_as_the_model_does_but_rounds_nothing(tmp_path: Path) -> None:
    runtime = RuntimeConfig(device="cpu", dtype="float32", threads=1, activations="float")
    found = compared(tmp_path, "tiny", ReferenceRequest("tiny"), protocol="gptq-64", runtime=runtime)
    assert (found.model.roundings, found.reference.roundings) == (("activations float",), ())
    assert found.reference.dtype == "float32" and not found.is_itself


def documents(measured: LoadedModel, reference: LoadedModel, n: int) -> CommonText:
    whole = common_text([measured, reference], None)
    return CommonText(None, n, iter([next(whole.windows) for _ in range(n)]))


def test_a_copy_with_a_little_noise_is_not_called_better_and_a_worse_model_is(tmp_path: Path) -> None:
    settings, runtime = settings_in(tmp_path), RuntimeConfig(device="cpu", dtype="float32", threads=1)
    drained(quantize(QuantizeRequest(settings, "tiny", fidelity=False)))  # int8
    tiny, copy, draft = (drained(load(name, settings, runtime))[1] for name in ("tiny", "tiny:int8", "tiny-draft"))
    for measured, better in ((copy, None), (draft, "reference")):
        found = drained(compare([measured], tiny, documents(measured, tiny, 60), BATCH_SIZES))[1]
        assert found is not None and found.first.divergence.better == better
        assert found.first.divergence.kld_mean > 0
    back = drained(compare([tiny], draft, documents(tiny, draft, 60), BATCH_SIZES))[1]
    assert back is not None and back.first.divergence.better == "other"


@pytest.mark.slow
def test_int4_is_worse_than_its_original_beyond_the_noise_of_the_whole_text(tmp_path: Path) -> None:
    settings, runtime = settings_in(tmp_path), RuntimeConfig(device="cpu", dtype="float32")
    drained(quantize(QuantizeRequest(settings, "tiny", AllocationOptions("int4"), fidelity=False)))
    found = compared(tmp_path, "tiny:int4-g32", ReferenceRequest("tiny"), runtime=runtime)
    assert found.divergence.better == "reference" and found.divergence.ppl_ratio == pytest.approx(1.0003, abs=1e-4)


def test_an_output_layer_that_is_padded_is_compared_over_the_real_tokens(
    tmp_path: Path, model: Path, other: Path
) -> None:
    padded = noisy(model, tmp_path / "padded", 0.0)
    edit_json(padded / "config.json", lambda config: config.update(vocab_size=288))
    tensors = load_file(padded / WEIGHTS)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.randn(28, tensors[name].shape[1])])
    save_file(tensors, padded / WEIGHTS, metadata={"format": "pt"})
    plain = compared(tmp_path, other, ReferenceRequest(str(model)), protocol="gptq-64")
    found = compared(tmp_path, other, ReferenceRequest(str(padded)), protocol="gptq-64")
    assert dataclasses.astuple(found.divergence) == pytest.approx(dataclasses.astuple(plain.divergence), rel=1e-6)


def swap_letters(folder: Path) -> None:
    def swap(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    edit_json(folder / "tokenizer.json", swap)


def shorten(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(max_position_embeddings=32))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda folder: chat_model(folder, template=None), None),
        (lambda folder: (folder / "tokenizer.json").unlink(), None),
        (swap_letters, "its token .. is 'a', and the reference's 'b'"),
        (shorten, "needs a context of 64 tokens, and .* has 32"),
    ],
)
def test_models_that_do_not_fit_are_refused(tmp_path: Path, model: Path, edit: Any, message: str | None) -> None:
    folder = noisy(model, tmp_path / "edited", 0.01)
    edit(folder)
    if message is None:
        assert compared(tmp_path, model, ReferenceRequest(str(folder)), protocol="gptq-64").divergence.tokens > 0
    else:
        with pytest.raises(UsageError, match=message):
            compared(tmp_path, model, ReferenceRequest(str(folder)), protocol="gptq-64")


def test_another_vocabulary_is_refused_before_the_reference_is_loaded(tmp_path: Path, model: Path) -> None:
    request = EvalRequest(settings_in(tmp_path), str(model), PLACING, against=ReferenceRequest("tiny-draft"))
    events: list[Any] = []
    with pytest.raises(UsageError, match="tiny-draft: its token 0 is"):
        events.extend(run(request))
    assert not any(isinstance(event, Note) and event.text.startswith("Reference") for event in events)


def test_a_batch_of_nothing_is_refused(tmp_path: Path, model: Path) -> None:
    with pytest.raises(UsageError, match="--against-batch-size must be at least 1"):
        compared(tmp_path, model, ReferenceRequest(str(model), batch_size=0))


def test_an_interrupt_keeps_what_both_have_read(tmp_path: Path, model: Path, other: Path) -> None:
    candidates = [drained(load(str(each), settings_in(tmp_path), PLACING))[1] for each in (other, model)]
    budget = BatchBudget(cache_tokens=128, n_rows=8, piece_tokens=512, piece_rows=128)

    def interrupted(at: int) -> Compared | None:
        job = compare(candidates[:1], candidates[1], common_text(candidates, None), BATCH_SIZES, budget)
        event = next(job)
        while not (isinstance(event, Progress) and event.done >= at):
            event = next(job)
        job.throw(KeyboardInterrupt())
        try:
            while True:
                next(job)
        except StopIteration as end:
            return end.value

    found = interrupted(5)
    assert found is not None and found.is_partial and found.first.n_windows >= 5
    assert found.first.divergence.tokens > 0 and math.isfinite(found.first.divergence.kld_mean)
    assert interrupted(0) is None
