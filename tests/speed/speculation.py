"""What a draft of known agreement gains on this machine, beside what the formula says of it.

    PYTHONPATH=. python tests/speed/speculation.py [--alpha 0.8] [--draft-lengths 1,2,4,8] [--tokens 200] [--pairs 5]
    PYTHONPATH=. python tests/speed/speculation.py --bundled [--drafts tiny-draft,self:int8,ngram] [--tokens 200]

`--bundled` takes the bundled pair, the model itself and prompt lookup as drafts. Else target and
draft have random weights, the shape of TinyLlama-1.1B and 134 M parameters, and so never agree: the draft's tokens are
exchanged, after all of its work, for those that the target will say, each with probability alpha.
Every number is a median of runs that take turns; a speed-up is one of pairs, against plain decoding just before.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import torch

from gptfast_cli.core.bench.environment import environment
from gptfast_cli.core.cpus import computing_cpus
from gptfast_cli.core.device import set_threads
from gptfast_cli.core.drafts.candidates import SimulatedDraft
from gptfast_cli.core.drafts.texts import read_prompts
from gptfast_cli.core.engine.build import ModelSource, RuntimeConfig, build
from gptfast_cli.core.engine.chat import ChatOptions
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.load import LoadedModel, RandomWeights, load
from gptfast_cli.core.engine.request import Limits, Request, Transcript
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.engine.shapes import read_shape
from gptfast_cli.core.engine.speculative.draft_length import AdaptiveDraftLength, DraftLengthPolicy, FixedDraftLength
from gptfast_cli.core.engine.speculative.drafting import open_draft_model
from gptfast_cli.core.engine.speculative.proposers import Proposer
from gptfast_cli.core.engine.speculative.proposers.draft_model import DraftModel
from gptfast_cli.core.engine.speculative.proposers.ngram import NGram
from gptfast_cli.core.engine.speculative.speculation import Speculation
from gptfast_cli.core.events import result_of
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.quantize.allocation import AllocationOptions
from gptfast_cli.core.settings import load_settings
from gptfast_cli.core.stopwatch import Stopwatch

CPU = torch.device("cpu")
TARGET = "layers=22,dim=2048,heads=32,kv_heads=4,ffn=5632,vocab=32000"
DRAFT = "layers=12,dim=768,heads=12,ffn=2048,vocab=32000"
PROMPT = tuple(range(100, 200))
GREEDY = Sampling(temperature=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alpha", type=float, default=0.8)
    parser.add_argument("--draft-lengths", default="1,2,3,4,5,6,8")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--mode", default="int8")
    parser.add_argument("--bundled", action="store_true")
    parser.add_argument("--drafts", default="tiny-draft,self:int8,ngram")
    given = parser.parse_args()
    set_threads(computing_cpus())
    if given.bundled:
        return bundled(given.drafts.split(","), given.tokens, given.pairs)
    target, draft = model(TARGET, given.mode), model(DRAFT, given.mode)
    answer, _, _ = decode(target, given.tokens + 20, None)
    draft_lengths: dict[str, Any] = {
        draft_length: int(draft_length) for draft_length in given.draft_lengths.split(",")
    } | {"auto": None}
    speedups: dict[str, list[float]] = {name: [] for name in draft_lengths}
    taus: dict[str, list[float]] = {name: [] for name in draft_lengths}
    for _ in range(given.pairs):
        for name, draft_length in draft_lengths.items():
            _, plain, _ = decode(target, given.tokens, None)
            policy: DraftLengthPolicy = (
                AdaptiveDraftLength() if draft_length is None else FixedDraftLength(draft_length)
            )
            proposer = SimulatedDraft(DraftModel(draft, 1), given.alpha)
            proposer.know({PROMPT: answer})
            speculation = Speculation(proposer, policy)
            text, seconds, tau = decode(target, given.tokens, speculation)
            assert text == answer[: given.tokens], "the text is that of the target alone"
            speedups[name].append(plain / seconds)
            taus[name].append(tau)
    costs = measured_costs(target, draft, [draft_length for draft_length in draft_lengths.values() if draft_length])
    tell(f"plain step {costs['step'] * 1e3:.1f} ms, drafted token {costs['draft'] * 1e3:.2f} ms")
    tell("| k | tokens a round | speed-up | formula | difference |\n|---|---|---|---|---|")
    for name, draft_length in draft_lengths.items():
        middle, tau = statistics.median(speedups[name]), statistics.median(taus[name])
        spread = f"{min(speedups[name]):.2f}..{max(speedups[name]):.2f}"
        formula = ""
        if draft_length is not None:
            predicted = tau * costs["step"] / (draft_length * costs["draft"] + costs[draft_length])
            formula = f"{predicted:.2f} | {middle / predicted - 1:+.1%}"
        tell(f"| {name} | {tau:.2f} | {middle:.2f} [{spread}] | {formula or ' | '} |")
    tell(f"\n{given.mode}, alpha {given.alpha}; {machine()}")
    return 0


def bundled(drafts: list[str], n_tokens: int, n_pairs: int) -> int:
    """The bundled pair, in one process with both models loaded: speed-up over plain decoding, pair by pair.

    Each run is what `gptfast generate` does once the models are loaded: a new engine and a policy that has seen
    nothing, timed from the first token to the end of the answer, detokenization included, for the bundled prompts in
    turn. The first row pairs plain with plain: the spread of the machine.
    """
    settings = load_settings()
    target = result_of(load("tiny", settings, RuntimeConfig()))
    prompts, _ = read_prompts(target, None, None, ChatOptions())
    limits = target.limits(n_tokens, None)
    tell("| draft | k | temperature | tokens a round | runs with rounds | speed-up: median [quartiles] |")
    tell("|---|---|---|---|---|---|")
    for draft in ("none", *drafts):
        proposer = _new_proposer(draft, target)
        for k, temperature in product(("auto",) if draft == "none" else ("5", "auto"), (0.0, 0.8)):
            speedups, taus = [], []
            for n in range(n_pairs):
                request = Request(0, prompts[n % len(prompts)].ids, Sampler(Sampling(temperature), n), limits)
                speedup, tau = _pair(target, request, proposer, k, drafts_first=bool(n % 2))
                speedups.append(speedup)
                taus += [tau] if tau else []
            low, middle, high = statistics.quantiles(speedups, n=4)
            tau = f"{statistics.median(taus):.2f}" if taus else "none"
            gain = f"{middle:.3f} [{low:.3f}..{high:.3f}]"
            tell(f"| {draft} | {k} | {temperature} | {tau} | {len(taus)} of {n_pairs} | {gain} |")
    tell(f"\n{n_tokens} tokens, {n_pairs} pairs; {machine()}")
    return 0


def _pair(
    target: LoadedModel, request: Request, proposer: Callable[[], Proposer] | None, k: str, *, drafts_first: bool
) -> tuple[float, float | None]:
    """Speed-up of a request over plain decoding, and its tokens a round; neither is always run first."""
    speculation = None
    if proposer is not None:
        policy: DraftLengthPolicy = AdaptiveDraftLength() if k == "auto" else FixedDraftLength(int(k))
        speculation = Speculation(proposer(), policy)
    seconds = {}
    for is_drafted in (drafts_first, not drafts_first):
        seconds[is_drafted] = _generate(target, replace(request, generated=[]), speculation if is_drafted else None)
    return seconds[False] / seconds[True], None if speculation is None else speculation.rounds.tau


def _new_proposer(draft: str, target: LoadedModel) -> Callable[[], Proposer] | None:
    """Makes proposers of a kind that know no text yet; None for plain decoding."""
    if draft == "none":
        return None
    if draft == "ngram":
        return partial(NGram, 1)
    opening = open_draft_model(
        draft, target, n_tokens=target.config.max_context, settings=load_settings(), runtime=RuntimeConfig()
    )
    model, _ = result_of(opening)
    return partial(DraftModel, model, 1)


def _generate(target: LoadedModel, request: Request, speculation: Speculation | None) -> float:
    """Seconds from the first token of a request to its end."""
    engine, transcript = Engine(Runner(target.model, 1), speculation), Transcript(request, target.tokenizer, ())
    engine.submit(request)
    while not request.generated and request.finish_reason is None:
        result_of(engine.step())
    began = time.perf_counter()
    while engine.has_work:
        result_of(engine.step())
        list(transcript.follow())
    return time.perf_counter() - began


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def machine() -> str:
    here = environment(CPU, torch.bfloat16)
    return f"{here.threads} threads of {here.cpu}; torch {here.torch}, commit {here.commit}"


def model(shape: str, mode: str) -> Decoder:
    config = read_shape(shape).config
    weights = RandomWeights(
        config, AllocationOptions(mode).allocation(config), device=CPU, dtype=torch.bfloat16, seed=0
    )
    parts = ModelSource(config, weights.read, dict, 1, CPU, torch.bfloat16)
    return result_of(build(parts, RuntimeConfig(), settings=load_settings(), watch=Stopwatch(CPU)))


def decode(target: Decoder, n_tokens: int, speculation: Speculation | None) -> tuple[list[int], float, float]:
    """The text, the seconds after its first token, and tokens per round."""
    engine = Engine(Runner(target, 1), speculation)
    sequence = Request(0, PROMPT, Sampler(GREEDY, 0), Limits(n_tokens, 2048, frozenset()))
    engine.submit(sequence)
    result_of(engine.fill_rows())
    began = time.perf_counter()
    while engine.has_work:
        result_of(engine.step())
    tau = speculation.rounds.tau if speculation is not None else None
    return sequence.generated, time.perf_counter() - began, tau or 1.0


def measured_costs(target: Decoder, draft: Decoder, draft_lengths: list[int]) -> dict[Any, float]:
    """Seconds of a step, of a drafted token, and of the verification of each depth, taken in turns."""
    runners = {name: Runner(each, 1) for name, each in (("step", target), ("draft", draft))}
    for runner in runners.values():
        runner.prefill(0, PROMPT * 2)
    samples: dict[Any, list[float]] = {name: [] for name in ("step", "draft", *draft_lengths)}
    for _ in range(15):
        for name, seconds in samples.items():
            runner = runners.get(name, runners["step"])
            began = time.perf_counter()
            runner.extend([torch.tensor([7] * (1 if isinstance(name, str) else name + 1))], needs_probs=True)
            seconds.append(time.perf_counter() - began)
            runner.truncate_to(0, PROMPT * 2, (7,))
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


if __name__ == "__main__":
    sys.exit(main())
