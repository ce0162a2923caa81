"""What ranks generate together by the job that `generate` runs: several samples, with and without a draft."""

from pathlib import Path
from typing import Any

import torch

from generation_requests import changed, requested
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.engine.speculative.draft_length import DraftOptions
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.events import Measured, Progress
from gptfast_cli.core.jobs.generate import GenerateRequest, run
from gptfast_cli.core.models.process_group import ProcessGroup
from model_files import drained, settings_in

GREEDY, DRAWN = Sampling(temperature=0), Sampling(temperature=1.0, top_k=9)
OF_ALL = Sampling(temperature=0.7, top_k=0, top_p=0.9, repetition_penalty=1.2)
TARGET, THREE_HEADS = "uneven features", "three heads"
REFERENCE, CPU = "reference", "cpu"
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"backend": CPU, "sampling": GREEDY, "n_logprobs": 2},
    "drawn": {"backend": REFERENCE, "sampling": DRAWN},
    "drawn from all, penalized": {"backend": CPU, "sampling": OF_ALL, "n_logprobs": 1},
    "greedy, dealt draft": {"backend": REFERENCE, "sampling": GREEDY, "draft": "self:int8"},
    "drawn, dealt draft": {"backend": CPU, "sampling": DRAWN, "draft": "self:int8", "n_logprobs": 1},
    "greedy, whole draft": {"backend": CPU, "sampling": GREEDY, "draft": "self:int4"},
    "drawn, whole draft": {"backend": CPU, "sampling": DRAWN, "draft": "self:int4"},
    "drawn, draft of three heads": {"backend": REFERENCE, "sampling": OF_ALL, "draft": THREE_HEADS},
}


def texts(group: ProcessGroup, root: Path) -> dict[str, Any]:
    """Samples and rounds by case."""
    return {name: _text(group, root, **case) for name, case in CASES.items()}


def cached(group: ProcessGroup, root: Path) -> list[tuple[int, Any]]:
    """Tokens fed of a prompt, and samples: no cache, as one is kept, from it, and as a rank has an old file or none."""
    request = changed(_request(group, root), prompt_cache=root / f"cache of {group.size}")
    own = root / f"cache of {group.size}.{group.rank + 1}-of-{group.size}"
    is_last = group.rank == group.size - 1 > 0
    outcomes = [_fed(changed(request, prompt_cache=None)), _fed(request), _fed(request)]
    old = own.read_bytes() if is_last else b""
    _fed(changed(request, prompt=(9, 8, 7, 6, 5, 4)))
    if is_last:
        own.write_bytes(old)
    outcomes.append(_fed(request))
    if is_last:
        own.unlink()
    return [*outcomes, _fed(request)]


def refusal(group: ProcessGroup, root: Path) -> tuple[str, int]:
    """What is reported of an int4 model that cannot be cut, and how many of its weights had been read by then."""
    request, n_read = changed(_request(group, root), model=str(root / "int4")), 0
    try:
        for event in run(request):
            n_read += isinstance(event, Progress) and event.task == "load"
    except UsageError as error:
        return error.message, n_read
    return "", n_read


def _request(group: ProcessGroup, root: Path, backend: str = CPU) -> GenerateRequest:
    return requested(
        GenerateRequest,
        prompt=(1, 5, 99, 100, 7),
        settings=settings_in(root),
        model=str(root / TARGET),
        runtime=RuntimeConfig("cpu", "float32", 1, backend, group=group),
        max_new_tokens=8,
        seed=3,
        num_samples=3,
        batch_size=2,
    )


def _text(group: ProcessGroup, root: Path, *, backend: str, draft: str | None = None, **options: Any) -> Any:
    if draft is not None:
        options["drafting"] = DraftOptions(str(root / draft) if draft == THREE_HEADS else draft, 3)
    result = drained(run(changed(_request(group, root, backend), **options)))[1]
    rounds = result.speculation
    return {
        "tokens": [(sample.token_ids, sample.finish_reason) for sample in result.samples],
        "logprobs": torch.tensor([output.logprob for sample in result.samples for output in sample.logprobs or ()]),
        "rounds": None if rounds is None else (rounds.rounds, rounds.accepted_histogram),
        "replicated": rounds is not None and rounds.replicated,
    }


def _fed(request: GenerateRequest) -> tuple[int, Any]:
    events, result = drained(run(request))
    fed = sum(event.n_tokens for event in events if isinstance(event, Measured) and event.phase == "prefill")
    return fed, [sample.token_ids for sample in result.samples]
