"""A prompt reaches a chat model as a conversation in its format, and any other as it was written."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chat_model import TEMPLATE, chat_model, chatml
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import ChatOptions, open_prompter, thinking_variables
from gptfast_cli.core.engine.load import LoadedModel, load
from gptfast_cli.core.errors import UsageError
from model_files import drained, saved, settings_in


@pytest.fixture
def load_in(tmp_path: Path) -> Callable[[Path], LoadedModel]:
    return lambda folder: drained(load(str(folder), settings_in(tmp_path), RuntimeConfig(device="cpu")))[1]


@pytest.fixture
def loaded(tmp_path: Path, load_in: Callable[[Path], LoadedModel]) -> LoadedModel:
    return load_in(chat_model(tmp_path / "chat"))


@pytest.fixture
def base(tmp_path: Path, load_in: Callable[[Path], LoadedModel]) -> LoadedModel:
    return load_in(chat_model(tmp_path / "base", template=None))


def test_a_prompt_is_a_message_where_the_model_has_a_template(loaded: LoadedModel) -> None:
    with open_prompter(loaded, ChatOptions()) as prompter:
        assert prompter.is_chat
        assert prompter.text("Hi") == chatml(("user", "Hi"))


def test_the_system_message_comes_first(loaded: LoadedModel) -> None:
    with open_prompter(loaded, ChatOptions(system="Be brief.")) as prompter:
        assert prompter.text("Hi") == chatml(("system", "Be brief."), ("user", "Hi"))


def test_no_chat_leaves_the_prompt_as_it_is(loaded: LoadedModel) -> None:
    with open_prompter(loaded, ChatOptions(chat=False)) as prompter:
        assert not prompter.is_chat
        assert prompter.text("Hi") == "Hi"


def test_a_base_model_continues_the_prompt(base: LoadedModel) -> None:
    with open_prompter(base, ChatOptions()) as prompter:
        assert prompter.text("Hi") == "Hi"
        with pytest.raises(UsageError, match="no chat template"):
            prompter.render([{"role": "user", "content": "Hi"}])


def test_llama_2s_format_is_the_fallback_for_a_requested_chat(base: LoadedModel) -> None:
    with open_prompter(base, ChatOptions(chat=True, system="Be brief.")) as prompter:
        assert prompter.is_fallback
        assert prompter.text("Hi") == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST]"


def test_a_template_of_a_file_takes_the_place_of_the_models_own(loaded: LoadedModel, tmp_path: Path) -> None:
    file = tmp_path / "shout.jinja"
    file.write_text("{{ messages[0].content | upper }}{{ eos_token }}")
    with open_prompter(loaded, ChatOptions(template=str(file))) as prompter:
        assert prompter.text("Hi") == "HI</s>"


def test_ids_of_a_chat_are_those_of_its_text_with_special_tokens_and_nothing_added(loaded: LoadedModel) -> None:
    with open_prompter(loaded, ChatOptions()) as prompter:
        ids = prompter.encode(prompter.text("Hi"))
    assert ids == tuple(loaded.tokenizer.encode(chatml(("user", "Hi")), bos=False))
    assert ids[0] == 258  # <|im_start|>, and no <s>


GEMMA = "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"


@pytest.mark.parametrize(
    ("template", "closing"),
    [
        (TEMPLATE, {259}),  # <|im_end|>
        (
            "{% for m in messages %}{{ m.content }}{{ ' ' ~ eos_token if m.role == 'assistant' }}{% endfor %}",
            {257},
        ),
        ("{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n{% endfor %}", set()),
        (GEMMA, set()),  # which the tokenizer does not know
        ("{{ raise_exception('one message only') if messages | length > 1 }}{{ messages[0].content }}", set()),
        ("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}</s>", set()),
    ],
)
def test_the_token_that_closes_a_turn_is_read_off_the_template(
    load_in: Callable[[Path], LoadedModel], tmp_path: Path, template: str, closing: set[int]
) -> None:
    with open_prompter(load_in(chat_model(tmp_path / "model", template=template)), ChatOptions()) as prompter:
        assert prompter.turn_end_ids == closing


def test_llama_2s_form_closes_a_turn_by_its_end_token(base: LoadedModel) -> None:
    with open_prompter(base, ChatOptions(chat=True)) as prompter:
        assert prompter.turn_end_ids == {257}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ChatOptions(chat=False, system="Be brief."), "--system and --no-chat exclude each other"),
        (ChatOptions(template="rag"), "rag"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(loaded: LoadedModel, options: ChatOptions, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_prompter(loaded, options)


def test_a_system_message_needs_a_chat(base: LoadedModel) -> None:
    with pytest.raises(UsageError, match="requires a chat template"):
        open_prompter(base, ChatOptions(system="Be brief."))


THINKING = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


def test_variables_reach_the_template_and_those_of_one_rendering_come_last(
    load_in: Callable[[Path], LoadedModel], tmp_path: Path
) -> None:
    loaded = load_in(chat_model(tmp_path / "thinks", template=THINKING + "{{ effort }}"))
    variables = {**thinking_variables(think=False), "effort": "low"}
    with open_prompter(loaded, ChatOptions(variables=variables)) as prompter:
        assert list(prompter.notes()) == []
        assert prompter.text("Hi").endswith("<think></think>low")
        again = prompter.render([{"role": "user", "content": "Hi"}], variables={"enable_thinking": True})
        assert again.endswith("assistant\nlow")


def test_a_variable_that_the_template_does_not_read_is_named(loaded: LoadedModel) -> None:
    with open_prompter(loaded, ChatOptions(variables={**thinking_variables(think=True), "effort": 3})) as prompter:
        (note,) = prompter.notes()
    assert note.text.endswith("does not read it: enable_thinking, thinking, effort")


def test_variables_need_a_chat(base: LoadedModel, loaded: LoadedModel) -> None:
    with pytest.raises(UsageError, match="has no chat template, whose variables"):
        open_prompter(base, ChatOptions(variables={"effort": 3}))
    with pytest.raises(UsageError, match="--no-chat excludes"):
        open_prompter(loaded, ChatOptions(chat=False, variables={"effort": 3}))


def test_a_model_without_a_tokenizer_takes_no_text(tmp_path: Path, load_in: Callable[[Path], LoadedModel]) -> None:
    with (
        open_prompter(load_in(saved(tmp_path / "bare")), ChatOptions()) as prompter,
        pytest.raises(UsageError, match="no tokenizer"),
    ):
        prompter.encode("Hi")


def test_a_converted_model_chats_as_its_source_does(tmp_path: Path, load_in: Callable[[Path], LoadedModel]) -> None:
    from model_files import converted

    stored = converted(chat_model(tmp_path / "chat", template=TEMPLATE), settings_in(tmp_path)).path
    with open_prompter(load_in(stored), ChatOptions()) as prompter:
        assert prompter.text("Hi") == chatml(("user", "Hi"))
