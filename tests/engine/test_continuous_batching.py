"""Whatever is submitted, aborted and decoded beside a request, it gets the tokens that it gets alone."""

import random
from collections.abc import Iterator, Sequence
from functools import cache

import pytest
import torch

from cpu_engine import native, reference, weights_of
from gptfast_cli.core.backends.base import KEY_BLOCK
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.engine.speculative.draft_length import FixedDraftLength
from gptfast_cli.core.engine.speculative.proposers.draft_model import DraftModel
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.events import Measured
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.token_ids import TokenIdError
from model_files import drained, prefill, run_to_end

UNKNOWN = 10**6  # a token id without an embedding
GREEDY = Sampling(temperature=0)
SAMPLINGS = (GREEDY, Sampling(temperature=1.2, top_k=0), Sampling(1.0, 20, repetition_penalty=1.1))
LONG = tuple((7 * n) % 83 for n in range(KEY_BLOCK + 3))
OPENINGS = ((1, 5, 9), (1, 7, 7, 30, 2, 4), (80,), tuple(range(40, 62)), LONG, LONG)


@cache
def model(kind: str, seed: int = 0) -> Decoder:
    config, weights = weights_of("grouped heads, odd sizes", "float32", num_hidden_layers=1, seed=seed)
    return reference(config, weights) if kind == "reference" else native(config, weights, torch.float32)


def speculation(kind: str, drafts: bool, n_rows: int) -> Speculation | None:
    return Speculation(DraftModel(model(kind, seed=1), n_rows), FixedDraftLength(2)) if drafts else None


def wanted(drafts: bool) -> list[Request]:
    """Requests of many kinds: beginnings in common, equal prompts, end tokens, full contexts, one that fails."""
    pick = random.Random(7)
    requests = []
    for n in range(24):
        prompt = (*pick.choice(OPENINGS), *(pick.randrange(90) for _ in range(pick.choice((0, 0, 1, 4, 13)))))
        sampling = GREEDY if drafts else pick.choice(SAMPLINGS)
        max_context = pick.choice((len(prompt) + 10, 512))
        limits = Limits(pick.randint(1, 12), max_context, frozenset(range(pick.choice((0, 20)))))
        requests.append(Request(n, prompt, Sampler(sampling, 3, n), limits))
    requests[5].prompt = (*OPENINGS[1], UNKNOWN, 4)
    return requests


@cache
def alone(kind: str, drafts: bool) -> list[Request]:
    requests = wanted(drafts)
    for request in requests:
        run_to_end(Engine(Runner(model(kind), 1), isolates_failures=True), [request])
    return requests


def run_at_random(pick: random.Random, engine: Engine, requests: Sequence[Request]) -> Iterator[Request]:
    """Submit, step and abort in random order until all requests are finished; the aborted ones are yielded."""
    waiting, started = list(requests), []
    while waiting or engine.has_work:
        action = pick.random()
        if waiting and action < 0.3:
            started.append(waiting.pop())
            engine.submit(started[-1])
        elif started and action > 0.95 and (aborted := pick.choice(started)).finish_reason is None:
            engine.abort(aborted)
            yield aborted
        elif engine.has_work:
            drained(engine.step(pick.choice((1, 2, 16))))


@pytest.mark.parametrize(
    ("kind", "drafts", "n_seeds"),
    [("engine", False, 400), ("engine", True, 400), ("reference", False, 150), ("reference", True, 50)],
)
def test_random_orders_of_submit_step_and_abort_give_each_request_what_it_gets_alone(
    kind: str, drafts: bool, n_seeds: int
) -> None:
    expected, n_aborted, reasons = alone(kind, drafts), 0, set()
    for seed in range(n_seeds):
        pick = random.Random(seed)
        n_rows, chunk = pick.randint(1, 4), pick.randint(1, 9)
        engine = Engine(
            Runner(model(kind), n_rows), speculation(kind, drafts, n_rows), isolates_failures=True, prefill_chunk=chunk
        )
        requests = pick.sample(wanted(drafts), pick.randint(1, 6))
        aborted = list(run_at_random(pick, engine, requests))
        n_aborted += len(aborted)
        for request in requests:
            whole = expected[request.id].generated
            if request in aborted:
                assert request.generated == whole[: len(request.generated)], seed
                assert request.finish_reason == "interrupted"
            else:
                assert request.generated == whole, seed
                assert request.finish_reason == expected[request.id].finish_reason
                reasons.add(request.finish_reason)
    assert n_aborted > n_seeds // 10
    assert reasons == {"eos", "length", "error"}


@pytest.mark.parametrize("kind", ["engine", "reference"])
@pytest.mark.parametrize("drafts", [False, True])
def test_a_long_prompt_holds_up_running_requests_for_one_chunk_at_a_time(
    kind: str, drafts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str | int] = []
    feed = Runner.prefill

    def counted(runner: Runner, row: int, tokens: Sequence[int]) -> object:
        calls.append(len(tokens))
        return feed(runner, row, tokens)

    limits = Limits(5000, 8192, frozenset())
    engine = Engine(Runner(model(kind), 3), speculation(kind, drafts, 3), prefill_chunk=8)
    streams = [Request(n, OPENINGS[n], Sampler(GREEDY, 0), limits) for n in range(2)]
    for stream in streams:
        prefill(engine, stream)
    while (
        engine.active != streams or engine._n_fed
    ):  # the draft lacks the last prompt yet, or no decode call came since
        drained(engine.step(1))
    long = Request(2, tuple(range(2, 79)), Sampler(GREEDY, 0), limits)
    monkeypatch.setattr(Runner, "prefill", counted)
    engine.submit(long)
    while long not in engine.active:
        events, output = drained(engine.step(1))
        if any(isinstance(event, Measured) and event.phase == "decode" for event in events):
            assert output.advanced == streams and all(output.counts)
            calls.append("decode")
    of_draft = [3, *["decode", 8] * 9, "decode", 2] if drafts else []
    assert calls == [8, "decode"] * 9 + [5, *of_draft]


def test_short_prompts_share_one_chunk_between_two_decode_calls() -> None:
    limits = Limits(60, 512, frozenset())
    engine = Engine(Runner(model("reference"), 6), prefill_chunk=8)
    prefill(engine, Request(0, (1,), Sampler(GREEDY, 0), limits))
    # the first token of each is held already; an equal prompt needs no token at all
    for n, prompt in enumerate([(1, 51, 51, 51), (1, *[52] * 5), (1, 53), (1, *[54] * 8), (1, *[54] * 8)], 1):
        engine.submit(Request(n, prompt, Sampler(GREEDY, 0), limits))
    order: list[int | str] = []
    while len(engine.active) < 6:
        output = drained(engine.step(1))[1]
        order.append(output.prefill.n_fed if output.prefill else "decode")
    assert order == [3, 5, "decode", 1, "decode", 8, 0]


def test_requests_are_taken_from_an_iterable_only_as_rows_get_free() -> None:
    taken: list[int] = []

    def coming() -> Iterator[Request]:
        for n in range(9):
            taken.append(n)
            yield Request(n, (1, 5 + n), Sampler(GREEDY, 0), Limits(2 + n % 3, 512, frozenset()))

    engine, finished = Engine(Runner(model("reference"), 2)), set()
    for step in engine.generate(coming()):
        assert len(taken) <= len(finished) + 2
        finished |= {each.id for each in drained(step)[1].advanced if each.finish_reason is not None}
    assert finished == set(range(9))


def test_rows_of_any_lengths_take_little_more_memory_than_their_tokens() -> None:
    decoder, pick = model("engine"), random.Random(3)
    lengths = [10 + 133 * n for n in range(31)]
    pick.shuffle(lengths)
    limits = Limits(9, 8192, frozenset())
    requests = [
        Request(n, tuple(pick.randrange(90) for _ in range(length)), Sampler(GREEDY, 0), limits)
        for n, length in enumerate(lengths)
    ]
    runner, most_held = Runner(decoder, 8), 0
    for step in Engine(runner).generate(requests):
        drained(step)
        most_held = max(most_held, sum(runner.n_held(row) for row in range(8)))
    token_bytes = decoder.config.kv_bytes_per_token(decoder.kv_dtype.itemsize)
    assert max(lengths) == 4000
    assert 1 < runner.cache_bytes / (most_held * token_bytes) < 1.15


def test_an_aborted_request_leaves_its_row_at_once_wherever_it_is() -> None:
    limits = Limits(60, 512, frozenset())
    active, prefilling, waiting, last = (
        Request(n, tuple(range(1 + n, 20 + n)), Sampler(GREEDY, 0), limits) for n in range(4)
    )
    engine = Engine(Runner(model("reference"), 1), prefill_chunk=8)
    prefill(engine, active)
    for request in (prefilling, waiting, last):
        engine.submit(request)
    engine.abort(active)
    drained(engine.step())
    engine.abort(prefilling)
    engine.abort(waiting)
    assert engine.unfinished == [last]
    for _ in range(3):
        drained(engine.step())
    assert engine.active == [last]
    assert [len(each.generated) for each in (active, prefilling, waiting, last)] == [1, 0, 0, 1]
    assert {each.finish_reason for each in (active, prefilling, waiting)} == {"interrupted"}


def test_a_prompt_with_an_unknown_token_fails_alone_and_is_raised_unless_failures_are_isolated() -> None:
    limits = Limits(3, 512, frozenset())
    bad, good = Request(0, (1, UNKNOWN), Sampler(GREEDY, 0), limits), Request(1, (1, 5), Sampler(GREEDY, 0), limits)
    engine = Engine(Runner(model("reference"), 2))
    engine.submit(bad)
    with pytest.raises(TokenIdError):
        drained(engine.step())
    run_to_end(engine, [good])
    assert (bad.finish_reason, good.finish_reason) == ("error", "length")
