"""The perplexity of the GPTQ paper and those after it, gptq-2048: windows that follow one another, each for itself.

The whole text is tokenised once, so only the first window begins with a beginning-of-sequence token. A window predicts
all its tokens but the first, which has nothing before it; what is left behind the last whole window is dropped. The
papers' code takes each window's mean times its length, sums, and divides by all tokens: the mean of the means.
Source: Frantar et al. 2022, arXiv:2210.17323, section 4; llama_eval in llama.py of https://github.com/IST-DASLab/gptq.
"""

from gptfast_cli.core.evals.passages import Passage, Window
from gptfast_cli.core.evals.protocols import TokenText


class Gptq:
    """See Windowing; the size is a window's, in tokens."""

    usual_size = 2048
    smallest_size = 2
    counts_words = False

    def least_tokens(self, size: int) -> int:
        """See Windowing."""
        return size

    def n_windows(self, text: TokenText, size: int) -> int:
        """See Windowing."""
        return len(text.tokens) // size

    def window(self, text: TokenText, size: int, number: int) -> Window:
        """See Windowing."""
        return Window(Passage(tuple(text.tokens[number * size : (number + 1) * size]), 1), size - 1)


PLUG = Gptq()
