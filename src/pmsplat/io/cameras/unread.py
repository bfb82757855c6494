"""Camera files of other programs that are not read, so that they are never passed over in silence.

What each is known by: https://www.cs.cornell.edu/~snavely/bundler/ (bundle.out),
http://ccwu.me/vsfm/doc.html (.nvm), https://opensfm.org/docs/dataset.html (reconstruction.json),
https://openmvg.readthedocs.io/en/latest/software/SfM/SfM_OutputFormat/ (sfm_data.json),
AliceVision's SfMData (.sfm), RealityCapture's registration (.csv), Metashape's cameras (.xml),
https://github.com/YoYo000/MVSNet (cams/*_cam.txt), https://github.com/lioryariv/idr (cameras.npz,
DTU and NeuS), https://www.tanksandtemples.org/tutorial (.log: three whole numbers, then 4x4) and
Pix4D (*_calibrated_camera_parameters.txt).
"""

import re
from collections.abc import Callable
from pathlib import Path

from ...errors import UserError

_HEAD = 4096  # bytes in which a file shows what it is
_TRAJECTORY = re.compile(
    rb"\s*\d+\s+\d+\s+\d+\s*\n(\s*([-+.\deE]+[ \t\r]+){3}[-+.\deE]+[ \t\r]*\n){4}"
)


def _holds(*marks: bytes) -> Callable[[bytes], bool]:
    return lambda head: any(mark in head for mark in marks)


_PROGRAMS: dict[str, tuple[str, Callable[[bytes], bool]]] = {
    "bundle*.out": ("Bundler", _holds(b"# Bundle file")),
    "*.nvm": ("VisualSFM", _holds(b"NVM_V3")),
    "reconstruction.json": ("OpenSfM", _holds(b'"shots"', b'"cameras"')),
    "*.sfm": ("AliceVision (Meshroom)", _holds(b'"views"', b'"version"')),
    "*.csv": ("RealityCapture", _holds(b"#name,x,y", b"#cameras")),
    "*.xml": ("Metashape", _holds(b"<document", b"<BlocksExchange", b"<cameras>")),
    "sfm_data*.json": ("openMVG", _holds(b'"sfm_data_version"')),
    "cams/*_cam.txt": ("MVSNet", _holds(b"extrinsic")),
    "*_cam.txt": ("MVSNet", _holds(b"extrinsic")),
    "*.npz": ("IDR or NeuS", _holds(b"world_mat", b"camera_mat")),
    "*.log": ("Tanks and Temples", lambda head: _TRAJECTORY.match(head) is not None),
    "*calibrated_camera_parameters.txt": ("Pix4D", _holds(b"fileName imageWidth")),
}


def refuse_unread(folder: Path) -> None:
    """Raises UserError where a folder of photos has cameras of a program that are not read here.

    To pose the photos anew would replace what the user has.
    """
    for pattern, (program, fits) in _PROGRAMS.items():
        for path in sorted(folder.glob(pattern)):
            with path.open("rb") as file:
                head = file.read(_HEAD)
            if fits(head):
                raise UserError(
                    f"{path} has cameras of {program}, which are not read here",
                    "cameras as a COLMAP model or transforms.json",
                    f"export them from {program} as COLMAP (nerfstudio's ns-process-data converts "
                    "several programs' files), or move the file away to have the photos posed anew",
                )
