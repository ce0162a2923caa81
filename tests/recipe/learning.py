"""Target and draft learn side by side from the same rows.

The target learns from the text. The draft learns from the target's probabilities at every position: it needs
to agree with the target and not with the text, and whole distributions carry more than single tokens (Hinton
et al. 2015, arXiv:1503.02531). A token sees its own document only: the names of the one before would mislead it.
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

from recipe import models
from recipe.corpus import Document
from recipe.muon import Muon


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to learn; the rates are those of the layers' matrices and of everything else."""

    steps: int = 2200
    rows: int = 4
    row_tokens: int = models.CONTEXT
    warmup_steps: int = 100
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    seed: int = 0

    def share(self, step: int) -> float:
        """What part of its rate a step has: a straight rise, then half a cosine down to zero."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / (self.steps - self.warmup_steps)
        return (1 + math.cos(math.pi * done)) / 2


def learn_pair(plan: Plan, tokenizer: bytes, documents: Iterable[Document]) -> dict[str, LlamaForCausalLM]:
    """Both models, trained in float32; prints its progress."""
    torch.manual_seed(plan.seed)
    pair = {name: models.build(shape).train() for name, shape in models.SHAPES.items()}
    target, draft = pair["tiny"], pair["tiny-draft"]
    learners = [Learner(model) for model in pair.values()]
    started = time.perf_counter()
    for step, rows in enumerate(islice(_batches(plan, tokenizer, documents), plan.steps)):
        inputs, following = rows[:, :-1], rows[:, 1:]  # [rows, row_tokens] each
        seen = {"attention_mask": _own_document(inputs), "use_cache": False}
        logits = target(input_ids=inputs, **seen).logits.flatten(0, 1)  # [rows * row_tokens, vocab]
        loss = cross_entropy(logits, following.flatten())
        drafted = draft(input_ids=inputs, **seen).logits.flatten(0, 1)
        draft_loss = cross_entropy(drafted, logits.detach().softmax(dim=-1))
        torch.autograd.backward(loss + draft_loss)  # they share no weight, so this is two losses and no blend
        for learner in learners:
            learner.step(plan, step)
        if (step + 1) % 50 == 0:
            n_tokens = (step + 1) * inputs.numel()
            speed = n_tokens / (time.perf_counter() - started)
            losses = f"loss {loss.item():.3f}  draft {draft_loss.item():.3f}"
            print(
                f"step {step + 1}/{plan.steps}  {n_tokens / 1e6:.2f}M tokens  {losses}  {speed:.0f} tok/s", flush=True
            )
    return pair


class Learner:
    """The optimizers of one model: Muon for the matrices inside, AdamW for embeddings and norms."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        inside = {name for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name}
        self._model = model
        self._matrices = Muon(weight for name, weight in model.named_parameters() if name in inside)
        others = [weight for name, weight in model.named_parameters() if name not in inside]
        self._others = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(self, plan: Plan, step: int) -> None:
        """Take one step with the gradients that are there, and clear them."""
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        self._matrices.step(plan.matrix_rate * plan.share(step))
        for group in self._others.param_groups:
            group["lr"] = plan.other_rate * plan.share(step)
        self._others.step()
        self._others.zero_grad()


def _own_document(inputs: Tensor) -> Tensor:
    """What to add to attention scores, [rows, 1, time, time]: -1e9 where a token must not look."""
    document = (inputs == models.BOS_ID).cumsum(dim=1)
    same = document.unsqueeze(2) == document.unsqueeze(1)
    return torch.where(same.tril(), 0.0, -1e9).unsqueeze(1)


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
