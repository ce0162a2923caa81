"""What a conversation makes of its exchanges, and what it does when the context is full."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from gptfast_cli.core.engine.chat import ContextFullError, Conversation, Exchange, Message, Prompter
from gptfast_cli.core.engine.request import Limits
from gptfast_cli.core.errors import NotFoundError, UsageError


class WordPrompter:
    """Makes a token of each word, and a line of each message."""

    def __init__(self, *, is_chat: bool) -> None:
        self.is_chat = is_chat
        self.encoded = ""
        self.variables: dict[str, Any] = {}

    def opening(self) -> list[Message]:
        return [{"role": "system", "content": "Be brief."}] if self.is_chat else []

    def render(self, messages: Sequence[Message]) -> str:
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages)

    def encode(self, text: str) -> tuple[int, ...]:
        self.encoded = text
        return tuple(range(len(text.split())))


def conversation_of(
    *exchanges: tuple[str, str], is_chat: bool = True, max_context: int = 1000, max_new_tokens: int = 200
) -> tuple[Conversation, WordPrompter]:
    prompter = WordPrompter(is_chat=is_chat)
    limits = Limits(max_new_tokens, max_context, frozenset())
    conversation = Conversation(cast("Prompter", prompter), limits)
    conversation.exchanges[:] = [Exchange(*exchange) for exchange in exchanges]
    return conversation, prompter


def test_a_chat_is_rendered_whole_its_system_message_first() -> None:
    conversation, prompter = conversation_of(("one", "two"))
    conversation.prompt("three")
    assert prompter.encoded == "system: Be brief.\nuser: one\nassistant: two\nuser: three\n"
    roles = [message["role"] for message in conversation.messages]
    assert roles == ["system", "user", "assistant"]
    assert conversation.row == {"messages": conversation.messages}


def test_reasoning_goes_back_to_the_template_under_its_own_name() -> None:
    conversation, _ = conversation_of()
    conversation.exchanges.append(Exchange("one", "two", "why"))
    answer = {"role": "assistant", "content": "two", "reasoning_content": "why"}
    assert conversation.messages[-1] == answer


def test_a_saved_row_has_the_variables_of_the_template() -> None:
    conversation, prompter = conversation_of(("one", "two"))
    prompter.variables["enable_thinking"] = False
    assert conversation.row["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_text_grows_by_a_line_for_each_message() -> None:
    conversation, prompter = conversation_of(("Once", " upon a time."), ("There was", " a fox.\n"), is_chat=False)
    conversation.prompt("He ran")
    assert prompter.encoded == "Once upon a time.\nThere was a fox.\nHe ran"
    assert conversation.row == {"prompt": "Once upon a time.\nThere was a fox.\n"}


def test_the_system_message_changes_from_the_next_message_on() -> None:
    conversation, prompter = conversation_of()
    assert conversation.system == "Be brief."
    conversation.system = "Be long."
    conversation.prompt("x")
    assert prompter.encoded.startswith("system: Be long.\n")
    conversation.system = None
    conversation.prompt("x")
    assert prompter.encoded == "user: x\n"


def test_a_text_takes_no_system_message() -> None:
    conversation, _ = conversation_of(is_chat=False)
    with pytest.raises(UsageError, match="no chat template"):
        conversation.system = "Be brief."


def test_a_full_context_says_what_dropping_the_oldest_exchange_frees() -> None:
    conversation, _ = conversation_of(("a b c", "d"), ("e", "f"), max_context=30)
    with pytest.raises(ContextFullError, match="15 of 30 tokens with this message") as full:
        conversation.prompt("g")
    assert conversation.oldest_tokens == 6
    assert "(6 tokens)" in full.value.hint
    conversation.drop_oldest()
    assert len(conversation.prompt("g")) == 15 - 6
    assert conversation.system == "Be brief."


def test_a_message_too_long_by_itself_is_called_that() -> None:
    conversation, _ = conversation_of(("a", "b"), max_context=30)
    with pytest.raises(ContextFullError, match="this message alone has 44"):
        conversation.prompt("word " * 40)


@pytest.mark.parametrize(("max_new_tokens", "least_room"), [(200, 16), (3, 3)])
def test_an_answer_is_not_begun_where_it_would_be_cut_at_once(max_new_tokens: int, least_room: int) -> None:
    limits: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    assert len(conversation_of(max_context=5 + least_room, **limits)[0].prompt("Hello")) == 5
    with pytest.raises(ContextFullError):
        conversation_of(max_context=4 + least_room, **limits)[0].prompt("Hello")


def test_there_is_nothing_to_drop_at_first() -> None:
    conversation, _ = conversation_of()
    assert conversation.oldest_tokens == 0
    with pytest.raises(NotFoundError):
        conversation.drop_oldest()
