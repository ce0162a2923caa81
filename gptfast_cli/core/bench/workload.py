"""Cases of a benchmark (prefill or decode, context depth, batch size) and their timed work.

Prompts are random and all different, so that prefix reuse never skips prefill. Without compiled steps each repetition
has its own runner. Compiled runners are kept, one for each phase and batch size, with a KV cache for the longest of
their cases: a compiled step attends over the whole cache.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gptfast_cli.core.bench.repetitions import TimedRow, Work
from gptfast_cli.core.engine.compiled import Compiling, compile_steps
from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import PREFILL_CHUNK, Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling, uniform
from gptfast_cli.core.errors import OutOfMemoryError, UsageError, is_out_of_memory
from gptfast_cli.core.events import Job, result_of
from gptfast_cli.core.models.decoder import Decoder
from gptfast_cli.core.settings import Settings


@dataclass(frozen=True, slots=True)
class Case:
    """Process `n_tokens` of each of `batch_size` sequences, after `depth` tokens in the KV cache."""

    phase: Literal["prefill", "decode"]
    n_tokens: int
    depth: int
    batch_size: int

    @property
    def name(self) -> str:
        """Name without the batch size, as in llama-bench: `pp512`, `tg128@d4096`."""
        kind = {"prefill": "pp", "decode": "tg"}[self.phase]
        return f"{kind}{self.n_tokens}" + (f"@d{self.depth}" if self.depth else "")

    @property
    def title(self) -> str:
        """Name with the batch size: `tg128@d4096, batch 4`."""
        return f"{self.name}, batch {self.batch_size}"

    @property
    def total_tokens(self) -> int:
        """Tokens of all sequences together."""
        return self.batch_size * self.n_tokens

    @property
    def n_before(self) -> int:
        """Tokens of each sequence before the timed work: decoding needs at least one."""
        return max(self.depth, 1) if self.phase == "decode" else self.depth

    @property
    def n_context(self) -> int:
        """Final tokens of each sequence."""
        return self.n_before + self.n_tokens

    def check_context(self, max_context: int) -> None:
        """Raise UsageError if the context exceeds the model's."""
        if self.n_context > max_context:
            raise UsageError(f"needs {self.n_context} tokens of context, and the model has {max_context}")


@dataclass(frozen=True, slots=True)
class CaseOptions:
    """Options for cases: every length at every depth and batch size."""

    prompt_lens: tuple[int, ...] = (512,)
    gen_lens: tuple[int, ...] = (128,)
    depths: tuple[int, ...] = (0,)
    batch_sizes: tuple[int, ...] = (1,)

    def cases(self) -> tuple[Case, ...]:
        """All cases: prefill before decode, then by length, depth and batch size."""
        return (*self._of("prefill", self.prompt_lens), *self._of("decode", self.gen_lens))

    def _of(self, phase: Literal["prefill", "decode"], lengths: Sequence[int]) -> tuple[Case, ...]:
        return tuple(
            Case(phase, length, depth, batch_size)
            for length in lengths
            for depth in self.depths
            for batch_size in self.batch_sizes
        )


_GREEDY = Sampling(temperature=0)


class Workload:
    """Prepares the cases of one model; the same seed gives the same prompts in the same order."""

    def __init__(self, model: Decoder, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._streams = itertools.count()  # a random stream for each prompt
        self._kept: dict[tuple[Literal["prefill", "decode"], int], Runner | None] = {}  # None: out of memory

    def row(self, case: Case) -> TimedRow:
        """The row of a case; its `prepare` raises UsageError if the model's context is too short."""

        def prepare() -> Work:
            case.check_context(self._model.config.max_context)
            runner = self._runner(case)
            return self._prefill(case, runner) if case.phase == "prefill" else self._decode(case, runner)

        return TimedRow(case.title, case.phase, case.total_tokens, prepare)

    def compile(self, cases: Sequence[Case], compiling: Compiling, settings: Settings) -> Job[dict[int, float] | None]:
        """Compile the steps of cases, once for each runner; returns seconds by batch size, None without compiling.

        Raises GptFastError as `compile_steps` does.
        """
        seconds: dict[int, float] = {}
        phases = {"prefill": compiling.prefill, "decode": compiling.decode}
        fitting = [case for case in cases if case.n_context <= self._model.config.max_context and phases[case.phase]]
        for phase, batch_size in dict.fromkeys((case.phase, case.batch_size) for case in fitting):
            alike = [case.n_context for case in fitting if (case.phase, case.batch_size) == (phase, batch_size)]
            only = replace(compiling, prefill=phase == "prefill", decode=phase == "decode")
            self._kept[phase, batch_size] = None
            try:
                runner = Runner(self._model, batch_size)
                took = yield from compile_steps(runner, only, n_tokens=max(alike), settings=settings)
            except (OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                continue
            self._kept[phase, batch_size] = runner
            seconds[batch_size] = seconds.get(batch_size, 0.0) + (took or 0.0)
        return seconds if any(phases.values()) else None

    def _runner(self, case: Case) -> Runner:
        key = case.phase, case.batch_size
        if key not in self._kept:
            return Runner(self._model, case.batch_size)
        runner = self._kept[key]
        if runner is None:
            raise OutOfMemoryError("Not enough memory.")
        runner.clear()
        return runner

    def _prefill(self, case: Case, runner: Runner) -> Work:
        for row in range(case.batch_size):
            for piece in _pieces(self._prompt(case.depth)):
                runner.prefill(row, piece)
        pieces = [(row, piece) for row in range(case.batch_size) for piece in _pieces(self._prompt(case.n_tokens))]

        def work() -> None:
            for row, piece in pieces:
                runner.prefill(row, piece)

        return work

    def _decode(self, case: Case, runner: Runner) -> Work:
        engine = Engine(runner)
        limits = Limits(case.n_tokens + 2, case.n_context + 2, frozenset())  # no sequence ends before the work does
        for n in range(case.batch_size):
            prompt = self._prompt(case.n_before)
            engine.submit(Request(n, prompt, Sampler(_GREEDY, self._seed), limits))
        result_of(engine.fill_rows())

        def work() -> int:
            n_left, n_bytes = case.n_tokens, 0
            while n_left:
                output = result_of(engine.step(n_left))
                n_left -= output.counts[0]
                n_bytes += output.n_bytes
            return n_bytes

        return work

    def _prompt(self, n_tokens: int) -> tuple[int, ...]:
        stream, vocab_size = next(self._streams), self._model.config.vocab_size
        return tuple(int(uniform(self._seed, stream, position) * vocab_size) for position in range(n_tokens))


def _pieces(prompt: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [prompt[first : first + PREFILL_CHUNK] for first in range(0, len(prompt), PREFILL_CHUNK)]
