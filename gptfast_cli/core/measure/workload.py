"""The work of a benchmark's cases, done as generating text does it, by the runner and the generator.

Prompts are random, and no two are alike: what the runner knows already it would not feed again. Without compiled steps
every repetition has a runner of its own. With them the runners stay, one for each phase and batch size, with room for
the longest of their cases: a compiled step runs over all the room that there is.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from gptfast_cli.core.decode.compiled import Compiling, compile_steps
from gptfast_cli.core.decode.generator import Generator
from gptfast_cli.core.decode.randomness import uniform
from gptfast_cli.core.decode.runner import PREFILL_CHUNK, Runner
from gptfast_cli.core.decode.sampler import Sampler
from gptfast_cli.core.decode.sampling import Sampling
from gptfast_cli.core.decode.sequence import Limits
from gptfast_cli.core.decode.sequence import Sequence as TokenSequence
from gptfast_cli.core.errors import OutOfMemoryError, is_out_of_memory
from gptfast_cli.core.events import Job, result_of
from gptfast_cli.core.measure.cases import Case
from gptfast_cli.core.measure.repetitions import Row, Work
from gptfast_cli.core.model.decoder import Decoder
from gptfast_cli.core.settings import Settings

_GREEDY = Sampling(temperature=0)


class Workload:
    """Makes cases of one model ready to be timed; the same seed gives the same prompts in the same order."""

    def __init__(self, model: Decoder, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._streams = itertools.count()  # one for each prompt
        self._kept: dict[tuple[Literal["prefill", "decode"], int], Runner | None] = {}  # None: there was no memory

    def row(self, case: Case) -> Row:
        """The row of a case; to make it ready raises UsageError where the model cannot hold it."""

        def prepare() -> Work:
            case.check_context(self._model.config.max_context)
            runner = self._runner(case)
            return self._prefill(case, runner) if case.phase == "prefill" else self._decode(case, runner)

        return Row(case.title, case.phase, case.total_tokens, prepare)

    def compile(self, cases: Sequence[Case], compiling: Compiling, settings: Settings) -> Job[dict[int, float] | None]:
        """Compile the steps of cases, each runner's once; seconds by batch size, None where none is asked for.

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
        generator = Generator(runner)
        limits = Limits(case.n_tokens + 2, case.n_context + 2, frozenset())  # no sequence is over before the work is
        for n in range(case.batch_size):
            prompt = self._prompt(case.n_before)
            result_of(generator.admit(TokenSequence(n, prompt, Sampler(_GREEDY, self._seed), limits)))

        def work() -> int:
            n_left, n_bytes = case.n_tokens, 0
            while n_left:
                stride = result_of(generator.step(n_left))
                n_left -= stride.counts[0]
                n_bytes += stride.n_bytes
            return n_bytes

        return work

    def _prompt(self, n_tokens: int) -> tuple[int, ...]:
        stream, vocab_size = next(self._streams), self._model.config.vocab_size
        return tuple(int(uniform(self._seed, stream, position) * vocab_size) for position in range(n_tokens))


def _pieces(prompt: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [prompt[first : first + PREFILL_CHUNK] for first in range(0, len(prompt), PREFILL_CHUNK)]
