"""Join the results of many evaluations into one site

    pmsplat leaderboard outputs --output site
    pmsplat leaderboard outputs/re10k_small outputs/re10k_base --output site

Reads every results.json in DIR or below it. Numbers of different protocols do not compare, so runs
share a table only if index, size of pictures and kind of cameras are equal. Rows sort by every
column; a run that lacks scenes of the others has no rank. A report that lies beside a results.json,
in the same folder or in report/, is copied into the site, and its row leads to it.

SITE/index.html needs no network and no server: publish the folder as it is, for example with GitHub
Pages. The results.json of every run is in it too, with the paths and the command that it names.
"""

import argparse

from ._shared import terminal


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    parser.add_argument("folders", nargs="+", metavar="DIR", help="where results are")
    parser.add_argument("--output", required=True, metavar="SITE", help="folder of the site")


def run(arguments: argparse.Namespace) -> None:
    """Makes the site, and says where it is."""
    from ..tasks.report import leaderboard

    page = leaderboard(arguments.folders, arguments.output)
    terminal().tell(f"Open {page} in a browser; the folder can be published as it is.")
