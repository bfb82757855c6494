"""Scenes of a split by key, and their cached pointmaps."""

from collections import OrderedDict

from ..errors import UserError
from ..io.chunks import INDEX, Chunk, ChunkScene, Split, Unreachable
from ..types import Pointmap
from ._batches import Damaged, DamagedChunk
from ._pointmaps import CacheReader, PointmapCache
from ._windows import Snapped

OPEN = 16  # chunks that one process keeps open: their tables, not their photographs


class SceneLoader:
    """Scenes of a split; the OPEN chunks read last stay open."""

    def __init__(self, split: Split) -> None:
        self.split, self.quarantine = split, split.quarantine()
        self.chunks: OrderedDict[str, Chunk | UserError] = OrderedDict()
        self.reader: CacheReader | None = None

    def scene(self, name: str, key: str) -> ChunkScene:
        """Raises Damaged for a scene that cannot be read, or that a quarantine names."""
        if name in self.quarantine.chunks:
            raise DamagedChunk(self.quarantine.chunks[name])
        if key in self.quarantine.scenes:
            raise Damaged(self.quarantine.scenes[key])
        chunk = self._open(name)
        if isinstance(chunk, UserError):
            raise DamagedChunk(chunk.got) from chunk
        if key in chunk.faults:
            raise Damaged(chunk.faults[key])
        if key not in chunk.scenes:
            raise Damaged(f"no entry in its chunk, where {INDEX} says that it is")
        return chunk.scenes[key]

    def _open(self, name: str) -> Chunk | UserError:
        """A chunk, or why it cannot be read; raises Unreachable where that is not its fault."""
        if name not in self.chunks:
            try:
                self.chunks[name] = self.split.open(name)
            except Unreachable:
                raise
            except UserError as error:
                self.chunks[name] = error
            if len(self.chunks) > OPEN:
                self.chunks.popitem(last=False)
        self.chunks.move_to_end(name)
        return self.chunks[name]

    def pointmap(self, cache: PointmapCache, chunk: str, key: str, snapped: Snapped) -> Pointmap:
        """A teacher's pointmap of a scene."""
        if self.reader is None:
            self.reader = cache.reader()
        return self.reader.read(self.split.folder / chunk, key, snapped)
