"""Target and draft learn side by side from the same rows.

The target learns from the text. The draft learns from the target's probabilities at every position: it needs
to agree with the target and not with the text, and whole distributions carry more than single tokens (Hinton
et al. 2015, arXiv:1503.02531).
"""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import sentencepiece
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from gptfast_cli.bundled.recipe import models
from gptfast_cli.bundled.recipe.corpus import Document


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to learn."""

    steps: int = 1850
    rows: int = 4
    row_tokens: int = models.CONTEXT
    warmup_steps: int = 100
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step: a straight rise, then half a cosine down to zero."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


def learn_pair(plan: Plan, tokenizer: bytes, documents: Iterable[Document]) -> dict[str, LlamaForCausalLM]:
    """Both models, trained in float32; prints its progress."""
    torch.manual_seed(plan.seed)
    pair = {name: models.build(shape).train() for name, shape in models.SHAPES.items()}
    target, draft = pair["tiny"], pair["tiny-draft"]
    optimizers = {name: _optimizer(model, plan) for name, model in pair.items()}
    started = time.perf_counter()
    for step, rows in enumerate(islice(_batches(plan, tokenizer, documents), plan.steps)):
        inputs, following = rows[:, :-1], rows[:, 1:]  # [rows, row_tokens] each
        logits = target(input_ids=inputs, use_cache=False).logits.flatten(0, 1)  # [rows * row_tokens, vocab]
        loss = cross_entropy(logits, following.flatten())
        drafted = draft(input_ids=inputs, use_cache=False).logits.flatten(0, 1)
        draft_loss = cross_entropy(drafted, logits.detach().softmax(dim=-1))
        torch.autograd.backward(loss + draft_loss)  # they share no weight, so this is two losses and no blend
        for name, model in pair.items():
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            _advance(optimizers[name], plan.rate(step))
        if (step + 1) % 50 == 0:
            n_tokens = (step + 1) * inputs.numel()
            speed = n_tokens / (time.perf_counter() - started)
            losses = f"loss {loss.item():.3f}  draft {draft_loss.item():.3f}"
            print(
                f"step {step + 1}/{plan.steps}  {n_tokens / 1e6:.2f}M tokens  {losses}  {speed:.0f} tok/s", flush=True
            )
    return pair


def _optimizer(model: LlamaForCausalLM, plan: Plan) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    scales = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def _advance(optimizer: torch.optim.AdamW, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()


def _batches(plan: Plan, tokenizer: bytes, documents: Iterable[Document]) -> Iterator[Tensor]:
    """Token ids [rows, row_tokens + 1]; each row starts with a document and is cut where it is full."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer)
    encoded = (processor.encode(document.text, add_bos=True, add_eos=True) for document in documents)
    while True:
        yield torch.tensor([_row(encoded, plan.row_tokens + 1) for _ in range(plan.rows)])


def _row(encoded: Iterator[list[int]], n_tokens: int) -> list[int]:
    row: list[int] = []
    while len(row) < n_tokens:
        row += next(encoded)
    return row[:n_tokens]
