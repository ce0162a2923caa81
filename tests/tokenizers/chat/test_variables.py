"""Variables reach a chat template as keyword arguments of transformers' apply_chat_template do, to the byte."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from chat_samples import CONVERSATIONS, STYLES, assistant, oracle, special, system, user
from jinja2 import TemplateError

from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.tokenizers.chat import ChatTemplate, open_chat_template
from gptfast_cli.core.tokenizers.chat.template import TemplateSource

TOOL = {
    "type": "function",
    "function": {
        "name": "sum",
        "description": 'Adds <numbers> & "more"',
        "parameters": {"type": "object", "properties": {"é": {"type": "array", "items": {"type": "number"}}}},
    },
}

# in the manner of published ones, shortened to what they do with their variables
_TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
OF_VARIABLES = {
    "enable_thinking that is not given is on": _TURNS
    + "<|assistant|>{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}",
    "enable_thinking that is not given is off": _TURNS
    + "<|assistant|>{% if enable_thinking %}<think>{% else %}<think></think>{% endif %}",
    "thinking with a default": "{% if not thinking is defined %}{% set thinking = false %}{% endif %}"
    + _TURNS
    + "<|assistant|>{{ '<think>' if thinking else '</think>' }}",
    "an effort in the system message": "Reasoning: {{ reasoning_effort | default('medium') }}\n"
    "{% if thinking_budget is defined %}{{ thinking_budget | int + 1 }}{% endif %}" + _TURNS,
    "an effort that must be known": "{% if reasoning_effort is defined and reasoning_effort not in ['low', 'high'] %}"
    "{{ raise_exception('unknown effort ' ~ reasoning_effort) }}{% endif %}{{ reasoning_effort }}" + _TURNS,
    "tools and documents": "{% for t in tools or [] %}{{ t.function.name }}: {{ t | tojson(indent=2) }}\n{% endfor %}"
    "{% for d in documents or [] %}{{ d.title }}={{ d.text }};{% endfor %}" + _TURNS,
    "special tokens": "{{ bos_token }}{{ tools }}{{ documents }}{{ enable_thinking }}" + _TURNS,
}
VARIABLES: list[Mapping[str, Any]] = [
    {},
    {"enable_thinking": True},
    {"enable_thinking": False},
    {"enable_thinking": None},
    {"thinking": True},
    {"reasoning_effort": "high", "thinking_budget": 512},
    {"reasoning_effort": "extreme"},
    {"tools": [TOOL]},
    {"tools": [TOOL, TOOL], "enable_thinking": False, "documents": [{"title": "t", "text": "é<&>"}]},
    {"bos_token": "<own>", "nested": {"a": [1, None, 2.5, {"b": "c"}]}, "enable_thinking": "false"},
]
MESSAGES = [system("s"), user("1+2?"), assistant("3", reasoning_content="easy"), user("5+6?")]


def check_equal(text: str, tokens: Mapping[str, str], messages: list[dict[str, Any]], given: Mapping[str, Any]) -> None:
    """Our rendering is transformers' to the byte, or both refuse."""
    with ChatTemplate(TemplateSource(text, "here", tokens)) as ours:
        try:
            expected = oracle(text, **tokens).apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **given
            )
        except TemplateError as error:
            with pytest.raises(GptFastError, match=str(error).split("(")[0]):
                ours.render(messages, variables=given)
        else:
            assert ours.render(messages, variables=given) == expected


@pytest.mark.parametrize("given", VARIABLES, ids=str)
@pytest.mark.parametrize("name", OF_VARIABLES)
def test_a_variable_does_what_it_does_in_transformers(name: str, given: Mapping[str, Any]) -> None:
    check_equal(OF_VARIABLES[name], {"bos_token": "<s>"}, MESSAGES, given)


@pytest.mark.parametrize("conversation", ["one turn", "three turns", "a call of a tool", "a thought"])
@pytest.mark.parametrize("given", [{"enable_thinking": False}, {"tools": [TOOL]}], ids=["no thinking", "tools"])
@pytest.mark.parametrize("style", ["qwen_with_thinking", "llama_3_with_tools", "marked_for_training", "chatml"])
def test_a_style_with_variables_is_written_as_transformers_writes_it(
    style: str, given: Mapping[str, Any], conversation: str
) -> None:
    messages = CONVERSATIONS[conversation]
    check_equal(STYLES[style].read_text("utf-8"), special(style), messages, given)


def test_the_samples_tell_variables_apart() -> None:
    """Each variable changes the text of some sample: otherwise equality would say nothing."""
    for name in ("enable_thinking", "thinking", "reasoning_effort", "thinking_budget", "tools", "documents"):
        given = next(each for each in VARIABLES if name in each and each[name] not in (None, "extreme"))
        without = {other: value for other, value in given.items() if other != name}
        assert any(
            oracle(text).apply_chat_template(MESSAGES, tokenize=False, **given)
            != oracle(text).apply_chat_template(MESSAGES, tokenize=False, **without)
            for text in OF_VARIABLES.values()
        )


def test_a_conversation_with_tools_takes_the_template_that_is_named_for_it(tmp_path: Path) -> None:
    theirs = oracle("default {{ messages[0].content }}")
    theirs.save_pretrained(tmp_path)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools[0].function.name }}")
    loaded = type(theirs).from_pretrained(tmp_path)
    with open_chat_template(tmp_path) as ours:
        for given in ({}, {"tools": [TOOL]}, {"tools": None}):
            expected = loaded.apply_chat_template([user("a")], tokenize=False, **given)
            assert ours.render([user("a")], variables=given) == expected
    with open_chat_template(tmp_path, "default") as named:
        assert named.render([user("a")], variables={"tools": [TOOL]}) == "default a"


@pytest.mark.parametrize("given", [{"messages": []}, {"add_generation_prompt": False}, {"tools": "x"}, {"tools": [1]}])
def test_a_variable_that_cannot_be_set_is_refused(given: Mapping[str, Any]) -> None:
    with ChatTemplate(TemplateSource("x", "here", {})) as template, pytest.raises(UsageError, match=next(iter(given))):
        template.render([user("a")], variables=given)


def test_a_variable_does_not_reach_the_next_conversation() -> None:
    with ChatTemplate(TemplateSource("{{ tools }}{{ enable_thinking }}", "here", {})) as template:
        assert template.render([user("a")], variables={"tools": [TOOL], "enable_thinking": 1}) != "None"
        assert template.render([user("a")]) == "None"


def test_a_template_reads_the_words_that_it_has() -> None:
    with ChatTemplate(TemplateSource("{{ my_thinking }}{{ effort }}", "here", {}, "{{ tools }}")) as template:
        assert [template.reads(name) for name in ("effort", "tools", "thinking")] == [True, True, False]
