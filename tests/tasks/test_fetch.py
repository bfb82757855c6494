"""`pmsplat data fetch`, in processes of their own, from a local server with the hub's protocol."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from pmsplat.tasks.fetch import HUB, OTHERS
from tests.servers import Handler, Server, running

COMMIT = "c" * 40
MB = 1_000_000
JSON = {"Content_Type": "application/json"}
REPOSITORY = HUB["acid"].repository
CONTENTS = {
    ".gitattributes": b"*.torch lfs",
    "README.md": b"# ACID",
    "test/000000.torch": np.random.default_rng(0).bytes(25 * MB),
    "test/index.json": b'{"a": "000000.torch"}',
    "train/000000.torch": np.random.default_rng(1).bytes(3 * MB),
    "train/000001.torch": np.random.default_rng(2).bytes(2 * MB),
    "train/index.json": b'{"b": "000000.torch", "c": "000001.torch"}',
}


def blob(content: bytes) -> str:
    """As `git hash-object` prints it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class State:
    """What the server offers, and what it was asked for."""

    contents: dict[str, bytes] = field(default_factory=lambda: dict(CONTENTS))
    sizes: dict[str, int] = field(default_factory=dict)  # that it states instead of the true ones
    status: int = 200
    stall: int | None = None  # bytes of a large file after which an answer stands still
    sent: Counter[str] = field(default_factory=Counter)  # requests by file
    ranges: dict[str, str] = field(default_factory=dict)


class Hub(Server):
    def __init__(self) -> None:
        super().__init__(HubHandler)
        self.state = State()


class HubHandler(Handler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Hub)
        state, path = self.server.state, self.place
        if state.status != 200:
            self.answer(state.status, b"{}")
        elif re.fullmatch(f"/api/datasets/{REPOSITORY}(/revision/main)?", path):
            self.answer(200, json.dumps({"id": REPOSITORY, "sha": COMMIT}).encode(), **JSON)
        elif path == f"/api/datasets/{REPOSITORY}/tree/{COMMIT}":
            self.answer(200, json.dumps(self._tree(state)).encode(), **JSON)
        elif path.startswith(start := f"/datasets/{REPOSITORY}/resolve/{COMMIT}/"):
            self._file(state, path.removeprefix(start))
        else:
            self.answer(404, b"{}")

    def _tree(self, state: State) -> list[dict]:
        entries: list[dict] = [{"type": "directory", "path": "test", "oid": "d" * 40, "size": 0}]
        for path, content in CONTENTS.items():
            size = state.sizes.get(path, len(content))
            entry = {"type": "file", "path": path, "size": size, "oid": blob(content)}
            if path.endswith(".torch"):
                digest = hashlib.sha256(content).hexdigest()
                entry |= {"lfs": {"oid": digest, "size": size, "pointerSize": 134}}
                entry |= {"oid": blob(b"a pointer")}
            entries.append(entry)
        return entries

    def _file(self, state: State, path: str) -> None:
        content, wanted = state.contents[path], self.headers.get("Range")
        state.sent[path] += 1
        if wanted:
            state.ranges[path] = wanted
        start, end = self.begin(len(content))
        if state.stall is not None and len(content) > state.stall:
            self.wfile.write(content[start : state.stall])
            time.sleep(30)
        else:
            self.wfile.write(content[start:end])


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub()) as server:
        yield server


def start(hub: Hub | str, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    """Begins `pmsplat data fetch` with the server, or an address, as the hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    kept |= {"HF_ENDPOINT": hub if isinstance(hub, str) else hub.address, **settings}
    kept |= {"HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "pmsplat", "data", "fetch", *arguments]
    return subprocess.Popen(
        command, env=kept, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(hub: Hub | str, *arguments: str, **settings: str) -> tuple[int, str]:
    """The exit code, and all that was said."""
    process = start(hub, *arguments, **settings)
    out, err = process.communicate(timeout=90)
    return process.returncode, out + err


def files(folder: Path) -> dict[str, bytes]:
    """Every file that is not the client's lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_a_data_set_is_fetched_once(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "acid"
    code, said = run(hub, "acid", "--output", str(folder))
    assert code == 0, said
    wanted = {path: content for path, content in CONTENTS.items() if path != ".gitattributes"}
    assert files(folder) == wanted
    assert f"{REPOSITORY}: 6 files of 30.0 MB, 0.0 MB of which" in said
    assert "30.0 MB to download" in said and "6 files fetched, 0 there before" in said
    assert "Ready: test, train." in said
    before = hub.state.sent.total()
    code, said = run(hub, "acid", "--output", str(folder))
    assert code == 0 and "0 files fetched, 6 there before" in said
    assert hub.state.sent.total() == before


@pytest.mark.slow
def test_a_subset_is_a_folder_or_a_pattern(hub: Hub, tmp_path: Path) -> None:
    options = ("--output", str(tmp_path), "--subset", "train/*1.torch", "--subset", "test/")
    code, said = run(hub, "acid", *options, "--transfers", "1")
    assert code == 0, said
    assert list(sorted(files(tmp_path))) == [
        "test/000000.torch",
        "test/index.json",
        "train/000001.torch",
    ]
    code, said = run(hub, "acid", "--output", str(tmp_path), "--subset", "validation")
    assert code == 2
    assert "--subset validation, which no file" in said and "README.md, test, train" in said


def test_a_killed_run_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.state.stall = 24 * MB
    process = start(hub, "acid", "--output", str(tmp_path))
    deadline, large = time.monotonic() + 60, "test/000000.torch"

    def parts() -> list[Path]:
        return [p for p in tmp_path.rglob("*.part") if p.stat().st_size >= 10 * MB]

    while not (parts() and (tmp_path / "train" / "index.json").is_file()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / large).exists()
    kept, hub.state.stall = parts()[0].stat().st_size, None
    before = Counter(hub.state.sent)
    code, said = run(hub, "acid", "--output", str(tmp_path))
    assert code == 0, said
    assert hub.state.ranges[large] == f"bytes={kept}-"
    assert hub.state.sent["train/index.json"] == before["train/index.json"]
    assert files(tmp_path)[large] == CONTENTS[large]


def test_an_interrupted_run_ends_soon_and_keeps_its_parts(hub: Hub, tmp_path: Path) -> None:
    """Where the server says nothing more, the client's own five attempts have to end."""
    hub.state.stall = 24 * MB
    process = start(hub, "acid", "--output", str(tmp_path), HF_HUB_DOWNLOAD_TIMEOUT="2")
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.part")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    begun = time.monotonic()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in said
    assert time.monotonic() - begun < 45


@pytest.mark.parametrize("path", ["train/000001.torch", "train/index.json"])
def test_a_file_with_another_hash_gets_no_name(hub: Hub, tmp_path: Path, path: str) -> None:
    right = CONTENTS[path]
    hub.state.contents[path] = right[:-1] + bytes([right[-1] ^ 1])
    code, said = run(hub, "acid", "--output", str(tmp_path), "--subset", "train")
    assert code == 2 and f"{path} has hash" in said
    assert path not in files(tmp_path)
    assert not list(tmp_path.rglob(f"{Path(path).name}.*.part"))  # others may have been stopped
    hub.state.contents[path] = right
    assert run(hub, "acid", "--output", str(tmp_path), "--subset", "train")[0] == 0
    assert files(tmp_path)[path] == right


def test_a_full_disk_is_said_before_the_first_byte(hub: Hub, tmp_path: Path) -> None:
    hub.state.sizes["test/000000.torch"] = 10**15
    code, said = run(hub, "acid", "--output", str(tmp_path / "new"))
    assert code == 2 and "1,000,000.0 GB to download" in said
    assert "choose an --output on a larger disk, or only a --subset" in said
    assert not hub.state.sent and not (tmp_path / "new").exists()


@pytest.mark.slow  # five processes
def test_what_stops_a_download_is_one_sentence(hub: Hub, tmp_path: Path) -> None:
    output = ("--output", str(tmp_path))
    for status, reason in ((404, "has no"), (401, "set HF_TOKEN"), (503, "status 503")):
        hub.state.status = status
        code, said = run(hub, "acid", *output)
        assert code == 2 and reason in said and "Traceback" not in said
    gone = hub.address
    hub.server_close()
    code, said = run(gone, "acid", *output)
    assert code == 2 and "there is no connection to the hub" in said and REPOSITORY in said
    code, said = run(gone, "acid", *output, HF_HUB_OFFLINE="1")
    assert code == 2 and "switched off by HF_HUB_OFFLINE" in said
    assert not files(tmp_path)


@pytest.mark.parametrize("name", OTHERS)
def test_of_other_data_sets_it_says_where_they_are(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from pmsplat.cli import main

    assert main(["data", "fetch", name]) == 2
    said = capsys.readouterr().err
    assert "wanted one of re10k, acid, dl3dv-480p, dl3dv-960p" in said
    assert OTHERS[name].source in said and "pmsplat data convert" in said


def test_a_name_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from pmsplat.cli import main

    assert main(["data", "fetch", "dl3dv"]) == 2
    assert "did you mean 'dl3dv-" in capsys.readouterr().err
