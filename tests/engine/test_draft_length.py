"""The adaptive draft length finds what pays, stops a draft that does not pay, and tries it again."""

import math
import random
import statistics
from dataclasses import replace

import pytest

from gptfast_cli.core.engine.speculative.draft_length import (
    AdaptiveDraftLength,
    FixedDraftLength,
    InitialEstimate,
    RoundPlan,
    RoundStats,
)

ANYTHING = InitialEstimate()  # endless text, and trials that cost nothing


class Machine:
    """Costs in steps of the target, and a draft whose tokens are accepted with a probability.

    A call of rounds takes `host` besides, and `catch_up` for each token that came without the draft.

    A share of its tokens is `hard`: these it doubts, and the target accepts `hard_alpha` of them. Rounds that may end
    for doubt have 8 tokens at least, those that may not are as deep as is planned.
    """

    def __init__(
        self,
        draft_cost: float,
        alpha: float,
        verify_cost: float = 0.03,
        *,
        host: float = 0,
        catch_up: float = 0,
        hiccups: float = 0.02,
        hard: float = 0,
        hard_alpha: float = 0,
        seed: int = 1,
    ) -> None:
        self.draft_cost, self.alpha, self.verify_cost = draft_cost, alpha, verify_cost
        self.host, self.catch_up, self.hiccups = host, catch_up, hiccups
        self.hard, self.hard_alpha = hard, hard_alpha
        self.n_behind = 0
        self.seconds = 0.0
        self.n_tokens = 0
        self.stats = RoundStats()
        self._random = random.Random(seed)

    def run(self, policy: AdaptiveDraftLength, n_tokens: int, initial: InitialEstimate = ANYTHING) -> list[int]:
        """Depths that were taken; now and then a clock shows more than the work took."""
        taken = []
        end = self.n_tokens + n_tokens
        while self.n_tokens < end:
            plan = policy.next(replace(initial, n_left=initial.n_left - self.n_tokens))
            taken.append(plan.draft_length)
            if plan.draft_length == 0:
                self._gain(1, 1)
                self.n_behind += 1
                policy.record_steps(1, 1 + self._hiccup())
                continue
            for first in (True, *[False] * (plan.n_rounds - 1)):
                self.stats = self._round(plan)
                cost = 1 + self.stats.n_drafted * (self.draft_cost + self.verify_cost) + self.catch_up * self.n_behind
                once = self.host if first else 0.0
                self.n_behind = 0
                self._gain(self.stats.n_accepted + 1, cost + once)
                policy.record_rounds(plan.draft_length, cost + self._hiccup(), self.stats, once=once)
        return taken

    def _hiccup(self) -> float:
        return 20.0 if self._random.random() < self.hiccups else 0.0

    def _round(self, plan: RoundPlan) -> RoundStats:
        max_draft_length = plan.draft_length if plan.max_uncertainty == math.inf else max(plan.draft_length, 8)
        uncertainties: list[float] = []
        while len(uncertainties) < max_draft_length and sum(uncertainties) <= plan.max_uncertainty:
            uncertainties.append(0.9 if self._random.random() < self.hard else 0.02)
        n_accepted = 0
        for uncertainty in uncertainties:
            if self._random.random() >= (self.hard_alpha if uncertainty > 0.5 else self.alpha):
                break
            n_accepted += 1
        n_verified = min(n_accepted + 1, len(uncertainties))
        return RoundStats(1, len(uncertainties), n_verified, n_accepted, sum(uncertainties[:n_verified]))

    def _gain(self, n_tokens: int, seconds: float) -> None:
        self.n_tokens += n_tokens
        self.seconds += seconds

    def best(self) -> float:
        """Tokens a step of the best fixed depth, none among them."""
        draft_lengths, alpha = range(17), (1 - self.hard) * self.alpha + self.hard * self.hard_alpha
        return max(
            sum(alpha**n for n in range(k + 1)) / (1 + k * (self.draft_cost + self.verify_cost)) for k in draft_lengths
        )


@pytest.mark.parametrize("alpha", [0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("draft_cost", [0.02, 0.1, 0.3])
def test_it_comes_near_the_best_fixed_depth(draft_cost: float, alpha: float) -> None:
    machines = [Machine(draft_cost, alpha, seed=seed) for seed in range(8)]
    for machine in machines:
        machine.run(AdaptiveDraftLength(), 6000)
    speed = statistics.mean(machine.n_tokens / machine.seconds for machine in machines)
    assert speed > max(0.97, 0.85 * machines[0].best())


@pytest.mark.parametrize(("draft_cost", "alpha"), [(1.0, 0.99), (0.2, 0.0), (0.5, 0.3)])
def test_a_draft_that_does_not_pay_is_hardly_asked(draft_cost: float, alpha: float) -> None:
    policy, machine = AdaptiveDraftLength(), Machine(draft_cost, alpha)
    taken = machine.run(policy, 20_000)
    assert sum(1 for k in taken if k) < 0.01 * len(taken)


@pytest.mark.parametrize("n_tokens", [200, 1000])
@pytest.mark.parametrize(("draft_cost", "alpha"), [(0.5, 0.3), (0.6, 0.95), (0.1, 0.0), (1.0, 0.99)])
@pytest.mark.parametrize(("host", "catch_up"), [(0.1, 0.05), (3.0, 0.3), (10.0, 0.0)])
def test_no_trial_costs_three_percent_of_what_plain_steps_take(
    host: float, catch_up: float, draft_cost: float, alpha: float, n_tokens: int
) -> None:
    speeds = []
    for seed in range(10):
        machine = Machine(draft_cost, alpha, 0.05, host=host, catch_up=catch_up, hiccups=0, seed=seed)
        machine.run(AdaptiveDraftLength(), n_tokens, InitialEstimate(n_tokens, draft_cost, host / 2))
        speeds.append(machine.n_tokens / machine.seconds)
    assert statistics.median(speeds) > 0.97


def test_a_draft_that_begins_to_agree_is_found_out() -> None:
    policy, machine = AdaptiveDraftLength(), Machine(0.1, 0.0)
    machine.run(policy, 3000)
    machine.alpha = 0.9
    machine.run(policy, 12_000)
    n_tokens, seconds = machine.n_tokens, machine.seconds
    machine.run(policy, 2000)
    assert (machine.n_tokens - n_tokens) / (machine.seconds - seconds) > 0.8 * machine.best()


def test_a_draft_that_stops_to_agree_is_left_alone() -> None:
    policy, machine = AdaptiveDraftLength(), Machine(0.1, 0.9)
    assert max(machine.run(policy, 3000)[-10:]) >= 4
    machine.alpha = 0.0
    assert sum(1 for k in machine.run(policy, 3000)[-1000:] if k) < 20


def test_rounds_that_end_where_the_draft_is_wrong_beat_any_fixed_depth() -> None:
    machine = Machine(0.1, 0.98, hard=0.25, hard_alpha=0.3)
    machine.run(AdaptiveDraftLength(), 6000)
    assert machine.n_tokens / machine.seconds > 1.05 * machine.best()


def test_rounds_do_not_end_for_doubts_that_do_not_come_true() -> None:
    policy, machine = AdaptiveDraftLength(), Machine(0.1, 0.97, hard=0.5, hard_alpha=0.97)
    machine.run(policy, 6000)
    assert machine.n_tokens / machine.seconds > 0.95 * machine.best()
    while (plan := policy.next(ANYTHING)).draft_length == 0:  # a plain step is timed again
        machine.run(policy, 1)
    assert 0.9 * 8 < plan.max_uncertainty < math.inf, "whatever the draft thinks of all of a round's tokens"


def test_a_round_ends_where_one_more_token_costs_more_than_it_may_give() -> None:
    """At the bound, P(all tokens so far are accepted) = seconds of a drafted token * tokens per second."""
    policy, machine = AdaptiveDraftLength(), Machine(0.2, 0.98, hard=0.25, hard_alpha=0.5)
    machine.run(policy, 20_000)
    speed, token_seconds = machine.n_tokens / machine.seconds, machine.draft_cost + machine.verify_cost
    come_true = (0.25 * 0.5 + 0.75 * 0.02) / (0.25 * 0.9 + 0.75 * 0.02)
    bounds = []
    for _ in range(100):
        machine.run(policy, 100)
        bounds.append(math.exp(-come_true * policy.next(ANYTHING).max_uncertainty))
    assert statistics.median(bounds) == pytest.approx(token_seconds * speed, rel=0.15)


def test_a_fixed_draft_length_is_constant_and_has_no_uncertainty_limit() -> None:
    policy = FixedDraftLength(3)
    policy.record_steps(1, 1.0)
    policy.record_rounds(3, 99.0, RoundStats(n_rounds=1, n_drafted=3, n_verified=3, n_accepted=0, uncertainty=2.9))
    assert (policy.next(ANYTHING).draft_length, policy.next(ANYTHING).max_uncertainty) == (3, math.inf)
