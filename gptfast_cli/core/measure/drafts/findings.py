"""What has been found out about drafts so far; at any moment it can be summed up to a judgement."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from gptfast_cli.core.measure.drafts.agreeing import Agreeing
from gptfast_cli.core.measure.drafts.chances import Agreement, ModelAgreement
from gptfast_cli.core.measure.drafts.contestants import Contestant, Target
from gptfast_cli.core.measure.drafts.costs import Costs, Setting, Spot
from gptfast_cli.core.measure.drafts.judgement import (
    Basis,
    Certificate,
    DraftJudgement,
    Judgement,
    Plain,
    Proof,
)
from gptfast_cli.core.measure.drafts.prediction import Bootstrap, Prediction
from gptfast_cli.core.measure.drafts.texts import FailedPrompt, Prompt, Text
from gptfast_cli.core.measure.drafts.verdict import median_error, picks_of, verdict_of
from gptfast_cli.core.measure.environment import Environment


@dataclass(slots=True)
class Findings:
    """Collected phase by phase; `agreements` are by draft and temperature, and have read `n_read` texts of that.

    bandwidths: bytes a second, of reads of memory; prefill_seconds: of the target, for each prompt
    """

    environment: Environment
    target: Target
    prompts: Sequence[Prompt]
    depths: Sequence[int]
    batch_sizes: Sequence[int]
    max_new_tokens: int
    seed: int
    contestants: list[Contestant] = field(default_factory=list)
    texts: dict[float, list[Text]] = field(default_factory=dict)
    agreements: dict[tuple[str, float], Agreement] = field(default_factory=dict)
    n_read: dict[float, int] = field(default_factory=dict)
    prefill_seconds: list[float] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)
    costs: Costs = field(default_factory=Costs)
    proofs: list[Proof] = field(default_factory=list)
    certificates: list[Certificate] = field(default_factory=list)
    failed_prompts: dict[str, FailedPrompt] = field(default_factory=dict)  # by their names

    def prediction(self, draft: str, temperature: float, n_texts: int | None = None) -> Prediction:
        """Of a draft, along the first texts or all of them."""
        chances = self.agreements[draft, temperature].chances(max(self.depths))
        chances = chances.of(min(n_texts or self.n_read[temperature], self.n_read[temperature]))
        return Prediction(chances, Bootstrap.of(len(chances.lengths), self.seed))

    def spots(self, draft: str, temperature: float) -> list[Spot]:
        """Depths and batch sizes of a draft whose costs are known."""
        settings = [Setting(temperature, batch_size) for batch_size in self.batch_sizes]
        spots = [Spot(draft, k, setting) for setting in settings for k in self.depths]
        return [spot for spot in spots if spot in self.costs.rounds]

    def judgement(self, *, is_interrupted: bool = False) -> Judgement:
        """All that can be said by now."""
        drafts = tuple(self._drafts())
        picks, noise = picks_of(drafts), self.costs.noise
        return Judgement(
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

    def _drafts(self) -> Iterator[DraftJudgement]:
        for temperature, n_read in self.n_read.items():
            if n_read:
                yield from (self._draft(each, temperature) for each in self.contestants)

    def _draft(self, contestant: Contestant, temperature: float) -> DraftJudgement:
        prediction = self.prediction(contestant.name, temperature)
        agreement = self.agreements[contestant.name, temperature]
        texts = self.texts[temperature][: self.n_read[temperature]]
        seconds = agreement.reader.prefill_seconds if isinstance(agreement, ModelAgreement) else []
        n_bytes = contestant.proposer.bytes_per_step
        spots = self.spots(contestant.name, temperature)
        cells = [prediction.cell(spot, self.costs, draft_bytes=n_bytes) for spot in spots]
        proved = {
            (proof.k, proof.batch_size): proof
            for proof in self.proofs
            if (proof.draft, proof.temperature) == (contestant.name, temperature)
        }
        return DraftJudgement(
            draft=contestant.name,
            temperature=temperature,
            basis=self._basis(contestant),
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
            n_params=contestant.n_params,
            n_bytes=n_bytes,
            load_s=contestant.load_seconds,
            prefill_s=median(seconds or [0.0]),
        )

    def _basis(self, contestant: Contestant) -> Basis:
        if isinstance(contestant.proposer, Agreeing):
            return "assumed"
        return "on-policy" if all(prompt.completion is None for prompt in self.prompts) else "proxy"

    def _plain(self, setting: Setting) -> Plain:
        seconds = self.costs.step(setting)
        rate = self.costs.step_bytes[setting] / seconds
        return Plain(
            temperature=setting.temperature,
            batch_size=setting.batch_size,
            step_seconds=seconds,
            tok_s=setting.batch_size / seconds,
            gbps=rate / 1e9,
            mbu=rate / median(self.bandwidths) if self.bandwidths else 0.0,
        )
