"""Requests that generate, written flat: fields of GenerationOptions go into the request's `options`."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

from gptfast_cli.core.engine.options import GenerationOptions

Request = TypeVar("Request", bound=Any)

_OPTIONS = frozenset(field.name for field in fields(GenerationOptions))


def requested(kind: Callable[..., Request], *arguments: Any, **values: Any) -> Request:
    """A request of this kind, of values for its own fields and for those of its options."""
    own, options = _split(values)
    return kind(*arguments, **own, options=GenerationOptions(**options))


def changed(request: Request, **values: Any) -> Request:
    """The request with other values for its own fields and for those of its options."""
    own, options = _split(values)
    return replace(request, **{"options": replace(request.options, **options), **own})


def _split(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    own = {name: value for name, value in values.items() if name not in _OPTIONS}
    return own, {name: value for name, value in values.items() if name in _OPTIONS}
