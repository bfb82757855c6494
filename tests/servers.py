"""Small web servers for tests of what reads from a network: ranges, and a store of objects."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar
from urllib.parse import unquote, urlsplit

S = TypeVar("S", bound="Server")


class Server(ThreadingHTTPServer):
    """A server on a free port of this machine."""

    daemon_threads = True

    def __init__(self, handler: type["Handler"]) -> None:
        super().__init__(("127.0.0.1", 0), handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running(server: S) -> Iterator[S]:
    """The server, answering until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """Answers requests, and says nothing of them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        """There is nothing."""
        self.answer(404)

    @property
    def place(self) -> str:
        """What is asked for."""
        return unquote(urlsplit(self.path).path)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """The head of an answer, and its body where one is wanted; `_` in names stands for `-`."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin(self, size: int, **headers: str) -> tuple[int, int]:
        """The head of an answer with a file; which of its bytes are to follow."""
        wanted, start, end = self.headers.get("Range"), 0, size
        if wanted and self.command != "HEAD":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1, size) if last else size
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self.send_response(206 if "Content-Range" in headers else 200)
        for name, value in {"Content-Length": str(end - start), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        return (0, 0) if self.command == "HEAD" else (start, end)


class Store(Server):
    """Objects by path, with ETags; what was asked for is counted."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        super().__init__(_StoreHandler)
        self.contents = contents
        self.status = 200  # of every answer
        self.delay = 0.0  # seconds until an answer begins
        self.requests: Counter[str] = Counter()
        self.bytes = 0


class _StoreHandler(Handler):
    def do_GET(self) -> None:
        store = self.server
        assert isinstance(store, Store)
        time.sleep(store.delay)
        store.requests[self.place] += 1
        content = store.contents.get(self.place)
        if store.status != 200 or content is None:
            self.answer(404 if store.status == 200 else store.status)
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        if self.headers.get("If-Match", tag) != tag:
            self.answer(412)
            return
        start, end = self.begin(len(content), ETag=tag, **{"Last-Modified": _TIME})
        store.bytes += end - start
        self.wfile.write(content[start:end])


_TIME = "Fri, 27 Nov 2026 12:00:00 GMT"
