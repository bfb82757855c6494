"""The real download, in processes of their own, from a local server with the hub's protocol."""

import hashlib
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmsplat.errors import UserError
from pmsplat.io import weights
from pmsplat.io.weights import Source
from tests.servers import Handler, Server, running

MB = 1_000_000
CHUNK = 10 * 1024 * 1024  # the bytes that the hub's client writes at a time
CONTENT = np.random.default_rng(0).bytes(25 * MB)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
SOURCE = Source("team/models", "a" * 40, "nested/model.pth", DIGEST[:8])
PATH = f"/team/models/resolve/{'a' * 40}/nested/model.pth"
NEWEST_PATH = "/team/models/resolve/main/nested/model.pth"
URL = f"https://huggingface.co{PATH}"


class Hub(Server):
    """Answers for SOURCE as the hub does, with a redirection to a storage on another host, is that
    storage too, serving `content`, and remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.content, self.etag, self.size = CONTENT, DIGEST, len(CONTENT)
        self.status = 200
        self.moved = False  # only the newest revision has the file
        self.cuts = 0  # so many answers break off in the middle
        self.stall: int | None = None  # bytes after which an answer stands still
        self.asked = 0  # requests for SOURCE
        self.ranges: list[str | None] = []  # the Range header of each request to the storage
        self.tokens: dict[str, str | None] = {}  # the last Authorization header, by path


class _Handler(Handler):
    def do_GET(self) -> None:
        hub = self.server
        assert isinstance(hub, Hub)
        hub.tokens[self.path] = self.headers.get("Authorization")
        if self.path == "/storage":
            self._content(hub)
        elif self.path == PATH and hub.moved:
            self.answer(404, X_Error_Code="EntryNotFound")
        elif self.path == (NEWEST_PATH if hub.moved else PATH):
            hub.asked += 1
            self._redirection(hub)
        else:  # the client also asks for news of its own
            self.answer(404)

    def _redirection(self, hub: Hub) -> None:
        if hub.status != 200:
            self.answer(hub.status)
        else:
            self.answer(
                302,
                Location=f"http://localhost:{hub.server_port}/storage",
                ETag='"of-the-redirection"',
                X_Linked_ETag=f'"{hub.etag}"',
                X_Linked_Size=str(hub.size),
                X_Repo_Commit=SOURCE.revision,
            )

    def _content(self, hub: Hub) -> None:
        hub.ranges.append(self.headers.get("Range"))
        start, _ = self.begin(len(hub.content))
        self._send(hub, start)

    def _send(self, hub: Hub, start: int) -> None:
        middle = (start + len(hub.content)) // 2
        if hub.cuts > 0:
            hub.cuts -= 1
            self.wfile.write(hub.content[start:middle])
            self.close_connection = True
        elif hub.stall is not None:
            self.wfile.write(hub.content[start : hub.stall])
            time.sleep(30)
        else:
            self.wfile.write(hub.content[start:])


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub()) as server:
        yield server


processes = multiprocessing.get_context("forkserver")  # forked once torch is imported, so quick
processes.set_forkserver_preload(["pmsplat.io.weights", "pytest", "numpy"])


def work(
    answer: Connection, settings: dict[str, str], limit: int, folder: Path, source: Source
) -> None:
    """Fetches with the hub of `settings`, where no file may grow beyond `limit` bytes."""
    for name in [name for name in os.environ if name.startswith("HF_")]:
        del os.environ[name]
    os.environ.update(settings)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        answer.send(weights.fetch(source, folder))
    except UserError as error:
        answer.send(str(error))


@dataclass(frozen=True)
class Fetching:
    """A process that fetches into `folder`."""

    process: Any
    answer: Connection
    folder: Path

    def result(self) -> Path | str:
        try:
            assert self.answer.poll(60), "no answer"
            return self.answer.recv()
        finally:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.answer.close()


def start(
    folder: Path,
    endpoint: str,
    source: Source = SOURCE,
    limit: int = resource.RLIM_INFINITY,
    **settings: str,
) -> Fetching:
    """Begins to fetch; `endpoint` is what is taken for the hub."""
    settings |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder.parent / "hf")}
    answer, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=work, args=(theirs, settings, limit, folder, source))
    process.start()
    theirs.close()
    return Fetching(process, answer, folder)


def error_of(fetching: Fetching) -> str:
    """The one sentence with which it failed, which always says how to do it by hand."""
    sentence = fetching.result()
    assert isinstance(sentence, str), "it succeeded"
    assert f"put {URL} there by hand" in sentence and "\n" not in sentence
    return sentence


def check_fetched(fetching: Fetching) -> None:
    """It succeeded."""
    path = fetching.folder / "model.pth"
    assert fetching.result() == path
    assert path.read_bytes() == CONTENT
    assert not list(fetching.folder.rglob("*.part"))


def test_a_file_is_downloaded_once(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "pretrained"
    check_fetched(start(folder, hub.address))
    assert hub.ranges == [None]
    before = hub.asked
    check_fetched(start(folder, hub.address))
    assert hub.asked == before


def test_a_file_that_left_its_revision_is_found_in_the_newest(hub: Hub, tmp_path: Path) -> None:
    hub.moved = True
    check_fetched(start(tmp_path, hub.address))
    unknown = Source(SOURCE.repository, SOURCE.revision, SOURCE.file, "")
    assert "no nested/model.pth at revision" in error_of(
        start(tmp_path / "x", hub.address, unknown)
    )


def test_a_token_reaches_the_hub_and_no_other_host(hub: Hub, tmp_path: Path) -> None:
    check_fetched(start(tmp_path, hub.address, HF_TOKEN="hf_secret"))
    assert hub.tokens[PATH] == "Bearer hf_secret" and hub.tokens["/storage"] is None


def test_a_cut_transfer_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.cuts = 1
    folder = tmp_path / "pretrained"
    check_fetched(start(folder, hub.address))
    first, second = hub.ranges
    assert first is None and second == f"bytes={CHUNK}-"


def test_a_killed_download_is_resumed_by_the_next(hub: Hub, tmp_path: Path) -> None:
    hub.stall = 24 * MB
    folder = tmp_path / "pretrained"
    fetching = start(folder, hub.address)
    deadline = time.monotonic() + 40
    while not (parts := [p for p in folder.rglob("*.part") if p.stat().st_size >= CHUNK]):
        assert time.monotonic() < deadline and fetching.process.is_alive()
        time.sleep(0.05)
    fetching.kill()
    assert not (folder / "model.pth").exists()
    kept = parts[0].stat().st_size
    hub.stall = None
    check_fetched(start(folder, hub.address))
    assert hub.ranges == [None, f"bytes={kept}-"]


def test_a_part_longer_than_the_file_is_begun_anew(hub: Hub, tmp_path: Path) -> None:
    part = tmp_path / ".incoming" / f"model.pth.{DIGEST[:16]}.part"
    part.parent.mkdir()
    part.write_bytes(CONTENT + b"more")
    check_fetched(start(tmp_path, hub.address))
    assert hub.ranges == [None]


def test_processes_do_not_harm_each_other(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "pretrained"
    for fetching in [start(folder, hub.address) for _ in range(3)]:
        check_fetched(fetching)
    assert hub.ranges == [None]


def test_a_wrong_file_from_the_hub_is_removed(hub: Hub, tmp_path: Path) -> None:
    hub.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    folder = tmp_path / "pretrained"
    sentence = error_of(start(folder, hub.address))
    assert hashlib.sha256(hub.content).hexdigest()[:16] in sentence and DIGEST[:8] in sentence
    assert [path.suffix for path in folder.rglob("*") if path.is_file()] == [".lock"]
    hub.content = CONTENT
    check_fetched(start(folder, hub.address))
    assert hub.ranges == [None, None]


def test_another_file_under_the_name_is_not_even_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.etag = "0" * 64
    assert "offers a file with SHA-256 0000" in error_of(start(tmp_path, hub.address))
    assert hub.ranges == []


def test_without_a_published_hash_the_hubs_own_counts(hub: Hub, tmp_path: Path) -> None:
    unknown = Source(SOURCE.repository, SOURCE.revision, SOURCE.file, "")
    hub.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    assert "has SHA-256" in error_of(start(tmp_path, hub.address, unknown))
    hub.content = CONTENT
    check_fetched(start(tmp_path, hub.address, unknown))


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, f"team/models has no nested/model.pth at revision {'a' * 40}"),
        (401, "team/models may not be read (status 401;"),
        (403, "team/models may not be read (status 403;"),
        (500, "status 500"),
    ],
)
def test_refusals_are_explained(hub: Hub, tmp_path: Path, status: int, reason: str) -> None:
    hub.status = status
    assert reason in error_of(start(tmp_path, hub.address))


def test_no_connection_is_an_error_within_seconds(hub: Hub, tmp_path: Path) -> None:
    gone = hub.address
    hub.server_close()
    begun = time.monotonic()
    sentence = error_of(start(tmp_path, gone))
    assert "there is no connection to the hub" in sentence and URL in sentence
    sentence = error_of(start(tmp_path, gone, HF_HUB_OFFLINE="1"))
    assert "switched off by HF_HUB_OFFLINE" in sentence and URL in sentence
    assert time.monotonic() - begun < 30


def test_a_full_disk_is_an_error_beforehand(hub: Hub, tmp_path: Path) -> None:
    hub.size = 10**15
    assert "there is no room: it needs 1,000,000,000 MB" in error_of(start(tmp_path, hub.address))
    assert hub.ranges == []


def test_a_disk_that_fills_up_is_an_error_and_the_part_is_kept(hub: Hub, tmp_path: Path) -> None:
    sentence = error_of(start(tmp_path, hub.address, limit=12 * MB))
    assert "there is no room for it" in sentence
    check_fetched(start(tmp_path, hub.address))
    assert hub.ranges == [None, f"bytes={12 * MB}-"]


def test_a_folder_that_cannot_be_written_is_an_error(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    sentence = error_of(start(tmp_path / "file" / "pretrained", hub.address))
    assert "the folder cannot be written (" in sentence


def test_a_file_put_there_by_hand_is_verified_and_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(b"released")
    digest = hashlib.sha256(b"released").hexdigest()
    for known in (digest, digest[:8], ""):
        assert weights.fetch(Source("team/models", "main", "nested/model.pth", known), tmp_path)
    with pytest.raises(UserError, match=f"{path} with SHA-256 {digest[:16]}") as caught:
        weights.fetch(SOURCE, tmp_path)
    assert URL in str(caught.value) and path.read_bytes() == b"released"
