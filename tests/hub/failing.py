"""What the servers of the tests have in common: they fail to order, and remember what they were asked."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self


class FailingServer:
    """A server, and what is asked of it; `faults` are used up one a request, the last one stays."""

    def __init__(self, server: Any) -> None:
        self.requests: list[Any] = []  # each with its `path`, and `n_sent` bytes of a body
        self.faults: dict[str, list[str]] = defaultdict(list)
        self.holding = threading.Event()
        self.released = threading.Event()
        self._server = server
        server.daemon_threads = True
        server.block_on_close = False

    def fail(self, name: str, *faults: str) -> None:
        """Answer the next requests for this file, or for "listing", so; the last of them for ever, unless it is ok."""
        self.faults[name] = list(faults)

    def next_fault(self, name: str) -> str:
        faults = self.faults[name] or ["ok"]
        return faults.pop(0) if len(faults) > 1 else faults[0]

    def sent_bytes(self, name: str) -> int:
        """Bytes of a file's body that went out, in all answers."""
        return sum(each.n_sent for each in self.requests if each.path.endswith(name))

    def hold(self) -> None:
        """Fall silent in the middle of an answer."""
        self.holding.set()
        self.released.wait(20)

    def let_go(self) -> None:
        """End what is held, so that nothing of it is left for the next test."""
        self.released.set()
        self.holding, self.released = threading.Event(), threading.Event()

    @contextmanager
    def running(self) -> Iterator[Self]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def spoiled(content: bytes, kind: str) -> bytes:
    """A body as a fault of that kind leaves it."""
    match kind:
        case "short":
            return content[:-1]
        case "long":
            return content + b"more"
        case "corrupt":
            return content[:-1] + bytes([content[-1] ^ 1])
        case _:
            return content
