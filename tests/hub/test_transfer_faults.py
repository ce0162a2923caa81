"""Whatever goes wrong, a download ends in a whole verified file, or in a typed error that names the next command."""

import errno
from pathlib import Path

import pytest

from gptfast_cli.core.errors import ExitCode, GptFastError
from gptfast_cli.core.events import Note, Progress
from gptfast_cli.core.hub import fetching
from gptfast_cli.core.jobs.download import run
from hub.downloads import REPO, WEIGHTS, download, partials, request_for, some_files, watched
from hub.fake_hub import TOKEN, FakeHub

FILES = some_files()


@pytest.mark.parametrize(
    "faults",
    [
        ("cut", "ok"),
        ("cut 0.2", "cut 0.5", "cut 0.7", "cut 0.9", "ok"),
        ("hold", "ok"),
        ("corrupt", "ok"),
        ("short", "ok"),
        ("long", "ok"),
        ("cut", "corrupt", "ok"),
        ("cut", "no-range"),
        ("cut", "changed"),
        ("cut", "416", "ok"),
        ("429 Retry-After: 1", "ok"),
        ('429 RateLimit: "resolvers";r=0;t=1', "ok"),
        ("500", "503", "ok"),
        ("cut", "502", "ok"),
    ],
    ids=" ".join,
)
def test_what_passes_ends_in_the_whole_file(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faults: tuple[str, ...]
) -> None:
    hub.add(REPO, FILES)
    if "hold" in faults:
        monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.4")  # of silence, after which it is a stall
    hub.fail(WEIGHTS, *faults)
    events, downloaded = watched(hub, tmp_path)
    assert (downloaded.path / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert {file.name: file.verified_by for file in downloaded.files} == {
        "config.json": "git-sha1",
        "tokenizer.json": "git-sha1",
        WEIGHTS: "sha256",
    }
    assert not partials(tmp_path)
    was_wrong = any(isinstance(event, Note) and "downloading it again" in event.text for event in events)
    assert was_wrong == bool({"corrupt", "short", "long", "416"} & set(faults)), "the rest must not be a last resort"


@pytest.mark.parametrize(
    ("name", "fault", "ending"),
    [
        (WEIGHTS, "cut 0", (ExitCode.NETWORK, "connection was lost", "same command again")),
        (WEIGHTS, "hold 0", (ExitCode.NETWORK, "stopped responding", "same command again")),
        (WEIGHTS, "corrupt", (ExitCode.CORRUPT, "checksum mismatch (sha256), twice", "another revision")),
        ("config.json", "corrupt", (ExitCode.CORRUPT, "checksum mismatch (git-sha1), twice", "another revision")),
        (WEIGHTS, "short", (ExitCode.CORRUPT, "sends 299,999 bytes, but lists 300,000", "another revision")),
        (WEIGHTS, "long", (ExitCode.CORRUPT, "sends 300,004 bytes", "another revision")),
        (WEIGHTS, "401", (ExitCode.NOT_AUTHORIZED, "requires a login", "hf auth login")),
        (WEIGHTS, "403", (ExitCode.NOT_AUTHORIZED, "access denied", "hf auth login")),
        (WEIGHTS, "403 X-Error-Code: GatedRepo", (ExitCode.NOT_AUTHORIZED, "gated", "Request access on http://")),
        (WEIGHTS, "404 X-Error-Code: EntryNotFound", (ExitCode.NOT_FOUND, "no longer exists", "/tree/main")),
        (WEIGHTS, "429 Retry-After: 3000", (ExitCode.NETWORK, "rate-limited", "again in 3000 s")),
        (WEIGHTS, "500", (ExitCode.NETWORK, "server error (500)", "same command again")),
        (WEIGHTS, "418", (ExitCode.NETWORK, "returned HTTP 418", "later")),
        ("listing", "500", (ExitCode.NETWORK, "server error (500)", "same command again")),
        ("listing", "429 Retry-After: 3000", (ExitCode.NETWORK, "rate-limited", "again in 3000 s")),
        ("listing", "403 X-Error-Code: GatedRepo", (ExitCode.NOT_AUTHORIZED, "gated", "hf auth login")),
        ("listing", "200", (ExitCode.CORRUPT, "does not respond like a Hugging Face Hub", "HF_ENDPOINT")),
    ],
)
def test_what_stays_ends_in_an_error_of_its_kind(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    fault: str,
    ending: tuple[ExitCode, str, str],
) -> None:
    if "hold" in fault:
        monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.4")
    code, says, hints = ending
    hub.add(REPO, FILES)
    hub.fail(name, fault)
    with pytest.raises(GptFastError) as caught:
        download(hub, tmp_path)
    assert caught.value.exit_code == code
    assert says in caught.value.message
    assert hints in caught.value.hint
    assert not (tmp_path / "hub" / "models--org--model" / "refs").exists(), "no branch may point to half a model"


def test_a_connection_refused_is_a_network_error(hub: FakeHub, tmp_path: Path) -> None:
    hub.url = "http://127.0.0.1:9"
    with pytest.raises(GptFastError, match="no connection") as caught:
        download(hub, tmp_path)
    assert caught.value.exit_code == ExitCode.NETWORK and "HF_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize("endpoint", ["nowhere", "http://"])
def test_an_endpoint_that_is_none_is_said_so(hub: FakeHub, tmp_path: Path, endpoint: str) -> None:
    hub.url = endpoint
    with pytest.raises(GptFastError) as caught:
        download(hub, tmp_path)
    assert "HF_ENDPOINT" in caught.value.hint


def test_a_missing_repository_and_a_missing_revision_are_not_found(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, FILES)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for source, says in (("org/other", "not found on the Hub"), ("org/model@v9", "no revision v9")):
        with pytest.raises(GptFastError, match=says) as caught:
            download(hub, tmp_path, source)
        assert caught.value.exit_code == ExitCode.NOT_FOUND and caught.value.hint


def test_a_gated_repository_says_how_to_ask_and_how_to_log_in(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, FILES, gated=True)
    with pytest.raises(GptFastError, match=r"gated repository, and you are not logged in") as caught:
        download(hub, tmp_path)
    assert f"Request access on {hub.url}/{REPO}\n" in caught.value.hint and "hf auth login" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(GptFastError, match="this account has no access"):
        download(hub, tmp_path)


@pytest.mark.parametrize("token", ["hf_wrong", "hf_wr\N{LATIN SMALL LETTER O WITH DIAERESIS}ng", "hf wrong", "hf\x01x"])
def test_a_token_that_is_wrong_is_refused_and_not_shown(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    hub.add(REPO, FILES)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(GptFastError) as caught:
        download(hub, tmp_path)
    assert caught.value.exit_code == ExitCode.NOT_AUTHORIZED
    shown: BaseException | None = caught.value
    while shown is not None:
        assert token not in str(shown)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, FILES, private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    download(hub, tmp_path)
    storage = [each for each in hub.requests if each.host.startswith("localhost")]
    assert storage and all(each.token is None for each in storage)
    assert all(each.token == f"Bearer {TOKEN}" for each in hub.requests if each.host.startswith("127.0.0.1"))


@pytest.mark.parametrize(
    "name",
    [
        "../evil.json",
        "folder/../../evil.json",
        "/etc/evil.json",
        "C:/evil.json",
        "C:evil.json",
        "\\\\host\\share\\evil.json",
        "..\\evil.json",
        "nul.json",
        "a//b.json",
        "./evil.json",
        "CON/evil.json",
        "evil.json.",
        "a\x1b[31m.json",
        "x" * 300 + ".json",
        "a:stream.json",
    ],
)
def test_an_unsafe_name_is_refused_before_anything_is_written(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.add(REPO, {**FILES, name: b"{}"})
    folder = tmp_path / "below"
    with pytest.raises(GptFastError, match="unsafe name") as caught:
        download(hub, folder, include=("*",))
    assert caught.value.exit_code == ExitCode.CORRUPT and "--exclude" in caught.value.hint
    assert not list(tmp_path.rglob("*"))
    download(hub, folder, include=("*",), exclude=(name,))


def test_a_disk_too_small_is_said_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, FILES)
    free = type("Usage", (), {"free": 1_200_000})
    monkeypatch.setattr("gptfast_cli.core.jobs.download.shutil.disk_usage", lambda _: free)
    with pytest.raises(GptFastError, match=r"1\.20 MB are free") as caught:
        download(hub, tmp_path)
    assert caught.value.exit_code == ExitCode.DISK_FULL and "--local-dir" in caught.value.hint
    assert hub.sent_bytes(WEIGHTS) == 0


def test_a_disk_that_runs_full_keeps_what_arrived(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPO, FILES)
    add = fetching._Intake.add

    def full(intake: fetching._Intake, chunk: bytes) -> None:
        if intake.n_bytes > 100_000:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(intake, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(fetching._Intake, "add", full)
        with pytest.raises(GptFastError, match=r"safetensors: the disk ran full .*; what arrived is kept") as caught:
            download(hub, tmp_path)
    assert caught.value.exit_code == ExitCode.DISK_FULL
    before = hub.sent_bytes(WEIGHTS)
    download(hub, tmp_path)
    assert hub.sent_bytes(WEIGHTS) - before < 200_000


def test_a_long_wait_is_reported(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    hub.fail(WEIGHTS, "429 Retry-After: 1", "ok")
    events, _ = watched(hub, tmp_path)
    assert Note(f"{WEIGHTS}: rate-limited by the server (429); retrying in 1 s.") in events


def test_one_file_that_fails_ends_the_others_and_keeps_them(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    hub.fail(WEIGHTS, "hold 0.5")
    hub.fail("config.json", "404 X-Error-Code: EntryNotFound")
    with pytest.raises(GptFastError, match=r"config\.json: no longer exists"):
        download(hub, tmp_path)


def test_closing_the_job_stops_the_threads(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    hub.fail(WEIGHTS, "hold 0.5")
    job = run(request_for(hub, tmp_path))
    for event in job:
        if isinstance(event, Progress) and event.part == WEIGHTS:
            break
    job.close()
    assert [path.name.endswith((".gptfast-partial", ".json")) for path in partials(tmp_path)]
