"""What a row may say about its answer, field by field; a field that nobody knows is an error, for it may be a typo.

Our names and those of the OpenAI API both stand for the same thing: `max_new_tokens`, `max_tokens` and
`max_completion_tokens`; `num_samples` and `n`.
Source: https://platform.openai.com/docs/api-reference/batch
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from gptfast_cli.core.batch.options import AnswerOptions
from gptfast_cli.core.decode.ranges import LARGEST_SEED, MOST_SAMPLES
from gptfast_cli.core.decode.sampling import check
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.fields import Fields

_MAX_NEW_TOKENS = ("max_new_tokens", "max_tokens", "max_completion_tokens")
_NUM_SAMPLES = ("num_samples", "n")
_SAMPLING_NUMBERS = ("temperature", "top_p", "min_p", "repetition_penalty")
_KNOWN: Final = (
    *("id", "prompt", "prompt_ids", "messages", "system", "stop", "seed", "logprobs", "top_logprobs", "ignore_eos"),
    *("top_k", *_SAMPLING_NUMBERS, *_MAX_NEW_TOKENS, *_NUM_SAMPLES),
)
# for a person's own use, or for a service that is not here: the answer is the same without them
_LABELS: Final = (
    *("category", "metadata", "model", "parallel_tool_calls", "prompt_cache_key", "safety_identifier"),
    *("service_tier", "store", "stream_options", "user"),
)
# wishes that gptfast cannot grant, and the values that ask for nothing; null does too
_UNGRANTED: Final[Mapping[str, tuple[object, ...]]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "stream": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
_ENVELOPE: Final = ("custom_id", "method", "url", "body")
_URLS: Final = ("/v1/chat/completions", "/v1/completions")


def row_body(row: Fields) -> Fields:
    """Where a row's fields are: the row itself, or the body of an OpenAI request.

    Raises CorruptError for a request that is not for an answer.
    """
    if "body" not in row:
        return row
    for name in row:
        if name not in _ENVELOPE:
            raise row.corrupt(name, "stands beside a body; its place is in it")
    if (method := row.text("method", "POST")) != "POST":
        raise row.corrupt("method", f"{method} is not POST")
    if (url := row.text("url", _URLS[0])) not in _URLS:
        raise row.corrupt("url", f"{url} is not {' or '.join(_URLS)}")
    return Fields(row.section("body").values, row.where)


def check_names(body: Fields) -> None:
    """Raise CorruptError for a field that is unknown, or that asks for what gptfast cannot do."""
    for name in body:
        value = body.values[name]
        if name in _UNGRANTED:
            if value is not None and value not in _UNGRANTED[name]:
                raise body.corrupt(name, f"{json.dumps(value)[:60]} is more than gptfast can do")
        elif name not in _KNOWN and name not in _LABELS:
            nearest = difflib.get_close_matches(name, _KNOWN, n=1)
            raise body.corrupt(name, "no row has such a field" + (f"; {nearest[0]}?" if nearest else ""))


def own_options(body: Fields, defaults: AnswerOptions) -> AnswerOptions:
    """The defaults, and over them what the row says itself.

    Raises CorruptError or UsageError for a value that cannot be meant.
    """
    sampling: dict[str, Any] = {name: body.number(name, minimum=0) for name in _SAMPLING_NUMBERS if name in body}
    if "top_k" in body:
        sampling["top_k"] = body.integer("top_k", minimum=0)
    options = AnswerOptions(
        sampling=replace(defaults.sampling, **sampling),
        max_new_tokens=body.integer(_spelling(body, _MAX_NEW_TOKENS), defaults.max_new_tokens),
        stop=_stop(body, defaults.stop),
        ignore_eos=body.flag("ignore_eos", defaults.ignore_eos),
        num_samples=body.integer(_spelling(body, _NUM_SAMPLES), defaults.num_samples, maximum=MOST_SAMPLES),
        n_logprobs=_n_logprobs(body, defaults.n_logprobs),
        seed=body.integer("seed", minimum=0, maximum=LARGEST_SEED) if "seed" in body else defaults.seed,
        system=body.text("system") if "system" in body else defaults.system,
    )
    check(options.sampling)
    return options


def _spelling(body: Fields, names: tuple[str, ...]) -> str:
    """The one of several names for a thing that the row uses; the first where it uses none."""
    used = [name for name in names if name in body]
    if len(used) > 1:
        raise body.corrupt(used[1], f"means the same as {used[0]}; give one of them")
    return used[0] if used else names[0]


def _stop(body: Fields, default: tuple[str, ...]) -> tuple[str, ...]:
    if "stop" not in body:
        return default
    stops = (body.text("stop"),) if isinstance(body.values["stop"], str) else body.texts("stop")
    if "" in stops:
        raise UsageError("stop: needs at least one character")
    return stops


def _n_logprobs(body: Fields, default: int | None) -> int | None:
    """`logprobs` is a number of alternatives, or true, and that number is then in `top_logprobs`."""
    wanted = body.values.get("logprobs")
    if wanted is False:
        return None
    if "top_logprobs" in body:
        return body.integer("top_logprobs", minimum=0)
    if wanted is True:
        return 0
    return default if wanted is None else body.integer("logprobs", minimum=0)
