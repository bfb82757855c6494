"""Make a page of the results of one or more evaluations

    pmsplat report outputs/re10k_small/evaluation --output outputs/report
    pmsplat report a/results.json b/results.json --names small base --output outputs/both

RESULTS are files that `pmsplat evaluate` wrote, or their folders. All must have measured the same
scenes by the same protocol: the same index, size of pictures and kind of cameras. Means are over
the scenes that all have; differences are to the first.

OUTPUT/index.html needs no network: tables, distributions of PSNR, SSIM and LPIPS, differences scene
by scene, the worst, median and best scenes where `pmsplat evaluate --report` left them beside the
results (pictures, videos, and Gaussians to turn), and where the numbers come from. More than 12 MB
of pictures are copied into the folder, which is then the report. table.md and table.tex hold the
table of means.
"""

import argparse

from ._shared import terminal


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument(
        "results", nargs="+", metavar="RESULTS", help="a results.json, or its folder"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the page")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="of the runs (default: of their models)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Makes the page, and says where it is."""
    from ..tasks.report import report

    page = report(arguments.results, arguments.output, arguments.names)
    terminal().tell(f"Open {page} in a browser; table.md and table.tex lie beside it.")
