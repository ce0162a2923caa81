"""The recipe's texts are reproducible, right, apart from each other, and cost what their dice say."""

import contextlib
import gzip
import io
import itertools
import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest

from gptfast_cli import bundled
from recipe import corpus
from recipe.grammar import Dice, blocks, fill
from recipe.texts import CATEGORIES, code, dialogue, recipes, stories, sums

BUNDLED = Path(bundled.__file__).parent


def written(category: str, n_documents: int) -> list[str]:
    return [CATEGORIES[category].write(Dice(f"test/{number}")) for number in range(n_documents)]


def test_a_seed_gives_the_same_document_every_time() -> None:
    assert corpus.document("train/7") == corpus.document("train/7")
    assert corpus.document("train/7") != corpus.document("train/8")


def test_a_training_document_that_reads_like_a_held_out_one_is_left_out() -> None:
    drawn = list(itertools.islice(corpus.training(()), 50))
    excluded = {document.text for document in drawn[::7]}
    kept = [document.text for document in itertools.islice(corpus.training(excluded), 30)]
    assert kept == [document.text for document in drawn if document.text not in excluded][:30]


def test_held_out_and_training_documents_are_disjoint() -> None:
    held_out = {document.text for document in corpus.held_out()}
    assert not held_out & {document.text for document in itertools.islice(corpus.training(held_out), 5000)}


def test_held_out_text_gives_every_category_the_same_room() -> None:
    bytes_of: Counter[str] = Counter()
    for document in corpus.held_out():
        bytes_of[document.category] += len(document.text.encode())
    assert bytes_of.keys() == CATEGORIES.keys()
    assert max(bytes_of.values()) < 1.05 * min(bytes_of.values())


def test_logged_cost_equals_an_enumeration_of_a_small_grammar() -> None:
    template = "[who: Ann|Bo] has [a|[no|one|some]] hat[|. {Who} sings]"
    law: dict[str, float] = {}  # written down by hand from the template, in probabilities
    for who, (what, p), (end, e) in itertools.product(
        ("Ann", "Bo"),
        (("a", 1 / 2), ("no", 1 / 6), ("one", 1 / 6), ("some", 1 / 6)),
        (("", 1 / 2), (". {} sings", 1 / 2)),
    ):
        law[f"{who} has {what} hat{end.format(who)}"] = p * e / 2
    assert math.isclose(sum(law.values()), 1)

    seen = set()
    for number in range(400):
        dice = Dice(f"small/{number}")
        text = fill(template, dice, {})
        assert math.isclose(dice.nats, -math.log(law[text]))
        seen.add(text)
    assert seen == law.keys()


def test_weighted_and_several_cost_what_they_draw() -> None:
    for number in range(50):
        dice = Dice(f"cost/{number}")
        letter = dice.weighted({"a": 3, "b": 1})
        assert math.isclose(dice.nats, -math.log({"a": 0.75, "b": 0.25}[letter]))
        before = dice.nats
        assert len(set(dice.several("vwxyz", 3))) == 3
        assert math.isclose(dice.nats - before, math.log(5 * 4 * 3))


def test_draws_are_as_frequent_as_their_cost_says() -> None:
    dice = Dice("frequency")
    counts = Counter(dice.weighted({"a": 3, "b": 1}) for _ in range(4000))
    assert abs(counts["a"] / 4000 - 0.75) < 0.03


def test_articles_agree_with_what_follows() -> None:
    assert fill("A [old] owl and a [red] fox", Dice("article"), {}) == "An old owl and a red fox"


def test_a_line_indented_further_continues_the_last_one() -> None:
    assert blocks("\n    a: one\n        two\n    b: three\n\n    next\n    ") == ("a: one two\nb: three", "next")


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_mark_of_a_template_is_left_in_a_text(category: str) -> None:
    marks = r"[{}|]|\{\w" if category != "code" else r"[{}|$]"
    assert not [text for text in written(category, 500) if re.search(marks, text)]


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_document_holds_a_blank_line_or_stray_spaces(category: str) -> None:
    spaces = r"\n\n|[ \t]\n|[ \t]$|^\s" if category == "code" else r"\n\n|  |[ \t]\n|[ \t]$|^\s"
    assert not [text for text in written(category, 500) if re.search(spaces, text)]


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_document_has_an_opening_to_use_as_a_prompt(category: str) -> None:
    for text in written(category, 500):
        opening = CATEGORIES[category].opening.match(text)
        assert opening is not None
        assert 3 < len(opening.group()) < len(text)


def test_every_sum_is_right() -> None:
    found = [each for text in written("sums", 1000) for each in re.findall(r"(\d+ [-+*] \d+) = (\d+)", text)]
    assert len(found) > 2000
    assert not [(expression, value) for expression, value in found if eval(expression) != int(value)]


def test_word_problems_work_out_the_numbers_of_their_story() -> None:
    story = r"Q: .* has (\d+) (\w+)\. .* (\d+) (more|of them)\. How many .*\nA: (.+) = (\d+), so \w+ has (\d+) (\w+)\."
    for number in range(300):
        found = re.fullmatch(story, sums.problem(Dice(f"problem/{number}")))
        assert found is not None
        start, things, change, way, expression, value, answer, counted = found.groups()
        assert expression == f"{start} {'+' if way == 'more' else '-'} {change}"
        assert int(value) == int(answer) == eval(expression)
        assert things == counted


@pytest.mark.parametrize("name", code.FUNCTIONS)
def test_a_function_does_what_its_name_says(name: str) -> None:
    function = code.FUNCTIONS[name]
    forms = {code._definition(name, Dice(f"{name}/{number}")) for number in range(60)}
    assert len(forms) > 10
    for form in forms:
        namespace: dict[str, object] = {}
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(form, namespace)  # an `assert` among its lines must hold
        if "#" in form:
            assert printed.getvalue().strip() == form.split("# ")[1]
        for number in range(20):
            arguments = function.draws(Dice(f"{name}/arguments/{number}"))
            assert namespace[name](*arguments) == function.computes(*arguments)  # type: ignore[operator]


def test_a_story_keeps_to_one_pronoun_for_its_hero() -> None:
    for number in range(300):
        text = stories.write(Dice(f"story/{number}"))
        first = re.search(r"\b(?:He|She|His|Her) ", text)
        if first is None:
            continue
        she = first.group() in {"She ", "Her "}
        assert not re.search(r"\b(?:he|He|his|His|him)\b" if she else r"\b(?:she|She|her|Her)\b", text), text


def test_speakers_of_a_dialogue_take_turns() -> None:
    for number in range(300):
        speakers = [line.split(":")[0] for line in dialogue.write(Dice(f"talk/{number}")).split("\n")]
        assert len(set(speakers)) == 2
        assert all(one != next_one for one, next_one in itertools.pairwise(speakers))


@pytest.mark.parametrize("dish", recipes.DISHES)
def test_a_recipe_uses_what_it_needs(dish: str) -> None:
    text = fill(dish, Dice(dish), {}).lower()
    needs = [line.split(" of ")[-1].removeprefix("- ") for line in text.split("\n") if line.startswith("- ")]
    steps = text[text.index("1. ") :].replace("the fruit", "apple banana grape orange")
    assert len(needs) >= 3
    assert not [need for need in needs if not any(word.rstrip("s") in steps for word in need.split()[-2:])]


def test_the_bundled_texts_are_what_the_recipe_writes(tmp_path: Path) -> None:
    corpus.write_texts(tmp_path)
    for name in ("prompts.jsonl", "heldout.txt"):
        assert (BUNDLED / name).read_bytes() == (tmp_path / name).read_bytes()
    texts = [gzip.decompress((folder / "calibration.txt.gz").read_bytes()) for folder in (BUNDLED, tmp_path)]
    assert texts[0] == texts[1]


def test_every_category_has_at_least_eight_different_prompts() -> None:
    rows = [json.loads(line) for line in (BUNDLED / "prompts.jsonl").read_text().splitlines()]
    prompts = {category: {row["prompt"] for row in rows if row["category"] == category} for category in CATEGORIES}
    assert min(len(each) for each in prompts.values()) >= 8
    assert len({row["id"] for row in rows}) == len(rows)


def test_sums_stay_within_the_tables_the_models_learn() -> None:
    for kind, number in itertools.product(sums.KINDS, range(200)):
        expression, value = kind(Dice(f"range/{number}"))
        assert 0 <= value <= 100
        assert eval(expression) == value
