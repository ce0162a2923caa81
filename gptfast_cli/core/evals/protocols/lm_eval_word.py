"""The word perplexity of lm-evaluation-harness, lm-eval-word: every token is predicted once, and words are counted.

A file is one document, taken as it stands. It is predicted from the token that stands for nothing before it, BOS where
there is one; a BOS that the tokenizer puts before the text is then predicted too. Windows are as long as the model
holds, and go on from the last token of the one before; the last window takes in as much as it can hold. The sum of
-log p is divided by the words: the pieces between white space, as the harness's wikitext task counts them.
Source: `loglikelihood_rolling` in lm_eval/models/huggingface.py, `get_rolling_token_windows` in lm_eval/utils.py and
tasks/wikitext of https://github.com/EleutherAI/lm-evaluation-harness, which rewrites WikiText's own spacing before it
predicts a page, and counts the words of the page as it was.
"""

from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.evals.passages import Passage, Window
from gptfast_cli.core.evals.protocols import TokenText


class LmEvalWord:
    """See Windowing; there is no size."""

    usual_size = None
    smallest_size = 0
    counts_words = True

    def least_tokens(self, size: int) -> int:  # noqa: ARG002
        """See Windowing."""
        return 1

    def n_windows(self, text: TokenText, size: int) -> int:  # noqa: ARG002
        """See Windowing."""
        return -(-len(text.tokens) // text.max_context)

    def window(self, text: TokenText, size: int, number: int) -> Window:  # noqa: ARG002
        """See Windowing."""
        begin = number * text.max_context
        end = min(begin + text.max_context, len(text.tokens))
        if number > 0:  # one token more than can be fed: the last is only predicted
            first = end - text.max_context - 1
            return Window(Passage(tuple(text.tokens[first:end]), begin - first), end - begin)
        if text.prefix_id is None:
            raise UsageError("The tokenizer has neither a first nor a last token that a text could be predicted from.")
        return Window(Passage((text.prefix_id, *text.tokens[:end]), 1), end)


PLUG = LmEvalWord()
