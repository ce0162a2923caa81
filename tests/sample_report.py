"""A report computed from a formula, with consistent numbers, for tests of what shows it."""

from gptfast_cli.core.bench.environment import Environment
from gptfast_cli.core.drafts.report import (
    DraftReport,
    DraftResult,
    GridCell,
    Interval,
    LosslessnessCheck,
    PlainDecoding,
    PositionAcceptance,
    Recommendation,
    RoundCost,
    Slice,
    ValidationRun,
)

DEPTHS, BATCH_SIZES, TEMPERATURES = range(1, 9), (1, 2, 4, 8), (0.0, 0.8)
STEP = 0.010  # seconds at batch 1


def sample_report() -> DraftReport:
    drafts = tuple(
        _draft(name, temperature, alpha - 0.05 * temperature, cost)
        for temperature in TEMPERATURES
        for name, alpha, cost in (("tiny-draft", 0.85, 0.1), ("self:int8", 0.97, 0.65), ("ngram", 0.3, 0.0))
    )
    recommendations = tuple(_recommendation(drafts, t, b) for t in TEMPERATURES for b in BATCH_SIZES)
    validation_runs = (
        ValidationRun("tiny-draft", 0.0, 4, 1, 60, 1.71, Interval(1.69, 1.66, 1.74), 0.012),
        ValidationRun("self:int8", 0.0, 2, 1, 60, 1.10, Interval(1.13, 1.10, 1.15), -0.027),
        ValidationRun("ngram", 0.8, 5, 2, 60, 0.71, Interval(0.69, 0.66, 0.74), 0.029),
        ValidationRun(None, 0.0, 0, 1, 60, 1.0, Interval(1.003, 0.99, 1.01), -0.003),
    )
    return DraftReport(
        environment=Environment(
            "0.1.0", "0" * 40, "3.11.7", "2.13.0", "Linux 6.1 x86_64", "A CPU", 2, ("avx512f",), 1 << 34, "cpu", None,
            1, 2, "bfloat16", "cpu", "2026-11-26T05:00:00+00:00",
        ),
        target="tiny",
        scheme="plain",
        n_params=2_200_000,
        n_bytes=4_330_000,
        n_prompts=60,
        max_new_tokens=128,
        seed=0,
        prefill_s=0.0021,
        bandwidth_gbps=61.2,
        drafts=drafts,
        plain=tuple(_plain(t, b) for t in TEMPERATURES for b in BATCH_SIZES),
        recommendations=recommendations,
        validation_runs=validation_runs,
        losslessness_checks=(LosslessnessCheck("tiny-draft", 40, 40, 2000, 31.2, 28, 0.31),),
        median_error=0.027,
        verdict="use tiny-draft, k = 4: 1.71x [1.66, 1.77] at batch 1; no draft from batch 8",
    )  # fmt: skip


def _draft(name: str, temperature: float, alpha: float, cost: float) -> DraftResult:
    tau = {k: _interval(sum(alpha**n for n in range(k + 1))) for k in DEPTHS}
    return DraftResult(
        draft=name,
        temperature=temperature,
        basis="on-policy",
        n_tokens=6_400,
        alpha=_interval(alpha),
        tau=tau,
        acceptance_by_position=tuple(PositionAcceptance(alpha, alpha ** (n + 1)) for n in range(8)),
        slices=(
            Slice("category", "stories", 2_000, _interval(alpha + 0.02)),
            Slice("category", "code", 2_000, _interval(alpha - 0.1)),
            Slice("context", "tokens 1-64", 3_200, _interval(alpha - 0.01)),
            Slice("context", "tokens 65-128", 3_200, _interval(alpha + 0.01)),
        ),
        grid=tuple(_cell(name, k, b, tau[k].value, cost) for b in BATCH_SIZES for k in DEPTHS),
        n_params=200_000,
        n_bytes=520_000,
        load_s=0.003,
        prefill_s=0.0005,
    )


def _cell(name: str, k: int, batch_size: int, tau: float, cost: float) -> GridCell:
    step = STEP * (1 + batch_size / 50)
    parts = RoundCost(k * cost * step, step * (1 + 0.02 * k * batch_size), 0.0004, 0.0002)
    speedup = tau * step / parts.total
    is_proved = name == "tiny-draft" and (k, batch_size) == (4, 1)
    return GridCell(
        k=k,
        batch_size=batch_size,
        cost=parts,
        predicted=_interval(speedup),
        ceiling=(k + 1) * step / parts.total,
        break_even=min(1.0, 0.1 + 0.05 * k * (1 + batch_size / 8)) if (k + 1) * step > parts.total else None,
        token_seconds=step / speedup,
        tok_s=batch_size * speedup / step,
        gbps=4.5e8 / parts.total / 1e9,
        measured=_interval(speedup * 0.99) if is_proved else None,
        error=0.012 if is_proved else None,
    )


def _plain(temperature: float, batch_size: int) -> PlainDecoding:
    step = STEP * (1 + batch_size / 50)
    return PlainDecoding(temperature, batch_size, step, batch_size / step, 31.0, 0.5)


def _recommendation(drafts: tuple[DraftResult, ...], temperature: float, batch_size: int) -> Recommendation:
    cells = [(d.draft, c) for d in drafts if d.temperature == temperature for c in d.grid if c.batch_size == batch_size]
    draft, best = max(cells, key=lambda each: each[1].predicted.value)
    if best.predicted.value < 1.03:
        return Recommendation(temperature, batch_size, None, None, None)
    return Recommendation(temperature, batch_size, draft, best.k, best.predicted)


def _interval(value: float) -> Interval:
    return Interval(value, value * 0.97, value * 1.03)
