"""What a reader needs beside the numbers of the report: target, machine and versions, and a glossary."""

from collections.abc import Iterator, Mapping
from typing import Final

from gptfast_cli.core.bench.environment import Environment
from gptfast_cli.core.drafts.report import DraftReport
from gptfast_cli.render.numbers import count, digits, size
from gptfast_cli.render.report.tree import Detail, Facts, Section

BASES: Final[Mapping[str, str]] = {
    "on-policy": "agreement measured on text that the target wrote",
    "proxy": "agreement measured on given text, not on the target's own: a proxy",
    "assumed": "agreement assumed, not measured",
}

_ALPHA: Final = """0 to 1: the mean of Σ min(p, q) over positions, with p of the target and q of the draft after
temperature, top-k and top-p. It does not depend on k. Accepted ÷ drafted is not α."""

_SPEEDUP: Final = """S(k, B) = τ · T_target(B, 1) ÷ (k · T_draft(B) + T_verify(B, k + 1) + T_rest), every T measured on
this machine; always against this program's own plain decoding, interleaved with it in the same run."""

_CLEAR_GAIN: Final = """At least 1.03, with an interval above 1 and no wider than 0.3 of the value. A k whose neighbours
contradict it is passed over, and of k within 2 % of the best the smallest is picked."""

_BREAK_EVEN: Final = """The boundary where the speed-up is 1. Break-even α: the agreement, the same at every token,
under which a k loses at a batch size."""

GLOSSARY: Final = (
    ("round", "One proposal of the draft and its verification by the target."),
    ("k", "Draft length: tokens that the draft proposes in a round."),
    ("α, agreement", _ALPHA),
    ("τ, tokens per round", "Expected tokens of a round with k drafted ones: those accepted, and the bonus token."),
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


def facts(report: DraftReport) -> Iterator[tuple[str, str]]:
    """Term and text: target, drafts, texts, machine, versions and date."""
    environment = report.environment
    sizes = f"{count(report.n_params)} parameters, {report.scheme}, {size(report.n_bytes)}"
    yield "Target", f"{report.target}: {sizes}"
    yield "Drafts", ", ".join(dict.fromkeys(each.draft for each in report.drafts)) or "none was measured"
    bases = [text for basis, text in BASES.items() if any(each.basis == basis for each in report.drafts)]
    if bases:
        yield "Basis", "; ".join(bases)
    n = report.n_prompts
    yield (
        "Texts",
        f"{n:,} prompt{'s' * (n != 1)}, up to {report.max_new_tokens:,} new tokens each; seed {report.seed}",
    )
    yield "Machine", _machine(environment, report.bandwidth_gbps)
    if report.noise is not None:
        yield "Noise", f"equal runs differ by {report.noise.spread:.0%}"
    commit = f", commit {environment.commit}" if environment.commit else ""
    python = f"torch {environment.torch}, Python {environment.python}"
    yield "Software", f"gptfast {environment.gptfast}{commit}; {python}, {environment.os}"
    yield "Date", environment.date.replace("T", " ").replace("+00:00", " UTC")


def glossary() -> Section:
    """The terms of the report, as the program uses them everywhere."""
    items = tuple(((word,), (meaning,)) for word, meaning in GLOSSARY)
    return Section("words", "Glossary", (Facts(items, "facts words"),), Detail.PAGE)


def _machine(environment: Environment, bandwidth_gbps: float) -> str:
    cpu = environment.cpu or "a CPU"
    threads = f"{environment.threads} thread{'' if environment.threads == 1 else 's'}"
    device = f"{environment.gpu}, with {cpu}" if environment.gpu else f"{cpu}, {threads} of {environment.n_cpus} CPUs"
    sets = f" ({', '.join(environment.instruction_sets)})" if environment.instruction_sets else ""
    memory = "" if environment.memory_bytes is None else f", {size(environment.memory_bytes)} of memory"
    reads = f"memory reads {digits(bandwidth_gbps)} GB/s"
    return f"{device}{sets}{memory}; {environment.dtype} on {environment.device}; {reads}"
