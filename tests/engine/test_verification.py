"""Speculative sampling has exactly the target's distribution; three slightly wrong variants are detected."""

import inspect
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gptfast_cli.core.engine.sampling import Sampling, probabilities
from gptfast_cli.core.engine.speculative import verification
from gptfast_cli.core.engine.speculative.verification import Verification, verify, verify_greedy

Verify = Callable[..., Verification]

SAMPLINGS = [
    Sampling(temperature=0.7, top_k=0),
    Sampling(temperature=1.3, top_k=2),
    Sampling(temperature=1.0, top_k=0, top_p=0.75),
    Sampling(temperature=2.0, top_k=3, top_p=0.9, min_p=0.1),
]


def random_probs(vocab_size: int, draft_length: int, seed: int, sampling: Sampling, spread: float = 1.5) -> dict:
    """Probabilities of the token after each prefix of up to `draft_length` tokens, float64."""
    generator = torch.Generator().manual_seed(seed)
    beginnings = [b for n in range(draft_length + 1) for b in itertools.product(range(vocab_size), repeat=n)]
    logits = spread * torch.randn(len(beginnings), vocab_size, generator=generator, dtype=torch.float64)
    return dict(zip(beginnings, probabilities(logits, sampling), strict=True))


def boundary(is_below: Callable[[float], bool]) -> float:
    """The number in [0, 1] up to which something holds, to the last bit."""
    low, high = 0.0, 1.0
    if not is_below(low):
        return 0.0
    if is_below(math.nextafter(1.0, 0.0)):
        return 1.0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return high


REJECTED = math.nextafter(1.0, 0.0)


class OneRound:
    """What a round does with a drafted path, as a function of its uniform numbers."""

    def __init__(self, p: dict, q: dict, path: tuple[int, ...]) -> None:
        self.path = path
        self._p = torch.stack([p[path[:n]] for n in range(len(path) + 1)]).unsqueeze(0)
        self._q = torch.stack([q[path[:n]] for n in range(len(path))]).unsqueeze(0)

    def outcome(self, acceptance: list[float], token: float) -> tuple[int, int]:
        done = verify(
            self._p,
            self._q,
            torch.tensor([self.path]),
            torch.tensor([len(self.path)]),
            acceptance_uniforms=torch.tensor([acceptance], dtype=torch.float64),
            token_uniforms=torch.full((1, len(self.path) + 1), token, dtype=torch.float64),
        )
        return int(done.n_accepted), int(done.tokens)

    def distribution(self, vocab_size: int) -> dict[tuple[int, ...], float]:
        """Probability of each run of emitted tokens: the measure of the uniform numbers that lead to it."""
        distribution: dict[tuple[int, ...], float] = {}
        k, left = len(self.path), 1.0  # the measure of the numbers that accept no more than n tokens
        for n in range(k, -1, -1):
            numbers = [0.0] * n + [REJECTED] * (k - n)
            accepts = 1.0
            if n:
                accepts = boundary(
                    lambda u, n=n, numbers=numbers: self.outcome([*numbers[: n - 1], u, *numbers[n:]], 0.5)[0] == n
                )
            if accepts > 0:
                assert self.outcome(numbers, 0.5)[0] == n
                ends = [
                    boundary(lambda u, t=t, numbers=numbers: self.outcome(numbers, u)[1] <= t)
                    for t in range(vocab_size)
                ]
                for token, (begin, end) in enumerate(itertools.pairwise([0.0, *ends])):
                    emitted = (*self.path[:n], token)
                    distribution[emitted] = distribution.get(emitted, 0.0) + left * accepts * (end - begin)
            left *= 1 - accepts
            if left == 0:
                break
        return distribution


def by_tokens(p: dict, q: dict, path: tuple[int, ...]) -> float:
    """Expected number of accepted tokens of a drafted path where each is decided by itself."""
    ratios = [min(1.0, float(p[path[:n]][token] / q[path[:n]][token])) for n, token in enumerate(path)]
    return sum(itertools.accumulate(ratios, lambda a, b: a * b))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize(("vocab_size", "draft_length"), [(3, 1), (5, 1), (4, 2), (3, 3)])
def test_emitted_tokens_have_the_targets_distribution(vocab_size: int, draft_length: int, sampling: Sampling) -> None:
    p, q = (random_probs(vocab_size, draft_length, seed, sampling) for seed in (1, 2))
    emitted: dict[tuple[int, ...], float] = {}
    n_accepted = n_by_tokens = 0.0
    for path in itertools.product(range(vocab_size), repeat=draft_length):
        drafted = math.prod(float(q[path[:n]][token]) for n, token in enumerate(path))
        if drafted == 0:
            continue
        for run, probability in OneRound(p, q, path).distribution(vocab_size).items():
            emitted[run] = emitted.get(run, 0.0) + drafted * probability
            n_accepted += drafted * probability * (len(run) - 1)
        n_by_tokens += drafted * by_tokens(p, q, path)
    assert n_accepted >= n_by_tokens - 1e-12
    if draft_length > 1 and sampling is SAMPLINGS[0]:
        assert n_accepted > n_by_tokens + 0.01
    for text in itertools.product(range(vocab_size), repeat=draft_length + 1):
        # what a round leaves open follows the target's distribution, as the next rounds see to
        given = sum(
            emitted.get(text[:n], 0.0) * math.prod(float(p[text[:m]][text[m]]) for m in range(n, draft_length + 1))
            for n in range(1, draft_length + 2)
        )
        expected = math.prod(float(p[text[:m]][text[m]]) for m in range(draft_length + 1))
        assert given == pytest.approx(expected, abs=1e-12)


N_PAIRS, VOCAB_SIZE, DEPTH = 20, 5, 2


def draws(p: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return torch.multinomial(p, n, replacement=True, generator=generator)


def chi_square_of(tested: Verify, pair: int, n: int, uniforms: Callable[[Tensor], Tensor]) -> tuple[float, int]:
    """Chi-square against the target of the first three tokens from rounds with k = 2, and its degrees of freedom.

    Probabilities do not depend on the prefix, so that a round that ends early is completed by draws from p.
    """
    generator = torch.Generator().manual_seed(pair)
    spread = 0.5 + 0.25 * pair  # from alike to nearly certain of different things
    p, q = (spread * torch.randn(2, DEPTH + 1, VOCAB_SIZE, generator=generator, dtype=torch.float64)).softmax(-1)
    drafted = torch.stack([draws(q[m], n, generator) for m in range(DEPTH)], dim=1)
    numbers = [torch.rand(n, DEPTH + more, generator=generator, dtype=torch.float64) for more in (0, 1)]
    done = tested(
        p.expand(n, -1, -1),
        q[:DEPTH].expand(n, -1, -1),
        drafted,
        torch.full((n,), DEPTH),
        acceptance_uniforms=uniforms(numbers[0]),
        token_uniforms=numbers[1],
    )
    text = torch.stack([draws(p[m], n, generator) for m in range(DEPTH + 1)], dim=1)
    places = torch.arange(DEPTH + 1)
    text = torch.where(places < done.n_accepted.unsqueeze(-1), torch.nn.functional.pad(drafted, (0, 1)), text)
    text = torch.where(places == done.n_accepted.unsqueeze(-1), done.tokens.unsqueeze(-1), text)
    counts = torch.bincount(text @ VOCAB_SIZE**places, minlength=VOCAB_SIZE ** (DEPTH + 1)).double()
    expected = n * torch.einsum("a,b,c->cba", p[0], p[1], p[2]).flatten()
    common = expected >= 5  # the rest is counted together
    counts, expected = (torch.cat([each[common], each[~common].sum().unsqueeze(0)]) for each in (counts, expected))
    kept = expected > 0
    return float(((counts - expected)[kept] ** 2 / expected[kept]).sum()), int(kept.sum()) - 1


def is_suspicious(tested: Verify, uniforms: Callable[[Tensor], Tensor] = lambda numbers: numbers) -> bool:
    """Whether a million draws differ from the distribution more than once in 10,000 times by chance (p < 1e-4)."""
    results = [chi_square_of(tested, pair, 1_000_000 // N_PAIRS, uniforms) for pair in range(N_PAIRS)]
    total, freedom = (sum(column) for column in zip(*results, strict=True))
    # Wilson and Hilferty 1931: the cube root of chi-square is nearly normal; 3.72 is its quantile of 1 - 1e-4
    return ((total / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom)) > 3.72


def test_a_million_draws_have_the_targets_distribution() -> None:
    assert not is_suspicious(verify)


def changed(old: str, new: str) -> Verify:
    """The verification with a fault planted in its source."""
    source = inspect.getsource(verification.verify)
    assert source.count(old) == 1
    namespace = dict(vars(verification))
    exec(source.replace(old, new), namespace)
    return namespace["verify"]


def test_planted_faults_are_noticed() -> None:
    assert is_suspicious(
        changed("torch.where(n < lengths, goes_on, reach)", "0.97 * torch.where(n < lengths, goes_on, reach)")
    )
    assert is_suspicious(changed("torch.where(n < lengths, goes_on, reach)", "reach"))
    assert is_suspicious(
        changed("_residual(p_next, q_next, torch.where(n_accepted < lengths, reach_accepted, 1))", "p_next")
    )
    assert is_suspicious(changed("torch.where(n_accepted < lengths, reach_accepted, 1)", "torch.ones_like(reach)"))
    assert is_suspicious(verify, lambda numbers: (numbers * 256).floor() / 256)  # what bfloat16 draws


def one(
    p: list[list[float]], q: list[list[float]], drafted: list[int], acceptance: list[float], token: float
) -> tuple[int, int]:
    done = verify(
        torch.tensor([p]),
        torch.tensor([q]).reshape(1, len(drafted), len(p[0])),
        torch.tensor([drafted]).long().reshape(1, -1),
        torch.tensor([len(drafted)]),
        acceptance_uniforms=torch.tensor([acceptance], dtype=torch.float64),
        token_uniforms=torch.full((1, len(drafted) + 1), token, dtype=torch.float64),
    )
    return int(done.n_accepted), int(done.tokens)


LAST = 1 - 2**-32


def test_a_draft_that_is_the_target_is_accepted_whole() -> None:
    p = [[0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [1.0, 0.0, 0.0]]
    assert one(p, p[:2], [0, 2], [LAST, LAST], 0.7) == (2, 0)


def test_a_token_that_the_target_never_says_is_never_accepted() -> None:
    assert one([[0.0, 1.0], [0.5, 0.5]], [[1.0, 0.0]], [0], [0.0], 0.0) == (0, 1)


def test_nothing_drafted_gives_a_draw_from_the_target() -> None:
    assert [one([[0.25, 0.75]], [], [], [], token)[1] for token in (0.0, 0.2499, 0.25, LAST)] == [0, 0, 1, 1]


def test_one_hot_distributions_accept_or_reject() -> None:
    assert one([[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0]], [1], [LAST], 0.3) == (1, 0)
    assert one([[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0]], [0], [0.0], LAST) == (0, 1)


def test_where_rounding_leaves_no_rest_the_target_is_drawn_from() -> None:
    q = 0.5 + 2**-20  # larger than p everywhere, as two sums may come out
    rejected = one([[0.5, 0.5], [0.5, 0.5]], [[q, q]], [0], [LAST], 0.9)
    assert rejected == (0, 1)


def test_what_stands_behind_a_rows_own_depth_counts_for_nothing() -> None:
    p = torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.0, 1.0]]] * 3, dtype=torch.float64)
    done = verify(
        p,
        torch.tensor([[[0.5, 0.5], [0.0, 1.0]]] * 3, dtype=torch.float64),
        torch.tensor([[0, 1]] * 3),
        torch.tensor([0, 1, 2]),
        acceptance_uniforms=torch.zeros(3, 2, dtype=torch.float64),
        token_uniforms=torch.full((3, 3), 0.6, dtype=torch.float64),
    )
    assert done.n_accepted.tolist() == [0, 1, 2]
    assert done.tokens.tolist() == [1, 0, 1]


def test_overlap_is_the_probability_of_acceptance() -> None:
    done = verify(
        torch.tensor([[[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]]),
        torch.tensor([[[0.6, 0.3, 0.1]]]),
        torch.tensor([[0]]),
        torch.tensor([1]),
        acceptance_uniforms=torch.tensor([[0.9]]),
        token_uniforms=torch.tensor([[0.5, 0.5]]),
    )
    assert done.overlap.tolist() == [pytest.approx(0.2 + 0.3 + 0.1)]
    assert (int(done.n_accepted), int(done.tokens)) == (0, 2)


def test_greedy_rows_keep_what_equals_the_most_probable_tokens() -> None:
    best = torch.tensor([[4, 5, 6], [4, 5, 6], [4, 5, 6], [4, 5, 6]])
    drafted = torch.tensor([[4, 5], [4, 9], [9, 5], [4, 5]])
    done = verify_greedy(best, drafted, torch.tensor([2, 2, 2, 1]))
    assert done.n_accepted.tolist() == [2, 1, 0, 1]
    assert done.tokens.tolist() == [6, 5, 4, 5]
    assert done.overlap.tolist() == [2, 1, 0, 1]
