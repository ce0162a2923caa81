"""A draft changes how fast an answer comes, not what it is; one that does not fit is refused with what differs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from generation_requests import changed, requested
from gptfast_cli.core.checkpoints.store import bundled_folder
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import ChatOptions
from gptfast_cli.core.engine.compiled import Compiling
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.engine.speculative.draft_length import DraftOptions, parse_draft_length
from gptfast_cli.core.errors import NotFoundError, UsageError
from gptfast_cli.core.events import Measured, Note, Record
from gptfast_cli.core.jobs import generate, generate_batch
from gptfast_cli.core.jobs.chat import ChatRequest, open_chat
from gptfast_cli.core.jobs.generate import GenerateRequest, GenerateResult
from gptfast_cli.core.jobs.generate_batch import BatchRequest
from llama_oracle import random_llama
from model_files import drained, edit_json, settings_in

GREEDY = Sampling(temperature=0)
DRAFTS = ["tiny-draft", "self:int8", "self:int4", "ngram"]


@pytest.fixture
def asked(tmp_path: Path) -> GenerateRequest:
    runtime = RuntimeConfig(device="cpu", dtype="float32")
    text = "Once upon a time, there was a fox. Once upon a time, there was"
    return requested(
        GenerateRequest,
        prompt=text,
        settings=settings_in(tmp_path),
        model="tiny",
        runtime=runtime,
        sampling=GREEDY,
        max_new_tokens=60,
    )


def generation(request: GenerateRequest, **changes: Any) -> GenerateResult:
    return drained(generate.run(changed(request, **changes)))[1]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("depth", [3, None])
@pytest.mark.parametrize("draft", DRAFTS)
def test_greedy_text_is_the_same_with_every_draft(
    asked: GenerateRequest, draft: str, depth: int | None, backend: str
) -> None:
    asked = changed(asked, runtime=replace(asked.runtime, backend=backend))
    plain, drafted = generation(asked), generation(asked, drafting=DraftOptions(draft, depth))
    assert drafted.samples == plain.samples
    assert plain.speculation is None
    output = drafted.speculation
    assert (output.draft, output.k) == (draft, depth)
    n_tokens = len(plain.samples[0].token_ids) + (plain.samples[0].finish_reason == "eos")
    assert round(output.rounds * (output.tau or 0)) + output.n_plain_tokens == n_tokens - 1
    assert sum(output.accepted_histogram) == output.rounds
    assert not output.shares or sum(output.shares.values()) == pytest.approx(1)


def test_the_bundled_draft_is_accepted_more_often_than_not(asked: GenerateRequest) -> None:
    for sampling in (GREEDY, Sampling()):
        output = generation(asked, sampling=sampling, seed=3, drafting=DraftOptions("tiny-draft", 4)).speculation
        assert output.tau > 2 and output.alpha > 0.6
        first, *_, last = output.acceptance
        assert first.conditional == first.unconditional
        assert last.unconditional <= first.unconditional


def test_the_same_seed_gives_the_same_text_alone_and_side_by_side(asked: GenerateRequest) -> None:
    changes: dict[str, Any] = {
        "sampling": Sampling(),
        "seed": 5,
        "num_samples": 3,
        "drafting": DraftOptions("tiny-draft"),
    }
    group = generation(asked, batch_size=3, **changes)
    one_by_one = generation(asked, batch_size=1, **changes)
    assert group.samples == one_by_one.samples


def test_a_compiled_target_has_its_rounds_too(asked: GenerateRequest) -> None:
    asked = changed(asked, runtime=replace(asked.runtime, backend="reference"), max_new_tokens=20)
    compiling = Compiling(decode=True, backend="eager")
    drafted = generation(asked, compiling=compiling, drafting=DraftOptions("tiny-draft", 3))
    assert drafted.samples == generation(asked).samples
    assert drafted.speculation.rounds > 0


def test_events_tell_what_rounds_kept(asked: GenerateRequest) -> None:
    events, output = drained(generate.run(changed(asked, drafting=DraftOptions("tiny-draft", 4))))
    measured = [event for event in events if isinstance(event, Measured) and event.phase == "decode"]
    assert sum(event.n_rounds for event in measured) == output.speculation.rounds
    kept = sum(n * count for n, count in enumerate(output.speculation.accepted_histogram))
    assert sum(event.n_accepted for event in measured) == kept
    assert any(isinstance(event, Note) and event.text.startswith("Draft: tiny-draft") for event in events)


def test_rows_of_a_file_are_answered_alike(asked: GenerateRequest, tmp_path: Path) -> None:
    prompts = (("A fox", 30), ("Once", 12), ("7 + 5 =", 4), ("One", 25))
    rows = [{"prompt": text, "max_new_tokens": n} for text, n in prompts]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    request = requested(
        BatchRequest,
        tmp_path / "x.jsonl",
        asked.settings,
        sampling=GREEDY,
        model="tiny",
        runtime=asked.runtime,
        batch_size=3,
    )
    answers = []
    for drafting in (None, DraftOptions("tiny-draft", 4), DraftOptions("ngram")):
        events, batch = drained(generate_batch.run(changed(request, drafting=drafting)))
        answers.append([event.fields["token_ids"] for event in events if isinstance(event, Record)])
        assert (batch.speculation is None) == (drafting is None)
    assert answers[0] == answers[1] == answers[2]


def test_a_chat_says_the_same(asked: GenerateRequest) -> None:
    said = []
    for drafting in (None, DraftOptions("tiny-draft", 3), DraftOptions("self:int8", None)):
        request = requested(
            ChatRequest,
            asked.settings,
            "tiny",
            runtime=asked.runtime,
            sampling=GREEDY,
            chat=ChatOptions(),
            max_new_tokens=20,
            ignore_eos=True,
            drafting=drafting,
        )
        with drained(open_chat(request))[1] as chat:
            said.append([drained(chat.say(text))[1].text for text in ("Once upon a time", "And then", "The fox")])
    assert said[0] == said[1] == said[2]


def other(folder: Path, **changes: Any) -> Path:
    """A random model with the tokenizer of the bundled one."""
    random_llama(vocab_size=1536, **changes).save_pretrained(folder)
    shutil.copy(bundled_folder("tiny") / "tokenizer.model", folder)
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda folder: random_llama(vocab_size=1000).save_pretrained(folder),
            "it has 1,000 tokens, and the target 1,536",
        ),
        (
            lambda folder: edit_json(folder / "config.json", lambda config: config.update(max_position_embeddings=40)),
            "holds 40 tokens, and the text may reach",
        ),
        (
            lambda folder: (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]})),
            "its end token is 2, 7, the target's 2",
        ),
    ],
)
def test_a_draft_that_does_not_fit_is_refused_with_what_differs(
    asked: GenerateRequest, tmp_path: Path, change: Any, says: str
) -> None:
    folder = other(tmp_path / "draft", eos_token_id=2, bos_token_id=1)
    change(folder)
    with pytest.raises(UsageError) as caught:
        generation(asked, drafting=DraftOptions(str(folder)))
    assert says in str(caught.value)
    assert caught.value.hint


def test_a_draft_with_another_tokenizer_is_refused_with_a_token_that_shows_it(
    asked: GenerateRequest, tmp_path: Path
) -> None:
    import sentencepiece

    folder = other(tmp_path / "draft")
    words = tmp_path / "words.txt"
    words.write_text("\n".join(f"word{n} and {n} more" for n in range(3000)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(words),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=1536,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(UsageError, match=r"its token \d+ is '.*', the target's '.*'"):
        generation(asked, drafting=DraftOptions(str(folder)))


def padded(model: Path, folder: Path, n_rows: int) -> Path:
    """The model with rows of padding behind its vocabulary, whose logits are often the largest."""
    shutil.copytree(model, folder)
    edit_json(folder / "config.json", lambda config: config.update(vocab_size=n_rows))
    tensors = load_file(folder / "model.safetensors")
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & tensors.keys():
        matrix = tensors[name]
        tensors[name] = torch.cat([matrix, 9 * torch.randn(n_rows - len(matrix), matrix.shape[1])])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("tied", [True, False])
def test_padding_is_neither_drafted_nor_chosen_however_many_rows_target_and_draft_have(
    asked: GenerateRequest, tmp_path: Path, backend: str, tied: bool
) -> None:
    sizes = {"hidden_size": 96, "tie_word_embeddings": tied}  # heads of 32, which the CPU engine runs
    plain = [other(tmp_path / name, **sizes) for name in ("target", "draft")]
    rows = [padded(model, tmp_path / f"{model.name}-padded", n) for model, n in zip(plain, (1600, 1544), strict=True)]
    asked = changed(asked, runtime=replace(asked.runtime, backend=backend), seed=3, max_new_tokens=30)
    drawn = Sampling(temperature=1.5, top_k=0)
    for sampling, draft in ((GREEDY, "model"), (drawn, "model"), (drawn, None), (GREEDY, "self:int8")):
        texts = []
        for target, model in (plain, rows):
            drafting = None if draft is None else DraftOptions(str(model) if draft == "model" else draft, 3)
            texts.append(generation(asked, model=str(target), sampling=sampling, drafting=drafting).samples)
        assert texts[0] == texts[1]


def test_what_is_no_draft_is_refused(asked: GenerateRequest) -> None:
    with pytest.raises(UsageError, match="no quantized scheme of that name"):
        generation(asked, drafting=DraftOptions("self:int3"))
    with pytest.raises(NotFoundError):
        generation(asked, drafting=DraftOptions("no-such-draft"))


@pytest.mark.parametrize("text", ["-1", "x", "2.5", ""])
def test_what_is_no_depth_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--speculate-k must be"):
        parse_draft_length(text)


def test_a_depth_is_a_number_or_adapted() -> None:
    assert (parse_draft_length("0"), parse_draft_length("12"), parse_draft_length("auto")) == (0, 12, None)
