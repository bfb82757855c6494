"""What follows for each scene from what was found out about all chunks of a split."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ...data import ChunkFacts, SceneFacts, share_photos
from ...errors import UserError
from ...io.chunks import INDEX, Quarantine, check_new

_PREFIXED = re.compile(r"(.*?)[0-9a-f]{16,}")  # a key that ends in a hash, as the published do
_COPY = "its key occurs again in another chunk, and that scene is not used"
_UNNAMED = f"a scene that {INDEX} does not name"  # and so leaves out


@dataclass(frozen=True)
class Row:
    """One kind of trouble: the scenes that have it, by key, or the chunks, by file.

    `scenes` counts the scenes, None where nobody knows how many a chunk had; `used` says whether
    training uses them nevertheless.
    """

    reason: str
    names: tuple[str, ...]
    scenes: int | None
    used: bool


@dataclass(frozen=True)
class Verified:
    """A split that was looked at.

    `rows` name every trouble once; the scenes of those that are not used and `whole` add up to
    `scenes`. `indexed`: it has an index.json. `found` counts chunks that an earlier run had looked
    at and that have not changed.
    """

    folder: Path
    chunks: int
    scenes: int
    whole: int
    photos: int
    sizes: dict[tuple[int, int], int]
    rows: tuple[Row, ...]
    quarantine: Quarantine
    indexed: bool
    found: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether there is an index, and every scene can be used."""
        return self.indexed and all(row.used for row in self.rows)


class Ledger:
    """All that was found out about a split, and what follows from it for each scene."""

    def __init__(self, folder: Path, facts: dict[str, ChunkFacts]) -> None:
        self.folder, self.facts = folder, facts
        self.notes: list[str] = []
        self.index = self._read_index()
        self.chunks: dict[str, tuple[str, str]] = {}  # fault and detail of those ruled out
        self.scenes: dict[str, SceneFacts] = {}
        self.remarks: dict[str, list[str]] = defaultdict(list)  # keys by remark
        self._add_chunks()
        self._add_scenes()
        self._compare_photos()
        self._compare_sizes()
        self._compare_prefixes()

    @property
    def usable(self) -> dict[str, SceneFacts]:
        """The scenes without a fault."""
        return {key: scene for key, scene in self.scenes.items() if not scene.fault}

    def _read_index(self) -> dict[str, str]:
        try:
            index = {key: str(name) for key, name in check_new(self.folder, []).items()}
        except UserError as error:
            self.notes.append(f"{error.got}.")
            return {}
        if not index:
            self.notes.append(f"There is no {self.folder / INDEX}, which training needs.")
        return index

    def _add_chunks(self) -> None:
        for name, facts in self.facts.items():
            if facts.fault:
                self.chunks[name] = facts.fault, facts.detail
            if facts.nameless:
                entries = "entry" if facts.nameless == 1 else "entries"
                self.notes.append(f"{name} has {facts.nameless} {entries} without a key.")
        for name in sorted({*self.index.values()} - {*self.facts}):
            self.chunks[name] = f"a chunk that is missing, though {INDEX} names it", ""

    def _add_scenes(self) -> None:
        """Every scene once: of several with one key that in the chunk of the index, or the first.

        Those of chunks that are ruled out are not among them.
        """
        found: dict[str, dict[str, SceneFacts]] = defaultdict(dict)
        for name, facts in self.facts.items():
            for scene in facts.scenes:
                found[scene.key][name] = scene
        for key in dict.fromkeys([*self.index, *found]):
            copies, home = found.get(key, {}), self.index.get(key)
            if home is not None and home in self.chunks:
                continue
            if home is not None and home not in copies:
                self.scenes[key] = self._explain_absence(key, home, list(copies))
            else:
                scene = next(iter(copies.values())) if home is None else copies[home]
                unnamed = self.index and home is None
                self.scenes[key] = _with_fault(scene, _UNNAMED) if unnamed else scene
            if len(copies) > 1:
                self.remarks[_COPY].append(key)

    def _explain_absence(self, key: str, home: str, others: list[str]) -> SceneFacts:
        """A scene of the index that is not in its chunk, with where it is, if that is known."""
        there = (scene.key for scene in self.facts[home].scenes)
        similar = next((k for k in there if k.endswith(key) or key.endswith(k)), None)
        detail = f"{home} has {similar!r}" if similar else f"not in {home}"
        return SceneFacts(
            key,
            fault=f"a scene that its chunk lacks, though {INDEX} names it",
            detail=f"it is in {others[0]}, not in {home}" if others else detail,
        )

    def _compare_photos(self) -> None:
        owners: dict[str, list[str]] = defaultdict(list)
        for key, scene in self.usable.items():
            first = _find_twin(scene, owners, self.scenes)
            if first is not None:
                fault = "the same photographs as another scene"
                self.scenes[key] = _with_fault(scene, fault, first)
                continue
            for photo in scene.sketch:
                owners[photo].append(key)

    def _compare_sizes(self) -> None:
        sizes = self.sizes
        if len(sizes) > 1:
            most = max(sizes, key=lambda size: sizes[size])
            for key, scene in self.usable.items():
                if scene.size is not None and scene.size != most:
                    (h, w), (height, width) = scene.size, most
                    reason = f"photos of {h}x{w}, where most scenes have {height}x{width}"
                    self.remarks[reason].append(key)

    def _compare_prefixes(self) -> None:
        found = {key: hit[1] for key in self.usable if (hit := _PREFIXED.fullmatch(key))}
        counts = Counter(found.values()).most_common()
        if len(counts) == 1 and counts[0][0]:
            self.notes.append(
                f"All keys begin with {counts[0][0]!r}: an evaluation index must have it too."
            )
        for key, prefix in found.items():
            if prefix != counts[0][0]:
                begins = f"a key that begins with {prefix!r}" if prefix else "a key without prefix"
                self.remarks[f"{begins}, unlike most"].append(key)

    def compare_splits(self, others: dict[str, dict[str, SceneFacts]]) -> None:
        """Adds remarks about scenes that other splits of the dataset have as well."""
        for split, scenes in others.items():
            owners: dict[str, list[str]] = defaultdict(list)
            for key, scene in scenes.items():
                for photo in scene.sketch:
                    owners[photo].append(key)
            for key, scene in self.usable.items():
                if _find_twin(scene, owners, scenes) is not None:
                    self.remarks[f"the same photographs as a scene of {split}"].append(key)
                elif key in scenes:
                    self.remarks[f"the key of another scene of {split}"].append(key)

    @property
    def sizes(self) -> Counter[tuple[int, int]]:
        """How many usable scenes have photos of each size, most first."""
        counts = Counter(scene.size for scene in self.usable.values() if scene.size is not None)
        return Counter(dict(counts.most_common()))

    def summarize(self, found: int) -> Verified:
        """The result, with every trouble as one row."""
        usable = self.usable
        lost = [key for key, name in self.index.items() if name in self.chunks]
        return Verified(
            folder=self.folder,
            chunks=len(self.facts),
            scenes=len(self.scenes) + len(lost),
            whole=len(usable),
            photos=sum(scene.frames for scene in usable.values()),
            sizes=self.sizes,
            rows=tuple(self._rows(lost)),
            quarantine=self._quarantine(),
            indexed=bool(self.index),
            found=found,
            notes=tuple(self.notes),
        )

    def _quarantine(self) -> Quarantine:
        faulty = (scene for scene in self.scenes.values() if scene.fault not in ("", _UNNAMED))
        return Quarantine(
            {name: _join(*fault) for name, fault in self.chunks.items()},
            {scene.key: _join(scene.fault, scene.detail) for scene in faulty},
        )

    def _rows(self, lost: Iterable[str]) -> Iterator[Row]:
        """Chunks that are ruled out, then scenes, then what is only odd; the most often first."""
        lost_in = Counter(self.index[key] for key in lost)
        for reason, names in _group((fault, name) for name, (fault, _) in self.chunks.items()):
            known = self.index and all(name in self.index.values() for name in names)
            yield Row(reason, names, sum(lost_in[n] for n in names) if known else None, used=False)
        faults = ((scene.fault, scene.key) for scene in self.scenes.values() if scene.fault)
        for reason, names in _group(faults):
            yield Row(reason, names, len(names), used=False)
        own = ((remark, s.key) for s in self.usable.values() for remark in s.remarks)
        joint = ((remark, key) for remark, keys in self.remarks.items() for key in keys)
        for reason, names in _group((*own, *joint)):
            yield Row(reason, names, len(names), used=True)


def _find_twin(
    scene: SceneFacts, owners: dict[str, list[str]], scenes: dict[str, SceneFacts]
) -> str | None:
    """The key of a scene with the same photographs; `owners`: the keys by photo."""
    near = dict.fromkeys(key for photo in scene.sketch for key in owners.get(photo, ()))
    return next((key for key in near if share_photos(scene.sketch, scenes[key].sketch)), None)


def _with_fault(scene: SceneFacts, fault: str, detail: str = "") -> SceneFacts:
    return scene if scene.fault else replace(scene, fault=fault, detail=detail)


def _group(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, tuple[str, ...]]]:
    """Names by reason, the most frequent first."""
    grouped: dict[str, list[str]] = defaultdict(list)
    for reason, name in pairs:
        grouped[reason].append(name)
    ordered = sorted(grouped.items(), key=lambda item: -len(item[1]))
    return [(reason, tuple(names)) for reason, names in ordered]


def _join(fault: str, detail: str) -> str:
    return f"{fault} ({detail})" if detail else fault
