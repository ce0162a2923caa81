"""The generate job, end to end: from a folder on disk to text, numbers and clear refusals."""

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from transformers import LlamaForCausalLM

from chat_model import TEMPLATE, chat_model, chatml
from generation_requests import changed, requested
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import ChatOptions
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.events import Finished, Job, Measured, Note, Progress, Prompt, TextChunk
from gptfast_cli.core.jobs.generate import GenerateRequest, GenerateResult, Sample, run
from llama_oracle import random_llama
from model_files import drained, settings_in

GREEDY = Sampling(temperature=0)
WIDE = Sampling(temperature=1.5, top_k=0)
WORDS = "once upon a time there was a fox who went to see the sea".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with a real SentencePiece tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("model")
    text = folder / "words.txt"
    text.write_text("\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=285, byte_fallback=True, minloglevel=2
    )
    random_llama(vocab_size=320).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def request_for(folder: Path) -> GenerateRequest:
    return requested(
        GenerateRequest,
        prompt="once upon a time",
        settings=settings_in(folder),
        model=str(folder),
        runtime=RuntimeConfig(device="cpu"),
        max_new_tokens=30,
        seed=7,
        ignore_eos=True,
    )


def generation(request: GenerateRequest, **changes: Any) -> GenerateResult:
    return drained(run(changed(request, **changes)))[1]


def interrupted(job: Job[GenerateResult]) -> GenerateResult:
    """What a job returns when Ctrl-C comes while it waits for its event to be shown."""
    try:
        job.throw(KeyboardInterrupt())
    except StopIteration as finished:
        return finished.value
    return drained(job)[1]


def only(request: GenerateRequest, **changes: Any) -> Sample:
    (sample,) = generation(request, **changes).samples
    return sample


def test_greedy_tokens_and_text_equal_those_of_transformers(request_for: GenerateRequest, folder: Path) -> None:
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    prompt = [1, *tokenizer.encode("once upon a time")]
    model = LlamaForCausalLM.from_pretrained(folder)
    ids = torch.tensor([prompt])
    expected = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False, eos_token_id=None
    )[0].tolist()
    sample = only(request_for, sampling=GREEDY)
    assert list(sample.token_ids) == expected[len(prompt) :]
    assert tokenizer.decode(prompt) + sample.text == tokenizer.decode(expected)
    assert sample.prompt_tokens == len(prompt)


def test_the_text_of_the_events_is_the_text_of_the_result(request_for: GenerateRequest) -> None:
    events, result = drained(run(changed(request_for, num_samples=3, batch_size=2, sampling=WIDE)))
    for sample in result.samples:
        streamed = [event.text for event in events if isinstance(event, TextChunk) and event.sample == sample.id]
        assert "".join(streamed) == sample.text
        assert len(streamed) > 1


def test_every_sample_is_finished_once_and_after_its_text(request_for: GenerateRequest) -> None:
    events, _ = drained(run(changed(request_for, num_samples=3, batch_size=2, sampling=WIDE)))
    ends = {event.sample: index for index, event in enumerate(events) if isinstance(event, Finished)}
    assert sorted(ends) == [0, 1, 2]
    assert sum(isinstance(event, Finished) for event in events) == 3
    assert all(ends[event.sample] > index for index, event in enumerate(events) if isinstance(event, TextChunk))


def test_samples_of_one_prompt_feed_it_once(request_for: GenerateRequest) -> None:
    events, result = drained(run(changed(request_for, num_samples=5, batch_size=2)))
    fed = [event.n_tokens for event in events if isinstance(event, Measured) and event.phase == "prefill"]
    assert fed == [result.samples[0].prompt_tokens, 0, 0, 0, 0]


def test_a_sample_takes_the_place_of_one_that_is_over(request_for: GenerateRequest) -> None:
    # ten samples of very different lengths in three rows
    options = {"num_samples": 10, "batch_size": 3, "sampling": WIDE, "max_new_tokens": 60, "ignore_eos": False}
    events, result = drained(run(changed(request_for, **options, stop=("sea", "a"))))
    lengths = [len(sample.token_ids) + (sample.finish_reason == "eos") for sample in result.samples]
    steps = [event.n_tokens for event in events if isinstance(event, Measured) and event.phase == "decode"]
    assert sum(steps) == sum(lengths) - 10
    # whoever waits keeps the rows full: only behind the last admission may a step have fewer than three
    last = max(index for index, event in enumerate(events) if isinstance(event, Measured) and event.phase == "prefill")
    early = [event.n_tokens for event in events[:last] if isinstance(event, Measured) and event.phase == "decode"]
    assert early
    assert set(early) == {3}


def test_the_prompt_is_reported_before_its_text_as_what_the_text_goes_on_from(
    request_for: GenerateRequest, tmp_path: Path
) -> None:
    events, _ = drained(run(request_for))
    assert [event for event in events if isinstance(event, Prompt)] == [Prompt("once upon a time", continues=True)]
    chat = changed(request_for, model=str(chat_model(tmp_path)))
    events, _ = drained(run(chat))
    assert [event for event in events if isinstance(event, Prompt)] == [Prompt("once upon a time", continues=False)]


def test_a_chat_model_is_given_the_conversation_that_its_template_writes(
    request_for: GenerateRequest, tmp_path: Path
) -> None:
    model = str(chat_model(tmp_path))
    options = {"model": model, "chat": ChatOptions(system="Be brief."), "show_prompt": True}
    events, result = drained(run(changed(request_for, **options)))
    written = chatml(("system", "Be brief."), ("user", "once upon a time"))
    n_tokens = result.samples[0].prompt_tokens
    assert [event.text for event in events if isinstance(event, Note)][-1] == f"{written}\n({n_tokens} tokens)"
    by_hand = generation(request_for, model=model, chat=ChatOptions(chat=False), prompt=written)
    assert by_hand.samples[0].prompt_tokens == n_tokens + 1  # BOS, which the template leaves out


def test_logprobs_come_with_every_token_where_they_are_asked_for(request_for: GenerateRequest) -> None:
    assert only(request_for).logprobs is None
    sample = only(request_for, n_logprobs=2)
    assert [logprob.token_id for logprob in sample.logprobs] == list(sample.token_ids)
    assert all(len(logprob.top) == 2 and logprob.top[0][1] >= logprob.logprob for logprob in sample.logprobs)


def test_loading_tells_which_model_was_taken_before_anything_else(request_for: GenerateRequest, folder: Path) -> None:
    events, _ = drained(run(request_for))
    assert isinstance(events[0], Note)
    assert str(folder) in events[0].text
    loaded = [event for event in events if isinstance(event, Progress) and event.task == "load"]
    assert loaded[-1].done == loaded[-1].total


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
def test_a_seed_gives_the_same_samples_whatever_the_batch_size(request_for: GenerateRequest, batch_size: int) -> None:
    alone = generation(request_for, num_samples=5, batch_size=None, sampling=WIDE)
    assert generation(request_for, num_samples=5, batch_size=batch_size, sampling=WIDE).samples == alone.samples
    assert len({sample.text for sample in alone.samples}) == 5


def test_a_fresh_seed_is_reported_and_repeats_its_text(request_for: GenerateRequest) -> None:
    first = generation(request_for, seed=None, sampling=WIDE)
    assert generation(request_for, seed=first.seed, sampling=WIDE).samples == first.samples
    assert generation(request_for, seed=None, sampling=WIDE).seed != first.seed


def test_a_stop_string_across_tokens_ends_the_text_before_it(request_for: GenerateRequest) -> None:
    free = only(request_for, sampling=GREEDY)
    stop = free.text[7:12]
    stopped = only(request_for, sampling=GREEDY, stop=(stop, "never there"))
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert len(stopped.token_ids) < len(free.token_ids)


def test_a_stop_that_is_written_as_a_special_token_ends_a_sample_at_the_token(
    request_for: GenerateRequest, tmp_path: Path
) -> None:
    chat = changed(request_for, model=str(chat_model(tmp_path)), num_samples=20, sampling=WIDE)
    options = {"chat": ChatOptions(chat=False), "max_new_tokens": 40}
    free = generation(chat, **options).samples
    stopped = generation(chat, stop=("<|im_start|>", "never"), **options).samples
    assert {sample.finish_reason for sample in stopped} == {"stop", "length"}
    for short, full in zip(stopped, free, strict=True):
        expected = list(full.token_ids)
        if short.finish_reason == "stop":
            expected = expected[: expected.index(258)]
        assert list(short.token_ids) == expected


def test_without_a_limit_a_text_goes_on_for_200_tokens_and_an_answer_until_the_context_is_full(
    request_for: GenerateRequest, tmp_path: Path
) -> None:
    asked = changed(request_for, model=str(chat_model(tmp_path)), max_new_tokens=None, max_context=300, ignore_eos=True)
    (answer,) = generation(asked).samples
    (text,) = generation(asked, chat=ChatOptions(chat=False)).samples
    assert answer.prompt_tokens + len(answer.token_ids) == 300 and len(answer.token_ids) > 200
    assert len(text.token_ids) == 200
    assert answer.finish_reason == text.finish_reason == "length"


def test_in_a_chat_the_token_that_closes_a_turn_ends_the_answer(request_for: GenerateRequest, tmp_path: Path) -> None:
    chat = changed(request_for, model=str(chat_model(tmp_path)), ignore_eos=False)
    options = {"num_samples": 30, "sampling": WIDE, "max_new_tokens": 40}
    answers = generation(chat, **options).samples
    texts = generation(chat, chat=ChatOptions(chat=False), **options).samples
    assert not any({257, 259} & {*answer.token_ids} for answer in answers)  # </s>, <|im_end|>
    assert {sample.finish_reason for sample in answers} == {"eos", "length"}
    assert any(259 in text.token_ids for text in texts)


def test_a_stop_that_can_never_match_is_reported(request_for: GenerateRequest, tmp_path: Path) -> None:
    chat = changed(request_for, model=str(chat_model(tmp_path)), max_new_tokens=1)
    events, _ = drained(run(changed(chat, stop=("<|im_end|>\n", "a", "bad", "ca", "</s>"))))
    output = [event.text for event in events if isinstance(event, Note) and event.text.startswith("--stop")]
    assert [text.partition(":")[0] for text in output] == [
        r"--stop '<|im_end|>\n' can never match",
        "--stop 'bad' can never match",
    ]


def test_the_end_token_ends_a_sample_unless_it_is_ignored(request_for: GenerateRequest) -> None:
    # some of 40 drawn samples meet the end token, </s>, by chance
    options = {"num_samples": 40, "sampling": WIDE, "max_new_tokens": 60}
    ended = generation(request_for, ignore_eos=False, **options).samples
    ignored = generation(request_for, ignore_eos=True, **options).samples
    assert {sample.finish_reason for sample in ended} == {"eos", "length"}
    assert {sample.finish_reason for sample in ignored} == {"length"}
    for short, full in zip(ended, ignored, strict=True):
        assert short.token_ids == full.token_ids[: len(short.token_ids)]
        if short.finish_reason == "eos":
            assert full.token_ids[len(short.token_ids)] == 2


def test_metrics_count_every_token_once(request_for: GenerateRequest) -> None:
    events, result = drained(run(changed(request_for, num_samples=2)))
    drawn = [event for event in events if isinstance(event, Measured) and event.phase != "prefill"]
    steps = [event for event in drawn if event.phase == "decode"]
    assert sum(event.n_tokens for event in drawn) == sum(len(sample.token_ids) for sample in result.samples)
    metrics = result.metrics
    assert metrics.decode_tok_s == pytest.approx(29 / sum(step.seconds for step in steps))
    assert metrics.aggregate_tok_s == pytest.approx(2 * metrics.decode_tok_s)


def test_bytes_of_a_step_are_the_weights_the_embedding_row_and_the_keys_and_values(
    request_for: GenerateRequest,
) -> None:
    result = generation(request_for, prompt=(1, 2, 3), max_new_tokens=3, num_samples=1)
    vocab, dim, ffn, layers, f32 = 285, 36, 52, 3, 4  # 35 of the 320 rows are padding
    per_layer = 4 * dim * dim + 3 * dim * ffn + 2 * dim
    weights = layers * per_layer + dim + vocab * dim  # the head, and not the embedding table
    kv = 2 * layers * dim * (3 + 4)  # two steps after the first token, behind 3 and 4 cached tokens
    expected = (2 * (weights + dim) + kv) * f32
    seconds = 2 / result.metrics.decode_tok_s
    assert result.metrics.decode_gbps * seconds * 1e9 == pytest.approx(expected)


def test_an_interrupt_keeps_the_text_and_the_numbers(request_for: GenerateRequest) -> None:
    job = run(changed(request_for, num_samples=2, batch_size=1))
    texts = 0
    while texts < 5:
        texts += isinstance(next(job), TextChunk)
    result = interrupted(job)
    assert [sample.finish_reason for sample in result.samples] == ["interrupted", "interrupted"]
    assert result.samples[0].text
    assert result.samples[1].text == ""
    assert result.metrics.decode_tok_s is not None
    assert result.metrics.decode_gbps is not None


def test_a_synthetic_prompt_is_the_same_every_time_and_has_its_length(request_for: GenerateRequest) -> None:
    first = only(request_for, prompt=None, prompt_length=100, sampling=GREEDY)
    assert first.prompt_tokens == 100
    assert only(request_for, prompt=None, prompt_length=100, sampling=GREEDY) == first


def test_a_model_without_a_tokenizer_takes_ids_and_gives_ids(tmp_path: Path, request_for: GenerateRequest) -> None:
    random_llama().save_pretrained(tmp_path)
    sample = only(request_for, model=str(tmp_path), prompt=(5, 6))
    assert len(sample.token_ids) == 30
    assert sample.text == ""
    with pytest.raises(UsageError, match="no tokenizer"):
        generation(request_for, model=str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": ()}, "prompt is empty"),
        ({"prompt": (5, 320)}, "320 has no embedding"),
        ({"prompt": (0, -1)}, "-1 has no embedding"),
        ({"prompt": None, "prompt_length": 512}, "has 512 tokens, and the context holds 512"),
        ({"prompt": None, "prompt_length": 2**60}, f"has {2**60} tokens, and the context holds 512"),
        ({"max_context": 3}, "the context holds 3"),
        ({"max_context": 513}, "exceeds the context of .*, 512 tokens"),
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1"),
        ({"num_samples": 0}, "--num-samples must be from 1"),
        ({"batch_size": -1}, "--batch-size must be at least 1"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"n_logprobs": -1}, "--logprobs must be at least 0"),
        ({"stop": ("",)}, "--stop needs at least one character"),
        ({"sampling": Sampling(top_p=2)}, "--top-p must be"),
        ({"runtime": RuntimeConfig(device="tpu")}, "no device called 'tpu'"),
        ({"runtime": RuntimeConfig(device="cpu", dtype="int3")}, "no dtype called 'int3'"),
        ({"runtime": RuntimeConfig(device="cpu", threads=0)}, "--threads must be from 1 to"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_reason(
    request_for: GenerateRequest, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        generation(request_for, **changes)


def test_a_damaged_model_is_named(tmp_path: Path, request_for: GenerateRequest) -> None:
    random_llama().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CorruptError, match=r"model\.safetensors"):
        generation(request_for, model=str(tmp_path), prompt=(1,))


def test_bfloat16_computes_in_bfloat16(request_for: GenerateRequest) -> None:
    events, _ = drained(run(changed(request_for, runtime=RuntimeConfig(device="cpu", dtype="bfloat16"))))
    assert "bfloat16 on cpu" in events[0].text


def test_the_reasoning_of_a_chat_stands_apart_and_a_text_has_none(request_for: GenerateRequest, tmp_path: Path) -> None:
    thinks = str(chat_model(tmp_path / "thinks", template=TEMPLATE + "<think>\n"))
    events, result = drained(run(changed(request_for, model=thinks, num_samples=2, sampling=WIDE)))
    for sample in result.samples:  # bytes at random, of which none is </think>
        assert sample.reasoning == sample.text.strip() and sample.content == ""
    assert all(event.is_reasoning for event in events if isinstance(event, TextChunk))
    as_text = only(request_for, model=thinks, chat=ChatOptions(chat=False))
    assert (as_text.reasoning, as_text.content) == (None, None)
    closed = str(chat_model(tmp_path / "closed", template=TEMPLATE + "<think></think>"))
    answer = only(request_for, model=closed)
    assert (answer.reasoning, answer.content) == (None, answer.text)
