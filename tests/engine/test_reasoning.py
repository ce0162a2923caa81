"""The reasoning of an answer is told apart from its content, whatever delimiters a model has."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from gptfast_cli.core.engine.reasoning import Piece, closing_tokens, find_reasoning
from gptfast_cli.core.engine.request import Limits, Request, Transcript
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.tokenizers import Tokenizer, open_tokenizer

QWEN = "{{ '<think>' }}{{ message.content.split('</think>')[-1] }}"
HARMONY = "<|start|>assistant<|channel|>analysis<|message|>{{ thinking }}<|end|>"
AGAIN = "<|start|>assistant<|channel|>analysis<|message|>b<|end|>"
HARMONY_TOKENS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>")


def tokenizer_of(folder: Path, special: Sequence[str] = (), added: Sequence[str] = ()) -> Tokenizer:
    """A tokenizer of bytes with these special tokens, which have no text, and added ones, which have."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({character: n for n, character in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(special))
    made.add_tokens([tokenizers.AddedToken(text, special=False, normalized=False) for text in added])
    made.save(str(folder / "tokenizer.json"))
    opened = open_tokenizer(folder)
    assert opened is not None
    return opened


def transcript(
    template: str,
    tokenizer: Tokenizer,
    answer: str,
    *,
    prompt: str = "",
    at_once: bool = False,
    stop: str | None = None,
) -> tuple[Transcript, list[Piece]]:
    """The transcript of an answer, which is over, and the pieces of its text."""
    reasoning = find_reasoning(template, tokenizer)
    assert reasoning is not None
    parser = reasoning.parser(tokenizer, tokenizer.encode(prompt, bos=False))
    request = Request(0, (0,), Sampler(Sampling(), 0), Limits(999, 9999, frozenset()))
    followed = Transcript(request, tokenizer, () if stop is None else (stop,), parser)
    pieces: list[Piece] = []
    for token in tokenizer.encode(answer, bos=False):
        request.generated.append(token)
        if not at_once:
            pieces += followed.read()
        if request.finish_reason is not None:
            break
    request.finish_reason = request.finish_reason or "eos"
    return followed, pieces + followed.read()


# name: (template, special tokens, added tokens, answer, reasoning, content, text)
CASES = {
    "tags that are text": (QWEN, (), (), "<think>\nwhy é\n</think>\n\nso", "why é", "so", None),
    "tags that are added tokens": ("", (), ("<think>", "</think>"), "<think>\nwhy\n</think>\n\nso", "why", "so", None),
    "tags that are special": ("", ("<think>", "</think>"), (), "<think>why</think>so", "why", "so", "whyso"),
    "Mistral": ("", ("[THINK]", "[/THINK]"), (), "[THINK]why[/THINK]so", "why", "so", "whyso"),
    "Cohere": (
        "",
        ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"),
        (),
        "<|START_THINKING|>why<|END_THINKING|><|START_RESPONSE|>so",
        *("why", "so", "whyso"),
    ),
    "Gemma 4": (
        "",
        ("<|channel>", "<channel|>"),
        (),
        "<|channel>thought\nwhy\n<channel|>so",
        "why",
        "so",
        "thought\nwhy\nso",
    ),
    "gpt-oss": (
        HARMONY,
        HARMONY_TOKENS,
        (),
        "<|channel|>analysis<|message|>why<|end|><|start|>assistant<|channel|>final<|message|>so",
        *("why", "so", "analysiswhyassistantfinalso"),
    ),
    "gpt-oss, two thoughts": (
        HARMONY,
        HARMONY_TOKENS,
        (),
        "<|channel|>analysis<|message|>a<|end|>" + AGAIN + "<|start|>assistant<|channel|>final<|message|>so",
        *("a\n\nb", "so", "analysisaassistantanalysisbassistantfinalso"),
    ),
    "gpt-oss, no thought": (HARMONY, HARMONY_TOKENS, (), "<|channel|>final<|message|>so", None, "so", "finalso"),
    "none": (QWEN, (), (), " so ", None, " so ", None),
    "a text that begins like a tag": (QWEN, (), (), "<thin ice> is", None, "<thin ice> is", None),
    "a text that could become a tag": (QWEN, (), (), "<thi", None, "<thi", None),
    "empty": (QWEN, (), (), "<think>\n\n</think>\n\nso", "", "so", None),
    "not closed": (QWEN, (), (), "<think>\nwhy </thi", "why </thi", "", None),
    "nothing after it": (QWEN, (), (), "<think>why</think>\n", "why", "", None),
    "later tags are text": (QWEN, (), (), "so <think>a</think> it", None, "so <think>a</think> it", None),
    "tags after the reasoning are text": (QWEN, (), (), "<think>a</think>so <think>", "a", "so <think>", None),
    "a closing tag alone": (QWEN, (), (), "why</think>so", None, "why</think>so", None),
}


@pytest.mark.parametrize("at_once", [False, True], ids=["token by token", "at once"])
@pytest.mark.parametrize("case", CASES)
def test_reasoning_and_content_are_told_apart(tmp_path: Path, case: str, at_once: bool) -> None:
    template, special, added, answer, reasoning, content, text = CASES[case]
    followed, pieces = transcript(template, tokenizer_of(tmp_path, special, added), answer, at_once=at_once)
    assert followed.reasoning is not None
    assert (followed.reasoning.reasoning, followed.reasoning.content) == (reasoning, content)
    assert followed.text == (answer if text is None else text)
    assert "".join(piece.text for piece in pieces) == followed.text
    shown = "".join(piece.text for piece in pieces if not piece.is_reasoning)
    assert shown.strip() == content.strip()


@pytest.mark.parametrize(
    ("prompt", "reasoning", "content"),
    [
        ("user: hi<think>\n", "why", "so"),
        ("user: hi<think>", "why", "so"),
        ("user: hi<think>\n\n</think>\n\n", None, "why</think>so"),
        ("user: what is <think>?\n", None, "why</think>so"),
    ],
)
def test_the_prompt_may_have_begun_the_reasoning(
    tmp_path: Path, prompt: str, reasoning: str | None, content: str
) -> None:
    for added in ((), ("<think>", "</think>")):
        followed, pieces = transcript(QWEN, tokenizer_of(tmp_path, (), added), "why</think>so", prompt=prompt)
        assert followed.reasoning is not None
        assert (followed.reasoning.reasoning, followed.reasoning.content) == (reasoning, content)
        assert pieces[0].is_reasoning == (reasoning is not None)
    special = tokenizer_of(tmp_path, ("<think>", "</think>"))
    followed, _ = transcript(QWEN, special, "why</think>so", prompt=prompt)
    assert followed.reasoning is not None and followed.reasoning.reasoning == reasoning


def test_reasoning_is_shown_before_it_is_over(tmp_path: Path) -> None:
    _, pieces = transcript(QWEN, tokenizer_of(tmp_path), "<think>ab</think>c")
    assert [piece.text for piece in pieces] == ["<think>", "a", "b", "</think>", "c"]
    assert [piece.is_reasoning for piece in pieces] == [True] * 4 + [False]


def test_a_stop_string_ends_reasoning_and_text_at_the_same_character(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, ("[THINK]", "[/THINK]"))
    followed, _ = transcript("", tokenizer, "[THINK]why not[/THINK]so", stop=" n")
    assert followed.reasoning is not None
    assert (followed.text, followed.reasoning.reasoning, followed.reasoning.content) == ("why", "why", "")
    assert followed.request.finish_reason == "stop"


def test_a_model_that_knows_no_delimiters_has_no_reasoning(tmp_path: Path) -> None:
    assert find_reasoning("{{ messages }}", tokenizer_of(tmp_path, ("<s>", "<|end|>"))) is None


def test_the_token_that_ends_a_thought_of_gpt_oss_does_not_end_its_answer(tmp_path: Path) -> None:
    harmony = tokenizer_of(tmp_path, HARMONY_TOKENS).vocabulary.added_tokens
    assert closing_tokens(HARMONY, harmony) == {"<|end|>"}
    phi = tokenizer_of(tmp_path, ("<|assistant|>", "<|end|>")).vocabulary.added_tokens
    assert closing_tokens("<|assistant|>{{ content }}<|end|>", phi) == set()
