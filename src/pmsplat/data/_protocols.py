"""The evaluation protocols in use, by name: which frames, of what data, at what size.

An index is the authors' file where it lies beside the data, else it is made from the cameras of the
data by the protocol's rule. Where nothing in the authors' rule is left to chance, both are equal;
where the authors' frames cannot be made again, `why` says so. What was measured is known again by
its frames (`hash_frames`), whatever file they come from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..registry import suggest
from ._index import Index, Listing, hash_frames
from ._rules import AllOf, Even, Every, Farthest, Fixed, Outside, Overlapping, Rule

RAW = "https://raw.githubusercontent.com"
DEPTHSPLAT = f"{RAW}/cvg/depthsplat/main/assets"
RESPLAT = f"{RAW}/cvg/resplat/main/assets"
RESPLAT_DL3DV = f"{RESPLAT}/dl3dv_evaluation"
PMLOSS = f"{RAW}/aim-uofa/PM-Loss/main/assets"
MVSPLAT = f"{RAW}/donydchen/mvsplat/main/assets"
NOPOSPLAT = f"{RAW}/cvg/NoPoSplat/main/assets"
YONOSPLAT = f"{RAW}/cvg/YoNoSplat/main/assets"
ZPRESSOR = f"{RAW}/ziplab/ZPressor/main"

DRAWN = "the authors drew frames at random, by another measure of overlap"
TARGETS_DRAWN = "the authors drew the targets at random, from no seed that is known"
CLUSTERS = "the authors chose context views by K-means, from no start that is known"
ADDED = "the authors do not say how they added views to the eight"
OUTSIDE_DRAWN = "the authors drew 20 of 60 targets at random, and moved views of short scenes"
MOVED = "the authors moved the second view of 10 scenes that are too short"
CHOSEN = "the authors took 1,600 scenes, by no rule that is known"


@dataclass(frozen=True)
class Data:
    """What protocols on the same data have in common: see `NamedProtocol`."""

    name: str
    reader: str
    root: str
    size: tuple[int, int]


@dataclass(frozen=True)
class NamedProtocol:
    """An evaluation that people report, called `name`.

    `data.reader` is the dataset that reads it and `data.root` where it lies by default; `size`
    (height, width) of the pictures; `used` names who reports it. `file` is the authors', published
    in the folder `address`, of `scenes` that are not null (0: not known); `digest` are the first
    digits of the `hash_frames` of its content, "" where that is not known. `bucket`: of that file
    only scenes whose context views share more than low and up to high of what they see. `rule`
    makes an index; `why`: why that is not the authors'.
    """

    name: str
    data: Data
    views: int
    size: tuple[int, int]
    used: str
    rule: Rule | None
    file: str = ""
    address: str = ""
    scenes: int = 0
    digest: str = ""
    why: str = ""
    bucket: tuple[float, float] | None = None

    @property
    def said(self) -> str:
        """How frames are chosen."""
        return self.rule.say() if self.rule else "as the authors' file says"

    @property
    def url(self) -> str | None:
        """Where the authors' file is published."""
        return f"{self.address}/{self.file}" if self.address else None

    def places(self, root: str | Path) -> list[Path]:
        """Where an index of the protocol may lie: the authors' file, then one called as it is."""
        whole = [self.file] if self.file and self.bucket is None else []
        return [Path(root, name) for name in dict.fromkeys([*whole, f"{self.name}.json"])]

    def find(self, root: str | Path) -> Path:
        """The index beside some data; where there is none, its place."""
        places = self.places(root)
        return next((path for path in places if path.is_file()), places[-1])

    def choose(self, listing: Listing, path: str | Path) -> Index:
        """The scenes of the authors' file that belong to the protocol.

        UserError where the protocol is of scenes that share little or much, which the file does not
        say.
        """
        if self.bucket is None:
            return listing.index
        low, high = self.bucket
        index = {
            key: frames
            for key, frames in listing.index.items()
            if low < listing.overlap.get(key, -1) <= high
        }
        if not index:
            raise UserError(
                f"{path}, of no scene of which it is known that {low:.0%} to {high:.0%} are shared",
                f"an index with 'overlap' of each scene, as {self.url or 'the authors'} has it",
                "get that file, or leave it out to choose frames by the cameras",
            )
        return index

    def is_official(self, index: Index) -> bool | None:
        """Whether these are the authors' frames; None where theirs are not known."""
        return hash_frames(index).startswith(self.digest) if self.digest else None


RE10K = Data("RealEstate10K", "re10k", "datasets/re10k", (256, 256))
ACID = Data("ACID", "re10k", "datasets/acid", (256, 256))
DL3DV = Data("DL3DV", "dl3dv", "datasets/dl3dv", (256, 448))
DL3DV_960 = Data("DL3DV", "dl3dv", "datasets/dl3dv_960", (512, 960))
DTU = Data("DTU", "folder", "datasets/dtu", (256, 256))

SMALL, MEDIUM, LARGE = (0.05, 0.30), (0.30, 0.55), (0.55, 0.80)


def _row(name: str, data: Data, views: int, used: str, rule: Rule | None, **more) -> NamedProtocol:
    return NamedProtocol(name, data, views, more.pop("size", data.size), used, rule, **more)


def _pixelsplat() -> list[NamedProtocol]:
    """Two views of a pair that shares at least 60 %, and MVSplat's DTU."""
    shared, by = Overlapping(0.6, 1.0), "pixelSplat, MVSplat, DepthSplat, ReSplat"
    more = {"address": DEPTHSPLAT, "why": DRAWN}
    dtu = (32, 24, 23, 44)
    return [
        _row("re10k-2v", RE10K, 2, by, shared, file="evaluation_index_re10k.json",
             scenes=6474, digest="9d8057e90c0bd6aa", **more),
        _row("acid-2v", ACID, 2, by, shared, file="evaluation_index_acid.json",
             scenes=1595, digest="d447f4e279df642d", **more),
        _row("dtu-2v", DTU, 2, "MVSplat, NoPoSplat", Fixed((33, 31), dtu)),
        _row("dtu-3v", DTU, 3, "MVSplat", Fixed((33, 31, 43), dtu)),
    ]  # fmt: skip


def _overlaps() -> list[NamedProtocol]:
    """NoPoSplat's (Ye et al., arXiv 2410.24207): pairs by how much they share."""
    digests = {
        "re10k": (
            (1403, "cd542c917d7c75c7"),
            (2565, "14ea3fbe9c534562"),
            (1630, "b76cf50b0195b96a"),
        ),
        "acid": ((249, "88e5994d75b2477e"), (640, "cf0f89c06cc799a1"), (448, "6eeda120feb4cac5")),
    }
    rows = []
    for data, prefix in ((RE10K, "re10k"), (ACID, "acid")):
        for (word, bucket), (scenes, digest) in zip(
            (("small", SMALL), ("medium", MEDIUM), ("large", LARGE)), digests[prefix], strict=True
        ):
            rows.append(
                _row(
                    f"{prefix}-overlap-{word}", data, 2, "NoPoSplat, SPFSplat, ZipSplat",
                    Overlapping(*bucket, shortest=1, longest=1000), bucket=bucket, why=DRAWN,
                    file=f"evaluation_index_{prefix}.json", address=NOPOSPLAT,
                    scenes=scenes, digest=digest,
                )
            )  # fmt: skip
    return rows


def _depthsplat() -> list[NamedProtocol]:
    """DL3DV of DepthSplat (Xu et al., arXiv 2410.13862): farthest points of the first frames."""

    def of(views: int, first: int, scenes_digest: str, **more) -> NamedProtocol:
        span = {50: "_video_0_50", 100: "_video", 150: "_video"}[first]
        file = f"dl3dv_start_0_distance_{first}_ctx_{views}v{span}.json"
        return _row(f"dl3dv-{views}v-n{first}", DL3DV, views, more.pop("used", "DepthSplat"),
                    AllOf(first, views, first == 100), file=file, scenes=140, digest=scenes_digest,
                    **{"address": DEPTHSPLAT} | more)  # fmt: skip

    unposed = {"used": "DepthSplat, YoNoSplat"}
    yono = {"used": "YoNoSplat", "address": YONOSPLAT, "size": (224, 224)}
    return [
        of(2, 50, "3c2ce139a2efce3b"),
        of(4, 50, "c918d574637cff43"),
        of(6, 50, "1b7bd8a9dce837cf"),
        _row("dl3dv-2v-n10", DL3DV, 2, "DepthSplat", Farthest(10, 2, 4), address=DEPTHSPLAT,
             file="dl3dv_start_0_distance_10_ctx_2v_tgt_4v.json", scenes=140,
             digest="19e79707aea453be"),
        of(12, 100, "fce87bac0547ee91", **unposed),
        of(24, 150, "00ffd113f14b9d12", **yono),
    ]  # fmt: skip


def _pm_loss() -> list[NamedProtocol]:
    """PM-Loss's (arXiv 2506.05327) and TokenGS's: targets outside the baseline."""
    by = "PM-Loss, TokenGS"
    return [
        _row("re10k-bound-aware", RE10K, 2, by, Outside(30, 75, 30, 20), address=PMLOSS,
             file="re10k_bound_aware.json", scenes=2934, digest="8b6a1c42d2287eac",
             why=OUTSIDE_DRAWN),
        _row("dl3dv-bound-aware", DL3DV, 2, by, Outside(50, 20, 10, 20), address=PMLOSS,
             file="dl3dv_bound_aware.json", scenes=140, digest="b3d40fd3910149df", why=MOVED),
    ]  # fmt: skip


def _resplat() -> list[NamedProtocol]:
    """ReSplat's (Xu et al., arXiv 2510.08575), and the whole scenes of Long-LRM that it has."""

    def of(views: int, first: int, targets: int, digest: str, data: Data = DL3DV) -> NamedProtocol:
        file = f"dl3dv_start_0_distance_{first}_ctx_{views}v_tgt_{targets}v.json"
        return _row(f"dl3dv-{views}v-n{first}", data, views, "ReSplat",
                    Farthest(first, views, targets), file=file, address=RESPLAT_DL3DV, scenes=140,
                    digest=digest)  # fmt: skip

    def added(count: int, digest: str) -> NamedProtocol:
        file = f"dl3dv_start_0_distance_60_ctx_8v_tgt_8v_add{count}views.json"
        return _row(f"dl3dv-{8 + count}v-n60", DL3DV_960, 8 + count, "ReSplat", None, file=file,
                    address=RESPLAT_DL3DV, scenes=140, digest=digest, why=ADDED)  # fmt: skip

    whole = {"size": (540, 960)}
    return [
        of(8, 40, 8, "30b16d94810e3941"),
        of(16, 80, 16, "1d72b45cbd32f10e"),
        of(32, 160, 24, "dc84cb1a60de2368"),
        of(8, 60, 8, "0813731295939149", DL3DV_960),
        of(6, 60, 8, "00732c881187c16f", DL3DV_960),
        *(added(count, digest) for count, digest in (
            (2, "4c42d17ec4c18b31"), (4, "bc48b40331d7d249"), (6, "68061cf1fbeea4da"),
            (8, "86ba9374d06b0715"))),
        _row("dl3dv-4v-n50-every8th", DL3DV_960, 4, "ReSplat", Every(50, 4, 8), scenes=140,
             file="dl3dv_start_0_distance_50_ctx_4v_tgt_every8th.json", address=RESPLAT_DL3DV,
             digest="2c1a637d6a70ecd6"),
        _row("re10k-8v-n200", RE10K, 8, "ReSplat", Even(200, 8, 8), address=RESPLAT, scenes=1666,
             file="re10k_start_0_distance_200_ctx_8v_tgt_8v.json", digest="1be7fbf90890a8d5"),
        _row("dl3dv-longlrm-16v", DL3DV_960, 16, "ReSplat, as Long-LRM", Every(None, 16, 8, 0),
             file="dl3dv_longlrm_ctx16_tgt_every8th.json", scenes=140, digest="5e27cf68c103639c",
             address=f"{RESPLAT}/dl3dv_evaluation_longlrm", why=CLUSTERS, **whole),
        _row("dl3dv-longlrm-32v", DL3DV_960, 32, "Long-LRM", Every(None, 32, 8, 0), why=CLUSTERS,
             **whole),
    ]  # fmt: skip


def _zpressor() -> list[NamedProtocol]:
    """ZPressor's (Wang et al., arXiv 2505.23734): eight targets among the first 50 or 200."""

    def of(prefix: str, data: Data, views: int, first: int, scenes: int) -> NamedProtocol:
        model = "mvsplat" if prefix == "acid" else "depthsplat"
        file = f"{prefix}_ctx_{views}v_tgt_8v_n{first}.json"
        return _row(f"{prefix}-zpressor-{views}v", data, views, "ZPressor",
                    Farthest(first, views, 8), file=file, scenes=scenes,
                    address=f"{ZPRESSOR}/{model}/assets/{prefix}_evaluation")  # fmt: skip

    re10k = {8: 7156, 12: 7078, 16: 7002, 24: 6851, 36: 6625}
    acid = {8: 1933, 16: 1879, 24: 1833, 36: 1732}
    return [
        *(of("dl3dv", DL3DV, views, 50, 140) for views in (12, 16, 24, 36)),
        *(of("re10k", RE10K, views, 200, scenes) for views, scenes in re10k.items()),
        *(of("acid", ACID, views, 200, scenes) for views, scenes in acid.items()),
    ]


def _yonosplat() -> list[NamedProtocol]:
    """YoNoSplat's (Ye et al., arXiv 2511.07321) and ZipSplat's: eight targets."""
    by, more = "YoNoSplat, ZipSplat", {"address": YONOSPLAT, "size": (224, 224)}
    name = "dl3dv_start_0_distance_{}_ctx_{}v_tgt_8v.json".format
    return [
        _row("dl3dv-yonosplat-6v", DL3DV, 6, by, Farthest(50, 6, 8), file=name(50, 6), scenes=140,
             digest="9340c8e855b1cd72", **more),
        _row("dl3dv-yonosplat-12v", DL3DV, 12, by, Farthest(100, 12, 8), file=name(100, 12),
             scenes=140, digest="3554d97b88c1ba7c", why=TARGETS_DRAWN, **more),
        _row("dl3dv-yonosplat-24v", DL3DV, 24, by, Farthest(150, 24, 8), file=name(150, 24),
             scenes=140, digest="5f27e9b04374d09e", **more),
        _row("re10k-yonosplat-6v", RE10K, 6, by, Even(None, 6, 8), file="re10k_ctx_6v_tgt_8v.json",
             scenes=1600, digest="ca5fef1daf52b5cf", why=TARGETS_DRAWN, **more),
        _row("re10k-6v-video", RE10K, 6, "YoNoSplat", Even(None, 6, None),
             file="re10k_ctx_6v_video.json", scenes=1600, digest="e5b6a38925aa4ef9", why=CHOSEN,
             **more),
    ]  # fmt: skip


PROTOCOLS: Mapping[str, NamedProtocol] = {
    protocol.name: protocol
    for rows in (
        _pixelsplat, _overlaps, _depthsplat, _pm_loss, _resplat, _zpressor, _yonosplat,
    )
    for protocol in rows()
}  # fmt: skip


def find_protocol(name: str) -> NamedProtocol:
    """The protocol of a name; UserError where there is none."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    raise UserError(
        f"there is no protocol {name!r}",
        "one that `pmsplat data protocols` lists",
        suggest(name, list(PROTOCOLS)),
    )


def recognize(index: Index) -> NamedProtocol | None:
    """The protocol whose authors' frames these are."""
    digest = hash_frames(index)
    known = (p for p in PROTOCOLS.values() if p.digest and digest.startswith(p.digest))
    return next(known, None)
