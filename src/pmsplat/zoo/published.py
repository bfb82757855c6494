"""The released models: their files, training data, licenses, and settings of our encoders.

Facts are from the authors (MODEL_ZOO.md of cvg/depthsplat at 1f5e548 and 5796161 and of cvg/resplat
at cc4594a, README.md of aim-uofa/PM-Loss, donydchen/mvsplat and ziplab/ZPressor, the pages of their
files on the hub).
"""

from dataclasses import dataclass, replace
from typing import Any

from ..io.weights import Source


@dataclass(frozen=True)
class Published:
    """A released model: its component and settings (shapes alone do not determine them), its file,
    and facts from its authors."""

    model: str
    settings: dict[str, Any]
    source: Source
    parameters: int
    data: str
    license: str = "MIT"
    psnr: str = ""  # as the paper prints it, on the test split of `data`; see docs/models.md
    copies: int = 1  # tensors per parameter in the file: 3 with the two moments of Adam

    @property
    def bytes(self) -> int:
        """About how large the file is."""
        return 4 * self.parameters * self.copies


# Repositories of the hub, at commits that hold the files as they were released.
OCTOBER_2024 = "haofeixu/depthsplat", "d3ea957dcc0a7721a88176526f7f229ec36a9e1d"
APRIL_2025 = "haofeixu/depthsplat", "ed5116c11f7932fff3714989e2b65716730f6f87"
PMLOSS = "dc-walker/PM-Loss", "main"  # neither commit nor hash is published: the hub's own decides
RESPLAT = "haofeixu/resplat", "main"  # no commit is known; the names of its files have hashes
ZPRESSOR = "lhmd/ZPressor", "main"  # neither commit nor hash is published
MVSPLAT = "dylanebert/mvsplat", "124fd69083b1207b3ebcc1ba91e5ab673ce60cd1"  # the authors' own file

RE10K = "RE10K"
DL3DV = "RE10K, DL3DV"
DEPTH_2024 = "RE10K, depth"  # depth of ScanNet, DeMoN, TartanAir and VKITTI2
DEPTH_2025 = "RE10K, DL3DV, depth"  # the same without DeMoN

SMALL: dict[str, Any] = {}
BASE = {"vit": "vitb", "scales": 2}
LARGE = {"vit": "vitl", "scales": 2}
EIGHTH = {"lowest": 8}
HIGH = {"lowest": 8, "scale_max": 0.1}
DEPTH_ONLY = {"lowest": 8, "gaussians": False}
# The usual depth is not published. In scenes as COLMAP scales them it is 6 (quartiles 5 and 13).
OF_DL3DV = {"near": 0.01, "far": 200.0, "typical_depth": 5.0}
RESPLAT_DEPTH = {"depth_space": "log", "windows": "by_width", "vit_limit": 560} | OF_DL3DV
WIDE = {"features": 128, "unet_width": 32}
TUNED = BASE | WIDE | {"lowest": 8, "neighbors": 2, "near": 1.0}


def _of_2025(name: str, sha256: str, parameters: int, data: str, settings: dict) -> Published:
    """The name of a DepthSplat's file ends in the start of its SHA-256."""
    source = Source(*APRIL_2025, f"{name}-{sha256[:8]}.pth", sha256)
    return Published("depthsplat", settings, source, parameters, data)


def _of_2024(name: str, sha256: str, parameters: int, data: str, settings: dict) -> Published:
    source = Source(*OCTOBER_2024, f"{name}-{sha256[:8]}.pth", sha256)
    return Published("depthsplat2024", settings, source, parameters, data)


def _depth_of_resplat(name: str, sha256: str, parameters: int, vit: str) -> Published:
    """One scale, unlike DepthSplat's; trained to search depth from 0.01 to 200."""
    settings = DEPTH_ONLY | RESPLAT_DEPTH | {"vit": vit}
    source = Source(*RESPLAT, f"{name}-{sha256}.pth", sha256)
    return Published("depthsplat", settings, source, parameters, DEPTH_2025)


def _pmloss(name: str, offsets: str) -> Published:
    source = Source(*PMLOSS, f"{name}.ckpt", "")
    return Published(
        "depthsplat2024", TUNED | {"offsets": offsets}, source, 118_140_194, DL3DV, copies=3
    )


def _resplat(file: str, sha256: str, parameters: int, data: str, settings: dict) -> Published:
    source = Source(*RESPLAT, f"{file}-{sha256}.pth", sha256)
    return Published("resplat", settings, source, parameters, data)


_RELEASES_2025 = {
    "depthsplat-gs-small-re10k-256x256-view2": (
        "cfeab6b10077ad9bd4097b82b029737221bfbbbd3b4dfca5fc0feaf860276506",
        38_346_416, RE10K, SMALL,
    ),
    "depthsplat-gs-base-re10k-256x256-view2": ("ca7b6795", 120_747_896, RE10K, BASE),
    "depthsplat-gs-large-re10k-256x256-view2": (
        "e0f0f27a1213e69b0bfd7758e2408b2bcb2ce0928b3559a78c2ba2b934939c4b",
        354_337_760, RE10K, LARGE,
    ),
    "depthsplat-gs-base-re10k-256x448-view2": (
        "fea94f65", 120_877_016, RE10K, BASE | EIGHTH,
    ),
    "depthsplat-gs-base-dl3dv-256x448-randview2-6": (
        "02c7b19d8d038f71b512ef434d42b49698c3288d8ed65b748c04bd43d298f37a",
        120_877_016, DL3DV, BASE | EIGHTH,
    ),
    "depthsplat-gs-small-re10kdl3dv-448x768-randview4-10": (
        "c08188db", 38_404_880, DL3DV, SMALL | HIGH,
    ),
    "depthsplat-gs-base-re10kdl3dv-448x768-randview2-6": (
        "f8ddd845", 120_877_016, DL3DV, BASE | HIGH,
    ),
    "depthsplat-depth-small-352x640-randview2-8": (
        "e807bd82", 35_534_721, DEPTH_2025, SMALL | DEPTH_ONLY,
    ),
    "depthsplat-depth-base-352x640-randview2-8": (
        "65a892c5", 111_229_753, DEPTH_2025, BASE | DEPTH_ONLY,
    ),
}  # fmt: skip

_RELEASES_2024 = {
    "depthsplat-gs-small-re10k-256x256": (
        "49b2d15cada75e1bb1b3a243567a7e0b52fa98bf4bc1d2719a99b73d4bf9b9ae",
        37_252_272, RE10K, SMALL,
    ),
    "depthsplat-gs-base-re10k-256x256": ("044fdb17", 117_612_418, RE10K, BASE | WIDE),
    "depthsplat-gs-large-re10k-256x256": (
        "288d9b26734528d12e16172da0d0af8215f20da0fd9a32efa183f5a32c763d6b",
        360_910_058, RE10K, LARGE | WIDE | {"unet_width": 64},
    ),
    "depthsplat-gs-base-dl3dv-256x448": ("75cc0183", 118_140_194, DL3DV, TUNED),
    "depthsplat-depth-small": ("3d79dd5e", 35_534_721, DEPTH_2024, SMALL | DEPTH_ONLY),
    "depthsplat-depth-base": ("f57113bd", 111_229_753, DEPTH_2024, BASE | DEPTH_ONLY),
    "depthsplat-depth-large": ("50d3d7cf", 337_518_529, DEPTH_2024, LARGE | DEPTH_ONLY),
}  # fmt: skip

_DEPTH_OF_RESPLAT = {
    "resplat-depth-small-352x640": ("b0ebc084", 35_534_721, "vits"),
    "resplat-depth-base-352x640": ("60be7abf", 106_378_393, "vitb"),
    "resplat-depth-large-352x640": ("05f9beac", 330_631_265, "vitl"),
}

# Its scenes are as the authors of RE10K scale them: the usual depth is an estimate, too.
OF_RE10K = {"near": 0.01, "far": 100.0, "typical_depth": 2.1}
RESPLAT_BASE: dict[str, Any] = {"vit": "vitb", "point_width": 512}
RESPLAT_HALF = RESPLAT_BASE | {"half_depth": True, "scale_max": 3.0, "steps": 2}
RESPLAT_RE10K = RESPLAT_BASE | OF_RE10K | {"lowest": 4}
RESPLAT_FINE = {"latent": 2, "gaussians_per_point": 4, "steps": 2}
RESPLAT_START = {"gaussians_per_point": 16, "steps": None}

# The authors' scripts contradict each other about the RE10K model: its file has one of two forms.
RESPLAT_FORMS = {
    "resplat-base-re10k-256x256-view2": "resplat-base-re10k-256x256-view2-init16",
}

_RELEASES_RESPLAT = {
    "resplat-small-dl3dv-256x448-view8": ("548993fe", 76_630_164, {}),
    "resplat-base-dl3dv-256x448-view8": ("1934a04c", 223_978_924, RESPLAT_BASE),
    "resplat-large-dl3dv-256x448-view8": (
        "62f1703a", 559_511_033, {"vit": "vitl", "point_width": 768, "steps": None},
    ),
    "resplat-base-dl3dv-256x448-view16": ("f38bf984", 223_978_924, RESPLAT_BASE),
    "resplat-base-dl3dv-256x448-view32": ("439b63a6", 223_978_924, RESPLAT_BASE),
    "resplat-base-dl3dv-512x960-view8": ("8179ed87", 223_978_924, RESPLAT_BASE),
    "resplat-base-dl3dv-540x960-view16": ("a72dc6d0", 223_978_924, RESPLAT_HALF),
}  # fmt: skip

# 12 to 36 views gathered in 6, and the same networks without that, trained alike.
OF_DL3DV_12 = WIDE | {"vit": "vitb", "lowest": 8, "neighbors": 2, "near": 1.0}
ANCHORS = {"anchors": 6}
_RELEASES_ZPRESSOR = {
    "depthsplat-dl3dv-zpressor-n50-256x448": (
        "depthsplat2024", 116_072_834, DL3DV, OF_DL3DV_12 | ANCHORS,
    ),
    "depthsplat-dl3dv-baseline-n50-256x448": (
        "depthsplat2024", 114_587_522, DL3DV, OF_DL3DV_12,
    ),
    "mvsplat-re10k-zpressor-n200-256x256": ("mvsplat", 13_441_046, RE10K, ANCHORS),
    "mvsplat-re10k-baseline-n200-256x256": ("mvsplat", 11_955_734, RE10K, {}),
}  # fmt: skip

# Of ReSplat: that of the initial Gaussians → that after its steps. Of one model with 2, 4 and 6
# views, or, as ZPressor's paper prints them, with 12, 24 and 36.
_PSNR = {
    "depthsplat-gs-small-re10k-256x256-view2": "27.06",
    "depthsplat-gs-base-re10k-256x256-view2": "27.34",
    "depthsplat-gs-large-re10k-256x256-view2": "27.47",
    "depthsplat-gs-base-dl3dv-256x448-randview2-6": "19.31 / 23.12 / 24.19",
    "resplat-small-dl3dv-256x448-view8": "26.77 → 29.07",
    "resplat-base-dl3dv-256x448-view8": "27.37 → 29.20",
    "resplat-large-dl3dv-256x448-view8": "27.86",
    "resplat-base-dl3dv-256x448-view16": "26.95 → 29.02",
    "resplat-base-dl3dv-256x448-view32": "26.29 → 28.30",
    "resplat-base-dl3dv-512x960-view8": "26.21 → 27.70",
    "resplat-base-dl3dv-540x960-view16": "22.69 → 23.51",
    "resplat-base-re10k-256x256-view2": "29.06 → 29.75",
    "mvsplat-re10k": "26.39",
    "depthsplat-dl3dv-zpressor-n50-256x448": "24.30 / 24.26 / 23.88",
    "depthsplat-dl3dv-baseline-n50-256x448": "23.32 / 20.38 / 19.23",
}

_ALL = {
    **{name: _of_2025(name, *facts) for name, facts in _RELEASES_2025.items()},
    **{name: _of_2024(name, *facts) for name, facts in _RELEASES_2024.items()},
    **{name: _depth_of_resplat(name, *facts) for name, facts in _DEPTH_OF_RESPLAT.items()},
    **{
        name: _resplat(name, sha256, parameters, "DL3DV", settings)
        for name, (sha256, parameters, settings) in _RELEASES_RESPLAT.items()
    },
    **{
        name: _resplat(
            "resplat-base-re10k-256x256-view2", "b90d1b53", parameters, RE10K, RESPLAT_RE10K | form
        )
        for name, parameters, form in (
            ("resplat-base-re10k-256x256-view2", 222_144_100, RESPLAT_FINE),
            ("resplat-base-re10k-256x256-view2-init16", 210_601_753, RESPLAT_START),
        )
    },
    "pmloss": _pmloss("pmloss", "free"),
    "ori_depthsplat_tuned": _pmloss("ori_depthsplat_tuned", "bounded"),
    "mvsplat-re10k": Published(
        "mvsplat",
        {},
        Source(
            *MVSPLAT,
            "re10k.ckpt",
            "83d0d9eaa753fa4a1f925288dc1f90b8c3297fad0ab0f6ed1f11a1c5946da25a",
        ),
        11_955_734,
        RE10K,
    ),
    **{
        name: Published(model, settings, Source(*ZPRESSOR, f"{name}.ckpt", ""), parameters, data)
        for name, (model, parameters, data, settings) in _RELEASES_ZPRESSOR.items()
    },
}

ZOO = {name: replace(facts, psnr=_PSNR.get(name, "")) for name, facts in _ALL.items()}

# The files of March 2025 have the names and shapes of those that replaced them a month later, but
# were trained with Gaussian sizes in pixels; only their hashes differ.
MARCH_2025 = {
    "20f39ed8": "depthsplat-gs-small-re10k-256x256-view2",
    "fbe87117": "depthsplat-gs-base-re10k-256x256-view2",
    "8ee2ec2c": "depthsplat-gs-large-re10k-256x256-view2",
    "76a0605a": "depthsplat-gs-base-re10k-256x448-view2",
    "d94d996f": "depthsplat-gs-base-dl3dv-256x448-randview2-6",
    "1e257b90": "depthsplat-gs-small-re10kdl3dv-448x768-randview4-10",
    "f40abc4f": "depthsplat-gs-base-re10kdl3dv-448x768-randview2-6",
}
MARCH_SETTINGS = {"scale_unit": "pixel"}


def recognize_hash(digest: str) -> tuple[str, dict[str, Any]] | None:
    """The name and the settings of the published file with that SHA-256, if there is one."""
    for name, published in ZOO.items():
        if published.source.sha256 and digest.startswith(published.source.sha256[:8]):
            return name, published.settings
    for start, name in MARCH_2025.items():
        if digest.startswith(start):
            return name, ZOO[name].settings | MARCH_SETTINGS
    return None
