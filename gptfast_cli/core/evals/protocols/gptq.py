"""gptq-2048, the perplexity of the GPTQ paper: consecutive, independent windows.

The text is tokenized once, so only the first window begins with BOS. Each window predicts all its tokens but the first;
an incomplete last window is dropped. As in the paper's code, the result is the mean of the windows' means.
Source: Frantar et al. 2022, arXiv:2210.17323, section 4; llama_eval in llama.py of https://github.com/IST-DASLab/gptq.
"""

from gptfast_cli.core.evals.passages import Passage, Window
from gptfast_cli.core.evals.protocols import TokenText


class Gptq:
    """Windows of `size` tokens."""

    usual_size = 2048
    smallest_size = 2
    counts_words = False

    def least_tokens(self, size: int) -> int:
        return size

    def n_windows(self, text: TokenText, size: int) -> int:
        return len(text.tokens) // size

    def window(self, text: TokenText, size: int, number: int) -> Window:
        return Window(Passage(tuple(text.tokens[number * size : (number + 1) * size]), 1), size - 1)


PLUG = Gptq()
