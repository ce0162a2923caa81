"""On a GPU a round of speculation runs without a stop: the host waits for it once, to see what came of it."""

import warnings

import pytest
import torch
from on_gpu import tiny_llama

from gptfast_cli.core.engine.engine import Engine
from gptfast_cli.core.engine.request import Limits, Request
from gptfast_cli.core.engine.runner import Runner
from gptfast_cli.core.engine.sampling import Sampler, Sampling
from gptfast_cli.core.engine.speculative.draft_length import FixedDraftLength
from gptfast_cli.core.engine.speculative.proposers.draft_model import DraftModel
from gptfast_cli.core.engine.speculative.speculation import Speculation
from model_files import drained

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")

SAMPLINGS = [Sampling(temperature=0), Sampling(top_k=20, top_p=0.9, min_p=0.01), Sampling(repetition_penalty=1.2)]


def generator(sampling: Sampling, n_rows: int, draft: DraftModel | None, k: int = 4) -> tuple[Engine, list[Request]]:
    speculation = None if draft is None else Speculation(draft, FixedDraftLength(k))
    made = Engine(Runner(tiny_llama(), n_rows), speculation)
    limits = Limits(40, 200, frozenset())
    sequences = [Request(n, (1, 5 + n, 9), Sampler(sampling, 3, n), limits) for n in range(n_rows)]
    for sequence in sequences:
        made.submit(sequence)
    drained(made.fill_rows())
    return made, sequences


@pytest.mark.parametrize("n_rows", [1, 3])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_host_waits_once_a_round(sampling: Sampling, n_rows: int) -> None:
    made, _ = generator(sampling, n_rows, DraftModel(tiny_llama(), n_rows))
    drained(made.step())  # makes what is made once
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        drained(made.step())
        torch.cuda.set_sync_debug_mode("default")
    output = [
        f"{wait.filename}:{wait.lineno} {wait.message}"
        for wait in waits
        if "called a synchronizing" in str(wait.message)
    ]
    assert len(output) == 1, output


def test_text_is_that_of_the_target_alone() -> None:
    for k in (1, 4):
        made, sequences = generator(SAMPLINGS[0], 3, DraftModel(tiny_llama(), 3), k)
        alone, expected = generator(SAMPLINGS[0], 3, None)
        while made.active:
            drained(made.step())
        while alone.active:
            drained(alone.step())
        assert [each.generated for each in sequences] == [each.generated for each in expected]
