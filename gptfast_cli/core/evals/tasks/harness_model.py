"""Adapter for lm-evaluation-harness: implements its TemplateLM, and translates its Instances to TaskRequests."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from gptfast_cli.core.engine.chat import Prompter
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.passages import fit_passage
from gptfast_cli.core.evals.scoring import scores
from gptfast_cli.core.evals.tasks.request_runner import RequestRunner
from gptfast_cli.core.evals.tasks.requests import (
    GREEDY,
    Answer,
    Failure,
    GenerationRequest,
    LikelihoodAnswer,
    LikelihoodRequest,
    RollingRequest,
    TaskRequest,
)
from gptfast_cli.core.models.decoder import NonFiniteLogitsError

_MOST_TOKENS: Final = (
    "max_gen_toks",
    "max_new_tokens",
    "max_tokens",
    "max_completion_tokens",
)  # the first that is set counts
_USUAL_TOKENS: Final = 256
_UNDERSTOOD: Final = frozenset(
    (*_MOST_TOKENS, "until", "do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
)


def asked(instances: Iterable[Instance]) -> Iterator[Instance]:
    """Each instance `repeats` times, as the harness expects answers."""
    for instance in instances:
        yield from [instance] * (instance.repeats or 1)


def requests_of(instances: Iterable[Instance]) -> list[TaskRequest]:
    """One request per instance; repeated sampled generations are numbered by `sample`."""
    seen: Counter[TaskRequest] = Counter()
    requests: list[TaskRequest] = []
    for instance in instances:
        request = _request(instance.request_type, instance.args)
        if isinstance(request, GenerationRequest) and not request.sampling.is_greedy:
            seen[request] += 1
            request = replace(request, sample=seen[request] - 1)
        requests.append(request)
    return requests


def _request(kind: str, arguments: Sequence[Any]) -> TaskRequest:
    match kind:
        case "loglikelihood":
            return LikelihoodRequest(*arguments)
        case "loglikelihood_rolling":
            return RollingRequest(*arguments)
        case "generate_until":
            return generation(*arguments)
        case _:
            raise UsageError(f"A task requests {kind!r}, which is not supported.")


def generation(prompt: str, settings: Mapping[str, Any]) -> GenerationRequest:
    """A generation request from the harness's generation_kwargs; unknown ones are ignored (see `ignored`)."""
    until = settings.get("until") or ()
    given = [settings[name] for name in _MOST_TOKENS if settings.get(name) is not None]
    return GenerationRequest(
        prompt,
        until=(until,) if isinstance(until, str) else tuple(until),
        max_tokens=int(given[0]) if given else _USUAL_TOKENS,
        sampling=_sampling(settings),
    )


def ignored(settings: Mapping[str, Any]) -> set[str]:
    """Names of generation_kwargs without effect."""
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


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """The model as lm_eval's TemplateLM; `prompter` applies the chat template, if any."""

    def __init__(self, request_runner: RequestRunner, prompter: Prompter | None = None) -> None:
        super().__init__()
        self.request_runner = request_runner
        self._prompter = prompter
        self.has_left_out_system = False  # the chat template refuses it
        self._known: dict[TaskRequest, Answer] = {}

    def add_answers(self, answers: Mapping[TaskRequest, Answer]) -> None:
        """Add answers to the cache."""
        self._known.update(answers)

    @property
    def eot_token_id(self) -> int | None:
        """Token that stands in for an empty context."""
        return self.request_runner.bos_rules.prefix_id

    @property
    def max_length(self) -> int:
        """Maximum context in tokens."""
        return self.request_runner.bos_rules.max_context

    @property
    def tokenizer_name(self) -> str:
        """The name of the model: its tokenizer has none."""
        return self.request_runner.loaded.name

    def apply_chat_template(
        self,
        chat_history: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,  # noqa: FBT001, FBT002  # its signature
    ) -> str:
        """The text of a conversation; without a generation prompt it ends with the content of the last message.

        If the template refuses a system message, it is left out, as the harness's `hf` model does.
        """
        assert self._prompter is not None
        try:
            text = self._prompter.render(chat_history, add_generation_prompt=add_generation_prompt)
        except UsageError:
            others = [message for message in chat_history if message["role"] != "system"]
            if not others or len(others) == len(chat_history):
                raise
            self.has_left_out_system = True
            text = self._prompter.render(others, add_generation_prompt=add_generation_prompt)
        return text if add_generation_prompt else _up_to(str(chat_history[-1]["content"]), text)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:  # noqa: FBT001
        """Token ids, with one leading BOS if the tokenizer adds BOS."""
        return self.request_runner.bos_rules.tokenizer.encode(string, bos=add_special_tokens is not False)

    def loglikelihood(self, requests: list[Instance], **_: object) -> list[tuple[float, bool]]:
        """(log-probability of the continuation in nats, whether it is the greedy continuation) per request."""
        answers = self._answers(requests)
        return [(each.logprob, each.is_greedy) for each in answers if isinstance(each, LikelihoodAnswer)]

    def loglikelihood_rolling(self, requests: list[Instance], **_: object) -> list[float]:
        """Log-probability of each whole text, in nats."""
        return [each for each in self._answers(requests) if isinstance(each, float)]

    def generate_until(self, requests: list[Instance], **_: object) -> list[str]:
        """Generated text of each request, up to a stop string."""
        return [each for each in self._answers(requests) if isinstance(each, str)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        passages = [fit_passage(context, continuation, self.max_length) for _, context, continuation in requests]
        found = dict(scores(self.request_runner.loaded.model, passages))
        if not all(score.is_defined for score in found.values()):
            raise NonFiniteLogitsError(self.request_runner.loaded.model.dtype, "in a text of a task")
        return [(found[number].logprob, found[number].is_greedy) for number in range(len(passages))]

    def _answers(self, instances: Sequence[Instance]) -> list[Answer]:
        requests = requests_of(instances)
        unknown = [request for request in dict.fromkeys(requests) if request not in self._known]
        for number, answer in self.request_runner.answers(unknown):
            if isinstance(answer, Failure):
                raise UsageError(answer.reason)
            self.add_answers({unknown[number]: answer})
        return [self._known[request] for request in requests]


def _up_to(last: str, text: str) -> str:
    """`text` up to the end of its last message; trailing spaces of the message are kept if the template keeps them."""
    begin = text.rindex(last.strip())
    kept = last.lstrip() if text.startswith(last.lstrip(), begin) else last.strip()
    return text[:begin] + kept
