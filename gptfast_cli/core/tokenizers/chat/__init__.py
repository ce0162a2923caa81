"""Chat templates: how a model writes a conversation as one text, by a Jinja program that came with it.

The program is code from a stranger. It runs in a sandbox, in a process of its own that is limited in time, memory
and output, and gives the text that transformers gives.
"""

from gptfast_cli.core.tokenizers.chat.styles import llama_2_template, open_chat_template, read_chat_template
from gptfast_cli.core.tokenizers.chat.template import ChatTemplate

__all__ = ["ChatTemplate", "llama_2_template", "open_chat_template", "read_chat_template"]
