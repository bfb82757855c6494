"""Locks between processes."""

import fcntl
from pathlib import Path

import pytest

from pmsplat.io.files import locked


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
