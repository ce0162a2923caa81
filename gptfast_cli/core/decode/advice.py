"""What judging drafts came to, kept for later: the draft and depth to take for a model, by temperature and batch size.

`$GPTFAST_HOME/advice` holds a JSON file for each target, named by a hash of its weights, with the device and the dtype:
what pays on one machine may not on another.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gptfast_cli.core.checkpoints.fingerprint import fingerprint
from gptfast_cli.core.decode.loading import LoadedModel
from gptfast_cli.core.device import dtype_name
from gptfast_cli.core.errors import CorruptError
from gptfast_cli.core.fields import Fields, read_fields
from gptfast_cli.core.files import is_file, write_whole

_SCHEMA = "gptfast.advice/1"


@dataclass(frozen=True, slots=True)
class Advice:
    """For a temperature and a batch size; `draft` and `k` are None where no draft is faster than none."""

    temperature: float
    batch_size: int
    draft: str | None
    k: int | None


def save_advice(home: Path, target: LoadedModel, advice: Sequence[Advice]) -> Path:
    """Keep advice for a model, in place of what was kept before; returns the file."""
    path = _path(home, target)
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [asdict(each) for each in advice]
    write_whole(path, json.dumps({"schema": _SCHEMA, "target": target.name, "advice": entries}, indent=1) + "\n")
    return path


def find_advice(home: Path, target: LoadedModel, temperature: float, batch_size: int) -> Advice | None:
    """That of the nearest temperature, and of the largest batch that is no larger; None where nothing was kept.

    Raises CorruptError for a file that does not hold advice.
    """
    path = _path(home, target)
    if not is_file(path):
        return None
    try:
        kept = _read(read_fields(path))
    except CorruptError as error:
        raise CorruptError(
            error.message, f"Judge drafts anew: gptfast speculate -m {target.name} --save-advice"
        ) from error
    nearest = min(abs(each.temperature - temperature) for each in kept)
    near = [each for each in kept if abs(each.temperature - temperature) == nearest]
    smaller = [each for each in near if each.batch_size <= batch_size]
    if smaller:
        return max(smaller, key=lambda each: each.batch_size)
    return min(near, key=lambda each: each.batch_size)


def _read(fields: Fields) -> list[Advice]:
    entries = fields.values.get("advice")
    if fields.values.get("schema") != _SCHEMA or not isinstance(entries, list) or not entries:
        raise fields.corrupt("advice", "is none of this version")
    return [_entry(Fields({"entry": entry}, fields.where).section("entry")) for entry in entries]


def _entry(entry: Fields) -> Advice:
    temperature, batch_size = entry.number("temperature", minimum=0), entry.integer("batch_size", minimum=1)
    if entry.values.get("draft") is None:
        return Advice(temperature, batch_size, None, None)
    return Advice(temperature, batch_size, entry.text("draft"), entry.integer("k", minimum=1))


def _path(home: Path, target: LoadedModel) -> Path:
    where = f"{target.model.device.type}-{dtype_name(target.model.dtype)}"
    return home / "advice" / f"{fingerprint(target.checkpoint)[:16]}-{where}.json"
