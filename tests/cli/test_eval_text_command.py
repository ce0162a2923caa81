"""`gptfast eval` on a text and against another model, as a person and as a program meet it."""

import json
from pathlib import Path

import pytest

from cli.command_line import CommandLine
from gptfast_cli.app import command_tree
from gptfast_cli.bundled import __file__ as bundled
from gptfast_cli.completion.answer import complete

MACHINE = ("--threads", "1", "--dtype", "float32")


@pytest.fixture
def text(tmp_path: Path) -> str:
    """Forty of the bundled documents, in a file."""
    documents = (Path(bundled).parent / "heldout.txt").read_text().split("\n\n")
    (tmp_path / "text.txt").write_text("\n\n".join(documents[:40]))
    return str(tmp_path / "text.txt")


def test_a_text_is_predicted_by_the_usual_protocol_which_is_reported(gptfast: CommandLine, text: str) -> None:
    outcome = gptfast.run("eval", "tiny", "--text", text, *MACHINE)
    assert outcome.returncode == 0, outcome.stderr.decode()
    lines = outcome.stdout.decode().splitlines()
    heading, row = lines[2:4]
    assert heading.split() == ["protocol", "perplexity", "±", "stderr", "tokens", "windows"]
    protocol, value, error, tokens, windows = row.split()
    assert protocol == "llamacpp-512" and float(value) > 1 and float(error) > 0
    assert int(tokens.replace(",", "")) == 255 * int(windows)
    assert all(len(line) <= 80 for line in lines) and "perplexity of a token" in outcome.stdout.decode()


def test_the_document_has_the_keys_that_others_build_on(gptfast: CommandLine, text: str) -> None:
    asked = ("--text", text, "--protocol", "lm-eval-word", "--against", "tiny", "--against-dtype", "bfloat16")
    outcome = gptfast.run("eval", "tiny-draft", *asked, "--json", "--quiet", *MACHINE)
    assert outcome.stderr == b"" and outcome.returncode == 0
    document = json.loads(outcome.stdout)
    assert document["schema"] == "gptfast.eval/1" and document["results"] is None
    perplexity, divergence = document["perplexity"], document["divergence"]
    assert (perplexity["protocol"], perplexity["unit"], perplexity["partial"]) == ("lm-eval-word", "word", False)
    assert perplexity["value"] > 1 and perplexity["stderr"] > 0 and perplexity["stderr_tokens"] > 0
    assert divergence.keys() >= {"kld_mean", "kld_p99", "kld_max", "same_top1", "alpha"}
    assert divergence.keys() >= {"flips", "rms_p_change", "ppl_ratio", "ppl_ratio_low", "ppl_ratio_high", "better"}
    assert (divergence["reference"]["name"], divergence["reference"]["dtype"]) == ("tiny", "bfloat16")
    assert (divergence["model"]["name"], divergence["model"]["dtype"]) == ("tiny-draft", "float32")
    assert divergence["better"] == "reference" and divergence["ppl_ratio_low"] > 1
    assert divergence["ppl_ratio"] == pytest.approx(divergence["ppl_other"] / divergence["ppl_reference"])


def test_several_models_are_a_table_of_a_row_each(gptfast: CommandLine, text: str) -> None:
    asked = ("eval", "tiny-draft", "tiny", "--against", "tiny", "--text", text, *MACHINE)
    outcome = gptfast.run(*asked)
    assert outcome.returncode == 0, outcome.stderr.decode()
    table = [line.split() for line in outcome.stdout.decode().splitlines()]
    (heading,) = [number for number, words in enumerate(table) if words[:3] == ["model", "bits", "KLD"]]
    first, second = table[heading + 1 : heading + 3]
    assert (first[0], second[0]) == ("tiny-draft", "tiny") and float(first[2]) > 0.01 and float(second[2]) == 0
    assert first[1] == "16.00" and first[-2].startswith("[")
    document = json.loads(gptfast.run(*asked, "--json", "--quiet").stdout)
    assert [each["model"]["name"] for each in document["comparisons"]] == ["tiny-draft", "tiny"]
    assert document["comparisons"][0] == document["divergence"]


def test_several_models_without_a_reference_are_refused(gptfast: CommandLine) -> None:
    outcome = gptfast.run("eval", "tiny-draft", "tiny")
    assert outcome.returncode == 2 and "Add --against MODEL" in outcome.stderr.decode()


def test_keys_and_values_in_int8_are_compared_with_the_whole_cache_of_the_reference(gptfast: CommandLine) -> None:
    outcome = gptfast.run("eval", "tiny", "--kv-dtype", "int8", "--against", "tiny", "--json", "--quiet", *MACHINE)
    assert outcome.returncode == 0, outcome.stderr.decode()
    divergence = json.loads(outcome.stdout)["divergence"]
    assert 0 < divergence["kld_mean"] < 1e-4
    assert (divergence["model"]["roundings"], divergence["reference"]["roundings"]) == (["kv_dtype int8"], [])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--protocol", "gptq-64"), "--protocol requires --text"),
        (("--against-dtype", "float32"), "--against-dtype requires --against"),
        (("--against-batch-size", "4"), "--against-batch-size requires --against"),
        (("--text", "TEXT", "--protocol", "gptq-2048"), "needs a context of 2,048 tokens, and tiny has 512"),
    ],
)
def test_mistakes_are_reported_in_a_few_lines(
    gptfast: CommandLine, text: str, arguments: tuple[str, ...], expected: str
) -> None:
    outcome = gptfast.run("eval", "tiny", *MACHINE, *(text if each == "TEXT" else each for each in arguments))
    assert outcome.returncode == 2 and outcome.stdout == b""
    output = outcome.stderr.decode()
    assert expected in output and "hint:" in output and len(output.splitlines()) <= 5


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("--protocol", ["gptq-2048", "llamacpp-512", "lm-eval-word", "stride-512"]),
        ("--against-dtype", ["bfloat16", "float16", "float32"]),
        ("--against-backend", ["cpu", "reference"]),
    ],
)
def test_values_are_completed(word: str, values: list[str]) -> None:
    answer = complete(command_tree(plain=True), ["eval", word, ""])
    assert [value for value, _ in answer.values] == values
