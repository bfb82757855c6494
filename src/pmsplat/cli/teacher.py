"""Run a teacher of PM-Loss over every training scene, once

    pmsplat teacher cache +experiment=re10k_small_pm
    pmsplat teacher cache +experiment=re10k_small_pm teacher=depth_anything_3
    torchrun --nproc-per-node=8 -m pmsplat teacher cache +experiment=dl3dv_base_256x448_pm
    pmsplat teacher cache +experiment=dl3dv_base_256x448_pm --shard 3/16

Writes the teacher's pointmaps beside the chunks (teacher.cache, a folder in dataset.root), one file
per chunk of float16 points and confidences. Training with the same settings reads them and does not
run the teacher. Run it again after an interruption: files that are there are kept.

The points of a photo depend on the photos that the teacher sees with it. So it sees fixed windows
of each scene: every teacher.windows.every-th frame, at most teacher.windows.frames at a time; the
next window begins teacher.windows.hop of those frames later. Context views of a training example
are moved onto the nearest frames of one window, targets with them. Scenes with an unreadable photo
in a window are skipped, here and in training, and counted.
"""

import argparse

from ..errors import count_of
from ._shared import add_device, add_overwrite, shard, terminal


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the job `cache` and its options."""
    jobs = parser.add_subparsers(dest="job", metavar="JOB", required=True)
    job = jobs.add_parser(
        "cache",
        help="write the pointmaps that training reads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    job.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for `pmsplat train`")
    add_device(job)
    job.add_argument(
        "--shard", type=shard, metavar="I/N", help="only the I-th of N parts of the chunks"
    )
    add_overwrite(job, "replace pointmaps of other settings")


def run(arguments: argparse.Namespace) -> None:
    """Runs the teacher, and shows what was written where."""
    from .. import config
    from ..tasks.teacher import cache

    show = terminal()
    summary = cache(
        config.compose(arguments.overrides),
        arguments.device,
        arguments.overwrite,
        tell=show.tell,
        track=show.track,
        shard=arguments.shard or (1, 1),
    )
    show.tell(
        f"{count_of(summary.written, 'file')} with {count_of(summary.scenes, 'scene')} written "
        f"({summary.bytes / 1e6:.1f} MB), {summary.found} found: {summary.folder}/"
    )
