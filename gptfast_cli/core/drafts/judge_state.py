"""What the judge has measured so far; `report` summarizes it at any time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from gptfast_cli.core.bench.environment import Environment
from gptfast_cli.core.drafts.acceptance import AcceptanceReader
from gptfast_cli.core.drafts.candidates import DraftCandidate
from gptfast_cli.core.drafts.costs import BenchPoint, CostCell, Costs
from gptfast_cli.core.drafts.prediction import Bootstrap, Prediction
from gptfast_cli.core.drafts.recommendation import median_error, recommendations_of, verdict_of
from gptfast_cli.core.drafts.report import (
    Basis,
    DraftReport,
    DraftResult,
    LosslessnessCheck,
    PlainDecoding,
    ValidationRun,
)
from gptfast_cli.core.drafts.texts import FailedPrompt, JudgePrompt, TargetText
from gptfast_cli.core.engine.load import LoadedModel


@dataclass(slots=True)
class JudgeState:
    """Measurements of all phases.

    acceptance_readers: by draft and temperature; each has read the first `n_read` texts of that temperature
    prefill_seconds:    of the target, for each prompt
    bandwidths:         measured memory read bandwidth, bytes per second
    """

    environment: Environment
    target: LoadedModel
    prompts: Sequence[JudgePrompt]
    draft_lengths: Sequence[int]
    batch_sizes: Sequence[int]
    max_new_tokens: int
    seed: int
    candidates: list[DraftCandidate] = field(default_factory=list)
    texts: dict[float, list[TargetText]] = field(default_factory=dict)
    acceptance_readers: dict[tuple[str, float], AcceptanceReader] = field(default_factory=dict)
    n_read: dict[float, int] = field(default_factory=dict)
    prefill_seconds: list[float] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)
    costs: Costs = field(default_factory=Costs)
    validation_runs: list[ValidationRun] = field(default_factory=list)
    losslessness_checks: list[LosslessnessCheck] = field(default_factory=list)
    failed_prompts: dict[str, FailedPrompt] = field(default_factory=dict)  # by their names

    def prediction(self, draft: str, temperature: float, n_texts: int | None = None) -> Prediction:
        """Prediction for a draft along the first `n_texts` texts; None is all of them."""
        acceptance_probs = self.acceptance_readers[draft, temperature].acceptance_probs(max(self.draft_lengths))
        acceptance_probs = acceptance_probs.of(min(n_texts or self.n_read[temperature], self.n_read[temperature]))
        return Prediction(acceptance_probs, Bootstrap.of(len(acceptance_probs.lengths), self.seed))

    def cells(self, draft: str, temperature: float) -> list[CostCell]:
        """Cells of a draft whose costs were measured."""
        points = [BenchPoint(temperature, batch_size) for batch_size in self.batch_sizes]
        cells = [CostCell(draft, k, point) for point in points for k in self.draft_lengths]
        return [cell for cell in cells if cell in self.costs.rounds]

    def report(self, *, is_interrupted: bool = False) -> DraftReport:
        """Summarize what was measured so far."""
        drafts = tuple(self._drafts())
        recommendations, noise = recommendations_of(drafts), self.costs.noise
        return DraftReport(
            environment=self.environment,
            target=self.target.name,
            scheme=self.target.scheme,
            n_params=self.target.n_params,
            n_bytes=self.target.model.weight_bytes,
            n_prompts=sum(prompt.name not in self.failed_prompts for prompt in self.prompts),
            max_new_tokens=self.max_new_tokens,
            seed=self.seed,
            prefill_s=median(self.prefill_seconds or [0.0]),
            bandwidth_gbps=median(self.bandwidths or [0.0]) / 1e9,
            drafts=drafts,
            plain=tuple(map(self._plain, self.costs.steps)),
            recommendations=recommendations,
            validation_runs=tuple(self.validation_runs),
            losslessness_checks=tuple(self.losslessness_checks),
            failed_prompts=tuple(self.failed_prompts.values()),
            median_error=median_error(self.validation_runs),
            verdict=verdict_of(recommendations, noise),
            noise=noise,
            is_interrupted=is_interrupted,
        )

    def _drafts(self) -> Iterator[DraftResult]:
        for temperature, n_read in self.n_read.items():
            if n_read:
                yield from (self._draft(each, temperature) for each in self.candidates)

    def _draft(self, candidate: DraftCandidate, temperature: float) -> DraftResult:
        prediction = self.prediction(candidate.name, temperature)
        reader = self.acceptance_readers[candidate.name, temperature]
        texts = self.texts[temperature][: self.n_read[temperature]]
        n_bytes = candidate.proposer.bytes_per_step
        measured = self.cells(candidate.name, temperature)
        grid = [prediction.grid_cell(cell, self.costs, draft_bytes=n_bytes) for cell in measured]
        validated = {
            (run.k, run.batch_size): run
            for run in self.validation_runs
            if (run.draft, run.temperature) == (candidate.name, temperature)
        }
        return DraftResult(
            draft=candidate.name,
            temperature=temperature,
            basis=self._basis(candidate),
            n_tokens=int(prediction.acceptance_probs.overlap.isfinite().sum()),
            alpha=prediction.alpha(),
            tau={k: prediction.tau(k) for k in self.draft_lengths},
            acceptance_by_position=prediction.acceptance_by_position(max(self.draft_lengths)),
            slices=prediction.slices(texts),
            grid=tuple(
                replace(cell, measured=run.measured, error=run.error)
                if (run := validated.get((cell.k, cell.batch_size)))
                else cell
                for cell in grid
            ),
            n_params=candidate.n_params,
            n_bytes=n_bytes,
            load_s=candidate.load_seconds,
            prefill_s=median(reader.prefill_seconds or [0.0]),
        )

    def _basis(self, candidate: DraftCandidate) -> Basis:
        if candidate.simulated is not None:
            return "assumed"
        return "on-policy" if all(prompt.completion is None for prompt in self.prompts) else "proxy"

    def _plain(self, point: BenchPoint) -> PlainDecoding:
        seconds = self.costs.step(point)
        rate = self.costs.step_bytes[point] / seconds
        return PlainDecoding(
            temperature=point.temperature,
            batch_size=point.batch_size,
            step_seconds=seconds,
            tok_s=point.batch_size / seconds,
            gbps=rate / 1e9,
            mbu=rate / median(self.bandwidths) if self.bandwidths else 0.0,
        )
