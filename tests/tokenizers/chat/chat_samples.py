"""Chat templates in the styles of well-known models, conversations, and transformers as the oracle of both."""

from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerFast

Messages = list[dict[str, Any]]

ENOUGH_SECONDS = 60.0
"""A limit that nothing right ever meets, however busy the machine is."""

_PAIR = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
SPECIAL: dict[str, dict[str, str]] = {
    "llama_3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "llama_3_with_tools": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "chatml": {"eos_token": "<|im_end|>"},
    "qwen_with_thinking": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "gemma_3": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "deepseek": {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},  # noqa: RUF001
}
STYLES = {path.stem: path for path in sorted((Path(__file__).parent / "styles").iterdir())}


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


_CALL = {"type": "function", "id": "abcdef123", "function": {"name": "sum", "arguments": {"a": 1, "b": [2, "é<&>"]}}}

CONVERSATIONS: dict[str, Messages] = {
    "one turn": [user("What is 1 + 1?")],
    "a system message": [system("You count."), user("1 + 1?")],
    "three turns": [user("a"), assistant("b"), user("c"), assistant("d"), user("e")],
    "a system message and three turns": [system("s"), user("a"), assistant("b"), user("c"), assistant("d"), user("e")],
    "ends with an answer": [user("a"), assistant("b")],
    "spaces around": [system("  s\n"), user("\n  a \t"), assistant("  b  "), user(" ")],
    "all empty": [system(""), user(""), assistant(""), user("")],
    "unicode": [
        system("Ångström"),
        user("日本語 👩‍👩‍👧 \u202e\u0000\x1b[31m"),
        assistant("ﬁ\u2028"),
        user("e\u0301"),
    ],
    "a lone surrogate": [user("a\ud800b")],
    "newlines": [user("a\r\nb\rc\n\n"), assistant("\n\n"), user("{{ messages }}{% if %}")],
    "markup": [user("<b>&amp;\"'</b> </s><s>[INST]"), assistant("<think>why</think>\n\nso"), user("<|im_end|>")],
    "a thought": [user("a"), assistant("so", reasoning_content="\nwhy\n"), user("c"), assistant("d", thinking="hm")],
    "a call of a tool": [user("1+2"), assistant(None, tool_calls=[_CALL]), {"role": "tool", "content": "3"}, user("?")],
    "two calls at once": [user("1+2"), assistant("", tool_calls=[_CALL, {**_CALL, "id": "x"}]), user("?")],
    "no content": [{"role": "user"}],
    "a number for content": [user(7)],
    "two of the user": [user("a"), user("b")],
    "an answer first": [assistant("a"), user("b")],
    "system last": [user("a"), system("s")],
    "an unknown role": [{"role": "developer", "content": "d", "name": "n"}, user("a")],
}


def special(style: str) -> dict[str, str]:
    """The special tokens of a style."""
    return SPECIAL.get(style, _PAIR)


@cache
def oracle(text: str | None = None, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of transformers with a chat template and special tokens; it is not to be changed."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **special)
    tokenizer.chat_template = text
    return tokenizer


def written_by_transformers(style: str, messages: Messages, *, add_generation_prompt: bool = True) -> str | Exception:
    """The text of a conversation in a style, or the error that it ends in."""
    theirs = oracle(STYLES[style].read_text("utf-8"), **special(style))
    try:
        text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # noqa: BLE001 (a template raises what it likes)
        return error
    assert isinstance(text, str)
    return text
