"""Models on the Hugging Face hub: into its cache on this machine, and from a folder onto it."""

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, name_some
from ._checkpoints import INDEX, find_checkpoint, first_line
from ._transfer import explain, failures
from .weights import NEWEST

log = logging.getLogger(__name__)

LIBRARY = "pmsplat"  # what the hub calls the library of our models
SETTINGS, CARD = "config.json", "README.md"
WANTED = (SETTINGS, "processor_config.json", "model.safetensors", "model-*-of-*.safetensors")
WANTED += (f"model.safetensors{INDEX}",)  # what is downloaded: no pickles
SCHEME = "hf://"
FILES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".json")  # how paths of files end
NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^@\s]+))?", re.ASCII)
COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Repository:
    """A model on the hub: OWNER/NAME, and a branch, tag or commit; None: the newest."""

    name: str
    revision: str | None = None

    @staticmethod
    def parse(text: str) -> "Repository | None":
        """OWNER/NAME, OWNER/NAME@REVISION, or either behind hf://; None for other text.

        A path of two parts has that form too, unless it ends as files of weights do.
        """
        plain = re.sub("^hf:/+", "", text)
        found = NAME.fullmatch(plain)
        if found is None or (plain == text and found["name"].endswith(FILES)):
            return None
        return Repository(found["name"], found["revision"])

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def is_address(text: str) -> bool:
    """Whether a text names the hub itself: hf://OWNER/NAME, also as `Path` writes it."""
    return text.startswith("hf:/")


def find_cached(repository: Repository, **options: Any) -> Path | None:
    """The folder of a model in the hub's cache, as it was fetched last; None: it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    options |= {"local_files_only": True, "force_download": False}
    revision = repository.revision or NEWEST
    try:
        folder = Path(
            snapshot_download(
                repository.name, revision=revision, allow_patterns=list(WANTED), **options
            )
        )
    except LocalEntryNotFoundError:
        return None
    return folder if find_checkpoint(folder) else None


def fetch_model(repository: Repository, **options: Any) -> Path:
    """The folder of a model in the hub's cache, whose name is its commit; downloaded if need be.

    Only safetensors and settings are fetched. A commit that is in the cache is taken from there
    without a question. Where the hub is away, or HF_HUB_OFFLINE is set, what was fetched last is
    taken, and a message says so. `options` are those of huggingface_hub's `snapshot_download`.
    Raises UserError, with the reason, where the model cannot be had.
    """
    from huggingface_hub import HfApi, snapshot_download

    revision = repository.revision or NEWEST
    with _explain_reading(repository):
        cached = find_cached(repository, **options)
        is_pinned = COMMIT.fullmatch(revision) and not options.get("force_download")
        if cached is not None and (is_pinned or options.get("local_files_only")):
            return cached
        try:
            info = HfApi(token=options.get("token")).model_info(repository.name, revision=revision)
            _check_files(repository, [file.rfilename for file in info.siblings or ()])
            folder = Path(
                snapshot_download(
                    repository.name, revision=revision, allow_patterns=list(WANTED), **options
                )
            )
        except failures() as error:
            if cached is None or not _is_away(error):
                raise
            why = explain(error, repository.name, "such a revision")
            log.warning(
                "%s is taken from the cache, at commit %s: %s", repository, cached.name, why
            )
            return cached
    log.info("%s is at commit %s", repository, folder.name)
    return folder


@dataclass(frozen=True)
class Pushed:
    """A model that was pushed: where it is, at which commit, and its address for a browser."""

    repository: Repository
    url: str


def push_folder(folder: Path, repository: Repository, private: bool, message: str) -> Pushed:
    """Uploads the files of a folder, in one commit, to a branch of a repository.

    The repository is made, `private` or not, and so is the branch, where they are missing. Raises
    UserError without a login or the right to write, for a name that another kind of repository has,
    and for a public repository that should be `private`.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if get_token() is None:
        raise UserError(
            f"no login to the hub, to push {repository.name}",
            "a token with the right to write",
            "run `hf auth login`, or set HF_TOKEN",
        )
    api, branch = HfApi(), repository.revision
    with _explain_writing(repository):
        try:
            info = api.model_info(repository.name)
        except RepositoryNotFoundError:
            api.create_repo(repository.name, private=private or None)
        else:
            _check_replaced(repository, info, private)
        if branch is not None:
            api.create_branch(repository.name, branch=branch, exist_ok=True)
        files = sorted(path for path in folder.iterdir() if path.is_file())
        commit = api.create_commit(
            repository.name,
            [CommitOperationAdd(path.name, str(path)) for path in files],
            commit_message=message,
            revision=branch,
        )
    return Pushed(Repository(repository.name, commit.oid), commit.commit_url)


@dataclass(frozen=True)
class Score:
    """A mean over an evaluation, as the hub lists it: what of, on what, how much."""

    data: str
    metric: str
    value: float
    dataset: str = ""  # on the hub, if it is there


def write_front_matter(name: str, fields: Mapping[str, Any], scores: tuple[Score, ...]) -> str:
    """The head of a model card between two lines `---`: `fields`, and scores as its model-index."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-to-3d",
            task_name="Novel view synthesis",
            dataset_type=score.dataset or re.sub(r"\W+", "-", score.data.lower()).strip("-"),
            dataset_name=score.data,
            metric_type=score.metric,
            metric_name=score.metric.upper(),
            metric_value=score.value,
        )
        for score in scores
    ]
    known = {key: value for key, value in fields.items() if value}
    if results:
        known |= {"metrics": sorted({score.metric for score in scores})}
        known |= {"model_name": name, "eval_results": results}
    return f"---\n{ModelCardData(library_name=LIBRARY, **known).to_yaml()}\n---\n"


def _check_files(repository: Repository, names: list[str]) -> None:
    """UserError for a repository without weights that can be read without running code."""
    if not {"model.safetensors", f"model.safetensors{INDEX}"} & set(names):
        raise UserError(
            f"the repository {repository} without model.safetensors ({name_some(names)})",
            "a model that `pmsplat models push` wrote",
            "`pmsplat models` lists published models, which have names of their own",
        )


def _check_replaced(repository: Repository, info: Any, private: bool) -> None:
    """UserError where a push would change what is not a model of ours, or be seen by others."""
    names = [file.rfilename for file in info.siblings or ()]
    others = [name for name in names if name not in (".gitattributes", CARD)]
    if others and info.library_name != LIBRARY and LIBRARY not in (info.tags or ()):
        raise UserError(
            f"the repository {repository.name}, which has other files ({name_some(others)})",
            "a new name, or the repository of a model of pmsplat",
            "choose another name",
        )
    if private and not info.private:
        raise UserError(
            f"`private`, and the repository {repository.name} exists and is public",
            "a private one, or a new name",
            "change its visibility on its page, or choose another name",
        )


def _is_away(error: Exception) -> bool:
    """Whether the hub did not answer, so that nothing is known of the repository."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, OfflineModeIsEnabled | HTTPError)


@contextmanager
def _explain_reading(repository: Repository) -> Iterator[None]:
    """Turns what stops a download into a UserError."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    address = f"https://huggingface.co/{repository.name}"
    got, remedy = f"{repository} cannot be had from the hub", "try again"
    remedy += ", or give the path of a checkpoint"
    try:
        yield
        return
    except HFValidationError as error:
        why, problem, remedy = "it is no name of a repository", error, "check the spelling"
    except GatedRepoError as error:
        why, problem = "its authors want to be asked", error
        remedy = f"accept their terms on {address}, and log in: `hf auth login`, or HF_TOKEN"
    except RepositoryNotFoundError as error:
        why, problem = "there is none of that name, or it is private", error
        remedy = "check the spelling; for a private one run `hf auth login`, or set HF_TOKEN"
    except RevisionNotFoundError as error:
        why, problem = f"it has no revision {repository.revision or NEWEST}", error
        remedy = f"choose a branch, tag or commit of {address}"
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        why, problem = "it is not in the cache, and downloads are switched off", error
        remedy = "unset HF_HUB_OFFLINE, or load it once where there is a connection"
    except failures() as error:
        why, problem = explain(error, repository.name, "such a model"), error
    raise UserError(f"{got}: {why}", "a model that can be downloaded", remedy) from problem


@contextmanager
def _explain_writing(repository: Repository) -> Iterator[None]:
    """Turns what stops an upload into a UserError."""
    from huggingface_hub.errors import BadRequestError, HfHubHTTPError, HFValidationError

    try:
        yield
        return
    except UserError:
        raise
    except HFValidationError as error:
        why, problem, remedy = "that is no name of a repository", error, "give OWNER/NAME"
    except BadRequestError as error:
        why, problem, remedy = first_line(error), error, "try again"
    except ValueError as error:  # of the head of the card, which the hub has read
        why, problem = " ".join(str(error).split()), error
        remedy = "choose a license that the hub knows, or mend the card"
    except (*failures(), RuntimeError) as error:  # RuntimeError: of the transfer of a large file
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        why, remedy = _say_status(status, repository.name)
        problem = error
        if not why and isinstance(cause, failures()):
            why, remedy = explain(cause, repository.name, "such a place"), "try again"
        elif not why:
            why, remedy = first_line(error), "try again"
    raise UserError(
        f"{repository} cannot be pushed: {why}", "a repository to write to", remedy
    ) from problem


def _say_status(status: int | None, name: str) -> tuple[str, str]:
    """What a refusal to write means, and what to do about it; "" for other answers."""
    owner = name.partition("/")[0]
    if status == 401:
        return "the hub does not know this login", "run `hf auth login`, or set HF_TOKEN anew"
    if status == 403:
        return (
            "this login has no right to write there (status 403)",
            f"take a token that may write for {owner}, or another owner",
        )
    if status == 409:
        return "the name is taken", "choose another name"
    return "", ""
