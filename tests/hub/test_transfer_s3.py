"""From S3: whatever goes wrong, it ends in a whole verified file, or in a typed error that names the next command."""

import dataclasses
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import exceptions as aws

from cli.command_line import CommandLine, environment_of
from gptfast_cli.core.checkpoints.downloads import BucketPath, parse_bucket_path
from gptfast_cli.core.checkpoints.resolve import resolve
from gptfast_cli.core.checkpoints.store import bundled_folder, read_current
from gptfast_cli.core.errors import ExitCode, GptFastError, NetworkError, NotFoundError, UsageError
from gptfast_cli.core.events import Event, Note
from gptfast_cli.core.hub.sources import s3 as source
from gptfast_cli.core.jobs.download import Downloaded, DownloadRequest, run
from gptfast_cli.core.jobs.origins import DownloadOptions
from hub.downloads import QUICK, WEIGHTS, partials, some_files, wait_for_bytes
from hub.fake_bucket import BUCKET, KEY_ID, SECRET, FakeS3
from model_files import drained, settings_in

FILES = some_files()
N_BYTES = len(FILES[WEIGHTS])
CHUNK_BYTES = 1 << 18
DRAFT = f"s3://{BUCKET}/drafts/one"


def watched(
    folder: Path, name: str = DRAFT, *, stall_seconds: float = 10, **options: Any
) -> tuple[list[Event], Downloaded]:
    terms = DownloadOptions(4, QUICK, stall_seconds=stall_seconds)
    return drained(run(DownloadRequest(name, settings_in(folder), terms=terms, **options)))


def download(folder: Path, name: str = DRAFT, **options: Any) -> Downloaded:
    return watched(folder, name, **options)[1]


@pytest.fixture
def draft(s3: FakeS3) -> FakeS3:
    s3.add("drafts/one", FILES, ChecksumAlgorithm="SHA256")
    return s3


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
        ("cut", "416 InvalidRange", "ok"),
        ("503 SlowDown Retry-After: 1", "ok"),
        ("500 InternalError", "503 SlowDown", "ok"),
        ("cut", "502 BadGateway", "ok"),
    ],
    ids=" ".join,
)
def test_what_passes_ends_in_the_whole_file(draft: FakeS3, tmp_path: Path, faults: tuple[str, ...]) -> None:
    draft.fail(WEIGHTS, *faults)
    events, downloaded = watched(tmp_path, stall_seconds=0.5 if "hold" in faults else 10)
    assert (downloaded.path / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert {file.verified_by for file in downloaded.files} == {"sha256"}
    assert not partials(tmp_path)
    was_wrong = any(isinstance(event, Note) and "downloading it again" in event.text for event in events)
    assert was_wrong == bool({"corrupt", "short", "long", "416 InvalidRange"} & set(faults))


@pytest.mark.parametrize(
    ("name", "fault", "ending"),
    [
        (WEIGHTS, "cut 0", (ExitCode.NETWORK, "connection was lost", "same command again")),
        (WEIGHTS, "hold 0", (ExitCode.NETWORK, "stopped responding", "same command again")),
        (WEIGHTS, "corrupt", (ExitCode.CORRUPT, "checksum mismatch (sha256), twice", "another revision")),
        (WEIGHTS, "short", (ExitCode.CORRUPT, "sends 299,999 bytes, but lists 300,000", "another revision")),
        (WEIGHTS, "401 Unauthorized", (ExitCode.NOT_AUTHORIZED, "access denied", "AWS_PROFILE")),
        (WEIGHTS, "403 AccessDenied", (ExitCode.NOT_AUTHORIZED, "access denied", "s3:GetObject")),
        (WEIGHTS, "403 InvalidObjectState", (ExitCode.NOT_FOUND, "archive", "restore-object")),
        (WEIGHTS, "404 NoSuchKey", (ExitCode.NOT_FOUND, "no longer exists", "same command again")),
        (WEIGHTS, "412 PreconditionFailed", (ExitCode.NETWORK, "was replaced", "same command again")),
        (WEIGHTS, "503 SlowDown Retry-After: 3000", (ExitCode.NETWORK, "rate-limited", "again in 3000 s")),
        (WEIGHTS, "500 InternalError", (ExitCode.NETWORK, "server error (500)", "same command again")),
        (WEIGHTS, "418 Teapot", (ExitCode.NETWORK, "returned HTTP 418", "AWS_DEFAULT_REGION")),
        ("listing", "403 InvalidAccessKeyId", (ExitCode.NOT_AUTHORIZED, "rejected", "aws sts")),
        ("listing", "400 ExpiredToken", (ExitCode.NOT_AUTHORIZED, "(ExpiredToken)", "aws sts")),
        ("listing", "404 NoSuchBucket", (ExitCode.NOT_FOUND, "bucket does not exist", "AWS_ENDPOINT_URL")),
        ("listing", "500 InternalError", (ExitCode.NETWORK, "server error (500)", "same command again")),
        ("head", "403 AccessDenied", (ExitCode.NOT_AUTHORIZED, "access denied", "s3:GetObject")),
    ],
)
def test_what_stays_ends_in_an_error_of_its_kind(
    draft: FakeS3,
    tmp_path: Path,
    name: str,
    fault: str,
    ending: tuple[ExitCode, str, str],
) -> None:
    code, says, hints = ending
    draft.fail(name, fault)
    with pytest.raises(GptFastError) as caught:
        download(tmp_path, stall_seconds=0.5 if "hold" in fault else 10)
    assert caught.value.exit_code == code
    assert says in caught.value.message and hints in caught.value.hint
    assert not (tmp_path / "home/downloads/s3" / BUCKET / "drafts/one" / WEIGHTS).exists()
    shown: BaseException | None = caught.value
    while shown is not None:  # a server may repeat whom it refuses
        assert SECRET not in str(shown) and KEY_ID not in str(shown)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)


@pytest.mark.parametrize(
    ("variable", "value", "ending"),
    [
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", (ExitCode.NETWORK, "no connection")),
        ("AWS_ENDPOINT_URL", "nowhere", (ExitCode.USAGE, "AWS settings")),
        ("AWS_PROFILE", "nobody", (ExitCode.USAGE, "AWS settings")),
        ("AWS_DEFAULT_REGION", "no/region", (ExitCode.USAGE, "AWS settings")),
    ],
)
def test_settings_that_lead_nowhere_are_said(
    draft: FakeS3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
    value: str,
    ending: tuple[ExitCode, str],
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(GptFastError, match=ending[1]) as caught:
        download(tmp_path)
    assert caught.value.exit_code == ending[0] and "AWS_" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "by"),
    [
        ({"ChecksumAlgorithm": "SHA256"}, "sha256"),
        ({"ChecksumAlgorithm": "SHA1"}, "sha1"),
        ({"ChecksumAlgorithm": "CRC64NVME"}, "crc64nvme"),
        ({"ChecksumAlgorithm": "CRC32C"}, "crc32c"),
        ({}, "crc32"),  # boto3's own choice
    ],
)
def test_a_file_is_verified_by_what_s3_keeps_of_it(
    s3: FakeS3, tmp_path: Path, options: dict[str, str], by: str
) -> None:
    s3.add("drafts/one", FILES, **options)
    assert {file.verified_by for file in download(tmp_path).files} == {by}
    s3.fail(WEIGHTS, "corrupt")
    shutil.rmtree(tmp_path)
    with pytest.raises(GptFastError, match=rf"checksum mismatch \({by}\)"):
        download(tmp_path)


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({}, "md5"),
        ({"ServerSideEncryption": "AES256"}, "md5"),
        ({"ServerSideEncryption": "aws:kms"}, None),
        ({"SSECustomerAlgorithm": "AES256"}, None),
        ({"ETag": '"of no form that is known"'}, None),
        ({"ETag": '"0123456789abcdef0123456789abcdef-3"'}, None),  # in parts that do not come to three
    ],
)
def test_an_etag_counts_where_it_is_an_md5(
    draft: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], by: str | None
) -> None:
    opened = source.open_bucket(BUCKET, "drafts/one/", stall_seconds=10)
    head = opened.client.head_object
    without = lambda **asked: {k: v for k, v in head(**asked).items() if not k.startswith("Checksum")}  # noqa: E731
    monkeypatch.setattr(opened.client, "head_object", lambda **asked: {**without(**asked), **changes})
    file = next(file for file in source.list_bucket(opened) if file.name == WEIGHTS).described()
    assert (file.checksum and file.checksum.algorithm) == by


def test_a_file_in_parts_is_verified_by_the_md5_of_their_md5s(s3: FakeS3, tmp_path: Path) -> None:
    s3.add("drafts/one", {"config.json": b"{}"})
    parts = [b"y" * (5 << 20), b"the rest"]
    key = {"Bucket": BUCKET, "Key": f"drafts/one/{WEIGHTS}"}
    upload = s3.client.create_multipart_upload(**key)["UploadId"]
    etags = [
        s3.client.upload_part(**key, UploadId=upload, PartNumber=n, Body=part)["ETag"]
        for n, part in enumerate(parts, start=1)
    ]
    listed = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, start=1)]
    s3.client.complete_multipart_upload(**key, UploadId=upload, MultipartUpload={"Parts": listed})
    s3.fail(WEIGHTS, "cut 0.9", "ok")
    downloaded = download(tmp_path)
    assert {file.name: file.verified_by for file in downloaded.files}[WEIGHTS] == "md5"
    assert (downloaded.path / WEIGHTS).read_bytes() == b"".join(parts)


def test_only_the_rest_is_fetched_the_next_time_and_nothing_the_time_after(draft: FakeS3, tmp_path: Path) -> None:
    draft.fail(WEIGHTS, "cut 0.9", "cut 0")
    with pytest.raises(NetworkError):
        download(tmp_path)
    draft.fail(WEIGHTS, "ok")
    draft.requests.clear()
    assert download(tmp_path).n_received <= 0.1 * N_BYTES + CHUNK_BYTES
    assert draft.sent_bytes(WEIGHTS) <= 0.1 * N_BYTES + CHUNK_BYTES
    again = download(tmp_path)
    assert all(file.was_there for file in again.files) and again.n_received == 0


def test_what_was_replaced_meanwhile_is_fetched_anew_by_the_next_run(draft: FakeS3, tmp_path: Path) -> None:
    later = some_files(seed=1)
    draft.fail(WEIGHTS, "cut", "412 PreconditionFailed")
    with pytest.raises(NetworkError, match="was replaced"):
        download(tmp_path)
    draft.add("drafts/one", later, ChecksumAlgorithm="SHA256")
    draft.fail(WEIGHTS, "ok")
    assert (download(tmp_path).path / WEIGHTS).read_bytes() == later[WEIGHTS]
    assert not partials(tmp_path)


def test_a_part_is_asked_for_only_of_the_version_that_was_listed(draft: FakeS3, tmp_path: Path) -> None:
    file = next(
        file
        for file in source.list_bucket(source.open_bucket(BUCKET, "drafts/one/", stall_seconds=10))
        if file.name == WEIGHTS
    )
    draft.add("drafts/one", some_files(seed=1))
    with pytest.raises(NetworkError, match="was replaced"), file.open(1000, file.etag):
        pass


def test_without_any_checksum_it_is_fetched_and_said_to_be_unverified(
    draft: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_offered", lambda _: (None, None))
    assert {file.verified_by for file in download(tmp_path).files} == {None}
    assert all(file.was_there for file in download(tmp_path).files), "the ETag that was noted tells it apart"
    draft.add("drafts/one", some_files(seed=1))
    assert not all(file.was_there for file in download(tmp_path).files)


@pytest.mark.parametrize(
    "key", ["../evil.json", "a/../../evil.json", "/evil.json", "C:evil.json", "nul.json", "a//b.json"]
)
def test_an_unsafe_name_is_refused_before_anything_is_written(draft: FakeS3, tmp_path: Path, key: str) -> None:
    draft.add("drafts/one", {key: b"{}"})
    with pytest.raises(GptFastError, match="unsafe name") as caught:
        download(tmp_path, include=("*",))
    assert caught.value.exit_code == ExitCode.CORRUPT and not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("n_faults", [1, 99])
def test_credentials_that_come_from_the_network_are_asked_for_again(
    draft: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_faults: int
) -> None:
    faults = iter([aws.ConnectTimeoutError(endpoint_url="http://169.254.169.254/")] * n_faults)
    credentials = boto3.session.Session.get_credentials

    def fetched(session: Any) -> Any:
        if (fault := next(faults, None)) is not None:
            raise fault
        return credentials(session)

    monkeypatch.setattr(boto3.session.Session, "get_credentials", fetched)
    if n_faults == 1:
        assert (download(tmp_path).path / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    else:
        with pytest.raises(NetworkError, match="no connection"):
            download(tmp_path)


PREFIXES = (
    *("date:2026-01-01", "date%3A2026-01-01", "a&b", "a//b", "a/b", ".hidden", "%2Ehidden", "ü é", "100%"),
    *("a%2Fb", "/a", "a#b?c", "a+b", "a b ", "x/../y", "./x", "con", "%63on"),
    *("a.", "*", "[a]", "a\\b", "-rf", "~", "é" * 200, "é" * 201),
)


def path_of(prefix: str) -> BucketPath:
    path = parse_bucket_path(f"s3://{BUCKET}/{prefix}")
    assert path is not None and parse_bucket_path(f"{path}") == parse_bucket_path(f"{path}/") == path, prefix
    return path


def test_each_prefix_by_s3s_rules_has_a_folder_of_its_own_inside_of_its_buckets(tmp_path: Path) -> None:
    folders = [path_of(prefix).folder(tmp_path) for prefix in PREFIXES]
    assert len({str(folder).lower() for folder in folders}) == len(PREFIXES)
    for folder in folders:
        folder.mkdir(parents=True)  # such a name can be
        assert folder.resolve().is_relative_to(tmp_path / "downloads/s3" / BUCKET)


def test_each_prefix_by_s3s_rules_is_asked_for_as_it_is(s3: FakeS3) -> None:
    for prefix in PREFIXES:
        s3.add(prefix, {"config.json": prefix.encode()})
    bucket = source.open_bucket(BUCKET, "", stall_seconds=10)
    for prefix in PREFIXES:
        (file,) = source.list_bucket(dataclasses.replace(bucket, prefix=path_of(prefix).prefix))
        with file.open(0, None) as body:
            assert (file.name, b"".join(body.chunks())) == ("config.json", prefix.encode())


@pytest.mark.parametrize("prefix", ["date:2026-01-01", "a//b", ".hidden & ü%"])
def test_a_prefix_by_s3s_rules_is_found_under_its_name(s3: FakeS3, tmp_path: Path, prefix: str) -> None:
    upload(s3, prefix, bundled_folder("tiny-draft"))
    name, settings = f"s3://{BUCKET}/{prefix}", settings_in(tmp_path)
    path = download(tmp_path, name).path
    assert [resolve(each, settings).path for each in (name, f"{name}/", None)] == [path] * 3


def test_a_model_below_a_prefix_with_a_space_at_its_end_becomes_the_current_one(s3: FakeS3, tmp_path: Path) -> None:
    upload(s3, "a ", bundled_folder("tiny-draft"))
    downloaded = download(tmp_path, f"s3://{BUCKET}/a ")
    assert resolve(None, settings_in(tmp_path)).path == downloaded.path


@pytest.mark.parametrize(
    "name",
    ["s3://", "s3://x", "s3://team/../x", "s3://team/a/../../b", "s3://te am/x", "s3://team/a\nb", "s3://team/\ud800"],
)
def test_a_name_that_is_none_is_a_usage_error(draft: FakeS3, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not a valid S3 path"):
        download(tmp_path, name)


def test_a_prefix_is_a_folder_and_not_the_beginning_of_a_name(draft: FakeS3, tmp_path: Path) -> None:
    draft.add("drafts/one-more", {"config.json": b"{}"})
    draft.client.put_object(Bucket=BUCKET, Key="drafts/one/", Body=b"")  # as consoles mark a folder
    assert {file.name for file in download(tmp_path).files} == {"config.json", "tokenizer.json", WEIGHTS}
    with pytest.raises(NotFoundError, match="no files under this prefix"):
        download(tmp_path, f"s3://{BUCKET}/drafts/on")


def test_too_many_files_are_no_model(draft: FakeS3) -> None:
    bucket = source.open_bucket(BUCKET, "drafts/one/", stall_seconds=10)
    n_files = len(source.list_bucket(bucket))
    assert len(source.list_bucket(bucket, max_files=n_files)) == n_files
    with pytest.raises(UsageError, match=f"more than {n_files - 1} files"):
        source.list_bucket(bucket, max_files=n_files - 1)


def test_a_revision_is_none_of_s3s(draft: FakeS3, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no revisions"):
        download(tmp_path, revision="v1")


def test_without_credentials_it_is_asked_as_nobody(s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.add("drafts/one", FILES, ACL="public-read")
    s3.client.put_bucket_acl(Bucket=BUCKET, ACL="public-read")
    s3.requests.clear()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    download(tmp_path)
    assert {each.authorization for each in s3.requests} == {None}


def test_without_boto3_it_says_the_line_that_installs_it(
    draft: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptfast_cli.core.jobs.origins.find_spec", lambda _: None)
    with pytest.raises(UsageError, match="need boto3") as caught:
        download(tmp_path)
    assert "pip install 'boto3[crt]'" in caught.value.hint


def test_a_plain_folder_takes_it_too(draft: FakeS3, tmp_path: Path) -> None:
    assert download(tmp_path, local_dir=tmp_path / "here").path == tmp_path / "here"
    assert (tmp_path / "here" / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def upload(s3: FakeS3, prefix: str, folder: Path) -> None:
    s3.add(prefix, {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})


def test_a_team_hands_round_its_draft(s3: FakeS3, tmp_path: Path) -> None:
    upload(s3, "drafts/one", bundled_folder("tiny-draft"))
    settings = settings_in(tmp_path)
    with pytest.raises(NotFoundError) as caught:
        resolve(DRAFT, settings)
    assert f"gptfast download {DRAFT}" in caught.value.hint
    downloaded = download(tmp_path)
    assert downloaded.is_current and read_current(settings.home) == DRAFT
    found = [resolve(name, settings) for name in (None, DRAFT, f"{DRAFT}/")]
    assert {each.path for each in found} == {downloaded.path}


@pytest.fixture
def gptfast(s3: FakeS3, tmp_path: Path) -> CommandLine:
    return CommandLine((sys.executable, "-m", "gptfast_cli"), environment_of(tmp_path / "home") | s3.environment)


def test_the_commands_take_its_name(s3: FakeS3, gptfast: CommandLine) -> None:
    upload(s3, "drafts/one", bundled_folder("tiny-draft"))
    lines = [
        ["download", DRAFT, "--dry-run"],
        ["download", DRAFT],
        ["generate", "Once", "-m", "tiny", "--draft", DRAFT, "--max-new-tokens", "8", "--threads", "1"],
        ["quantize", DRAFT, "--no-fidelity", "--threads", "1"],
    ]
    for line in lines:
        outcome = gptfast.run(*line)
        assert outcome.returncode == 0, f"{line}: {outcome.stderr.decode()}"
    assert b"tiny-draft:int8 is now the current model" in outcome.stderr


def test_a_kill_at_nine_tenths_costs_a_tenth(s3: FakeS3, gptfast: CommandLine, tmp_path: Path) -> None:
    files = some_files(4_000_000)
    s3.add("drafts/one", files)
    s3.fail(WEIGHTS, "hold 0.9", "ok")
    with gptfast.start("download", DRAFT) as process:
        assert s3.holding.wait(30)
        wait_for_bytes(tmp_path, 3_600_000 - CHUNK_BYTES)
        process.send_signal(signal.SIGKILL)
    s3.requests.clear()
    outcome = gptfast.run("download", DRAFT)
    assert outcome.returncode == 0, outcome.stderr
    assert (Path(outcome.stdout.decode().strip()) / WEIGHTS).read_bytes() == files[WEIGHTS]
    assert s3.sent_bytes(WEIGHTS) <= 400_000 + CHUNK_BYTES


@pytest.mark.parametrize("value", ["nan", "inf", "abc", "-1", "0", "1e9", "9" * 400])
@pytest.mark.parametrize(
    "variable", ["AWS_METADATA_SERVICE_TIMEOUT", "AWS_METADATA_SERVICE_NUM_ATTEMPTS", "AWS_CSM_PORT"]
)
def test_a_number_for_aws_that_is_none_is_named_by_its_variable(
    draft: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=f"variable {variable} must be a whole number above 0") as caught:
        download(tmp_path)
    assert caught.value.hint == f"unset {variable}"


@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1"])
def test_a_number_of_attempts_is_ours_to_choose_whatever_aws_is_reported(
    draft: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", value)
    assert (download(tmp_path).path / WEIGHTS).read_bytes() == FILES[WEIGHTS]


@pytest.mark.parametrize("variable", ["AWS_RETRY_MODE", "AWS_DEFAULTS_MODE"])
def test_a_mode_that_aws_has_not_is_no_fault_of_credentials(
    draft: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "nosuch")
    with pytest.raises(UsageError, match="AWS settings name") as caught:
        download(tmp_path)
    assert variable in caught.value.hint
