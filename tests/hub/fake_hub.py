"""A Hub on this machine: lists repositories, redirects large files to storage on another origin, and fails to order."""

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hub.failing import FailingServer, spoiled

LARGE_BYTES = 20_000  # from here on a file is kept by its SHA-256, as git LFS does
TOKEN = "hf_SecretOfTheTests0123456789"


@dataclass
class Repo:
    """One repository; `gated` lets nobody have its files, `private` shows it to those with the token.

    only_in_xet: files that Xet storage alone has
    """

    files: dict[str, bytes]
    commit: str
    gated: bool = False
    private: bool = False
    only_in_xet: frozenset[str] = frozenset()
    revisions: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """One request, from its arrival on."""

    method: str
    path: str
    host: str
    range: str | None
    token: str | None
    n_sent: int = 0


class FakeHub(FailingServer):
    """The Hub, and what it holds."""

    def __init__(self) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that leave are the rule here
        super().__init__(server)
        self.repos: dict[str, Repo] = {}
        self.served_at_once = 0
        self.most_at_once = 0
        self.seconds_per_file = 0.0
        self.link_form = "absolute"  # of the address of the next page; or its "path", or its "query" alone
        self.counting = threading.Lock()
        self.port = server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def add(self, repo: str, files: Mapping[str, bytes], **options: Any) -> Repo:
        """A repository, or its next commit."""
        contents = json.dumps({name: hashlib.sha1(content).hexdigest() for name, content in files.items()})
        commit = hashlib.sha1(contents.encode()).hexdigest()
        self.repos[repo] = Repo(dict(files), commit, **options)
        return self.repos[repo]


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        self._with_body = with_body
        path, _, query = self.path.partition("?")
        self._request = Request(
            self.command,
            urllib.parse.unquote(path),
            self.headers["Host"],
            self.headers["Range"],
            self.headers["Authorization"],
        )
        self.hub.requests.append(self._request)
        parts = path.strip("/").split("/")
        try:
            if parts[0] == "api":
                self._listing("/".join(parts[2:4]), parts[4:], query)
            elif parts[0] == "storage":
                self._storage("/".join(parts[1:3]), urllib.parse.unquote("/".join(parts[3:])))
            else:
                self._resolve("/".join(parts[:2]), urllib.parse.unquote("/".join(parts[4:])))
        finally:
            self.wfile.flush()

    def _listing(self, name: str, rest: list[str], query: str) -> None:
        fault = self.hub.next_fault("listing")
        if fault != "ok":
            self._refuse(fault)
            return
        repo = self.hub.repos.get(name)
        authorized = self.headers["Authorization"] == f"Bearer {TOKEN}"
        if self.headers["Authorization"] and not authorized:
            self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo is None or (repo.private and not authorized):
            status = 404 if authorized else 401
            self._send(status, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif rest and urllib.parse.unquote(rest[1]) not in {"main", repo.commit, *repo.revisions}:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif rest[:1] == ["tree"]:
            self._page(
                [_entry(each, content, is_in_xet=each in repo.only_in_xet) for each, content in repo.files.items()],
                query,
            )
        else:
            siblings = [{"rfilename": each} for each in repo.files]
            self._send_json({"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings, "tags": []})

    def _page(self, entries: list[dict[str, object]], query: str) -> None:
        """Two entries, and a link to the rest."""
        start = int(dict(urllib.parse.parse_qsl(query)).get("cursor", 0))
        address = self.path.partition("?")[0] + f"?recursive=true&cursor={start + 2}"
        address = {"absolute": self.hub.url + address, "path": address, "query": "?" + address.partition("?")[2]}[
            self.hub.link_form
        ]
        headers = {"Link": f'<{address}>; rel="next"'} if start + 2 < len(entries) else {}
        self._send(200, json.dumps(entries[start : start + 2]).encode(), headers)

    def _resolve(self, name: str, file: str) -> None:
        repo = self.hub.repos[name]
        content = repo.files.get(file)
        if repo.gated:
            status = 403 if self.headers["Authorization"] else 401
            self._send(status, b"Access is restricted", {"X-Error-Code": "GatedRepo"})
        elif content is None:
            self._send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
        elif len(content) >= LARGE_BYTES:
            headers = {
                "X-Repo-Commit": repo.commit,
                "X-Linked-Etag": f'"{sha256(content)}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"http://localhost:{self.hub.port}/storage/{name}/{urllib.parse.quote(file)}?signature=x",
            }
            self._send(302, b"", headers)
        else:
            self._send_file(file, content, git_sha1(content), {"X-Repo-Commit": repo.commit})

    def _storage(self, name: str, file: str) -> None:
        content = self.hub.repos[name].files[file]
        self._send_file(file, content, hashlib.md5(content).hexdigest(), {})

    def _send_file(self, file: str, content: bytes, etag: str, headers: dict[str, str]) -> None:
        if not self._with_body:
            self._send(200, content, {**headers, "ETag": f'"{etag}"'})
            return
        with self.hub.counting:
            self.hub.served_at_once += 1
            self.hub.most_at_once = max(self.hub.most_at_once, self.hub.served_at_once)
        try:
            if self.hub.seconds_per_file:
                self.hub.released.wait(self.hub.seconds_per_file)
            self._send_with_fault(self.hub.next_fault(file), content, etag, headers)
        finally:
            with self.hub.counting:
                self.hub.served_at_once -= 1

    def _send_with_fault(self, fault: str, content: bytes, etag: str, headers: dict[str, str]) -> None:
        kind, _, argument = fault.partition(" ")
        if kind.isdigit():
            self._refuse(fault)
            return
        etag = f'"{etag}{"-later" if kind == "changed" else ""}"'
        content = spoiled(content, kind)
        start = 0
        if self.headers["Range"] and kind != "no-range" and self.headers.get("If-Range", etag) == etag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        status = 206 if start else 200
        if start:
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        body = content[start:]
        self._begin(status, len(body), {**headers, "ETag": etag, "Accept-Ranges": "bytes"})
        stop_at = int(len(content) * float(argument)) - start if argument else len(body) // 2
        if kind == "cut":
            self._write(body[:stop_at])
            self.close_connection = True
        elif kind == "hold":  # sends some, and then nothing
            self._write(body[:stop_at])
            self.hub.hold()
            self.close_connection = True
        else:
            self._write(body)

    def _refuse(self, fault: str) -> None:
        """A status, and headers after it: `429 Retry-After: 1`."""
        status, _, header = fault.partition(" ")
        name, _, value = header.partition(": ")
        self._send(int(status), b"<html>no</html>", {name: value} if name else {})

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: Mapping[str, str]) -> None:
        self._begin(status, len(content), headers)
        self._write(content)

    def _begin(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, content: bytes) -> None:
        if self._with_body:
            for start in range(0, len(content), 1 << 15):
                self._request.n_sent += len(content[start : start + (1 << 15)])
                self.wfile.write(content[start : start + (1 << 15)])
                self.wfile.flush()


def _entry(name: str, content: bytes, *, is_in_xet: bool) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
    if len(content) >= LARGE_BYTES:
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    if is_in_xet:
        entry["xetHash"] = sha256(content)
    return entry
