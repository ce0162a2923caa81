"""The process that renders is one for many conversations, replaced when it must be, and never left behind."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from chat_samples import ENOUGH_SECONDS, user

from gptfast_cli.core.errors import CorruptError, GptFastError
from gptfast_cli.core.tokenizers.chat.template import WORKER, ChatTemplate, TemplateSource, WorkerProcess

SOMETIMES_ENDLESS = (
    "{% if messages[0].content == 'loop' %}"
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    "{% endif %}{{ messages[0].content }}"
)


@pytest.fixture
def template() -> Iterator[ChatTemplate]:
    with ChatTemplate(TemplateSource(SOMETIMES_ENDLESS, "m", {}), max_seconds=ENOUGH_SECONDS) as template:
        yield template


def pid(template: ChatTemplate) -> int:
    process = template._worker._process
    assert process is not None
    return process.pid


def is_there(process_id: int) -> bool:
    """Whether a process of that id runs or waits to be collected by its parent."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(process_id: int) -> None:
    while is_there(process_id):  # a test that hangs here has failed
        time.sleep(0.01)


def test_many_conversations_are_rendered_by_one_process(template: ChatTemplate) -> None:
    first = pid(template)
    assert [template.render([user(str(n))]) for n in range(100)] == [str(n) for n in range(100)]
    assert pid(template) == first


def test_a_process_that_was_ended_is_replaced_at_the_next_conversation() -> None:
    with ChatTemplate(TemplateSource(SOMETIMES_ENDLESS, "m", {}), max_seconds=0.6) as template:
        first = pid(template)
        with pytest.raises(CorruptError, match="ran for longer"):
            template.render([user("loop")])
        assert not is_there(first)
        assert template.render([user("a")]) == "a"


def test_a_process_that_dies_is_an_error_and_is_replaced(template: ChatTemplate) -> None:
    template.render([user("a")])
    first = pid(template)
    os.kill(first, signal.SIGKILL)
    with pytest.raises(CorruptError, match="ended"):
        template.render([user("b")])
    assert template.render([user("c")]) == "c"
    assert not is_there(first)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_process_gets_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "OPENAI_API_KEY", "GITHUB_TOKEN", "PGPASSWORD")
    for name in secrets:
        monkeypatch.setenv(name, "a secret")
    monkeypatch.setenv("TZ", "UTC-14")
    with ChatTemplate(TemplateSource("x", "m", {}), max_seconds=ENOUGH_SECONDS) as template:
        assert template.render([user("a")]) == "x"
        process = Path(f"/proc/{pid(template)}")
        environment = process.joinpath("environ").read_bytes()
        descriptors = list(process.joinpath("fd").iterdir())
    assert b"a secret" not in environment and b"TZ=UTC-14" in environment
    assert len(descriptors) == 3  # its streams


def test_a_closed_template_leaves_no_process(template: ChatTemplate) -> None:
    template.render([user("a")])
    first = pid(template)
    template.close()
    assert not is_there(first)
    template.close()


def test_ctrl_c_in_a_terminal_does_not_reach_the_process() -> None:
    script = f"""
import os, signal
from gptfast_cli.core.tokenizers.chat.template import ChatTemplate, TemplateSource
signal.signal(signal.SIGINT, lambda *_: None)
with ChatTemplate(TemplateSource({SOMETIMES_ENDLESS!r}, "m", {{}})) as template:
    for content in ("while it starts", "while it waits"):
        os.killpg(0, signal.SIGINT)
        print(template.render([{{"role": "user", "content": content}}]))
"""
    ours = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True, start_new_session=True
    )
    assert ours.stdout == "while it starts\nwhile it waits\n"


def test_after_an_interrupted_render_the_next_answer_is_not_the_old_one(template: ChatTemplate) -> None:
    template.render([user("a")])
    first = pid(template)
    threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        template.render([user("loop")])
    assert not is_there(first)
    assert template.render([user("b")]) == "b"


@pytest.mark.parametrize("content", ["a", "loop"])
def test_the_process_ends_with_its_parent(content: str) -> None:
    script = f"""
import os, signal, threading
from gptfast_cli.core.tokenizers.chat.template import ChatTemplate, TemplateSource
template = ChatTemplate(TemplateSource({SOMETIMES_ENDLESS!r}, "m", {{}}))
template.render([{{"role": "user", "content": "a"}}])
print(template._worker._process.pid, flush=True)
threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGKILL]).start()
template.render([{{"role": "user", "content": {content!r}}}])
signal.pause()
"""
    parent = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    wait_until_gone(int(parent.stdout))


def test_a_process_that_crashes_writes_nothing_to_our_streams(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ChildProcessError):
        WorkerProcess().ask(b"no JSON\n", seconds=60)
    assert capfd.readouterr() == ("", "")


def test_a_slow_start_does_not_count_against_the_template(tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    slow.write_text(f"import runpy, time\ntime.sleep(1)\nrunpy.run_path({str(WORKER)!r}, run_name='__main__')")
    request = {"template": "x", "variables": {}, "messages": [user("a")], "add_generation_prompt": True}
    with closing(WorkerProcess(slow)) as worker:
        assert json.loads(worker.ask(json.dumps(request).encode() + b"\n", seconds=0.6)) == {"text": "x"}


def test_a_process_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GptFastError, match="did not start"):
        WorkerProcess(tmp_path / "missing.py").ask(b"\n", seconds=60)


def test_the_program_that_renders_loads_nothing_of_ours() -> None:
    script = f"import runpy, sys; runpy.run_path({str(WORKER)!r}); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert not {"gptfast_cli", "torch", "numpy"} & set(loaded.stdout.split())
