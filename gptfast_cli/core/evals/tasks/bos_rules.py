"""BOS and prefix tokens of scored texts, as in the `hf` model of lm-evaluation-harness.

A text begins with BOS if the tokenizer adds one. Without a context it is predicted from a prefix token; a text scored
as a whole (rolling) has both, so that its own BOS is a predicted token too.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gptfast_cli.core.engine.load import LoadedModel
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.passages import Passage, fit_passage
from gptfast_cli.core.evals.protocols import ProtocolText, TokenText, protocol_of
from gptfast_cli.core.tokenizers import Tokenizer
from gptfast_cli.core.tokenizers.declarations import Declarations, read_declarations
from gptfast_cli.core.tokenizers.tokenizer import Vocabulary


@dataclass(frozen=True, slots=True)
class BosRules:
    """The rules of one model.

    prefix_id: BOS if the tokenizer has one, else its end-of-text token; None if it has neither
    """

    tokenizer: Tokenizer
    prefix_id: int | None
    prefix: str  # as text
    max_context: int

    def words(self) -> str:
        """The rules in words."""
        if self.prefix_id is None:
            return "no token stands before a text"
        if self.adds_bos:
            return (
                f"{self.prefix} stands before every text; one that is scored as a whole is predicted from another "
                f"{self.prefix}"
            )
        return f"no token stands before a text; without a context it is predicted from {self.prefix}"

    @property
    def adds_bos(self) -> bool:
        """Whether every text begins with BOS."""
        return self.tokenizer.encode("")[:1] == [self.prefix_id]

    def pair(self, context: str, continuation: str) -> Passage:
        """A continuation after its context, or after the prefix token if the context has no tokens.

        Raises UsageError if it has no tokens, or more than the context length.
        """
        if not context:
            return fit_passage(*self._alone(self.tokenizer.encode(continuation, bos=False)), self.max_context)
        # a space at the border belongs to the continuation, as most tokenizers merge it with the next word
        whole = self.tokenizer.encode(context + continuation)
        given = self.tokenizer.encode(context.rstrip())
        if not given:
            return fit_passage(*self._alone(whole), self.max_context)
        return fit_passage(given, whole[len(given) :], self.max_context)

    def prompt(self, text: str) -> list[int]:
        """Token ids of a prompt, or the prefix token if it has none. Raises UsageError."""
        return self.tokenizer.encode(text) or [self._prefix()]

    def rolling(self, text: str) -> Iterator[Passage]:
        """Windows that predict each token of a text once, the last one with maximum context."""
        tokens = array("i", self.tokenizer.encode(text))
        whole = TokenText(tokens, None, self._prefix(), n_words=0, max_context=self.max_context)
        return (window.passage for window in ProtocolText(protocol_of("lm-eval-word"), whole).windows())

    def _alone(self, tokens: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
        """(context, continuation) of tokens without a context; the prefix token may be their own first one."""
        prefix = self._prefix()
        return (tokens[:1], tokens[1:]) if tokens[:1] == [prefix] else ([prefix], tokens)

    def _prefix(self) -> int:
        if self.prefix_id is None:
            raise UsageError("The tokenizer has neither a first nor a last token that a text could be predicted from.")
        self.tokenizer.check_ids([self.prefix_id])
        return self.prefix_id


def bos_rules_of(loaded: LoadedModel, tokenizer: Tokenizer) -> BosRules:
    """The rules of a model; ids declared in config.json only are ignored."""
    vocabulary, declared = tokenizer.vocabulary, read_declarations(loaded.tokenizer_folder)
    ends = min(vocabulary.own_stop_ids, default=None)  # a model may stop at several
    prefix = _role(declared, vocabulary, "bos_token", vocabulary.own_bos_id)
    prefix = prefix or _role(declared, vocabulary, "eos_token", ends)
    prefix_id, text = prefix or (None, "")
    return BosRules(tokenizer, prefix_id, text, loaded.config.max_context)


def _role(declared: Declarations, vocabulary: Vocabulary, role: str, own_id: int | None) -> tuple[int, str] | None:
    """Id and text of the token in a role: the declared one, else the vocabulary's own."""
    if role in declared.roles:
        text = declared.roles[role]
        token_id = None if text is None else vocabulary.id_of(text)
        return None if text is None or token_id is None else (token_id, text)
    return None if own_id is None else (own_id, f"token {own_id}")
