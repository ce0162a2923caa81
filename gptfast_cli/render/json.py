"""A job's result as one JSON document: its schema's name, then the result's own fields."""

import json
import math
from collections.abc import Mapping
from typing import TextIO


def write_document(schema: str, fields: Mapping[str, object], stream: TextIO) -> None:
    """Write the document in one line of ASCII, so that any reader, locale and terminal can take it.

    The keys that others build on are the names of the result's fields (`dataclasses.asdict`); paths become strings.
    """
    stream.write(json.dumps({"schema": schema, **fields}, default=str, allow_nan=False) + "\n")


def finite(value: object) -> object:
    """The value, or None for a number that JSON has no word for, also inside of lists and mappings."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: finite(each) for key, each in value.items()}
        case list() | tuple():
            return [finite(each) for each in value]
        case _:
            return value
