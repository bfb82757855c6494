"""Files of tensors on a disk that is full: the error is that of every other writer."""

import errno
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from pmsplat.io.files import atomic
from pmsplat.io.tensors import save_safetensors, save_torch

TENSORS = {"a": torch.zeros(100_000)}


@pytest.mark.parametrize(
    "save", [partial(save_torch, TENSORS), partial(save_safetensors, TENSORS, header={})]
)
def test_a_file_that_cannot_be_whole_is_an_error_of_the_system(
    save: Callable[..., None], tmp_path: Path
) -> None:
    """A limit on the size of files, which the system meets as it does the end of a disk."""
    path, before = tmp_path / "x", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            save(path=path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
    save(path=path)
    assert path.stat().st_size > 400_000


def test_other_errors_are_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_torch({}, tmp_path / "nowhere" / "x")
    with pytest.raises((AttributeError, TypeError), match="pickle"):
        save_torch(lambda: None, tmp_path / "x")


def test_the_file_that_is_wanted_is_named(tmp_path: Path) -> None:
    """Not the temporary one, and not none, which is what `write` of a file says."""
    path, before = tmp_path / "x", resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in (lambda part: part.write_bytes(bytes(200_000)), partial(save_torch, TENSORS)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            with pytest.raises(OSError) as caught, atomic(path) as temporary:
                write(temporary)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert caught.value.filename == str(path) and not list(tmp_path.iterdir())
