"""A tiny chat model: random weights, a tokenizer whose tokens are bytes, and a template in the manner of ChatML."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from model_files import WEIGHTS, edit_tensors, saved

TEMPLATE = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")


def chat_model(folder: Path, *, template: str | None = TEMPLATE, **sizes: int) -> Path:
    """The model's folder; without a template it is a base model."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({character: n for n, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    saved(folder, vocab_size=tokenizer.get_vocab_size(), bos_token_id=256, eos_token_id=257, **sizes)
    tokenizer.save(str(folder / "tokenizer.json"))
    declared = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    return folder


def model_that_fails_at_q(folder: Path, **sizes: int) -> Path:
    """A base model whose logits are NaN from the token q on, which is one byte."""
    made = chat_model(folder, template=None, **sizes)
    token = json.loads((made / "tokenizer.json").read_text())["model"]["vocab"]["q"]
    edit_tensors(made / WEIGHTS, lambda tensors: tensors["model.embed_tokens.weight"][token].fill_(float("nan")))
    return made


def chatml(*turns: tuple[str, str]) -> str:
    """What the template writes for turns of (role, content), up to where the answer begins."""
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns) + "<|im_start|>assistant\n"
