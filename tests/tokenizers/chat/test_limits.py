"""A chat template is code from a stranger: it cannot run on, fill the memory, flood the output or leave its sandbox."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_samples import ENOUGH_SECONDS, user

from gptfast_cli.core.errors import CorruptError, UsageError
from gptfast_cli.core.tokenizers.chat.template import MOST_REQUEST_BYTES, ChatTemplate, TemplateSource
from gptfast_cli.core.tokenizers.chat.worker import MOST_CHARACTERS

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
BURNS = {
    "a loop over a huge range": "{% for i in range(10**9) %}{% endfor %}",
    "loops in loops": ENDLESS,
    "a huge power": "{{ (9 + messages|length) ** (10**8) }}",
    "a text times a number": "{{ 'A'*300000000 }}",
    "a text in the middle of a huge line": "{{ 'A'|center(10**9) }}",
    "a number with many digits": '{{ "%0999999999d"|format(1) }}',
    "a wide field": "{{ '{:999999999}'.format(1) }}",
    "a huge list": "{% set x = [0]*10**9 %}",
    "a text that doubles": "{% set n = namespace(x='a') %}{% for i in range(40) %}{% set n.x = n.x * 2 %}{% endfor %}",
    "a text in place of each letter": "{{ ('a'*100000)|replace('a', 'b'*100000) }}",
    "a macro in itself": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "brackets in brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "blocks in blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "much output": "{% for i in range(99999) %}{{ 'A'*1000 }}{% endfor %}",
    "output in a macro": "{% macro m() %}" + ENDLESS.replace("{% endfor", "A{% endfor") + "{% endmacro %}{{ m() }}",
}
BROKEN = {
    "no such block": ("{% if %}", "line 1"),
    "an attribute of nothing": ("{{ a.b.c }}", "'a' is undefined"),
    "texts and numbers": ("\n{{ 1 + 'a' }}", "TypeError"),
    "another file": ("{% include '/etc/passwd' %}", "loader"),
    "an import": ("{% import 'os' as os %}", "loader"),
    "another template's child": ("{% extends 'x' %}", "loader"),
    "the classes of Python": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "the globals of a function": ("{{ raise_exception.__globals__.sys }}", "unsafe"),
    "a class by format": ("{{ '{0.__class__.__mro__}'.format(1) }}", "unsafe"),
    "a change of the messages": ("{{ messages.append(1) }}", "unsafe"),
    "a hidden name in a namespace": ("{% set n = namespace(__init__=1) %}", "namespace"),
    "a hidden name put there later": ("{% set n = namespace() %}{% set n.__x = 1 %}", "namespace"),
}


def render(text: str, content: str = "a", *, max_seconds: float = ENOUGH_SECONDS) -> str:
    with ChatTemplate(TemplateSource(text, "org/model", {}), max_seconds=max_seconds) as template:
        return template.render([user(content)])


@pytest.mark.parametrize("burn", BURNS)
def test_a_template_that_burns_time_or_memory_ends_in_a_typed_error(burn: str) -> None:
    with pytest.raises(CorruptError, match="org/model") as caught:
        render(BURNS[burn], max_seconds=0.6)
    assert "--chat-template" in caught.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="memory can be limited on Linux alone")
def test_memory_is_limited_by_itself_and_not_by_the_time_it_takes_to_fill() -> None:
    with pytest.raises(CorruptError, match="1024 MiB of memory"):
        render(BURNS["a huge list"])


@pytest.mark.parametrize("case", BROKEN)
def test_a_template_that_is_broken_or_leaves_its_sandbox_is_corrupt(case: str) -> None:
    text, reason = BROKEN[case]
    with pytest.raises(CorruptError, match=reason):
        render(text)


@pytest.mark.parametrize("reason", ["Roles must alternate", "a\nb\x1b[31m", "", "é" * 5000])
def test_what_a_template_says_of_a_conversation_is_a_usage_error(reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        render("{{ raise_exception(messages[0].content) }}", reason)
    assert reason[:400] in caught.value.message
    assert len(caught.value.message) < 1100


def test_the_longest_text_comes_through_and_one_more_character_does_not() -> None:
    text = "{{ messages[0].content * 1024 }}"
    assert render(text, "a" * (MOST_CHARACTERS // 1024)) == "a" * MOST_CHARACTERS
    with pytest.raises(CorruptError, match=f"more than {MOST_CHARACTERS} characters"):
        render(text + "a", "a" * (MOST_CHARACTERS // 1024))


def test_characters_that_are_long_in_json_come_through() -> None:
    assert render("{{ messages[0].content * 1000000 }}", "\x00😀") == "\x00😀" * 1_000_000


def test_messages_of_ten_megabytes_are_rendered() -> None:
    content = "0123456789" * 1_000_000
    assert render("<{{ messages[0].content }}>", content) == f"<{content}>"


def test_messages_that_are_too_long_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="MB"):
        render("x", "a" * MOST_REQUEST_BYTES)


@pytest.fixture
def kept() -> Iterator[ChatTemplate]:
    with ChatTemplate(
        TemplateSource("{{ messages[0].content * 1000000 }}", "m", {}), max_seconds=ENOUGH_SECONDS
    ) as template:
        yield template


def test_a_failure_does_not_touch_the_next_conversation(kept: ChatTemplate, tmp_path: Path) -> None:
    with pytest.raises(CorruptError):
        kept.render([user("a" * 5000)])
    assert kept.render([user("b")]) == "b" * 1_000_000
