"""An error stays short, whatever the file that it quotes holds."""

from gptfast_cli.core.errors import UsageError


def test_a_long_line_of_a_message_loses_its_middle() -> None:
    error = UsageError(f"first\n{'x' * 1_000_000}.json: is no model\nlast", "hint")
    first, long, last = error.message.split("\n")
    assert (first, last, error.hint) == ("first", "last", "hint")
    assert len(long) < 1100
    assert long.startswith("xxx")
    assert long.endswith(".json: is no model")


def test_a_usual_message_is_left_as_it_is() -> None:
    message = "/".join(["folder"] * 100) + ": is no model"
    assert UsageError(message).message == str(UsageError(message)) == message
