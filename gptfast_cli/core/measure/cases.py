"""The cases of a benchmark, named as in llama-bench: `pp512` feeds a prompt, `tg128` generates, `@d4096` at a depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gptfast_cli.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Case:
    """Work on `batch_size` sequences, `n_tokens` of each, with `depth` tokens before them in the cache."""

    phase: Literal["prefill", "decode"]
    n_tokens: int
    depth: int
    batch_size: int

    @property
    def name(self) -> str:
        """Short, without the batch size: `pp512`, `tg128@d4096`."""
        kind = {"prefill": "pp", "decode": "tg"}[self.phase]
        return f"{kind}{self.n_tokens}" + (f"@d{self.depth}" if self.depth else "")

    @property
    def title(self) -> str:
        """The name with the batch size: `tg128@d4096, batch 4`."""
        return f"{self.name}, batch {self.batch_size}"

    @property
    def total_tokens(self) -> int:
        """Tokens of all sequences together."""
        return self.batch_size * self.n_tokens

    @property
    def n_before(self) -> int:
        """Tokens that each sequence has before the timed work: decoding needs one to go on from."""
        return max(self.depth, 1) if self.phase == "decode" else self.depth

    @property
    def n_context(self) -> int:
        """Tokens that each sequence comes to."""
        return self.n_before + self.n_tokens

    def check_context(self, max_context: int) -> None:
        """Raise UsageError where a model cannot hold a sequence."""
        if self.n_context > max_context:
            raise UsageError(f"needs {self.n_context} tokens of context, and the model has {max_context}")


@dataclass(frozen=True, slots=True)
class CaseOptions:
    """Cases as a person asks for them: every length at every depth and batch size."""

    prompt_lens: tuple[int, ...] = (512,)
    gen_lens: tuple[int, ...] = (128,)
    depths: tuple[int, ...] = (0,)
    batch_sizes: tuple[int, ...] = (1,)

    def cases(self) -> tuple[Case, ...]:
        """In the order of a table: prompts before generation, then by length, depth and batch size."""
        return (*self._of("prefill", self.prompt_lens), *self._of("decode", self.gen_lens))

    def _of(self, phase: Literal["prefill", "decode"], lengths: Sequence[int]) -> tuple[Case, ...]:
        return tuple(
            Case(phase, length, depth, batch_size)
            for length in lengths
            for depth in self.depths
            for batch_size in self.batch_sizes
        )
