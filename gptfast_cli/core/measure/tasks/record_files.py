"""Results and samples on disk, named and laid out as the harness does it, so that its readers can read them.

A folder for each model holds `results_DATE.json` with the numbers of a run, and `samples_TASK_DATE.jsonl` with a line
for each question.
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from gptfast_cli.core.files import write_whole
from gptfast_cli.core.measure.tasks.results import Marks


def write_records(output_path: Path, model: str, marks: Marks) -> Path:
    """Write them; returns the model's folder. Raises DiskFullError."""
    folder = output_path / re.sub(r'["<>:/|\\?*\[\]]+', "__", model)
    date = datetime.now().astimezone().replace(tzinfo=None).isoformat().replace(":", "-")
    for task, samples in marks.samples.items():
        lines = [json.dumps(_flat(sample), default=_plain, ensure_ascii=False) + "\n" for sample in samples]
        write_whole(folder / f"samples_{task}_{date}.jsonl", "".join(lines))
    about = {"model_name": model, "model_name_sanitized": folder.name}
    record = json.dumps(dict(marks.record) | about, indent=2, default=_plain, ensure_ascii=False)
    write_whole(folder / f"results_{date}.json", record)
    return folder


def _flat(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample whose arguments are named and whose answers are text, so that all lines of a file have one shape."""
    return {
        **sample,
        "arguments": {
            f"gen_args_{n}": {f"arg_{m}": argument for m, argument in enumerate(arguments)}
            for n, arguments in enumerate(sample["arguments"])
        },
        "resps": _texts(sample["resps"]),
        "filtered_resps": _texts(sample["filtered_resps"]),
        "target": str(sample["target"]),
    }


def _texts(value: object) -> object:
    return [_texts(each) for each in value] if isinstance(value, list | tuple) else str(value)


def _plain(value: Any) -> object:  # noqa: ANN401  # whatever a task puts into its documents
    """A value that JSON has no word for: a number of NumPy's, a set, or a text."""
    if hasattr(value, "item"):
        return value.item()
    return sorted(value, key=str) if isinstance(value, set) else str(value)
