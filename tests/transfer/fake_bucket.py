"""S3 on this machine: moto's server, with a door before it that fails to order."""

import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "team"
KEY_ID = "AKIAOFTHETESTS000000"
SECRET = "SecretOfTheTests0123456789abcdefghijklmn"


@dataclass(frozen=True)
class Request:
    """One request that was answered."""

    method: str
    path: str
    query: str
    range: str | None
    authorization: str | None
    n_sent: int


class FakeS3:
    """The server, and what is asked of it; `faults` are used up one a request, the last one stays."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.holding = threading.Event()
        self.released = threading.Event()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        self._server.daemon_threads = True  # type: ignore[attr-defined]
        self._server.block_on_close = False  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes every AWS tool speak to this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @property
    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
        )

    def add(self, prefix: str, files: Mapping[str, bytes], **options: Any) -> None:
        """Objects below a prefix; options of put_object, such as ChecksumAlgorithm."""
        client = self.client
        client.create_bucket(Bucket=BUCKET)
        for name, content in files.items():
            client.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=content, **options)
        self.requests.clear()

    def fail(self, name: str, *faults: str) -> None:
        """Answer the next requests for this object's bytes, its "head" or the "listing" so; the last one for ever."""
        self.faults[name] = list(faults)

    def sent_bytes(self, name: str) -> int:
        """Bytes of an object's body that went out, in all answers."""
        return sum(each.n_sent for each in self.requests if each.path.endswith(name))

    @contextmanager
    def running(self) -> Iterator["FakeS3"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def reset(self) -> None:
        """No buckets, no faults."""
        from moto import backends

        backends.get_backend("s3").reset()
        self.requests.clear()
        self.faults.clear()
        self.holding.clear()

    def _next_fault(self, method: str, path: str) -> str:
        name = "head" if method == "HEAD" else path.rpartition("/")[2] if path.count("/") > 1 else "listing"
        faults = self.faults[name] or ["ok"]
        return faults.pop(0) if len(faults) > 1 else faults[0]

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        fault = self._next_fault(method, path) if method in ("GET", "HEAD") else "ok"
        kind, _, argument = fault.partition(" ")
        sent = [0]
        try:
            if kind.isdigit():
                code, _, header = argument.partition(" ")
                yield from _refusal(int(kind), code, header, start_response)
                return
            if kind == "no-range":
                environ.pop("HTTP_RANGE", None)
            told: list[Any] = []
            whole = b"".join(self._moto(environ, lambda *answer: told.append(answer)))
            status, headers = told[0][:2]
            body = _spoiled(whole, kind)
            length = [("Content-Length", str(len(body)))] if method == "GET" else []
            start_response(status, [each for each in headers if each[0] != "Content-Length" or not length] + length)
            end = int(len(body) * float(argument or 0.5)) if kind in ("cut", "hold") else len(body)
            yield from _counted(body[:end], sent)
            if kind == "hold":
                self.holding.set()
                self.released.wait(20)
            if end < len(body):
                raise ConnectionAbortedError
        finally:
            authorization = environ.get("HTTP_AUTHORIZATION")
            self.requests.append(
                Request(method, path, environ["QUERY_STRING"], environ.get("HTTP_RANGE"), authorization, sent[0])
            )


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None: ...

    def run_wsgi(self) -> None:
        try:
            super().run_wsgi()
        finally:
            self.close_connection = True  # or a body that was cut would leave its reader waiting


def _counted(body: bytes, sent: list[int]) -> Iterator[bytes]:
    for start in range(0, len(body), 1 << 15):
        sent[0] += len(body[start : start + (1 << 15)])
        yield body[start : start + (1 << 15)]


def _spoiled(body: bytes, kind: str) -> bytes:
    match kind:
        case "short":
            return body[:-1]
        case "long":
            return body + b"more"
        case "corrupt":
            return body[:-1] + bytes([body[-1] ^ 1])
        case _:
            return body


def _refusal(status: int, code: str, header: str, start_response: Any) -> Iterable[bytes]:
    """An error as S3 words it; `503 SlowDown Retry-After: 1` has a header too."""
    name, _, value = header.partition(": ")
    start_response(f"{status} no", [("Content-Type", "application/xml"), *([(name, value)] if name else [])])
    yield f"<Error><Code>{code}</Code><Message>{KEY_ID} {SECRET}</Message></Error>".encode()
