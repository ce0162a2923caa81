"""The words of the report, as the program means them everywhere."""

from typing import Final

from gptfast_cli.render.markup import Element, tag
from gptfast_cli.render.report.tables import section
from gptfast_cli.render.report.verdict import BASES

_ALPHA: Final = """0 to 1: the mean of Σ min(p, q) over positions, with p of the target and q of the draft after
temperature, top-k and top-p. It does not depend on k. Accepted ÷ drafted is not α."""

_SPEEDUP: Final = """S(k, B) = τ · T_target(B, 1) ÷ (k · T_draft(B) + T_verify(B, k + 1) + T_rest), every T measured on
this machine; always against this program's own plain decoding, measured in turns with it in the same run."""

_CLEAR_GAIN: Final = """At least 1.03, with an interval above 1 and no wider than 0.3 of the value. A k whose neighbours
contradict it is passed over, and of k within 2 % of the best the smallest is picked."""

_BREAK_EVEN: Final = """The boundary where the speed-up is 1. Break-even α: the agreement, the same at every token,
under which a depth loses at a batch size."""

WORDS: Final = (
    ("round", "One proposal of the draft and its verification by the target."),
    ("k", "Depth: tokens that the draft proposes in a round."),
    ("α, agreement", _ALPHA),
    ("τ, tokens per round", "Expected tokens that a round of depth k yields: those accepted, and the bonus token."),
    ("speed-up", _SPEEDUP),
    ("clear gain", _CLEAR_GAIN),
    ("break-even", _BREAK_EVEN),
    ("perfect draft", "One that is always right, at the same costs: k + 1 tokens a round. It is the ceiling."),
    ("interval", "[low, high]: where the number lies in 95 of 100 bootstrap samples, taken by prompt."),
    (
        "GB/s, MBU",
        "GB = 1e9 bytes. MBU: bytes ÷ time ÷ the read bandwidth of the device, above 100 % from a cache.",
    ),
    ("basis", "; ".join(f"{basis}: {text}" for basis, text in BASES.items()) + "."),
)


def glossary() -> Element:
    """Each word and what it means."""
    items = [part for word, meaning in WORDS for part in (tag("dt", word), tag("dd", meaning))]
    return section("words", "Words", tag("dl", *items, class_="facts words"))
