"""lm-eval-word, the word perplexity of lm-evaluation-harness: every token is predicted once.

A file is one document, without preprocessing. Its first token is predicted from BOS, or another prefix token; a BOS
that the tokenizer adds is then predicted as well. Windows have the model's context length and continue from the last
token of the previous one; the last window is extended to the left to full length. The sum of -log p is divided by the
number of whitespace-separated words, as in the harness's wikitext task.
Source: `loglikelihood_rolling` in lm_eval/models/huggingface.py, `get_rolling_token_windows` in lm_eval/utils.py and
tasks/wikitext of https://github.com/EleutherAI/lm-evaluation-harness, which rewrites WikiText's own spacing before it
predicts a page, and counts the words of the page as it was.
"""

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.passages import Passage, Window
from gptfast_cli.core.evals.protocols import TokenText


class LmEvalWord:
    """Windows of the model's context length; no size."""

    usual_size = None
    smallest_size = 0
    counts_words = True

    def least_tokens(self, size: int) -> int:  # noqa: ARG002
        return 1

    def n_windows(self, text: TokenText, size: int) -> int:  # noqa: ARG002
        return -(-len(text.tokens) // text.max_context)

    def window(self, text: TokenText, size: int, number: int) -> Window:  # noqa: ARG002
        begin = number * text.max_context
        end = min(begin + text.max_context, len(text.tokens))
        if number > 0:  # one token more than can be fed: the last is only predicted
            first = end - text.max_context - 1
            return Window(Passage(tuple(text.tokens[first:end]), begin - first), end - begin)
        if text.prefix_id is None:
            raise UsageError("The tokenizer has neither a first nor a last token that a text could be predicted from.")
        return Window(Passage((text.prefix_id, *text.tokens[:end]), 1), end)


PLUG = LmEvalWord()
