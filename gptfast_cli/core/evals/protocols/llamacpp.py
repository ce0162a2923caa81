"""The perplexity of llama.cpp's tool, llamacpp-512: of each window only the second half is predicted.

Windows follow one another. Where the model expects a beginning-of-sequence token, it takes the place of each window's
first one. Of a window of n tokens those from n / 2 + 1 on, counted from 0, are predicted, n - n / 2 - 1 in all; what is
left behind the last whole window is dropped, and a text of less than two windows is refused.
Source: `perplexity` in tools/perplexity/perplexity.cpp of https://github.com/ggml-org/llama.cpp.
"""

from gptfast_cli.core.evals.passages import Passage, Window
from gptfast_cli.core.evals.protocols import TokenText


class LlamaCpp:
    """See Windowing; the size is a window's, in tokens."""

    usual_size = 512
    smallest_size = 4
    counts_words = False

    def least_tokens(self, size: int) -> int:
        """See Windowing."""
        return 2 * size

    def n_windows(self, text: TokenText, size: int) -> int:
        """See Windowing."""
        return len(text.tokens) // size

    def window(self, text: TokenText, size: int, number: int) -> Window:
        """See Windowing."""
        first, *others = text.tokens[number * size : (number + 1) * size]
        n_given = size // 2 + 1
        return Window(Passage((first if text.bos_id is None else text.bos_id, *others), n_given), size - n_given)


PLUG = LlamaCpp()
