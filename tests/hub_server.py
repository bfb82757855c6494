"""A small Hugging Face hub of models: what its client asks for to download and to push."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from tests.servers import Handler, Server

JSON = {"Content_Type": "application/json"}
LARGE = (".safetensors",)  # what goes through the storage of large files
OWNER, TOKEN = "me", "hf_mine"
REPOSITORY = r"/api/models/(?P<name>[^/]+/[^/]+)"


@dataclass
class Stored:
    """A repository: files by commit, and the commit of each branch."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """A commit of these files on top of a branch."""
        whole = self.commits.get(self.branches.get(branch, ""), {}) | files
        text = repr((len(self.commits), sorted(whole.items()))).encode()
        sha = hashlib.sha1(text, usedforsecurity=False).hexdigest()
        self.commits[sha], self.branches[branch] = whole, sha
        return sha

    def at(self, revision: str) -> str | None:
        """The commit of a branch, or of itself."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class ModelHub(Server):
    """`down`: a status of all answers; `asked` lists the requests, as "GET /path"."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.repositories: dict[str, Stored] = {}
        self.objects: dict[str, bytes] = {}  # large files by SHA-256
        self.down: int | None = None
        self.asked: list[str] = []
        self.messages: list[str] = []  # of commits

    def add(
        self, name: str, files: dict[str, bytes], private: bool = False, gated: bool = False
    ) -> Stored:
        stored = Stored(private=private, gated=gated)
        stored.commit("main", files)
        self.repositories[name] = stored
        return stored


class _Handler(Handler):
    def _begin(self) -> ModelHub | None:
        """The hub, unless it answers at once that it is down."""
        hub = self.server
        assert isinstance(hub, ModelHub)
        hub.asked.append(f"{self.command} {self.place}")
        if hub.down is not None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(hub.down, b"{}")
            return None
        return hub

    def do_GET(self) -> None:
        hub = self._begin()
        if hub is None:
            return
        place = urlsplit(self.path).path
        if found := re.fullmatch(f"{REPOSITORY}(/revision/(?P<revision>.+))?", place):
            stored = self._readable(hub, found["name"])
            if stored is not None:
                self._describe(found["name"], stored, unquote(found["revision"] or "main"))
        elif found := re.fullmatch(f"{REPOSITORY}/tree/(?P<revision>[^/]+)", place):
            stored = self._readable(hub, found["name"])
            if stored is not None:
                files = stored.commits[stored.at(unquote(found["revision"])) or ""]
                self.answer(200, json.dumps(list(map(_entry, files.items()))).encode(), **JSON)
        elif found := re.fullmatch(r"/(?P<name>[^/]+/[^/]+)/resolve/([^/]+)/(.+)", place):
            stored = self._readable(hub, found["name"])
            if stored is not None:
                self._send_file(stored, unquote(found[2]), found[3])
        else:
            self.answer(404, b"{}")

    def do_POST(self) -> None:
        hub, body = self._begin(), b""
        if hub is None:
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.place == "/api/validate-yaml":
            bad = b"license: nonsense" in body
            text = {"errors": [{"message": '"license" must be one of many'}]} if bad else {}
            self.answer(400 if bad else 200, json.dumps(text).encode(), **JSON)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            text = json.dumps({"error": "Invalid credentials in Authorization header"}).encode()
            self.answer(401, text, X_Error_Message="Invalid credentials in Authorization header")
        elif self.place == "/api/repos/create":
            self._create(hub, json.loads(body))
        elif found := re.fullmatch(f"{REPOSITORY}/branch/(?P<branch>.+)", self.place):
            stored = hub.repositories[found["name"]]
            if found["branch"] in stored.branches:
                self.answer(409, b"{}")
            else:
                stored.branches[found["branch"]] = stored.branches.get("main", "")
                self.answer(200, b"{}")
        elif found := re.fullmatch(f"{REPOSITORY}/preupload/.+", self.place):
            self._choose_ways(found["name"], json.loads(body))
        elif self.place.endswith(".git/info/lfs/objects/batch"):
            self._accept(hub, json.loads(body))
        elif found := re.fullmatch(f"{REPOSITORY}/commit/(?P<branch>.+)", self.place):
            self._commit(hub, found["name"], found["branch"], body)
        else:
            self.answer(404, b"{}")

    def do_PUT(self) -> None:
        hub = self._begin()
        if hub is None:
            return
        content = self.rfile.read(int(self.headers["Content-Length"]))
        digest = self.place.rpartition("/")[2]
        assert hashlib.sha256(content).hexdigest() == digest
        hub.objects[digest] = content
        self.answer(200)

    def _readable(self, hub: ModelHub, name: str) -> Stored | None:
        """The repository, if the one who asks may read it; otherwise the answer is given."""
        stored, login = hub.repositories.get(name), self.headers.get("Authorization")
        if stored is not None and stored.gated:
            self.answer(403, b"{}", X_Error_Code="GatedRepo")
        elif stored is None or (stored.private and login != f"Bearer {TOKEN}"):
            self.answer(404 if login else 401, b"{}", X_Error_Code="RepoNotFound")
        else:
            return stored
        return None

    def _describe(self, name: str, stored: Stored, revision: str) -> None:
        commit = stored.at(revision)
        if commit is None and stored.commits:
            self.answer(404, b"{}", X_Error_Code="RevisionNotFound")
            return
        files = stored.commits.get(commit or "", {})
        about = {"id": name, "sha": commit, "private": stored.private, "tags": []}
        about["siblings"] = [{"rfilename": path} for path in files]
        if library := re.search(rb"^library_name: (\w+)$", files.get("README.md", b""), re.M):
            about["library_name"] = library[1].decode()
        self.answer(200, json.dumps(about).encode(), **JSON)

    def _send_file(self, stored: Stored, revision: str, path: str) -> None:
        commit = stored.at(revision)
        content = stored.commits.get(commit or "", {}).get(path)
        if content is None:
            self.answer(404, b"{}", X_Error_Code="EntryNotFound")
            return
        large = path.endswith(LARGE)
        tag = hashlib.sha256(content).hexdigest() if large else _blob(content)
        start, end = self.begin(len(content), ETag=f'"{tag}"', **{"X-Repo-Commit": commit or ""})
        self.wfile.write(content[start:end])

    def _create(self, hub: ModelHub, wanted: dict) -> None:
        name = f"{wanted.get('organization') or OWNER}/{wanted['name']}"
        if wanted.get("organization") not in (None, OWNER):
            self.answer(403, b'{"error": "not yours"}', X_Error_Message="not yours")
        elif name in hub.repositories:
            self.answer(409, b'{"error": "taken"}', X_Error_Message="taken")
        else:
            private = wanted.get("private") or wanted.get("visibility") == "private"
            hub.repositories[name] = Stored(private=bool(private))
            self.answer(200, json.dumps({"url": f"{hub.address}/{name}"}).encode(), **JSON)

    def _choose_ways(self, name: str, wanted: dict) -> None:
        if name.partition("/")[0] != OWNER:
            self.answer(403, b'{"error": "not yours"}', X_Error_Message="not yours")
            return
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in wanted["files"]
        ]
        self.answer(200, json.dumps({"files": files}).encode(), **JSON)

    def _accept(self, hub: ModelHub, wanted: dict) -> None:
        objects = []
        for item in wanted["objects"]:
            upload = {"href": f"{hub.address}/storage/{item['oid']}"}
            known = item["oid"] in hub.objects
            objects.append(item if known else item | {"actions": {"upload": upload}})
        text = json.dumps({"transfer": "basic", "objects": objects}).encode()
        self.answer(200, text, Content_Type="application/vnd.git-lfs+json")

    def _commit(self, hub: ModelHub, name: str, branch: str, body: bytes) -> None:
        files: dict[str, bytes] = {}
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                hub.messages.append(value["summary"])
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert item["key"] == "lfsFile"
                files[value["path"]] = hub.objects[value["oid"]]
        sha = hub.repositories[name].commit(branch, files)
        about = {"commitUrl": f"{hub.address}/{name}/commit/{sha}", "commitOid": sha}
        self.answer(200, json.dumps(about).encode(), **JSON)


def _entry(file: tuple[str, bytes]) -> dict:
    path, content = file
    entry: dict = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
    if path.endswith(LARGE):
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry


def _blob(content: bytes) -> str:
    """Git's hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
