"""The strided perplexity of Hugging Face's guide, stride-N: windows of the whole context that move on by N tokens.

A window predicts the tokens that the one before did not reach, the first window all but its first. The guide's code
takes each window's mean and counts it with one token less than it has new ones: right for the first window, one too
few for the others, and done likewise here. The text ends with the first window that reaches its end.
Source: https://huggingface.co/docs/transformers/perplexity.
"""

from gptfast_cli.core.evals.passages import Passage, Window
from gptfast_cli.core.evals.protocols import TokenText


class StrideProtocol:
    """See Windowing; the size is the stride, in tokens."""

    usual_size = 512
    smallest_size = 1
    counts_words = False

    def least_tokens(self, size: int) -> int:  # noqa: ARG002
        return 2

    def n_windows(self, text: TokenText, size: int) -> int:
        """See Windowing; a window of one token, without any before it, predicts nothing and is none."""
        beyond = max(0, len(text.tokens) - text.max_context)
        n_more = -(-beyond // size)
        return n_more if size == text.max_context and beyond % size == 1 else 1 + n_more

    def window(self, text: TokenText, size: int, number: int) -> Window:
        begin = number * size
        reached = begin - size + text.max_context if number else 0
        end = min(begin + text.max_context, len(text.tokens))
        passage = Passage(tuple(text.tokens[begin:end]), max(1, reached - begin))
        return Window(passage, end - reached - 1)


PLUG = StrideProtocol()
