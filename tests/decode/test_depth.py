"""An adapted depth finds what pays, leaves a draft alone that does not, and comes back when it does."""

import random

import pytest

from gptfast_cli.core.decode.depth import AdaptiveDepth, FixedDepth


class Machine:
    """Costs in steps of the target, and a draft whose tokens are accepted with a probability."""

    def __init__(self, draft_cost: float, alpha: float, verify_cost: float = 0.03) -> None:
        self.draft_cost, self.alpha, self.verify_cost = draft_cost, alpha, verify_cost
        self.seconds = 0.0
        self.n_tokens = 0
        self._random = random.Random(1)

    def run(self, depth: AdaptiveDepth, n_tokens: int) -> list[int]:
        """Depths that were taken; now and then a clock shows more than the work took."""
        taken = []
        end = self.n_tokens + n_tokens
        while self.n_tokens < end:
            plan = depth.next()
            taken.append(plan.depth)
            hiccup = 20.0 if self._random.random() < 0.02 else 0.0
            if plan.depth == 0:
                self._gain(1, 1)
                depth.tell_steps(1, 1 + hiccup)
                continue
            for _ in range(plan.n_rounds):
                n_accepted = 0
                while n_accepted < plan.depth and self._random.random() < self.alpha:
                    n_accepted += 1
                cost = 1 + plan.depth * (self.draft_cost + self.verify_cost)
                self._gain(n_accepted + 1, cost)
                n_verified = min(n_accepted + 1, plan.depth)
                depth.tell_rounds(plan.depth, cost + hiccup, n_rounds=1, n_verified=n_verified, n_accepted=n_accepted)
        return taken

    def _gain(self, n_tokens: int, seconds: float) -> None:
        self.n_tokens += n_tokens
        self.seconds += seconds

    def best(self) -> float:
        """Tokens a step of the best fixed depth, none among them."""
        depths = range(17)
        return max(
            sum(self.alpha**n for n in range(k + 1)) / (1 + k * (self.draft_cost + self.verify_cost)) for k in depths
        )


@pytest.mark.parametrize("alpha", [0.3, 0.6, 0.8, 0.95])
@pytest.mark.parametrize("draft_cost", [0.02, 0.1, 0.3])
def test_it_comes_near_the_best_fixed_depth(draft_cost: float, alpha: float) -> None:
    machine = Machine(draft_cost, alpha)
    machine.run(AdaptiveDepth(), 6000)
    assert machine.n_tokens / machine.seconds > max(0.97, 0.85 * machine.best())


@pytest.mark.parametrize(("draft_cost", "alpha"), [(1.0, 0.99), (0.2, 0.0), (0.5, 0.3)])
def test_a_draft_that_does_not_pay_is_hardly_asked(draft_cost: float, alpha: float) -> None:
    depth, machine = AdaptiveDepth(), Machine(draft_cost, alpha)
    taken = machine.run(depth, 20_000)
    assert sum(1 for k in taken if k) < 0.01 * len(taken)


def test_a_draft_that_begins_to_agree_is_found_out() -> None:
    depth, machine = AdaptiveDepth(), Machine(0.1, 0.0)
    machine.run(depth, 3000)
    machine.alpha = 0.9
    taken = machine.run(depth, 12_000)
    assert sum(1 for k in taken[-100:] if k >= 3) > 70


def test_a_draft_that_stops_to_agree_is_left_alone() -> None:
    depth, machine = AdaptiveDepth(), Machine(0.1, 0.9)
    assert max(machine.run(depth, 3000)[-10:]) >= 4
    machine.alpha = 0.0
    assert sum(1 for k in machine.run(depth, 3000)[-1000:] if k) < 20


def test_a_fixed_depth_stays_what_it_is() -> None:
    depth = FixedDepth(3)
    depth.tell_steps(1, 1.0)
    depth.tell_rounds(3, 99.0, n_rounds=1, n_verified=3, n_accepted=0)
    assert depth.next().depth == 3
