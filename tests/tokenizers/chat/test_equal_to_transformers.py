"""A conversation is written as transformers writes it, to the byte, or refused where transformers refuses it."""

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from chat_samples import (
    CONVERSATIONS,
    ENOUGH_SECONDS,
    STYLES,
    assistant,
    oracle,
    part,
    special,
    user,
    written_by_transformers,
)
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.tokenizers.chat import ChatTemplate
from gptfast_cli.core.tokenizers.chat.template import TemplateSource
from gptfast_cli.core.tokenizers.chat.template_files import read_variables


@pytest.fixture(scope="module")
def ours() -> Iterator[Callable[[str], ChatTemplate]]:
    """The template of a style, opened once."""
    opened = []

    @cache
    def template(style: str) -> ChatTemplate:
        source = TemplateSource(STYLES[style].read_text("utf-8"), style, special(style))
        opened.append(ChatTemplate(source, max_seconds=ENOUGH_SECONDS))
        return opened[-1]

    yield template
    for each in opened:
        each.close()


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("style", STYLES)
def test_a_conversation_is_written_as_transformers_writes_it(
    ours: Callable[[str], ChatTemplate], style: str, conversation: str, add_generation_prompt: bool
) -> None:
    messages = CONVERSATIONS[conversation]
    expected = written_by_transformers(style, messages, add_generation_prompt=add_generation_prompt)
    if isinstance(expected, str):
        assert ours(style).render(messages, add_generation_prompt=add_generation_prompt) == expected
    elif type(expected) is TemplateError:  # by raise_exception
        with pytest.raises(UsageError) as caught:
            ours(style).render(messages, add_generation_prompt=add_generation_prompt)
        assert str(expected) in caught.value.message
    else:
        with pytest.raises(CorruptError):
            ours(style).render(messages, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize("style", STYLES)
def test_parts_of_text_are_lines_where_transformers_cannot_write_them(
    ours: Callable[[str], ChatTemplate], style: str
) -> None:
    parts = [user([part("a"), part(" b")]), assistant("c"), user([part("d")])]
    expected = written_by_transformers(style, parts)
    if not isinstance(expected, str) or "'type': 'text'" in expected:
        expected = written_by_transformers(style, [user("a\n b"), assistant("c"), user("d")])
    assert ours(style).render(parts) == expected


CONTENT = "{% for m in messages %}{{ m.role }}:"
ITERATED = CONTENT + "{% for p in m.content %}<{{ p.text }}>{% endfor %};{% endfor %}"
PLAIN = "user:a\nb;assistant:c;"
IN_JSON = (
    CONTENT + "{% if m.content is string %}{{ m.content }}{% else %}{{ m.content | tojson }}{% endif %};{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (ITERATED, "user:<a><b>;assistant:<c>;"),
        (IN_JSON, 'user:[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}];assistant:c;'),
        (CONTENT + "{{ m.content }};{% endfor %}", PLAIN),
        (CONTENT + "{{ '' ~ m.content }};{% endfor %}", PLAIN),
        (CONTENT + "{{ '%s' % m.content }};{% endfor %}", PLAIN),
        (CONTENT + "{{ m.content | trim }};{% endfor %}", PLAIN),
        (CONTENT + "{{ m.content + '' }};{% endfor %}", PLAIN),
        (CONTENT + "{{ m.content if m.content is string else raise_exception('') }};{% endfor %}", PLAIN),
    ],
)
def test_a_template_that_takes_parts_gets_them_and_any_other_gets_lines(template: str, expected: str) -> None:
    messages = [user([part("a"), part("b")]), assistant([part("c")] if template == ITERATED else "c")]
    with ChatTemplate(TemplateSource(template, "here", {}), max_seconds=ENOUGH_SECONDS) as opened:
        assert opened.render(messages) == expected
    if template in (ITERATED, IN_JSON):
        assert oracle(template).apply_chat_template(messages, tokenize=False) == expected


@pytest.mark.parametrize("style", ["chatml", "vicuna"])
def test_parts_that_are_no_text_are_not_left_out(ours: Callable[[str], ChatTemplate], style: str) -> None:
    with pytest.raises((CorruptError, UsageError)):
        ours(style).render([user([part("a"), {"type": "image_url", "image_url": {"url": "x"}}])])


def test_a_list_with_parts_that_are_no_text_is_not_written_as_python_writes_it() -> None:
    source = TemplateSource(CONTENT + "{{ m.content }}{% endfor %}", "here", {})
    with (
        ChatTemplate(source, max_seconds=ENOUGH_SECONDS) as template,
        pytest.raises(UsageError, match="it supports text only"),
    ):
        template.render([user([part("a")]), user([part("a"), {"type": "image_url", "image_url": {"url": "x"}}])])


def test_no_messages_are_a_usage_error(ours: Callable[[str], ChatTemplate]) -> None:
    with pytest.raises(UsageError, match="no messages"):
        ours("chatml").render([])


@pytest.mark.parametrize("message", ["hi", None, ["role", "user"]])
def test_what_is_no_message_is_a_usage_error(ours: Callable[[str], ChatTemplate], message: object) -> None:
    with pytest.raises(UsageError, match="is no message"):
        ours("chatml").render([message])  # type: ignore[list-item]


def test_messages_are_not_changed(ours: Callable[[str], ChatTemplate]) -> None:
    messages = [user([part("a")]), assistant(None, thinking="b"), user("c")]
    before = [dict(message) for message in messages]
    ours("marked_for_training").render(messages)
    assert messages == before


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"bos_token": "<s>", "eos_token": None, "pad_token": "<p>"}},
        {"tokenizer_config.json": {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "image_token": "<i>"}},
        {"tokenizer_config.json": {"extra_special_tokens": {"boi_token": "<i>", "odd": "<o>"}, "add_bos_token": True}},
        {"tokenizer_config.json": {"additional_special_tokens": ["<x>"], "unk_token": "<unk>"}},
        {
            "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>"},
            "special_tokens_map.json": {"bos_token": "<S>", "pad_token": {"content": "<p>", "lstrip": False}},
        },
        {
            "tokenizer_config.json": {"bos_token": "<s>", "added_tokens_decoder": {}},
            "special_tokens_map.json": {"bos_token": "<S>", "pad_token": "<p>"},
        },
    ],
)
def test_a_template_is_given_the_special_tokens_that_transformers_gives_it(
    tmp_path: Path, files: dict[str, dict[str, object]]
) -> None:
    oracle().save_pretrained(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert read_variables(tmp_path) == theirs.special_tokens_map
