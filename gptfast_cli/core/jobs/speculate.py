"""`speculate`: speed-ups of draft models for a target, predicted from acceptance and costs and checked by real runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gptfast_cli.core.bench.bandwidth import Probe
from gptfast_cli.core.bench.environment import device_clock, environment
from gptfast_cli.core.checkpoints.store import BUNDLED
from gptfast_cli.core.drafts.acceptance import ProbsReader
from gptfast_cli.core.drafts.candidates import JudgeOptions, open_candidate, open_target, target_limits
from gptfast_cli.core.drafts.costs import BenchPoint, CostMeter
from gptfast_cli.core.drafts.judge_state import JudgeState
from gptfast_cli.core.drafts.losslessness import CheckSize, check_losslessness
from gptfast_cli.core.drafts.recommendation import noise_warning
from gptfast_cli.core.drafts.report import DraftReport
from gptfast_cli.core.drafts.texts import (
    FailedPrompt,
    JudgePrompt,
    TargetText,
    completion_texts,
    read_prompts,
    synthetic_prompts,
    write_texts,
)
from gptfast_cli.core.drafts.validation import speedup, validation_run_of, validations_of
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.chat import ChatOptions
from gptfast_cli.core.engine.load import LoadedModel
from gptfast_cli.core.engine.options import check_at_least, check_seed
from gptfast_cli.core.engine.request import Limits
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampling, check
from gptfast_cli.core.engine.speculative.drafting import NGRAM, SELF, Advice, save_advice
from gptfast_cli.core.errors import GptFastError, UsageError
from gptfast_cli.core.events import Job, Note, Progress
from gptfast_cli.core.models.decoder import NonFiniteLogitsError
from gptfast_cli.core.models.process_group import ProcessGroup
from gptfast_cli.core.schemes.plain import NAME as PLAIN
from gptfast_cli.core.settings import Settings

_TINY, _TINY_DRAFT = BUNDLED
_VALIDATION_PAIRS = 3
_OTHER_PROMPTS = "Use other prompts: --prompts FILE"
_WHEN_QUIET = "Run it again when nothing else runs, or save the advice nevertheless: --save-advice --force"
_VALIDATION_SECONDS = 40.0  # time budget of all validation runs


@dataclass(frozen=True, slots=True)
class SpeculateRequest:
    """What to judge.

    model:    MODEL or SHAPE; None is the current model
    drafts:   DRAFTs or SHAPEs; empty for defaults. Prompt lookup is always judged, too
    draft_lengths: values of k
    temperatures: each has its own texts
    sampling: sampling options beside the temperature
    prompts:  prompts file; None for the bundled prompts
    alpha:    acceptance probability to assume of every draft; None measures it
    limit:    maximum number of prompts
    n_times:  repetitions of each cost
    certify:  run the losslessness checks
    save_advice: save the recommendations for `--draft auto`; on a noisy machine only with `force`
    """

    settings: Settings
    model: str | None = None
    drafts: tuple[str, ...] = ()
    runtime: RuntimeConfig = RuntimeConfig()
    draft_lengths: tuple[int, ...] = tuple(range(1, 9))
    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    temperatures: tuple[float, ...] = (0.0, 0.8)
    sampling: Sampling = Sampling()
    prompts: Path | None = None
    limit: int | None = None
    chat: ChatOptions = ChatOptions()
    max_new_tokens: int = 128
    alpha: float | None = None
    n_times: int = 5
    certify: bool = False
    save_advice: bool = False
    force: bool = False
    seed: int = 0


def run(request: SpeculateRequest) -> Job[DraftReport]:
    """Judge the drafts; an interrupt after loading returns a report of what was measured so far.

    Prompts that the target cannot take, or after which its logits are not finite, are left out with a note. Raises
    UsageError for values out of range, a draft that does not fit the target or no usable prompt, and what loading
    models raises.
    """
    _check(request)
    options = JudgeOptions(
        request.settings, request.runtime, request.alpha, max(request.batch_sizes), max(request.draft_lengths)
    )
    target = yield from open_target(request.model, options)
    if request.save_advice and target.is_random:
        raise UsageError(f"--save-advice requires a model, and {target.name} is a shape.", "Leave out --save-advice.")
    limits = target_limits(target, request.max_new_tokens, request.chat)
    prompts, failed = _prompts(request, target, limits)
    state = JudgeState(
        environment=environment(
            target.model.device, target.model.dtype, target.model.backend, request.runtime.group.size
        ),
        target=target,
        prompts=prompts,
        draft_lengths=request.draft_lengths,
        batch_sizes=request.batch_sizes,
        max_new_tokens=request.max_new_tokens,
        seed=request.seed,
    )
    yield from _leave_out(state, failed)
    n_tokens = max(limits.most_tokens(len(prompt.ids)) for prompt in prompts)
    for name in _drafts(request, target):
        state.candidates.append((yield from open_candidate(name, target, options, n_tokens=n_tokens)))
    runner = Runner(target.model, max(request.batch_sizes))
    meter = CostMeter(runner, state.candidates, request.draft_lengths, request.runtime.group)
    state.costs = meter.costs
    try:
        yield from _check_noise(state, meter, request, limits)
        yield from _measure_acceptance(state, runner, request, limits)
        yield from _measure_costs(state, meter, request)
        yield from _validate(state, meter, runner, limits, request.runtime.group)
        if request.certify:
            yield from _check_losslessness(state, runner, request)
    except KeyboardInterrupt:
        yield Note("Interrupted: the report shows what was measured so far.")
        return state.report(is_interrupted=True)
    report = state.report()
    if request.save_advice and not target.is_random and request.runtime.group.rank == 0:
        yield _save_advice(report, target, request)
    return report


def _check_noise(state: JudgeState, meter: CostMeter, request: SpeculateRequest, limits: Limits) -> Job[None]:
    """Warn of a noisy machine before the long measurements; raises GptFastError with --save-advice unless forced."""
    for prompt in state.prompts:
        try:
            meter.check_noise(prompt, limits.most_tokens(len(prompt.ids)) - len(prompt.ids))
            break
        except NonFiniteLogitsError as error:
            yield from _leave_out(state, [FailedPrompt(prompt.name, error.message)])
    noise = meter.costs.noise
    if noise is None or not noise.is_high:
        return
    if request.save_advice and not request.force:
        raise GptFastError(f"{noise_warning(noise)}: no advice was saved.", _WHEN_QUIET)
    yield Note(f"{noise_warning(noise)}.")


def _save_advice(report: DraftReport, target: LoadedModel, request: SpeculateRequest) -> Note:
    if report.is_noisy and not request.force:
        return Note(f"No advice was saved: the machine is noisy. {_WHEN_QUIET}")
    advice = [Advice(each.temperature, each.batch_size, each.draft, each.k) for each in report.recommendations]
    path = save_advice(request.settings.home, target, advice)
    return Note(f"Saved the advice for generate --draft auto: {path}")


def _measure_acceptance(state: JudgeState, runner: Runner, request: SpeculateRequest, limits: Limits) -> Job[None]:
    """Generate the texts of each temperature and measure the drafts' acceptance along them."""
    reader = ProbsReader(Runner(runner.model, 1))
    for temperature in request.temperatures:
        sampling = replace(request.sampling, temperature=temperature)
        # a text of one token has nothing to draft
        written, failed = yield from _texts(state, runner, sampling, limits)
        yield from _leave_out(state, failed)
        texts = [text for text in written if len(text.tokens) > 1]
        if not texts and state.failed_prompts:
            first = next(iter(state.failed_prompts.values()))
            raise GptFastError(f"No prompt can be used.\n{first.name}: {first.reason}", _OTHER_PROMPTS)
        if not texts:
            raise UsageError(f"{state.target.name} generates no text after these prompts.", _OTHER_PROMPTS)
        state.texts[temperature], state.n_read[temperature] = texts, 0
        acceptance_readers = {each.name: each.new_reader() for each in state.candidates}
        state.acceptance_readers |= {(name, temperature): each for name, each in acceptance_readers.items()}
        for n, text in enumerate(texts):
            probs = reader.probs(text)
            for acceptance_reader in acceptance_readers.values():
                acceptance_reader.read(text, probs)
            state.n_read[temperature] = n + 1
            yield Progress("compare drafts", n + 1, len(texts), "rows")
    state.prefill_seconds = reader.prefill_seconds


def _texts(
    state: JudgeState, runner: Runner, sampling: Sampling, limits: Limits
) -> Job[tuple[list[TargetText], list[FailedPrompt]]]:
    if any(prompt.completion is None for prompt in state.prompts):
        return (yield from write_texts(runner, state.prompts, sampling, state.seed, limits))
    texts = completion_texts(state.prompts, sampling, state.seed, limits)
    reader = ProbsReader(Runner(runner.model, 1))
    failures = [text.prompt for text in texts if not bool(reader.probs(text).any(dim=-1).all())]
    error = NonFiniteLogitsError(runner.model.dtype, "along this text")
    failed = [FailedPrompt(prompt.name, error.message) for prompt in failures]
    return [text for text in texts if text.prompt not in failures], failed


def _leave_out(state: JudgeState, failed: Sequence[FailedPrompt]) -> Iterator[Note]:
    """Record prompts that are left out, with one note each."""
    for each in failed:
        if each.name not in state.failed_prompts:
            state.failed_prompts[each.name] = each
            yield Note(f"{each.name}: {each.reason}")


def _measure_costs(state: JudgeState, meter: CostMeter, request: SpeculateRequest) -> Job[None]:
    """Measure rounds, plain steps and memory bandwidth."""
    device = state.target.model.device
    probe = Probe(device, device_clock(device))
    state.bandwidths.append(probe.measure().bytes_per_second)
    yield from meter.measure(state.texts, request.batch_sizes, request.n_times)
    state.bandwidths.append(probe.measure().bytes_per_second)


def _validate(state: JudgeState, meter: CostMeter, runner: Runner, limits: Limits, group: ProcessGroup) -> Job[None]:
    """Check predictions by real runs; their costs are measured again, because the machine's speed drifts."""
    validations = list(validations_of(state, seconds=_VALIDATION_SECONDS, n_pairs=_VALIDATION_PAIRS))
    cells = [validation.cell for validation in validations if validation.cell is not None]
    measured: list[list[float]] = [[] for _ in validations]
    for turn in range(_VALIDATION_PAIRS):
        for _ in meter.measure_once(state.texts, cells):
            pass
        for n, validation in enumerate(validations):
            yield Progress("validate", turn * len(validations) + n, _VALIDATION_PAIRS * len(validations), "runs")
            measured[n].append(group.broadcast(speedup(runner, validation, limits.stop_ids)))
            state.validation_runs = [
                validation_run_of(*each, state) for each in zip(validations, measured, strict=True) if each[1]
            ]


def _check_losslessness(state: JudgeState, runner: Runner, request: SpeculateRequest) -> Job[None]:
    texts = next(iter(state.texts.values()))
    drawn = replace(request.sampling, temperature=max(request.temperatures) or 1.0)
    point = BenchPoint(max(request.temperatures), runner.n_rows)
    size = CheckSize.of(state.costs.step(point) / runner.n_rows, max(text.most for text in texts))
    for candidate in state.candidates:
        if candidate.simulated is not None:
            yield Note(f"{candidate.name}: no losslessness check, because its tokens are simulated.")
            continue
        state.losslessness_checks.append((yield from check_losslessness(runner, candidate, texts, drawn, size)))


def _prompts(
    request: SpeculateRequest, target: LoadedModel, limits: Limits
) -> tuple[list[JudgePrompt], list[FailedPrompt]]:
    """Usable prompts and failed ones; raises UsageError if none is usable."""
    failed: list[FailedPrompt] = []
    if target.is_random:
        prompts = synthetic_prompts(target.model.config.vocab_size)[: request.limit]
    else:
        prompts, failed = read_prompts(target, request.prompts, request.limit, request.chat)
    fitting = []
    for prompt in prompts:
        try:
            limits.check_prompt(len(prompt.ids) + 1)
        except UsageError as error:
            failed.append(FailedPrompt(prompt.name, error.message))
        else:
            fitting.append(prompt)
    if not fitting:
        raise UsageError(f"No prompt can be used.\n{failed[0].name}: {failed[0].reason}", _OTHER_PROMPTS)
    return fitting, failed


def _drafts(request: SpeculateRequest, target: LoadedModel) -> list[str]:
    """The requested drafts or the defaults, and prompt lookup unless the target has random weights."""
    asked = list(request.drafts)
    if not asked and target.name.partition(":")[0] == _TINY:
        asked = [_TINY_DRAFT]
    elif not asked and target.scheme == PLAIN and not target.is_random:
        asked = [f"{SELF}int8", f"{SELF}int4"]
    if not asked and target.is_random:
        raise UsageError("A SHAPE as target requires --draft.", "Name a MODEL or a SHAPE: --draft tinyllama-1.1b:int4")
    free = [] if target.is_random else [NGRAM]
    return list(dict.fromkeys([*asked, *free]))


def _check(request: SpeculateRequest) -> None:
    """Raise UsageError for invalid options, before a model is loaded."""
    for temperature in request.temperatures:
        check(replace(request.sampling, temperature=temperature))
    if not request.temperatures:
        raise UsageError("--temperature requires a number.", "Such as --temperature 0,0.8")
    check_seed(request.seed)
    check_at_least(
        1,
        {
            "--k": min(request.draft_lengths, default=0),
            "--batch-size": min(request.batch_sizes, default=0),
            "--reps": request.n_times,
            "--limit": request.limit,
        },
    )
    check_at_least(2, {"--max-new-tokens": request.max_new_tokens})  # the prefill gives the first one
    if request.alpha is not None and not 0 <= request.alpha <= 1:
        raise UsageError(f"--assume-alpha must be from 0 to 1, not {request.alpha}.")
    if request.alpha is not None and any(request.temperatures):
        raise UsageError(
            "--assume-alpha requires temperature 0: it simulates greedy decoding only.",
            "Add --temperature 0",
        )
