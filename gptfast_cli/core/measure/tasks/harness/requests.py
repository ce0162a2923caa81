"""The harness's requests in our words."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from lm_eval.api.instance import Instance

from gptfast_cli.core.decode.sampling import Sampling
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.measure.tasks.requests import GREEDY, Generation, Likelihood, Request, Rolling

_MOST_TOKENS: Final = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first counts
_USUAL_TOKENS: Final = 256
_UNDERSTOOD: Final = frozenset(
    (*_MOST_TOKENS, "until", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
)


def asked(instances: Iterable[Instance]) -> Iterator[Instance]:
    """Instances as often as their answers are wanted."""
    for instance in instances:
        yield from [instance] * (instance.repeats or 1)


def requests_of(instances: Iterable[Instance]) -> list[Request]:
    """A request for each instance; what is asked again and drawn is another sample."""
    seen: Counter[Request] = Counter()
    requests: list[Request] = []
    for instance in instances:
        request = _request(instance.request_type, instance.args)
        if isinstance(request, Generation) and not request.sampling.is_greedy:
            seen[request] += 1
            request = replace(request, sample=seen[request] - 1)
        requests.append(request)
    return requests


def _request(kind: str, arguments: Sequence[Any]) -> Request:
    match kind:
        case "loglikelihood":
            return Likelihood(*arguments)
        case "loglikelihood_rolling":
            return Rolling(*arguments)
        case "generate_until":
            return generation(*arguments)
        case _:
            raise UsageError(f"A task asks for {kind!r}, which a language model has no answer to.")


def generation(prompt: str, settings: Mapping[str, Any]) -> Generation:
    """A request to generate, by the harness's names of settings; those that are not understood have no effect."""
    until = settings.get("until") or ()
    given = [settings[name] for name in _MOST_TOKENS if settings.get(name) is not None]
    return Generation(
        prompt,
        until=(until,) if isinstance(until, str) else tuple(until),
        max_tokens=int(given[0]) if given else _USUAL_TOKENS,
        sampling=_sampling(settings),
    )


def ignored(settings: Mapping[str, Any]) -> set[str]:
    """Names of settings that have no effect."""
    return set(settings) - _UNDERSTOOD


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    temperature = settings.get("temperature")
    draws = settings.get("do_sample")
    if draws is None:
        draws = bool(temperature)
    if not draws:
        return GREEDY
    return Sampling(
        temperature=1.0 if temperature is None else float(temperature),
        top_k=int(settings.get("top_k", 0)),
        top_p=float(settings.get("top_p", 1)),
        min_p=float(settings.get("min_p", 0)),
        repetition_penalty=float(settings.get("repetition_penalty", 1)),
    )
