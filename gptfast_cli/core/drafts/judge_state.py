"""What has been found out about drafts so far; at any moment it can be summed up to a judgement."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from gptfast_cli.core.bench.environment import Environment
from gptfast_cli.core.drafts.acceptance import AcceptanceReader, ModelAcceptance
from gptfast_cli.core.drafts.candidates import DraftCandidate, JudgeTarget, SimulatedDraft
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


@dataclass(slots=True)
class JudgeState:
    """Collected phase by phase; `agreements` are by draft and temperature, and have read `n_read` texts of that.

    bandwidths: bytes a second, of reads of memory; prefill_seconds: of the target, for each prompt
    """

    environment: Environment
    target: JudgeTarget
    prompts: Sequence[JudgePrompt]
    depths: Sequence[int]
    batch_sizes: Sequence[int]
    max_new_tokens: int
    seed: int
    candidates: list[DraftCandidate] = field(default_factory=list)
    texts: dict[float, list[TargetText]] = field(default_factory=dict)
    agreements: dict[tuple[str, float], AcceptanceReader] = field(default_factory=dict)
    n_read: dict[float, int] = field(default_factory=dict)
    prefill_seconds: list[float] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)
    costs: Costs = field(default_factory=Costs)
    proofs: list[ValidationRun] = field(default_factory=list)
    certificates: list[LosslessnessCheck] = field(default_factory=list)
    failed_prompts: dict[str, FailedPrompt] = field(default_factory=dict)  # by their names

    def prediction(self, draft: str, temperature: float, n_texts: int | None = None) -> Prediction:
        """Of a draft, along the first texts or all of them."""
        chances = self.agreements[draft, temperature].chances(max(self.depths))
        chances = chances.of(min(n_texts or self.n_read[temperature], self.n_read[temperature]))
        return Prediction(chances, Bootstrap.of(len(chances.lengths), self.seed))

    def spots(self, draft: str, temperature: float) -> list[CostCell]:
        """Depths and batch sizes of a draft whose costs are known."""
        settings = [BenchPoint(temperature, batch_size) for batch_size in self.batch_sizes]
        spots = [CostCell(draft, k, setting) for setting in settings for k in self.depths]
        return [spot for spot in spots if spot in self.costs.rounds]

    def judgement(self, *, is_interrupted: bool = False) -> DraftReport:
        """All that can be said by now."""
        drafts = tuple(self._drafts())
        picks, noise = recommendations_of(drafts), self.costs.noise
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
            picks=picks,
            proofs=tuple(self.proofs),
            certificates=tuple(self.certificates),
            failed_prompts=tuple(self.failed_prompts.values()),
            median_error=median_error(self.proofs),
            verdict=verdict_of(picks, noise),
            noise=noise,
            is_interrupted=is_interrupted,
        )

    def _drafts(self) -> Iterator[DraftResult]:
        for temperature, n_read in self.n_read.items():
            if n_read:
                yield from (self._draft(each, temperature) for each in self.candidates)

    def _draft(self, candidate: DraftCandidate, temperature: float) -> DraftResult:
        prediction = self.prediction(candidate.name, temperature)
        agreement = self.agreements[candidate.name, temperature]
        texts = self.texts[temperature][: self.n_read[temperature]]
        seconds = agreement.reader.prefill_seconds if isinstance(agreement, ModelAcceptance) else []
        n_bytes = candidate.proposer.bytes_per_step
        spots = self.spots(candidate.name, temperature)
        cells = [prediction.cell(spot, self.costs, draft_bytes=n_bytes) for spot in spots]
        proved = {
            (proof.k, proof.batch_size): proof
            for proof in self.proofs
            if (proof.draft, proof.temperature) == (candidate.name, temperature)
        }
        return DraftResult(
            draft=candidate.name,
            temperature=temperature,
            basis=self._basis(candidate),
            n_tokens=int(prediction.chances.overlap.isfinite().sum()),
            alpha=prediction.alpha(),
            tau={k: prediction.tau(k) for k in self.depths},
            places=prediction.places(max(self.depths)),
            slices=prediction.slices(texts),
            grid=tuple(
                replace(cell, measured=proof.measured, error=proof.error)
                if (proof := proved.get((cell.k, cell.batch_size)))
                else cell
                for cell in cells
            ),
            n_params=candidate.n_params,
            n_bytes=n_bytes,
            load_s=candidate.load_seconds,
            prefill_s=median(seconds or [0.0]),
        )

    def _basis(self, candidate: DraftCandidate) -> Basis:
        if isinstance(candidate.proposer, SimulatedDraft):
            return "assumed"
        return "on-policy" if all(prompt.completion is None for prompt in self.prompts) else "proxy"

    def _plain(self, setting: BenchPoint) -> PlainDecoding:
        seconds = self.costs.step(setting)
        rate = self.costs.step_bytes[setting] / seconds
        return PlainDecoding(
            temperature=setting.temperature,
            batch_size=setting.batch_size,
            step_seconds=seconds,
            tok_s=setting.batch_size / seconds,
            gbps=rate / 1e9,
            mbu=rate / median(self.bandwidths) if self.bandwidths else 0.0,
        )
