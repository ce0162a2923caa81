"""Makes everything in `bundled/`: `PYTHONPATH=.:tests python -m recipe.train --out gptfast_cli/bundled`."""

import argparse
from collections import deque
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gptfast_cli.core.jobs.convert import ConvertRequest, run
from gptfast_cli.core.settings import Settings
from recipe import corpus, measure, models
from recipe.learning import Plan, learn_pair
from recipe.questions import write_questions
from recipe.tokenizer import learn_tokenizer


def main() -> None:
    """The whole recipe: texts, tokenizer, both models, and what they have learned."""
    parser = argparse.ArgumentParser(description="Make the bundled models, prompts and texts.")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for models, prompts, held-out text and questions"
    )
    parser.add_argument("--hugging-face", type=Path, help="keep both models here as Hugging Face folders too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--texts-only", action="store_true", help="write prompts, held-out text and questions, train nothing"
    )
    options = parser.parse_args()

    corpus.write_texts(options.out)
    write_questions(options.out / "tasks")
    if options.texts_only:
        return
    torch.set_num_threads(options.threads)
    excluded = {document.text for document in corpus.held_out()}
    tokenizer = learn_tokenizer(corpus.training(excluded))
    pair = learn_pair(Plan(), tokenizer, corpus.training(excluded))
    with TemporaryDirectory() as scratch:
        folder = options.hugging_face or Path(scratch)
        for name, model in pair.items():
            models.save(model, tokenizer, folder / name)
            publish(folder / name, options.out / name)
        print(measure.report(folder))


def publish(folder: Path, out: Path) -> None:
    """Convert one Hugging Face folder into the checkpoint that is bundled."""
    with TemporaryDirectory() as home:  # what a conversion makes the current model is not this machine's
        deque(run(ConvertRequest(str(folder), Settings(Path(home), Path(home)), out=out, force=True)), maxlen=0)


if __name__ == "__main__":
    main()
