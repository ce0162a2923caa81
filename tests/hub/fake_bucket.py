"""S3 on this machine: moto's server, with a door before it that fails to order."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from hub.failing import FailingServer, spoiled

BUCKET = "team"
KEY_ID = "AKIAOFTHETESTS000000"
SECRET = "SecretOfTheTests0123456789abcdefghijklmn"


@dataclass
class Request:
    """One request, from its arrival on."""

    method: str
    path: str
    query: str
    range: str | None
    authorization: str | None
    n_sent: int = 0


class FakeS3(FailingServer):
    """S3, and the door; a fault is of an object's bytes, its "head" or the "listing"."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        super().__init__(server)
        self.url = f"http://127.0.0.1:{server.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes every AWS tool speak to this server."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @cached_property
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

    def reset(self) -> None:
        """No buckets, no faults."""
        from moto import backends

        self.let_go()
        backends.get_backend("s3").reset()
        self.requests.clear()
        self.faults.clear()

    def _fault_of(self, method: str, path: str) -> str:
        if method not in ("GET", "HEAD"):
            return "ok"
        is_object = path.count("/") > 1
        return self.next_fault("head" if method == "HEAD" else path.rpartition("/")[2] if is_object else "listing")

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        kind, _, argument = self._fault_of(method, path).partition(" ")
        authorization = environ.get("HTTP_AUTHORIZATION")
        request = Request(method, path, environ["QUERY_STRING"], environ.get("HTTP_RANGE"), authorization)
        self.requests.append(request)
        if kind.isdigit():
            code, _, header = argument.partition(" ")
            yield from _refusal(int(kind), code, header, start_response)
            return
        if kind == "no-range":
            environ.pop("HTTP_RANGE", None)
        output: list[Any] = []
        whole = b"".join(self._moto(environ, lambda *answer: output.append(answer)))
        status, headers = output[0][:2]
        body = spoiled(whole, kind)
        length = [("Content-Length", str(len(body)))] if method == "GET" else []
        start_response(status, [each for each in headers if each[0] != "Content-Length" or not length] + length)
        end = int(len(body) * float(argument or 0.5)) if kind in ("cut", "hold") else len(body)
        yield from _counted(body[:end], request)
        if kind == "hold":
            self.hold()
        if end < len(body):
            raise ConnectionAbortedError


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None: ...

    def run_wsgi(self) -> None:
        try:
            super().run_wsgi()
        finally:
            self.close_connection = True  # or a body that was cut would leave its reader waiting


def _counted(body: bytes, request: Request) -> Iterator[bytes]:
    for start in range(0, len(body), 1 << 15):
        request.n_sent += len(body[start : start + (1 << 15)])
        yield body[start : start + (1 << 15)]


def _refusal(status: int, code: str, header: str, start_response: Any) -> Iterable[bytes]:
    """An error as S3 words it; `503 SlowDown Retry-After: 1` has a header too."""
    name, _, value = header.partition(": ")
    start_response(f"{status} no", [("Content-Type", "application/xml"), *([(name, value)] if name else [])])
    yield f"<Error><Code>{code}</Code><Message>{KEY_ID} {SECRET}</Message></Error>".encode()
