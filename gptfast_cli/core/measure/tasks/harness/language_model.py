"""A model as the harness asks it: whatever is known is answered from memory, and the rest by the model."""

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM

from gptfast_cli.core.decode.prompter import Prompter
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.measure.scoring.passages import fitted
from gptfast_cli.core.measure.scoring.scores import scores
from gptfast_cli.core.measure.tasks.answering import Answering
from gptfast_cli.core.measure.tasks.harness.requests import requests_of
from gptfast_cli.core.measure.tasks.requests import Answer, Failure, LikelihoodAnswer, Request
from gptfast_cli.core.model.logits import NonFiniteLogitsError


class HarnessModel(TemplateLM):  # type: ignore[misc]  # the harness has no types
    """See lm_eval's TemplateLM; the prompter writes conversations, where there are to be any."""

    def __init__(self, answering: Answering, prompter: Prompter | None = None) -> None:
        super().__init__()
        self.answering = answering
        self._prompter = prompter
        self.has_left_out_system = False  # as the chat template refuses it
        self._known: dict[Request, Answer] = {}

    def learn(self, answers: Mapping[Request, Answer]) -> None:
        """Know these from now on."""
        self._known.update(answers)

    @property
    def eot_token_id(self) -> int | None:
        """The token that a text without a beginning is predicted from."""
        return self.answering.beginnings.prefix_id

    @property
    def max_length(self) -> int:
        """Tokens that the model can hold."""
        return self.answering.beginnings.max_context

    @property
    def tokenizer_name(self) -> str:
        """The model's, as its tokenizer has no name of its own."""
        return self.answering.loaded.name

    def apply_chat_template(
        self,
        chat_history: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,  # noqa: FBT001, FBT002  # its signature
    ) -> str:
        """The text of a conversation; without a generation prompt it ends where the last message does.

        As the harness's own `hf` does it, a template that refuses a system message gets none.
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
        """Token ids, led by BOS where the tokenizer says so, and by one."""
        return self.answering.beginnings.tokenizer.encode(string, bos=add_special_tokens is not False)

    def loglikelihood(self, requests: list[Instance], **_: object) -> list[tuple[float, bool]]:
        """Logarithms of continuations' probabilities, and whether each is what greedy decoding would say."""
        answers = self._answers(requests)
        return [(each.logprob, each.is_greedy) for each in answers if isinstance(each, LikelihoodAnswer)]

    def loglikelihood_rolling(self, requests: list[Instance], **_: object) -> list[float]:
        """Logarithms of whole texts' probabilities."""
        return [each for each in self._answers(requests) if isinstance(each, float)]

    def generate_until(self, requests: list[Instance], **_: object) -> list[str]:
        """What the model says, up to a stop string."""
        return [each for each in self._answers(requests) if isinstance(each, str)]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: object
    ) -> list[tuple[float, bool]]:
        passages = [fitted(context, continuation, self.max_length) for _, context, continuation in requests]
        found = dict(scores(self.answering.loaded.model, passages))
        if not all(score.is_defined for score in found.values()):
            raise NonFiniteLogitsError(self.answering.loaded.model.dtype, "along a text that a task asks for")
        return [(found[number].logprob, found[number].is_greedy) for number in range(len(passages))]

    def _answers(self, instances: Sequence[Instance]) -> list[Answer]:
        requests = requests_of(instances)
        unknown = [request for request in dict.fromkeys(requests) if request not in self._known]
        for number, answer in self.answering.answers(unknown):
            if isinstance(answer, Failure):
                raise UsageError(answer.reason)
            self.learn({unknown[number]: answer})
        return [self._known[request] for request in requests]


def _up_to(last: str, text: str) -> str:
    """A conversation up to where its last message ends: with the spaces behind it, unless the template drops them."""
    begin = text.rindex(last.strip())
    kept = last.lstrip() if text.startswith(last.lstrip(), begin) else last.strip()
    return text[:begin] + kept
