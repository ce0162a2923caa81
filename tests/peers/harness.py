"""Compares answering lm-evaluation-harness's requests with its own `hf` model on this CPU, pair by pair.

    PYTHONPATH=.:tests python tests/peers/harness.py --work FOLDER [--shape a|b] [--dtype bfloat16|float32] [--pairs 5]

Both sides answer the same requests of the same random model, in lengths as real tasks have them: questions with four
answers (HellaSwag), one word behind a text (LAMBADA), whole texts (WikiText), and answers in own words (GSM8K, cut
short). Rates are the tokens of contexts and continuations, of prompts and answers, ÷ time. Peak memory is that of a
process of its own for each side that answers all of them. It needs the dev extra.
"""

import argparse
import contextlib
import io
import json
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from gptfast_side import read_bandwidth
from lm_eval.api.instance import Instance
from paired_runs import Pairs, Sides, collect
from peer_models import SHAPES, write_checkpoint
from shared_machine import Machine, others_cpu_s

import tokenizer_samples
from gptfast_cli.core.bench.environment import environment
from gptfast_cli.core.checkpoints.staging import staged_folder
from gptfast_cli.core.cpus import computing_cpus
from gptfast_cli.core.device import DTYPES, peak_memory_bytes
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import load
from gptfast_cli.core.evals.tasks.bos_rules import bos_rules_of
from gptfast_cli.core.evals.tasks.harness_model import HarnessModel
from gptfast_cli.core.evals.tasks.request_runner import RequestRunner
from gptfast_cli.core.events import result_of
from gptfast_cli.core.settings import load_settings
from gptfast_cli.render.numbers import machine_line

Answers = Callable[[Sequence[Instance]], object]

_BATCH_SIZE: Final = 8
_DTYPES: Final = ("bfloat16", "float32")
_TOKENIZER_CONFIG: Final = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": True,
}


def main() -> int:
    given = _arguments()
    os.environ["GPTFAST_HOME"] = str(given.work / "home")
    torch.set_num_threads(given.threads)
    model = given.work / f"harness-{given.shape}"
    if not model.exists():
        with staged_folder(model, "peer", replace=True) as staging:
            write_checkpoint(SHAPES[given.shape], staging)
            tokenizer_samples.rewritten("v1").save(str(staging / "tokenizer.json"))  # which both sides read
            (staging / "tokenizer_config.json").write_text(json.dumps(_TOKENIZER_CONFIG), encoding="utf-8")
    if given.alone:
        return _alone(given.alone, model, given.dtype, given.threads)
    lines = [line for dtype in _DTYPES if given.dtype in (dtype, "all") for line in _lines(given, model, dtype)]
    sys.stdout.write("| dtype | requests | hf tok/s | ours tok/s | ours / hf [least..largest] | pairs (set aside) |\n")
    sys.stdout.write("| --- | --- | --- | --- | --- | --- |\n" + "".join(lines))
    about = environment(torch.device("cpu"), DTYPES["float32"])
    sys.stdout.write(f"\n{' '.join(sys.argv)}; {given.threads} threads; {machine_line(about)}\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="the folder that the model is kept in")
    parser.add_argument("--shape", choices=["a", "b"], default="b")
    parser.add_argument("--dtype", choices=[*_DTYPES, "all"], default="all")
    parser.add_argument("--pairs", type=int, default=5, help="pairs that count, for each row")
    parser.add_argument("--minutes", type=float, default=6, help="of measuring at most, for each dtype")
    parser.add_argument("--threads", type=int, default=computing_cpus())
    parser.add_argument("--alone", choices=["hf", "ours"], help=argparse.SUPPRESS)
    return parser.parse_args()


def _lines(given: argparse.Namespace, model: Path, dtype: str) -> list[str]:
    """The table's lines for a dtype: one for each kind of request, and one for the memory of all."""
    ours, hf = _ours(model, dtype, given.threads), _hf(model, dtype)
    kinds = _requests()
    machine = Machine(read_bandwidth(), others_cpu_s, os.cpu_count() or 1)
    rows = {kind: Sides(_timed(hf, kind, asked), _timed(ours, kind, asked)) for kind, asked in kinds.items()}
    end = time.monotonic() + given.minutes * 60
    found = collect(rows, machine, n_wanted=given.pairs, is_over=lambda: time.monotonic() > end)
    peaks = {side: _peak_bytes(given, dtype, side) for side in ("hf", "ours")}
    memory = f"| {dtype} | peak memory, MB | {peaks['hf'] / 1e6:,.0f} | {peaks['ours'] / 1e6:,.0f} "
    return [*(_line(dtype, kind, pairs) for kind, pairs in found.items()), f"{memory}| | |\n"]


def _line(dtype: str, kind: str, pairs: Pairs) -> str:
    summary = pairs.summary
    cells = ["-", "-", "-"]
    if summary is not None:
        spread = f"[{summary.least_ratio:.2f}..{summary.largest_ratio:.2f}]"
        cells = [f"{summary.peer_tok_s:,.0f}", f"{summary.ours_tok_s:,.0f}", f"{summary.ratio:.2f} {spread}"]
    return f"| {dtype} | {kind} | {' | '.join(cells)} | {len(pairs.accepted)} ({pairs.n_rejected}) |\n"


def _timed(side: dict[str, Answers], kind: str, asked: Sequence[Instance]) -> Callable[[], float]:
    """A turn of one side: tokens of all requests ÷ the time for their answers."""
    n_tokens = sum(instance.doc["n_tokens"] for instance in asked)
    answers = side[asked[0].request_type]
    answers(asked[:4])

    def turn() -> float:
        begin = time.perf_counter()
        answers(asked)
        return n_tokens / (time.perf_counter() - begin)

    return turn


def _ours(model: Path, dtype: str, n_threads: int) -> dict[str, Answers]:
    loaded = result_of(load(str(model), load_settings(), RuntimeConfig("cpu", dtype, n_threads)))
    assert loaded.tokenizer is not None
    answering = RequestRunner(loaded, bos_rules_of(loaded, loaded.tokenizer), _BATCH_SIZE, seed=0)
    # one that knows no answers yet, each time
    return {kind: lambda asked, kind=kind: getattr(HarnessModel(answering), kind)(list(asked)) for kind in _KINDS}


def _hf(model: Path, dtype: str) -> dict[str, Answers]:
    from lm_eval.models.huggingface import HFLM

    logging.disable(logging.WARNING)
    hf = HFLM(pretrained=str(model), device="cpu", dtype=dtype, batch_size=_BATCH_SIZE)

    def answers(kind: str, asked: Sequence[Instance]) -> object:
        with contextlib.redirect_stderr(io.StringIO()):
            return getattr(hf, kind)(list(asked), disable_tqdm=True)

    return {kind: lambda asked, kind=kind: answers(kind, asked) for kind in _KINDS}


def _alone(side: str, model: Path, dtype: str, n_threads: int) -> int:
    """Answer everything once, and print the most memory that it took."""
    answers = _hf(model, dtype) if side == "hf" else _ours(model, dtype, n_threads)
    for asked in _requests().values():
        answers[asked[0].request_type](asked)
    sys.stdout.write(f"{peak_memory_bytes(torch.device('cpu'))}\n")
    return 0


def _peak_bytes(given: argparse.Namespace, dtype: str, side: str) -> int:
    options = ["--work", str(given.work), "--shape", given.shape, "--dtype", dtype, "--threads", str(given.threads)]
    command = [sys.executable, __file__, *options, "--alone", side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


_KINDS: Final = ("loglikelihood", "loglikelihood_rolling", "generate_until")


def _requests() -> dict[str, list[Instance]]:
    """Requests of made-up words, the same in every run; of each the tokens are counted as words, which they are."""
    rng = random.Random(0)
    choices: list[Instance] = []
    for question in range(16):
        context = _words(rng, rng.randrange(40, 120))
        choices += [_instance("loglikelihood", question, context, _words(rng, rng.randrange(15, 35))) for _ in range(4)]
    return {
        "four answers": choices,
        "one word": [_instance("loglikelihood", n, _words(rng, rng.randrange(60, 110)), " red") for n in range(24)],
        "whole texts": [_instance("loglikelihood_rolling", n, _words(rng, 1500)) for n in range(2)],
        "own words": [_generation(n, _words(rng, rng.randrange(60, 200))) for n in range(8)],
    }


def _words(rng: random.Random, n: int) -> str:
    return "".join(f" {rng.choice(_VOCABULARY)}" for _ in range(n))


_VOCABULARY: Final = (
    *("the", "a", "man", "woman", "house", "river", "day", "time", "year"),
    *("world", "school", "hand", "part", "place", "case", "week", "water"),
)


def _instance(kind: Any, number: int, *texts: str) -> Instance:
    return Instance(kind, {"n_tokens": sum(len(text.split()) for text in texts)}, texts, number, ("task", number, 1))


def _generation(number: int, prompt: str) -> Instance:
    settings = {"until": ["\n\n\n"], "max_gen_toks": 32, "do_sample": False}
    doc = {"n_tokens": len(prompt.split()) + 32}
    return Instance("generate_until", doc, (prompt, settings), number, ("task", number, 1))


if __name__ == "__main__":
    sys.exit(main())
