"""Verification of a conversion: logits of the written checkpoint against transformers with the source's tensors.

Both compute in float32 from weights in the written dtype. The checkpoint is computed layer by layer; transformers needs
the whole model in memory. Rows of RoPE pairs that the source stores in another order are permuted for transformers.
"""

import importlib.util
from typing import Any

import torch
from torch import Tensor

from gptfast_cli.core.backends.reference import Reference
from gptfast_cli.core.checkpoints.checkpoint import Checkpoint
from gptfast_cli.core.checkpoints.foreign import CONFIG_FILE, ForeignCheckpoint
from gptfast_cli.core.config import RopeConfig
from gptfast_cli.core.engine.sampling import uniform
from gptfast_cli.core.families import families
from gptfast_cli.core.memory import available_memory_bytes
from gptfast_cli.core.models.streaming import Stream
from gptfast_cli.core.models.weights import assemble_layer, weight_blocks
from gptfast_cli.core.quantities import size
from gptfast_cli.core.schemes import Weight, schemes
from gptfast_cli.core.schemes.plain import NAME as PLAIN

LARGEST_DIFFERENCE = 1e-3
"""Relative to the largest logit: float32 gives about 1e-6, a misplaced weight 0.1 or more."""

_CPU = torch.device("cpu")
_N_TOKENS = 32


def why_not(source: ForeignCheckpoint) -> str | None:
    """Why transformers cannot verify this model here; None if it can."""
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed"
    ropes = {layer.attention.rope for layer in source.config.kinds}
    is_plain = source.config.family == "llama" and all(rope == RopeConfig(rope.theta) for rope in ropes if rope)
    if source.config_source != CONFIG_FILE and not is_plain:
        return f"only a {CONFIG_FILE} tells transformers all of this model"
    needed, free = 5 * source.n_params, available_memory_bytes()  # 4 bytes each, and working memory
    if free is not None and needed > free:
        return f"transformers would need {size(needed)}, and {size(free)} are free"
    return None


@torch.inference_mode()
def logit_difference(source: ForeignCheckpoint, written: Checkpoint) -> float:
    """max |ours - theirs| / max |theirs| of the logits."""
    n_tokens = min(_N_TOKENS, written.config.max_context)
    tokens = [int(uniform(0, 0, position) * written.config.vocab_size) for position in range(n_tokens)]
    theirs, ours = _theirs(source, written, tokens), _ours(written, tokens)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _theirs(source: ForeignCheckpoint, written: Checkpoint, tokens: list[int]) -> Tensor:
    """Logits of transformers, [tokens, vocab_size]."""
    import transformers  # noqa: PLC0415  # optional, and slow to import

    config = _their_config(source)
    config.dtype = torch.float32
    model = transformers.AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, trust_remote_code=False, attn_implementation="eager"
    ).float()
    parameters = dict(model.named_parameters())
    for weight, names in families[source.config.family].sources(source.config).items():
        stored = written.outline(weight)
        # a plain weight may have been cast
        dtype = stored.parts["weight"].dtype if stored.scheme == PLAIN else torch.float32
        for name, piece in zip(names, source.parts[weight], strict=True):
            read = piece.read()
            parameters[name].copy_(schemes[read.scheme].dense(read, dtype))
    logits: Tensor = model.eval()(torch.tensor([tokens])).logits[0]
    return logits


def _their_config(source: ForeignCheckpoint) -> Any:  # noqa: ANN401  # transformers is untyped here
    import transformers  # noqa: PLC0415

    if source.config_source == CONFIG_FILE:
        whole = transformers.AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
        text = whole.get_text_config()
        text.tie_word_embeddings = source.config.tied_embeddings  # of a multimodal model's head the outer one decides
        return text
    config = source.config
    attention, feed_forward = config.layers[0].attention, config.layers[0].feed_forward
    rope = attention.rope
    assert rope is not None
    assert rope == RopeConfig(rope.theta), source.config_source  # only config.json declares more
    return transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=feed_forward.dim,
        num_hidden_layers=config.n_layers,
        num_attention_heads=attention.n_heads,
        num_key_value_heads=attention.n_kv_heads,
        head_dim=attention.head_dim,
        max_position_embeddings=config.max_context,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": rope.theta},
        tie_word_embeddings=config.tied_embeddings,
    )


def _ours(written: Checkpoint, tokens: list[int]) -> Tensor:
    """Logits of the checkpoint, [tokens, vocab_size]."""
    config = written.config
    stream = Stream(config, [tokens], backend=Reference(), device=_CPU)
    embedding, *layers, ends = weight_blocks(config)
    (table,) = _read(written, embedding).values()
    stream.embed(table, torch.float32)
    for number, block in enumerate(layers):
        stream.layer(number, assemble_layer(_read(written, block)))
    last = _read(written, ends)
    return torch.cat(list(stream.logits(last["norm"], last.get("head", table), block_tokens=len(tokens))))


def _read(written: Checkpoint, block: tuple[str, ...]) -> dict[str, Weight]:
    weights = {name: written.weight(name) for name in block}
    return {name: schemes[weight.scheme].to(weight, _CPU, torch.float32) for name, weight in weights.items()}
