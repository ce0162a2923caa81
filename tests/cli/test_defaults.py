"""Where an option's value comes from: flag, environment, settings file, default, in this order."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.command_line import CommandLine
from gptfast_cli.commands.defaults import load_defaults
from gptfast_cli.core.checkpoints.store import bundled_folder
from gptfast_cli.core.errors import UsageError
from gptfast_cli.core.settings import settings_file


def write_settings(home: Path, text: str) -> None:
    path = settings_file({"XDG_CONFIG_HOME": str(home / ".config")})
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_without_a_file_there_are_no_defaults(tmp_path: Path) -> None:
    assert load_defaults(tmp_path / "config.toml") == {}


def test_a_key_is_spelled_with_dashes_or_underscores(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[generate]\nmax-new-tokens = 7\ntop_k = 3\n")
    assert load_defaults(path) == {"generate": {"max_new_tokens": "7", "top_k": "3"}}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("temperature = ", "TOML"),
        ("[generat]\nseed = 1", "generat"),
        ("seed = 1", "seed"),
        ("[generate]\nhot = 1", "hot"),
        (f"[generate]\nseed = {'9' * 5000}", "TOML"),
        (f"a = {'[' * 9000}", "TOML"),
        (f"{'a.' * 500_000}a = 1", "16 kB"),
    ],
)
def test_a_broken_file_or_unknown_key_is_named(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as raised:
        load_defaults(path)
    assert named in raised.value.message and str(path) in raised.value.message


def test_a_value_of_the_wrong_kind_names_option_and_file(gptfast: CommandLine, home: Path) -> None:
    write_settings(home, '[generate]\ntemperature = "hot"\n')
    outcome = gptfast.run("generate", "x")
    stderr = outcome.stderr.decode()
    assert outcome.returncode == 2
    assert "temperature" in stderr and "config.toml" in stderr and len(stderr.splitlines()) <= 5


def test_a_flag_beats_the_environment_the_environment_the_file_and_the_file_the_default(
    fake: Callable[[str], CommandLine], home: Path
) -> None:
    echo = fake("echoes-the-request")
    assert options_of(echo) == ("auto", 0.8)
    write_settings(home, '[generate]\ndevice = "file"\ntemperature = 0.5\n')
    assert options_of(echo) == ("file", 0.5)
    assert options_of(echo.with_environment(GPTFAST_DEVICE="environment")) == ("environment", 0.5)
    assert options_of(echo.with_environment(GPTFAST_DEVICE="environment"), "--device", "flag") == ("flag", 0.5)


def test_a_flag_beats_the_settings_file_the_file_the_model_and_the_model_the_default(
    gptfast: CommandLine, home: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(bundled_folder("tiny"), folder)
    makers = {"do_sample": True, "temperature": 0.6, "top_k": 20, "min_p": 0.1, "typical_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(makers))
    write_settings(home, "[generate]\ntop_k = 3\nmin_p = 0.2\n")
    line = ("generate", "x", "-m", str(folder), "-n", "1", "--json", "--min-p", "0.3")
    outcome = gptfast.run(*line)
    sampling = json.loads(outcome.stdout)["sampling"]
    used = {"temperature": 0.6, "top_k": 3, "top_p": 1.0, "min_p": 0.3, "repetition_penalty": 1.0}
    assert sampling == used
    stderr = outcome.stderr.decode()
    assert "Defaults of the model: temperature 0.6 (" in stderr and "typical_p 0.9" in stderr
    without = gptfast.run(*line, "--no-model-defaults")
    assert json.loads(without.stdout)["sampling"] == {**used, "temperature": 0.8}
    assert b"efaults" not in without.stderr and b"typical_p" not in without.stderr


def options_of(command_line: CommandLine, *arguments: str) -> tuple[str, float]:
    request = json.loads(command_line.run("generate", "x", *arguments).stdout)
    return request["runtime"]["device"], request["sampling"]["temperature"]
