"""A chat turn by turn: always in the state of a fresh prompt, with only what is new being fed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from chat_model import TEMPLATE, chat_model
from generation_requests import requested
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import ChatOptions, ContextFullError, Exchange
from gptfast_cli.core.engine.compiled import Compiling
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.load import LoadedModel, load
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.errors import GptFastError, NotFoundError, UsageError
from gptfast_cli.core.events import Measured, Note, Progress, TextChunk
from gptfast_cli.core.jobs.chat import Chat, ChatRequest, Turn, open_chat
from llama_oracle import random_llama
from model_files import drained, run_to_end, saved, settings_in

AS_CHAT = ChatOptions(chat=True, system="Be brief.")
AS_TEXT = ChatOptions()
QUESTIONS = ("Who lived there?", "What did the fox say?", "And then?")

ChatWith = Callable[..., Chat]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A base model; with --chat it talks in Llama-2's form."""
    return drained(load("tiny", settings_in(tmp_path_factory.mktemp("home")), RuntimeConfig("cpu", "float32")))[1]


@pytest.fixture(scope="module")
def word_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose tokens are whole words, so that any of its texts is read back as the tokens it came from."""
    folder = tmp_path_factory.mktemp("words")
    vocabulary = {word: n for n, word in enumerate(("user", "assistant", *(f"w{n}" for n in range(40))))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="user"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    saved(folder, vocab_size=len(vocabulary))
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %} assistant"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return folder


@pytest.fixture
def chat_with(tiny: LoadedModel, tmp_path: Path) -> Iterator[ChatWith]:
    """Chats under some options; they end with the test."""
    chats: list[Chat] = []

    def begin(options: ChatOptions = AS_CHAT, **changes: Any) -> Chat:
        defaults: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True, "seed": 7}
        request = requested(ChatRequest, settings_in(tmp_path), chat=options, **{**defaults, **changes})
        chats.append(Chat(tiny, request))
        return chats[-1]

    yield begin
    for chat in chats:
        chat.__exit__(None, None, None)


def said(chat: Chat, message: str) -> Turn:
    return drained(chat.say(message))[1]


def interrupted(chat: Chat, message: str, *, at: type, n_events: int = 1) -> Turn:
    """The turn of a message whose answer is stopped at an event of some kind."""
    job = chat.say(message)
    for _ in range(n_events):
        while not isinstance(next(job), at):
            pass
    try:
        job.throw(KeyboardInterrupt())
    except StopIteration as ended:
        return ended.value
    return drained(job)[1]


def fresh_answer(tiny: LoadedModel, prompt: tuple[int, ...], *, stream: int, n_tokens: int) -> str:
    """What a model that has never seen the conversation answers to the whole of it."""
    limits = Limits(n_tokens, tiny.config.max_context, frozenset())
    sequence = Request(0, prompt, Sampler(Sampling(), 7, stream), limits)
    run_to_end(Engine(Runner(tiny.model, 1)), [sequence])
    return tiny.tokenizer.decode([*prompt, *sequence.generated]).removeprefix(tiny.tokenizer.decode(prompt))


@pytest.mark.parametrize("options", [AS_CHAT, AS_TEXT])
def test_an_answer_is_the_one_that_a_fresh_prompt_of_the_conversation_gets(
    chat_with: ChatWith, tiny: LoadedModel, options: ChatOptions
) -> None:
    chat = chat_with(options)
    for turn, question in enumerate(QUESTIONS):
        prompt = chat.conversation.prompt(question)
        assert said(chat, question).text == fresh_answer(tiny, prompt, stream=turn, n_tokens=12)


@pytest.mark.parametrize("options", [ChatOptions(chat=True), ChatOptions(chat=False)])
def test_only_tokens_that_are_new_are_fed(word_model: Path, tmp_path: Path, options: ChatOptions) -> None:
    request = requested(
        ChatRequest, settings_in(tmp_path), str(word_model), chat=options, max_new_tokens=9, ignore_eos=True
    )
    with drained(open_chat(request))[1] as chat:
        first = said(chat, "w1 w2")
        assert first.n_fed == first.prompt_tokens
        in_cache = first.context_used - 1  # the last token of an answer was drawn, and not fed
        for question in ("w3", "w4 w5 w6"):
            turn = said(chat, question)
            assert turn.n_fed == turn.prompt_tokens - in_cache
            in_cache = turn.context_used - 1


def test_a_compiled_chat_is_compiled_before_its_first_turn_and_says_how_long_it_took(
    word_model: Path, tmp_path: Path
) -> None:
    compiling = Compiling(decode=True, backend="eager")
    limits = {"max_context": 64, "max_new_tokens": 4, "ignore_eos": True}
    request = requested(ChatRequest, settings_in(tmp_path), str(word_model), compiling=compiling, **limits)
    events, opened = drained(open_chat(request))
    assert any(isinstance(event, Note) and event.text.startswith("Compiled in ") for event in events)
    with opened as chat:
        events, turn = drained(chat.say("w1 w2"))
    assert turn.n_generated == 4
    assert Progress("compile", 0, None, "tokens") not in events


def test_an_interrupt_keeps_what_there_is_of_the_answer(chat_with: ChatWith, tiny: LoadedModel) -> None:
    chat = chat_with(AS_TEXT)
    stopped = interrupted(chat, QUESTIONS[0], at=TextChunk)
    assert stopped.finish_reason == "interrupted" and stopped.is_kept
    assert 0 < stopped.n_generated < 12
    assert chat.conversation.exchanges == [Exchange(QUESTIONS[0], stopped.text)]
    prompt = chat.conversation.prompt(QUESTIONS[1])
    turn = said(chat, QUESTIONS[1])
    assert turn.text == fresh_answer(tiny, prompt, stream=1, n_tokens=12)
    assert turn.n_fed == turn.prompt_tokens - (stopped.context_used - 1)


def test_an_interrupt_before_the_first_character_keeps_nothing(chat_with: ChatWith) -> None:
    chat = chat_with()
    stopped = interrupted(chat, QUESTIONS[0], at=Progress)
    assert not stopped.is_kept and chat.conversation.exchanges == []
    assert said(chat, QUESTIONS[0]).text


def test_an_interrupt_as_the_last_token_comes_loses_nothing(chat_with: ChatWith) -> None:
    whole = said(chat_with(AS_TEXT, max_new_tokens=3), QUESTIONS[0])
    # events of that kind: prefill, first token, and two steps in one call
    stopped = interrupted(chat_with(AS_TEXT, max_new_tokens=3), QUESTIONS[0], at=Measured, n_events=3)
    assert (stopped.text, stopped.finish_reason) == (whole.text, "length")


def test_a_message_without_room_leaves_the_conversation_as_it_was(chat_with: ChatWith) -> None:
    chat = chat_with(max_context=128)
    said(chat, QUESTIONS[0])
    before = chat.conversation.messages
    with pytest.raises(ContextFullError):
        said(chat, "word " * 60)
    assert chat.conversation.messages == before


def test_an_error_in_a_step_costs_neither_the_conversation_nor_the_truth(
    chat_with: ChatWith, tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = chat_with()
    said(chat, QUESTIONS[0])
    before = chat.conversation.messages

    def spoils_the_cache(runner: Runner, *_: object) -> None:
        runner._held[0] = list(range(300))
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run_ahead", spoils_the_cache)
        with pytest.raises(MemoryError):
            said(chat, QUESTIONS[1])
    assert chat.conversation.messages == before
    prompt = chat.conversation.prompt(QUESTIONS[1])
    assert said(chat, QUESTIONS[1]).text == fresh_answer(tiny, prompt, stream=2, n_tokens=12)


def test_an_answer_that_fills_the_context_says_so_and_one_cut_by_its_own_limit_does_not(chat_with: ChatWith) -> None:
    assert not said(chat_with(), QUESTIONS[0]).filled_the_context
    chat = chat_with(max_context=80, max_new_tokens=64)
    turn = said(chat, QUESTIONS[0])
    assert turn.filled_the_context and turn.context_used == 80


def test_without_a_limit_of_its_own_an_answer_goes_on_until_the_context_is_full(chat_with: ChatWith) -> None:
    turn = said(chat_with(AS_TEXT, max_new_tokens=None, max_context=300), QUESTIONS[0])
    assert turn.filled_the_context and turn.context_used == 300 and turn.n_generated > 200


def test_the_same_seed_holds_the_same_conversation_and_no_turn_repeats_the_draws_of_another(
    chat_with: ChatWith,
) -> None:
    first, second = chat_with(AS_TEXT), chat_with(AS_TEXT)
    answers = [said(first, question).text for question in QUESTIONS]
    assert [said(second, question).text for question in QUESTIONS] == answers
    first.conversation.exchanges.clear()
    assert said(first, QUESTIONS[0]).text != answers[0]
    assert chat_with(seed=None).seed != chat_with(seed=None).seed


def test_an_answer_ends_before_a_stop_string_and_goes_on_from_there(chat_with: ChatWith, tiny: LoadedModel) -> None:
    free = said(chat_with(AS_TEXT), QUESTIONS[0]).text
    stop = free[6:9]
    chat = chat_with(AS_TEXT, stop=(stop,))
    turn = said(chat, QUESTIONS[0])
    assert turn.finish_reason == "stop" and turn.text == free[: free.index(stop)]
    prompt = chat.conversation.prompt(QUESTIONS[1])
    free_again = fresh_answer(tiny, prompt, stream=1, n_tokens=12)
    assert said(chat, QUESTIONS[1]).text == free_again.partition(stop)[0]


@pytest.mark.parametrize(("options", "key"), [(AS_CHAT, "messages"), (AS_TEXT, "prompt")])
def test_a_conversation_is_saved_as_a_row_of_prompts(
    chat_with: ChatWith, tmp_path: Path, options: ChatOptions, key: str
) -> None:
    chat = chat_with(options)
    file = tmp_path / "chat.json"
    with pytest.raises(NotFoundError, match="nothing to save"):
        chat.save(file)
    answer = said(chat, "Wer wärmt?").text
    chat.save(file)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Wer wärmt?"},
        {"role": "assistant", "content": answer},
    ]
    expected = messages if key == "messages" else f"Wer wärmt?{answer}"
    assert file.read_text().endswith("}\n") and json.loads(file.read_text()) == {key: expected}


def test_saving_replaces_its_own_file_and_no_other(chat_with: ChatWith, tmp_path: Path) -> None:
    chat = chat_with()
    (tmp_path / "other.json").write_text("mine")
    said(chat, QUESTIONS[0])
    chat.save(tmp_path / "own.json")
    said(chat, QUESTIONS[1])
    chat.save(tmp_path / "own.json")
    assert len(json.loads((tmp_path / "own.json").read_text())["messages"]) == 5
    with pytest.raises(UsageError, match="already exists"):
        chat.save(tmp_path / "other.json")
    with pytest.raises(NotFoundError, match="no folder"):
        chat.save(tmp_path / "nowhere" / "chat.json")
    assert (tmp_path / "other.json").read_text() == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "--max-new-tokens must be at least 1"),
        ({"max_context": 0}, "--max-context must be at least 1"),
        ({"max_context": 513}, "exceeds the context of tiny, 512 tokens"),
        ({"stop": ("",)}, "--stop needs at least one character"),
        ({"seed": -1}, "--seed must be from 0"),
        ({"sampling": Sampling(top_p=2)}, "--top-p must be"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_chat_begins(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(GptFastError, match=message):
        drained(open_chat(requested(ChatRequest, settings_in(tmp_path), "tiny", **changes)))


def test_a_model_without_a_tokenizer_cannot_chat(tmp_path: Path) -> None:
    random_llama().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no tokenizer"):
        drained(open_chat(requested(ChatRequest, settings_in(tmp_path), str(tmp_path))))


def test_reasoning_is_kept_apart_from_the_answer_of_a_turn(tmp_path: Path) -> None:
    folder = chat_model(tmp_path / "thinks", template=TEMPLATE + "<think>\n")
    request = requested(ChatRequest, settings_in(tmp_path), model=str(folder), max_new_tokens=9, ignore_eos=True)
    with drained(open_chat(request))[1] as chat:
        turn = said(chat, "Hi")
        answer = {"role": "assistant", "content": "", "reasoning_content": turn.text.strip()}
        assert chat.conversation.messages[-1] == answer
