"""Locks between processes, and what those that were killed leave."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pmsplat.io.files import locked, temporary_folder


def test_a_lock_keeps_others_out_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with pytest.raises(KeyError), locked(path):
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise KeyError
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_where_no_file_can_be_the_block_runs_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with locked(tmp_path / "file" / "lock") as nothing:
        assert nothing is None


def test_what_a_killed_process_left_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not what a process that lives has, nor what a link of that name leads to."""
    program = (
        "import os, signal, sys\n"
        "from pmsplat.io.files import temporary_folder\n"
        "with temporary_folder('pmsplat-test-') as folder:\n"
        "    (folder / 'photo.jpg').write_bytes(b'private')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    kept = tmp_path / "elsewhere"
    kept.mkdir()
    (kept / "mine").touch()
    (tmp_path / "pmsplat-test-link").symlink_to(kept)
    with temporary_folder("pmsplat-test-") as first:
        assert not left.exists() and (kept / "mine").exists()
        with temporary_folder("pmsplat-test-") as second:
            assert first.is_dir() and second.is_dir() and first != second
    assert not first.exists() and not second.exists()
