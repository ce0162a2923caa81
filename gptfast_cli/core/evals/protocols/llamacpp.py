"""llamacpp-512, the perplexity of llama.cpp's tool: only the second half of each window is predicted.

Windows are consecutive. If the model expects BOS, it replaces the first token of each window. Of n tokens those from
index n / 2 + 1 on are predicted, n - n / 2 - 1 in all. An incomplete last window is dropped; a text must have two.
Source: `perplexity` in tools/perplexity/perplexity.cpp of https://github.com/ggml-org/llama.cpp.
"""

from gptfast_cli.core.evals.passages import Passage, Window
from gptfast_cli.core.evals.protocols import TokenText


class LlamaCpp:
    """Windows of `size` tokens."""

    usual_size = 512
    smallest_size = 4
    counts_words = False

    def least_tokens(self, size: int) -> int:
        return 2 * size

    def n_windows(self, text: TokenText, size: int) -> int:
        return len(text.tokens) // size

    def window(self, text: TokenText, size: int, number: int) -> Window:
        first, *others = text.tokens[number * size : (number + 1) * size]
        n_context = size // 2 + 1
        return Window(Passage((first if text.bos_id is None else text.bos_id, *others), n_context), size - n_context)


PLUG = LlamaCpp()
