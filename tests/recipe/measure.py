"""What the pair has learned: `PYTHONPATH=.:tests python -m recipe.measure FOLDER` prints the tables of the README.

Loss is in nats per token of held-out documents, the end token included, each document read from its own start.
The generator's entropy is the -log p that it logged for the same documents, per the same tokens: no model can
expect to do better. The draft's acceptance is the mean over the same positions of the sum of min(p, q).
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from re import finditer

import sentencepiece
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from recipe import corpus
from recipe.texts import CATEGORIES

SUM = r"(\d+) ([-+*]) (\d+) = (\d+)"
N_SAMPLES = 200


@dataclass(frozen=True, slots=True)
class Score:
    """Sums over held-out documents; `acceptance` is a sum over positions too."""

    bytes: int
    tokens: int
    floor_nats: float
    target_nats: float
    draft_nats: float
    acceptance: float

    def __add__(self, other: "Score") -> "Score":
        return Score(*(getattr(self, name) + getattr(other, name) for name in Score.__slots__))

    @property
    def row(self) -> str:
        """Nats per token of generator, target and draft; bits per byte of the same; acceptance."""
        nats = (self.floor_nats, self.target_nats, self.draft_nats)
        per_token = [f"{value / self.tokens:.3f}" for value in nats]
        per_byte = [f"{value / self.bytes / math.log(2):.3f}" for value in nats]
        return " | ".join([f"{self.tokens}", *per_token, *per_byte, f"{self.acceptance / self.tokens:.3f}"])


def main() -> None:
    """Print the report on a folder."""
    parser = argparse.ArgumentParser(description="Measure the bundled pair on held-out text.")
    parser.add_argument("folder", type=Path, help="holds tiny and tiny-draft as Hugging Face folders")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(report(options.folder))


@torch.inference_mode()
def report(folder: Path) -> str:
    """Tables of losses and acceptance, and how many sums come out right, for the pair in a folder."""
    target = LlamaForCausalLM.from_pretrained(folder / "tiny", dtype=torch.float32)
    draft = LlamaForCausalLM.from_pretrained(folder / "tiny-draft", dtype=torch.float32)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tiny" / "tokenizer.model"))

    scores = dict.fromkeys(CATEGORIES, Score(0, 0, 0.0, 0.0, 0.0, 0.0))
    for document in corpus.held_out():
        scores[document.category] += _score(document, processor, target, draft)
    return "\n".join([*_table(scores), "", *_sums(target, processor)])


def _score(
    document: corpus.Document,
    processor: sentencepiece.SentencePieceProcessor,
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
) -> Score:
    ids = torch.tensor([processor.encode(document.text, add_bos=True, add_eos=True)])  # [1, time]
    p_logits, q_logits = (model(input_ids=ids[:, :-1]).logits[0] for model in (target, draft))  # [time - 1, vocab]
    return Score(
        bytes=len(document.text.encode()),
        tokens=ids.shape[1] - 1,
        floor_nats=document.nats,
        target_nats=cross_entropy(p_logits, ids[0, 1:], reduction="sum").item(),
        draft_nats=cross_entropy(q_logits, ids[0, 1:], reduction="sum").item(),
        acceptance=torch.minimum(p_logits.softmax(-1), q_logits.softmax(-1)).sum().item(),
    )


def _table(scores: Mapping[str, Score]) -> Iterator[str]:
    everything = sum(scores.values(), start=Score(0, 0, 0.0, 0.0, 0.0, 0.0))
    yield "| held-out text | tokens | generator | tiny | tiny-draft | generator | tiny | tiny-draft | acceptance |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, score in {**scores, "all": everything}.items():
        yield f"| {name} | {score.row} |"


def _sums(target: LlamaForCausalLM, processor: sentencepiece.SentencePieceProcessor) -> Iterator[str]:
    """How often a sum is right: each one the generator can ask for, greedily, and all in freely sampled text."""
    operands = [(a, b) for a in range(1, 11) for b in range(1, 11)]
    asked = [(f"{a} + {b}", a + b) for a, b in operands]
    asked += [(f"{a + b} - {b}", a) for a, b in operands]
    asked += [(f"{a} * {b}", a * b) for a, b in operands]
    for form, answer in (("{0} =", " {1}"), ("Q: What is {0}?\nA:", " {0} = {1}")):
        right = sum(_greedy(target, processor, form.format(*each), answer.format(*each)) for each in asked)
        yield f"- `{form.format('7 + 5')}` at temperature 0: {right} of {len(asked)} right".replace("\n", "\\n")

    texts = processor.decode(_sample(target, N_SAMPLES))
    written = [found.groups() for text in texts for found in finditer(SUM, text)]
    right = sum(_value(int(a), sign, int(b)) == int(value) for a, sign, b, value in written)
    yield f"- in {N_SAMPLES} documents at temperature 0.8, top-k 200: {right} of {len(written)} right"


def _greedy(
    target: LlamaForCausalLM, processor: sentencepiece.SentencePieceProcessor, prompt: str, answer: str
) -> bool:
    """Whether greedy decoding goes on from the prompt with the answer, and no digit after it."""
    given = len(processor.encode(prompt, add_bos=True))
    ids = processor.encode(prompt + answer, add_bos=True)
    *replied, after = target(input_ids=torch.tensor([ids])).logits[0, given - 1 :].argmax(-1).tolist()
    return replied == ids[given:] and not processor.id_to_piece(after).isdigit()


def _sample(target: LlamaForCausalLM, n_samples: int) -> list[list[int]]:
    """Documents of at most 200 tokens drawn from the model at temperature 0.8, top-k 200, without their ends."""
    torch.manual_seed(0)
    ids = torch.ones(n_samples, 1, dtype=torch.int64)  # [samples, time], the beginning-of-sequence token
    cache = None
    for _ in range(200):
        step = target(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        top = (step.logits[:, -1] / 0.8).topk(200)
        ids = torch.cat([ids, top.indices.gather(1, top.values.softmax(-1).multinomial(1))], dim=1)
    return [row[: row.index(2)] if 2 in row else row for row in ids.tolist()]


def _value(a: int, sign: str, b: int) -> int:
    match sign:
        case "+":
            return a + b
        case "-":
            return a - b
        case _:
            return a * b


if __name__ == "__main__":
    main()
