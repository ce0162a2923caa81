"""The bundled pair: small, sharing one tokenizer, and able to write what it was trained to write."""

import json
import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch

import recipe
from generation_requests import requested
from gptfast_cli.core.checkpoints.manifest import read_manifest
from gptfast_cli.core.checkpoints.reader import open_manifest_checkpoint
from gptfast_cli.core.checkpoints.store import BUNDLED, bundled_folder
from gptfast_cli.core.engine.build import RuntimeConfig
from gptfast_cli.core.engine.load import LoadedModel, load
from gptfast_cli.core.engine.sampling import Sampling
from gptfast_cli.core.jobs.generate import GenerateRequest, Sample, run
from gptfast_cli.core.settings import Settings
from model_files import drained, settings_in
from recipe.grammar import Dice
from recipe.texts import stories

BUNDLE = Path(str(files("gptfast_cli.bundled")))
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_in(tmp_path_factory.mktemp("bundled"))


@pytest.fixture(scope="module")
def tiny(settings: Settings) -> LoadedModel:
    return drained(load("tiny", settings, RuntimeConfig(device="cpu", dtype="float32", backend="reference")))[1]


def answer(prompt: str, settings: Settings, sampling: Sampling = GREEDY, **options: int) -> tuple[Sample, ...]:
    request = requested(
        GenerateRequest,
        prompt,
        settings,
        model="tiny",
        runtime=RuntimeConfig(device="cpu", dtype="float32"),
        sampling=sampling,
        **options,
    )
    return drained(run(request))[1].samples


def test_the_bundle_takes_at_most_10_megabytes() -> None:
    data = [path for path in BUNDLE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".md")]
    assert {"prompts.jsonl", "heldout.txt"} <= {path.name for path in data}
    assert sum(path.stat().st_size for path in data) <= 10_000_000


def test_the_draft_is_about_a_tenth_of_its_target_and_shares_its_tokenizer() -> None:
    tiny, draft = (read_manifest(bundled_folder(name)) for name in BUNDLED)
    assert 2_000_000 <= tiny.n_params <= 4_000_000
    assert 0.05 <= draft.n_params / tiny.n_params <= 0.15
    assert tiny.tokenizer == draft.tokenizer
    assert tiny.config.vocab_size == draft.config.vocab_size


@pytest.mark.parametrize("name", BUNDLED)
def test_every_bundled_tensor_has_the_sha256_of_its_manifest(name: str) -> None:
    assert list(open_manifest_checkpoint(bundled_folder(name)).verify())


def test_there_are_prompts_of_at_least_five_categories() -> None:
    rows = [json.loads(line) for line in (BUNDLE / "prompts.jsonl").read_text().splitlines()]
    categories = [row["category"] for row in rows]
    assert len({*categories}) >= 5
    assert min(map(categories.count, categories)) >= 8
    assert len({row["prompt"] for row in rows}) == len(rows)


def test_sums_come_out_right(settings: Settings) -> None:
    sums = [(2, 3), (7, 5), (10, 6), (9, 9), (1, 8), (8, 7), (4, 10), (6, 3), (10, 10), (5, 2)]
    answers = [answer(f"{a} + {b} =", settings, max_new_tokens=4)[0].text for a, b in sums]
    wrong = [text for (a, b), text in zip(sums, answers, strict=True) if not re.match(rf" {a + b}\b", text)]
    assert not wrong


def test_a_story_is_made_of_words_that_the_recipe_knows(settings: Settings) -> None:
    written = " ".join(stories.write(Dice(f"words/{number}")) for number in range(1000))
    known = {*re.findall(r"[a-z]+", written.lower())}
    samples = answer("Once upon a time", settings, Sampling(), num_samples=8, seed=0)
    words = [word for sample in samples for word in re.findall(r"[a-z]+", sample.text.lower())]
    assert len(words) > 400
    unknown = [word for word in words if word not in known]
    assert len(unknown) <= 0.005 * len(words), unknown
    assert {sample.finish_reason for sample in samples} == {"eos"}


def test_the_held_out_text_is_as_likely_as_the_recipe_says(tiny: LoadedModel) -> None:
    assert tiny.tokenizer is not None
    readme = (Path(recipe.__file__).parent / "README.md").read_text()
    stated = re.search(r"\| all \| \d+ \| [\d.]+ \| ([\d.]+) \|", readme)
    assert stated is not None
    nats, n_tokens = 0.0, 0
    end = min(tiny.stop_ids)
    for document in (BUNDLE / "heldout.txt").read_text().strip().split("\n\n"):
        ids = torch.tensor([[*tiny.tokenizer.encode(document), end]])
        logits = tiny.model.logits(tiny.model.forward(ids[:, :-1], tiny.model.new_cache(1)))
        nats += float(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum"))
        n_tokens += ids.shape[1] - 1
    assert nats / n_tokens == pytest.approx(float(stated[1]), abs=0.005)
