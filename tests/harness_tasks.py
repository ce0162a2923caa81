"""A task of every kind that lm-evaluation-harness has, in its YAML, over questions in files; nothing is downloaded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

NAMES = ("one_of_three", "continuation", "whole_text", "in_own_words")

QUESTIONS = [
    {"question": question, "choices": [" mat", " moon and all the stars", " dog"], "label": number % 3}
    for number, question in enumerate(
        (
            "The cat sat on the",
            "The big grey dog and the cat sat on the",
            "x",
            "An old man in a house by the river, with a hat on his head, sat there for days, and looked at the",
        )
    )
]
TEXTS = [
    {"text": text}
    for text in ("Hello world, this is a text.", " ", " several windows" * 200, "é日本\n\nx", "trailing space ")
]


def write_tasks(folder: Path, *, n_times: int = 1, **changes: Mapping[str, Any]) -> Path:
    """The folder with one task of each kind, its questions so many times; `changes` are made to tasks by name."""
    folder.mkdir(exist_ok=True)
    again = [row | {"question": f"{n}. {row['question']}"} for n in range(1, n_times) for row in QUESTIONS]
    files = {"questions": [*QUESTIONS, *again], "texts": TEXTS}
    for name, rows in files.items():
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, rows)))
    for name in NAMES:
        task = _task(name, folder) | dict(changes.get(name, {}))
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def _task(name: str, folder: Path) -> dict[str, Any]:
    file = "texts" if name == "whole_text" else "questions"
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{file}.json")}},
        "test_split": "test",
        "fewshot_split": "test",
        **_OF_KINDS[name],
    }


def _metrics(**better: bool) -> list[dict[str, Any]]:
    aggregations = {"word_perplexity": "weighted_perplexity", "byte_perplexity": "weighted_perplexity"}
    others = {"bits_per_byte": "bits_per_byte", "perplexity": "perplexity"}
    return [
        {"metric": name, "aggregation": (aggregations | others).get(name, "mean"), "higher_is_better": is_better}
        for name, is_better in better.items()
    ]


_OF_KINDS: dict[str, dict[str, Any]] = {
    "one_of_three": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": _metrics(acc=True, acc_norm=True),
    },
    "continuation": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[1]}}",
        "metric_list": _metrics(perplexity=False, acc=True),
    },
    "whole_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": _metrics(word_perplexity=False, byte_perplexity=False, bits_per_byte=False),
    },
    "in_own_words": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n", "e"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": _metrics(exact_match=True),
    },
}
