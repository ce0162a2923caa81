"""Numeric options: one type for all of them, wherever the value comes from."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from cli.command_line import CommandLine
from gptfast_cli.app import command_tree
from gptfast_cli.core.cpus import most_threads
from gptfast_cli.core.device import set_threads
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.settings import check_hub_environment, settings_file
from gptfast_cli.numbers import (
    LARGEST_INTEGER,
    Integer,
    IntegerList,
    IntegerOrAuto,
    Integers,
    Number,
    NumberError,
    NumberList,
    Numbers,
)

NO_NUMBERS = ["nan", "NaN", "inf", "-inf", "1e999", "hot", "", " ", "\u0661", "1_000", "0x10", "9" * 5000, "1..", "--1"]


def numeric_options() -> Iterator[tuple[str, Any]]:
    """Each option of each command that takes a number or numbers, with the description that typer has of it."""
    for name, command in typer.main.get_group(command_tree(plain=True)).commands.items():
        for parameter in command.params:
            described = parameter.type_descriptor
            if described.annotation in (int, float, IntegerList, NumberList):
                yield f"{name} {parameter.opts[0]}", described


def test_every_numeric_option_refuses_what_is_no_finite_number() -> None:
    options = dict(numeric_options())
    assert len(options) > 40
    for option, described in options.items():
        parser = described.parameter_info.parser
        assert parser is not None, f"{option} has a type of typer's, whose messages are not ours"
        for text in NO_NUMBERS:
            with pytest.raises(NumberError):
                parser(text)
        with pytest.raises(NumberError):  # a Boolean of TOML is an integer of Python
            parser(True)


def test_threads_are_as_many_for_the_command_line_as_for_what_it_runs() -> None:
    options = [described for name, described in numeric_options() if name.endswith(" --threads")]
    assert len(options) >= 5
    for described in options:
        parser = described.parameter_info.parser
        assert parser(str(most_threads())) == most_threads()
        with pytest.raises(NumberError, match=f"a whole number from 1 to {most_threads()}, not"):
            parser(str(most_threads() + 1))
    with pytest.raises(UsageError, match=f"--threads must be from 1 to {most_threads()}, not"):
        set_threads(most_threads() + 1)


@given(st.integers())
def test_a_whole_number_is_taken_where_it_fits_its_c_type(number: int) -> None:
    if 0 <= number <= LARGEST_INTEGER:
        assert Integer()(str(number)) == number
    else:
        with pytest.raises(NumberError):
            Integer()(str(number))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_is_taken_as_python_writes_it(number: float) -> None:
    everything = Number(-math.inf, math.inf)
    assert everything(repr(number)) == number and everything(number) == number


@pytest.mark.parametrize(
    ("parser", "text", "says"),
    [
        (Integer(1), "0", "must be a whole number of at least 1, not '0'."),
        (Integer(1, 64), "65", "must be a whole number from 1 to 64, not '65'."),
        (Integer(), "4294967297", "must be a whole number from 0 to 2147483647, not '4294967297'."),
        (Integer(), "2.5", "must be a whole number of at least 0, not '2.5'."),
        (IntegerOrAuto(Integer()), "-2", "must be a whole number of at least 0, or auto, not '-2'."),
        (Number(), "-1", "must be a number of at least 0, not '-1'."),
        (Number(0, 1), "1.5", "must be a number from 0 to 1, not '1.5'."),
        (Number(0, 1, is_closed=False), "0", "must be a number above 0 and at most 1, not '0'."),
        (Number(is_closed=False), "1e39", "must be a number above 0, not '1e39'."),
        (Integers(Integer(1)), "1,x", "must be whole numbers of at least 1, such as 1,2,4 or 1..8, not '1,x'."),
        (Integers(Integer(1)), "4..2", "must be whole numbers of at least 1, such as 1,2,4 or 1..8, not '4..2'."),
        (Integers(Integer(1)), "1..999999999", "such as 1,2,4 or 1..8, not '1..999999999'."),
        (Numbers(Number()), "0,inf", "must be numbers of at least 0, such as 0,0.8, not '0,inf'."),
    ],
)
def test_a_refusal_says_what_is_taken(parser: Callable[[object], object], text: str, says: str) -> None:
    with pytest.raises(NumberError) as refused:
        parser(text)
    assert refused.value.message.endswith(says)


def test_lists_keep_their_order_and_count_each_number_once() -> None:
    assert Integers(Integer())("4, 1..3,2,4").numbers == (4, 1, 2, 3)
    assert Numbers(Number())("0.8,0,.8").numbers == (0.8, 0)


@pytest.mark.parametrize(
    ("variables", "settings", "says"),
    [
        ({"GPTFAST_THREADS": "nan"}, "", f"--threads must be a whole number from 1 to {most_threads()}, not 'nan'."),
        ({}, "[generate]\ntemperature = nan", "--temperature must be a number of at least 0, not 'nan'."),
        ({}, "[generate]\ntop-k = 1.5", "--top-k must be a whole number of at least 0, not '1.5'."),
        ({}, "[generate]\nseed = true", "--seed must be a whole number from 0 to 18446744073709551615, not 'true'."),
        ({}, "[generate]\nquiet = 1", "it must be true or false, not 1."),
        ({}, "[generate]\nseed = 2000-01-01", "it must be a text or a number"),
        ({"GPTFAST_MODEL": "nosuch"}, "", "--model nosuch is set by GPTFAST_MODEL."),
        ({}, '[generate]\ndtype = "float"', "--dtype float is set by [generate] in "),
    ],
)
def test_an_error_names_the_variable_or_the_file_that_sets_a_value(
    gptfast: CommandLine, home: Path, variables: dict[str, str], settings: str, says: str
) -> None:
    path = settings_file({"XDG_CONFIG_HOME": str(home / ".config")})
    path.parent.mkdir(parents=True)
    path.write_text(settings)
    outcome = gptfast.with_environment(**variables).run("generate", "x")
    stderr = outcome.stderr.decode()
    assert outcome.returncode in (2, 3) and says in stderr and len(stderr.splitlines()) <= 5
    assert next(iter(variables), str(path)) in stderr


def test_numbers_and_lists_of_the_settings_file_are_as_if_they_were_typed(gptfast: CommandLine, home: Path) -> None:
    path = settings_file({"XDG_CONFIG_HOME": str(home / ".config")})
    path.parent.mkdir(parents=True)
    path.write_text('[bench]\nbatch-size = [1, 2]\nreps = 1\nprompt-len = 0\ngen-len = 4\noutput = "csv"\n')
    outcome = gptfast.run("bench", "tiny-draft", "--threads", "1")
    assert outcome.returncode == 0, outcome.stderr.decode()
    assert len(outcome.stdout.decode().splitlines()) == 3  # a heading, and a row for each batch size


@pytest.mark.parametrize("value", ["abc", "nan", "inf", "-1", "0", "1.5", "9" * 400])
@pytest.mark.parametrize("variable", ["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"])
def test_a_timeout_that_is_no_number_is_refused_before_huggingface_hub_reads_it(variable: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"{variable} must be a whole number of seconds above 0"):
        check_hub_environment({variable: value})
    check_hub_environment({variable: "20"})


@pytest.mark.parametrize("value", ["abc", "nan", "inf", "-1", "1e9"])
def test_a_size_that_is_no_number_is_refused_before_datasets_reads_it(value: str) -> None:
    with pytest.raises(UsageError, match="HF_DATASETS_IN_MEMORY_MAX_SIZE must be a number of bytes"):
        check_hub_environment({"HF_DATASETS_IN_MEMORY_MAX_SIZE": value})
    check_hub_environment({"HF_DATASETS_IN_MEMORY_MAX_SIZE": "0"})


@pytest.mark.parametrize("command", [("download", "a/b"), ("eval", "tiny", "--tasks", "wikitext")])
def test_a_timeout_that_is_no_number_ends_with_2(gptfast: CommandLine, command: tuple[str, ...]) -> None:
    outcome = gptfast.with_environment(HF_HUB_DOWNLOAD_TIMEOUT="abc").run(*command)
    assert outcome.returncode == 2 and b"HF_HUB_DOWNLOAD_TIMEOUT" in outcome.stderr
