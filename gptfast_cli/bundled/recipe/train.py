"""Makes everything in `bundled/`: `python -m gptfast_cli.bundled.recipe.train --out gptfast_cli/bundled`.

The target learns from the text. The draft learns, on the same rows, from the target's probabilities at every
position: it needs to agree with the target and not with the text, and whole distributions carry more than
single tokens (Hinton et al. 2015, arXiv:1503.02531).
"""

import argparse
import math
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import sentencepiece
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from gptfast_cli.bundled.recipe import corpus, measure, models
from gptfast_cli.bundled.recipe.tokenizer import learn_tokenizer


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


def main() -> None:
    """The whole recipe: texts, tokenizer, both models."""
    parser = argparse.ArgumentParser(description="Make the bundled models, prompts and held-out text.")
    parser.add_argument("--out", type=Path, required=True, help="folder for models, prompts and held-out text")
    parser.add_argument("--hugging-face", type=Path, help="keep both models here as Hugging Face folders too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--texts-only", action="store_true", help="write prompts.jsonl and heldout.txt, train nothing")
    options = parser.parse_args()

    corpus.write_texts(options.out)
    if options.texts_only:
        return
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as scratch:
        folder = options.hugging_face or Path(scratch)
        excluded = {document.text for document in corpus.held_out()}
        tokenizer = learn_tokenizer(corpus.training(excluded))
        for name, model in learn_pair(Plan(), tokenizer, corpus.training(excluded)).items():
            models.save(model, tokenizer, folder / name)
            publish(folder / name, options.out / name)
        print(measure.report(folder))


def learn_pair(plan: Plan, tokenizer: bytes, documents: Iterable[corpus.Document]) -> dict[str, LlamaForCausalLM]:
    """Target and draft, trained side by side on the same rows."""
    torch.manual_seed(plan.seed)
    pair = {name: models.build(shape).train() for name, shape in models.SHAPES.items()}
    optimizers = [_optimizer(model, plan) for model in pair.values()]
    target, draft = pair.values()
    started = time.perf_counter()
    for step, rows in enumerate(islice(_batches(plan, tokenizer, documents), plan.steps)):
        inputs, following = rows[:, :-1], rows[:, 1:]  # [rows, row_tokens] each
        logits = target(input_ids=inputs, use_cache=False).logits.flatten(0, 1)  # [rows * row_tokens, vocab]
        loss = cross_entropy(logits, following.flatten())
        drafted = draft(input_ids=inputs, use_cache=False).logits.flatten(0, 1)
        draft_loss = cross_entropy(drafted, logits.detach().softmax(dim=-1))
        torch.autograd.backward(loss + draft_loss)  # the two share no weight, so this is two losses and not a blend
        for model, optimizer in zip(pair.values(), optimizers, strict=True):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = plan.rate(step)
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            n_tokens = (step + 1) * inputs.numel()
            speed = n_tokens / (time.perf_counter() - started)
            print(
                f"step {step + 1}/{plan.steps}  {n_tokens / 1e6:.2f}M tokens  loss {loss.item():.3f}  "
                f"draft {draft_loss.item():.3f}  {speed:.0f} tok/s",
                flush=True,
            )
    return pair


def publish(folder: Path, out: Path) -> None:
    """Bring one Hugging Face folder into the form in which it is bundled."""
    shutil.copytree(folder, out, dirs_exist_ok=True)


def _optimizer(model: LlamaForCausalLM, plan: Plan) -> torch.optim.AdamW:
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    scales = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": scales, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def _batches(plan: Plan, tokenizer: bytes, documents: Iterable[corpus.Document]) -> Iterator[Tensor]:
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


if __name__ == "__main__":
    main()
