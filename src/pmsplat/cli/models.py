"""List, fetch and convert published models, and share your own

pmsplat models
    the names that `pmsplat.load` takes, one that ships and published ones, with parameters,
    training data, source and license
pmsplat models fetch depthsplat-gs-small-re10k-256x256-view2
    downloads into pretrained/, or resumes an interrupted download, and verifies the file
pmsplat models convert last.ckpt mine.safetensors --name mvsplat-re10k
    an official file -> a checkpoint of pmsplat, which loads without a name: no pickle, settings in
    it; --name is the published model that the file is of, where its hash is not known
pmsplat models push outputs/re10k_small me/re10k-small --license mit
    a training run, or a checkpoint -> a repository of the Hugging Face hub, which `pmsplat.load`
    and --model take by its name: weights, settings, and a model card with the results of
    `pmsplat evaluate` in that folder; --output writes these files into a folder instead, to look at
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ._shared import output, terminal

if TYPE_CHECKING:
    from rich.table import Table

    from ..zoo.load import Published


def configure(parser: argparse.ArgumentParser) -> None:
    """The list, and three sub-verbs with their options."""
    parser.set_defaults(action=_list)
    verbs = parser.add_subparsers(metavar="[ACTION]")
    verbs.add_parser("list", help="what there is, as without an action").set_defaults(action=_list)

    fetching = verbs.add_parser("fetch", help="download and verify")
    fetching.add_argument("names", nargs="*", metavar="NAME", help="published names")
    fetching.add_argument("--all", action="store_true", help="every published model")
    fetching.set_defaults(action=_fetch)

    converting = verbs.add_parser("convert", help="an official file -> a checkpoint of pmsplat")
    converting.add_argument("file", metavar="FILE", type=Path)
    converting.add_argument("output", metavar="OUT.safetensors", type=Path)
    converting.add_argument("--name", help="which published model FILE is")
    converting.set_defaults(action=_convert)

    pushing = verbs.add_parser("push", help="a model of yours -> the Hugging Face hub")
    pushing.add_argument("source", metavar="OUT", type=Path, help="training output or checkpoint")
    pushing.add_argument("repository", metavar="OWNER/NAME", help="where to")
    pushing.add_argument("--private", action="store_true", help="for you and your organization")
    pushing.add_argument("--revision", metavar="BRANCH", help="a branch (default: main)")
    pushing.add_argument("--license", metavar="ID", help="as mit, apache-2.0, cc-by-4.0")
    pushing.add_argument(
        "--results", action="append", type=Path, metavar="PATH",
        help="results of `pmsplat evaluate` (default: those in the folder of the weights)",
    )  # fmt: skip
    pushing.add_argument(
        "--output", type=Path, metavar="DIR", help="write the files there, and push nothing"
    )
    pushing.add_argument(
        "--dry-run", action="store_true", help="print the files and the card, and push nothing"
    )
    pushing.set_defaults(action=_push)


def run(arguments: argparse.Namespace) -> None:
    """Runs the chosen action, the list by default."""
    arguments.action(arguments)


@dataclass(frozen=True)
class Entry:
    """A published model and the path of its file, which may not exist yet."""

    name: str
    published: "Published"
    path: Path

    @property
    def bytes(self) -> int | None:
        """The size of the file, if it exists (fetching verifies it, a list does not)."""
        return self.path.stat().st_size if self.path.is_file() else None


def entries() -> list[Entry]:
    """Every published model, in the order of the table of published models."""
    from ..io.weights import pretrained_folder
    from ..zoo.load import ZOO

    folder = pretrained_folder()
    return [Entry(name, it, folder / it.source.name) for name, it in ZOO.items()]


def fetch(names: Sequence[str], tell: Callable[[str], None] = lambda _: None) -> list[Path]:
    """The verified files of published models, downloaded where they are missing.

    Raises UserError for an unknown name, before anything is downloaded, and for a download that
    fails (see `io.weights.fetch`).
    """
    from ..io import weights
    from ..zoo.load import ZOO
    from ..zoo.shipped import SHIPPED, shipped_file

    for name in names:
        if name not in SHIPPED:
            _known(name)
    paths = []
    for name in dict.fromkeys(names):
        paths.append(shipped_file(name) if name in SHIPPED else weights.fetch(ZOO[name].source))
        tell(f"{name}: {paths[-1]}")
    return paths


def convert(file: Path, output: Path, name: str | None = None) -> None:
    """Writes an official file, or any that `pmsplat.load` reads, as a checkpoint of ours.

    `name` is the published model that the file is of, where its hash is not known. Raises UserError
    where `output` exists or is not called .safetensors, and for a file that does not fit.
    """
    from ..zoo.load import open_model, save

    if name is not None:
        _known(name)
    if output.suffix != ".safetensors":
        raise UserError(
            f"the output {output}",
            "a .safetensors file",
            f"write to {output.with_suffix('.safetensors')}",
        )
    if output.exists():
        raise UserError(f"{output}, which exists", "a new file", "choose another name")
    try:
        found = open_model(file) if name is None else open_model(name, weights=file)
    except UserError as error:  # this verb has FILE already, and --name for its model
        remedy = error.remedy.replace(f"`weights={file}`", "`name`")
        raise UserError(error.got, error.wanted, remedy) from error
    save(found.model, output, found.component, found.settings)


def _known(name: str) -> None:
    from ..registry import suggest
    from ..zoo.load import ZOO

    if name not in ZOO:
        raise UserError(
            f"{name!r}, which is no published model",
            "a name that `pmsplat models` lists",
            suggest(name, list(ZOO)),
        )


def _list(_arguments: argparse.Namespace) -> None:
    console = output()
    found = entries()
    console.print(_table(found))
    console.print(
        "size: parameters. depth: ScanNet, TartanAir, VKITTI2; for those of 2024 also DeMoN."
    )
    console.print(
        "PSNR: as the papers print it, of the most views and after all steps (docs/models.md)."
    )
    console.print(f"Files are kept in {found[0].path.parent}/.", soft_wrap=True)


def _table(found: list[Entry]) -> "Table":
    """The models, under a line for each repository that they come from."""
    from rich.table import Table

    from ..zoo.shipped import SHIPPED, shipped_file

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("file", justify="right", no_wrap=True)
    table.add_column("here", no_wrap=True)
    table.add_column("trained on", no_wrap=True)
    table.add_column("PSNR", justify="right", no_wrap=True)
    table.add_row("with pmsplat, MIT", style="italic")
    for name, shipped in SHIPPED.items():
        size = f"{shipped_file(name).stat().st_size / 1e6:,.0f} MB"
        table.add_row(
            f" {name}", f"{shipped.parameters / 1e6:.1f} M", size, "yes", shipped.data, "-"
        )
    for origin, group in itertools.groupby(found, _origin):
        table.add_row(origin, style="italic")
        for entry in group:
            size = entry.published.bytes if entry.bytes is None else entry.bytes
            table.add_row(
                f" {entry.name}",
                f"{entry.published.parameters / 1e6:.1f} M",
                f"{size / 1e6:,.0f} MB",
                "-" if entry.bytes is None else "yes",
                entry.published.data,
                (entry.published.psnr or "-").split()[-1],
            )
    return table


def _origin(entry: Entry) -> str:
    return f"huggingface.co/{entry.published.source.repository}, {entry.published.license}"


def _fetch(arguments: argparse.Namespace) -> None:
    names = [entry.name for entry in entries()] if arguments.all else arguments.names
    if not names:
        raise UserError("no model", "its name, or --all", "`pmsplat models` lists the names")
    fetch(names, print)


def _convert(arguments: argparse.Namespace) -> None:
    convert(arguments.file, arguments.output, arguments.name)
    print(f"pmsplat.load({str(arguments.output)!r}) loads it.")  # noqa: T201


def _push(arguments: argparse.Namespace) -> None:
    import tempfile
    from dataclasses import replace

    from ..io.files import check_folder
    from ..tasks.push import Options, pack
    from ..zoo.share import parse_repository

    repository = parse_repository(arguments.repository)
    if arguments.revision is not None and repository.revision is not None:
        raise UserError(f"two revisions, {repository} and {arguments.revision}", "one", "drop one")
    repository = replace(repository, revision=arguments.revision or repository.revision)
    if arguments.output is not None:
        check_folder(arguments.output)
        if arguments.output.is_dir() and any(arguments.output.iterdir()):
            raise UserError(
                f"`output={arguments.output}`, which has files", "a new folder", "choose another"
            )
    show = terminal(arguments)
    results = None if arguments.results is None else tuple(arguments.results)
    package = pack(arguments.source, Options(arguments.license, results), show.tell)
    if arguments.output is None and not arguments.dry_run:
        pushed = package.push(repository, arguments.private)
        show.tell(f"Pushed: {pushed.url}")
        output().print(
            f'pmsplat.load("{pushed.repository}") loads it; without the commit, the newest.'
        )
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.output or Path(scratch)
        for path in package.write(folder, str(repository)):
            output().print(f"{path.stat().st_size:>13,} {path.name}")
        if arguments.output is None:
            output().print((folder / "README.md").read_text(encoding="utf-8"), markup=False)
    show.tell(f"Nothing was pushed to {repository}.")
