"""Model folders to read, convert and spoil: transformers writes them, safetensors rewrites them."""

import json
import os
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor

from gptfast_cli.core.engine.engine import Engine, PrefillOutput, StepOutput
from gptfast_cli.core.engine.request import Request
from gptfast_cli.core.events import Event
from gptfast_cli.core.jobs.convert import Converted, ConvertRequest, run
from gptfast_cli.core.settings import Settings

T = TypeVar("T")

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def drained(job: Generator[Event, None, T]) -> tuple[list[Event], T]:
    """A job's events and its result."""
    events: list[Event] = []
    while True:
        try:
            events.append(next(job))
        except StopIteration as finished:
            return events, finished.value


def run_to_end(engine: Engine, requests: Iterable[Request]) -> list[StepOutput]:
    """The outputs of all steps that requests take."""
    return [drained(step)[1] for step in engine.generate(requests)]


def prefill(engine: Engine, request: Request) -> PrefillOutput:
    """Give a request its first token, where a row is free and no other request waits."""
    engine.submit(request)
    outputs = [drained(engine.step())[1]]
    while outputs[-1].prefill is None:
        outputs.append(drained(engine.step())[1])
    return outputs[-1].prefill


def settings_in(folder: Path) -> Settings:
    """Settings that keep everything inside of a folder, but for what is compiled: that serves all tests."""
    return Settings(home=folder / "home", hf_cache=folder / "hub", kernels=Path(os.environ["GPTFAST_KERNELS"]))


def saved(folder: Path, *, sharded: bool = False, **changes: Any) -> Path:
    """A random Llama saved by transformers, in one file or in several."""
    from llama_oracle import random_llama  # transformers takes seconds, which ranks that only read models do without

    random_llama(**changes).save_pretrained(folder, max_shard_size="20KB" if sharded else "1GB")
    return folder


def converted(source: Path | str, settings: Settings, **options: Any) -> Converted:
    """What converting a source gives."""
    return drained(run(ConvertRequest(str(source), settings, **options)))[1]


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def edit_tensors(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a safetensors file in place."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def edit_header(path: Path, edit: Callable[[str], str]) -> None:
    """Change the header of a safetensors file as text, and leave the payload as it is."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = edit(content[8:end].decode()).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def cached_repo(hf_cache: Path, repo: str, commit: str = "c0ffee", **changes: Any) -> Path:
    """A repository in a Hugging Face cache, its main branch at `commit`; returns the snapshot's folder."""
    folder = hf_cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    return saved(folder / "snapshots" / commit, **changes)
