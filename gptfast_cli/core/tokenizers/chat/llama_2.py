"""Llama-2's chat form, for chat models that come without a template, such as Meta's own files.

As in Meta's reference (github.com/meta-llama/llama, generation.py: chat_completion): the system message is a part of
the first user message, and both are stripped as one. Each question with its answer is encoded there as a text of its
own, between BOS and EOS.
"""

from pathlib import Path

from gptfast_cli.core.tokenizers.chat.template import ChatTemplate, TemplateSource
from gptfast_cli.core.tokenizers.chat.variables import read_variables
from gptfast_cli.core.tokenizers.tokenizer import Tokenizer

_TEMPLATE = r"""
{%- set system = messages[0].content if messages[0].role == "system" else none %}
{%- set turns = messages if system is none else messages[1:] %}
{%- if not turns %}
    {{- raise_exception("A message of the user must follow that of the system.") }}
{%- endif %}
{%- for message in turns %}
    {%- if message.role != ("user" if loop.index is odd else "assistant") %}
        {{- raise_exception("After an optional system message, user and assistant must alternate, the user first.") }}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {{- " " ~ message.content | trim ~ " " ~ eos_token }}
        {%- if loop.last and add_generation_prompt %}
            {{- raise_exception("The last message must be the user's.") }}
        {%- endif %}
    {%- else %}
        {%- set opening = "" if system is none or not loop.first else "<<SYS>>\n" ~ system ~ "\n<</SYS>>\n\n" %}
        {{- bos_token ~ after_bos ~ "[INST] " ~ (opening ~ message.content) | trim ~ " [/INST]" }}
    {%- endif %}
{%- endfor %}"""


def llama_2_template(folder: Path, tokenizer: Tokenizer | None) -> ChatTemplate:
    """Llama-2's chat form with the special tokens of a model's folder, `<s>` and `</s>` where it names none.

    `tokenizer` is the one that will read what is written, None where there is none.
    """
    variables = {"bos_token": "<s>", "eos_token": "</s>"} | read_variables(folder)
    variables["after_bos"] = "" if tokenizer is None else _after_bos(tokenizer, variables["bos_token"])
    return ChatTemplate(TemplateSource(_TEMPLATE, "Llama-2's form", variables))


def _after_bos(tokenizer: Tokenizer, bos: str) -> str:
    """A space where `[INST]` after BOS would not be the tokens that it is at the beginning of a text."""
    first = tokenizer.encode("[INST]", bos=False)
    behind = {gap: tokenizer.encode(f"{bos}{gap}[INST]", bos=False)[1:] for gap in ("", " ")}
    return " " if behind[""] != first == behind[" "] else ""
