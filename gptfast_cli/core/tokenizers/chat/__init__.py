"""Chat templates: a model's Jinja program that renders a conversation as one text, as transformers does.

The program is untrusted. It runs in Jinja's sandbox, in a process with limited time, memory and output.
"""

from gptfast_cli.core.tokenizers.chat.template import ChatTemplate, check_variables
from gptfast_cli.core.tokenizers.chat.template_files import llama_2_template, open_chat_template, read_chat_template

__all__ = ["ChatTemplate", "check_variables", "llama_2_template", "open_chat_template", "read_chat_template"]
