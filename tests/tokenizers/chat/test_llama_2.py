"""Llama-2's chat form is that of Meta's reference, and takes only conversations that alternate."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sentencepiece
from chat_samples import Messages, assistant, system, user

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.tokenizers import open_tokenizer
from gptfast_cli.core.tokenizers.chat import ChatTemplate, llama_2_template
from tokenizer_samples import declare, real_model, write


@pytest.fixture(scope="module")
def template() -> Iterator[ChatTemplate]:
    with llama_2_template(Path("no such folder"), None) as template:
        yield template


def reference(dialog: Messages) -> str:
    """The form by its definition: the system message goes into the first user message, and pairs follow one another."""
    if dialog[0]["role"] == "system":
        first = f"<<SYS>>\n{dialog[0]['content']}\n<</SYS>>\n\n{dialog[1]['content']}"
        dialog = [user(first), *dialog[2:]]
    texts = [message["content"].strip() for message in dialog]
    pairs = zip(texts[:-1:2], texts[1::2], strict=True)
    closed = [f"<s>[INST] {question} [/INST] {answer} </s>" for question, answer in pairs]
    return "".join(closed) + f"<s>[INST] {texts[-1]} [/INST]"


@pytest.mark.parametrize(
    "messages",
    [
        [user("a")],
        [system("s"), user("a")],
        [user("a"), assistant("b"), user("c")],
        [system("s"), user("a"), assistant("b"), user("c"), assistant("d"), user("e")],
        [system("\n s \n"), user(" a "), assistant("\tb\n"), user("\nc ")],
        [system(""), user(""), assistant(""), user("")],
        [system("{{ x }}"), user("é 😀 {% if %}"), assistant("<b>"), user("'\"")],
    ],
)
def test_a_conversation_is_written_as_in_the_reference(template: ChatTemplate, messages: Messages) -> None:
    assert template.render(messages) == reference(messages)


def test_the_form_in_plain_letters(template: ChatTemplate) -> None:
    messages = [system("Be brief."), user("Hi"), assistant("Hello."), user("Bye")]
    expected = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Bye [/INST]"
    assert template.render(messages) == expected


@pytest.mark.parametrize(
    "messages",
    [
        [system("s")],
        [assistant("a")],
        [user("a"), user("b")],
        [user("a"), assistant("b"), assistant("c")],
        [user("a"), system("s")],
        [system("s"), assistant("a"), user("b")],
        [{"role": "tool", "content": "x"}],
        [user("a"), assistant("b")],
    ],
)
def test_a_conversation_that_does_not_alternate_is_refused(template: ChatTemplate, messages: Messages) -> None:
    with pytest.raises(UsageError, match=r"must (alternate|follow|be the user)"):
        template.render(messages)


def test_an_answered_conversation_is_written_where_no_answer_is_asked(template: ChatTemplate) -> None:
    messages = [user("a"), assistant("b")]
    assert template.render(messages, add_generation_prompt=False) == "<s>[INST] a [/INST] b </s>"


def test_the_folders_own_special_tokens_are_taken(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<B>", "eos_token": "<E>"}))
    with llama_2_template(tmp_path, None) as template:
        assert template.render([user("a"), assistant("b"), user("c")]) == "<B>[INST] a [/INST] b <E><B>[INST] c [/INST]"


def by_metas_code(questions_and_answers: list[str], file: Path) -> list[int]:
    """Each question with its answer encoded by itself, between BOS and EOS; the last question has no answer yet."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    pairs = zip(questions_and_answers[:-1:2], questions_and_answers[1::2], strict=True)
    closed = (model.encode(f"[INST] {q} [/INST] {a} ", add_bos=True, add_eos=True) for q, a in pairs)
    last = model.encode(f"[INST] {questions_and_answers[-1]} [/INST]", add_bos=True)
    return [*(token_id for turn in closed for token_id in turn), *last]


@pytest.mark.parametrize(
    ("sample", "config"),
    [
        ("v1", {}),
        ("v1", {"legacy": True}),
        ("v1", {"legacy": False}),
        ("v1", {"legacy": True, "tokenizer_class": "LlamaTokenizer"}),
        ("v1", {"tokenizer_class": "LlamaTokenizer"}),
        ("rewritten", {"legacy": False}),
    ],
)
def test_every_turn_is_the_tokens_that_metas_code_makes_of_it(
    tmp_path: Path, sample: str, config: dict[str, object]
) -> None:
    write(tmp_path, sample)
    declare(tmp_path, "tokenizer_config.json", **config)
    tokenizer = open_tokenizer(tmp_path)
    texts = ["Hi", "Hello.", "What is 1+1?", "2", "Bye"]
    messages = [user(text) if n % 2 == 0 else assistant(text) for n, text in enumerate(texts)]
    with llama_2_template(tmp_path, tokenizer) as template:
        text = template.render(messages)
    assert tokenizer is not None
    assert tokenizer.encode(text, bos=False) == by_metas_code(texts, real_model("v1"))


def test_a_tokenizer_without_a_dummy_space_gets_none(tmp_path: Path) -> None:
    write(tmp_path, "byte_level")
    declare(tmp_path, "tokenizer_config.json", bos_token="<|begin_of_text|>")
    with llama_2_template(tmp_path, open_tokenizer(tmp_path)) as template:
        assert template.render([user("a")]) == "<|begin_of_text|>[INST] a [/INST]"
