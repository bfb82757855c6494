"""What is read when: item number -> scene, over all epochs, ranks and workers."""

import hashlib
import os
from collections.abc import Iterator

import torch
from torch.utils.data import get_worker_info

from ..errors import UserError
from ..io.chunks import Split


class Order:
    """What is read: item number -> (chunk, scene key), for ever, epoch after epoch."""

    def __init__(self, split: Split, seed: int) -> None:
        self.split, self.seed = split, seed
        self.scenes = sum(map(len, split.keys.values()))
        self._number = -1
        self._places: list[tuple[str, str]] = []

    def following(self, item: int) -> Iterator[tuple[str, str]]:
        """The place of an item, then all those after it, around the epoch, once each."""
        epoch, offset = divmod(item, self.scenes)
        if epoch != self._number:
            self._number, self._places = epoch, self._epoch(epoch)
        for i in range(self.scenes):
            yield self._places[(offset + i) % self.scenes]

    def _epoch(self, epoch: int) -> list[tuple[str, str]]:
        generator = make_generator(self.seed, "epoch", epoch)
        chunks = list(self.split.keys)
        order = []
        for c in torch.randperm(len(chunks), generator=generator).tolist():
            keys = self.split.keys[chunks[c]]
            shuffled = torch.randperm(len(keys), generator=generator).tolist()
            order += [(chunks[c], keys[k]) for k in shuffled]
        return order


def rank_of_ranks() -> tuple[int, int]:
    """(rank, number of ranks) of this process; UserError where torchrun's variables are invalid."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    rank, ranks = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not rank.isdecimal() or not ranks.isdecimal() or not int(rank) < int(ranks):
        raise UserError(
            f"RANK={rank} and WORLD_SIZE={ranks} in the environment",
            "a number below that of the processes",
            "start them with torchrun, or unset both",
        )
    return int(rank), int(ranks)


def worker_of_workers() -> tuple[int, int]:
    """(number, how many) of this process among those that load data for one."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)


def make_generator(*words: int | str) -> torch.Generator:
    """A generator that depends on the words alone."""
    digest = hashlib.blake2b("/".join(map(str, words)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))
