"""A Hugging Face Hub on loopback, as far as datasets are pushed to it and loaded from it, with faults.

It answers the requests that huggingface_hub and datasets send, in the shapes that those check: see
huggingface_hub's hf_api.py, _commit_api.py and lfs.py.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_test_token"


@dataclass(slots=True)
class Repository:
    """A dataset repository: every commit's files by their path, and which commit each branch is at."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        name = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        self.messages.append(message)
        return name

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


@dataclass(slots=True)
class Fault:
    """What `times` requests are answered whose method and path `pattern` matches, or called before that."""

    pattern: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    call: Callable[[], None] | None = None
    answers_lost: bool = False


class FakeHub(ThreadingHTTPServer):
    """`seen` are the methods and paths of all requests; `uploaded` the digests of content that arrived."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.seen: list[str] = []
        self.uploaded: list[str] = []
        self.faults: list[Fault] = []
        self.mutex = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        # Large file storage over HTTP: the other way in, Xet, is a protocol of its own.
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}

    def read(self, name: str, branch: str = "main") -> dict[str, bytes]:
        found = self.repositories[name]
        return found.commits[found.branches[branch]]

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # A client that was killed.


@contextmanager
def serve_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub
    asked: dict[str, list[str]]

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        address = urlsplit(self.path)
        self.path, self.asked = unquote(address.path), parse_qs(address.query)
        line = f"{self.command} {self.path}"
        with self.server.mutex:
            self.server.seen.append(line)
            fault = next((f for f in self.server.faults if f.times > 0 and re.search(f.pattern, line)), None)
            if fault is not None:
                fault.times -= 1
        if fault is not None and fault.call is not None:
            fault.call()
        if fault is not None and fault.status is not None and not fault.answers_lost:
            self._answer(fault.status, b'{"error": "as told"}', fault.headers)
            return
        with self.server.mutex:
            status, content, headers = self._decide(body)
        if fault is not None and fault.answers_lost:
            self.close_connection = True
            return
        self._answer(status, content, headers)

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = _serve

    def _decide(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, self.path)
            if match and method == ("GET" if self.command == "HEAD" else self.command):
                return answer(self, body, *match.groups())
        return 404, b"{}", {}

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass

    def _find(self, name: str) -> Repository | None:
        return self.server.repositories.get(name)

    def _is_allowed(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def create(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if not self._is_allowed():
            return 401, b'{"error": "Invalid username or password."}', {}
        said = json.loads(body)
        name = f"{said['organization']}/{said['name']}"
        url = json.dumps({"url": f"{self.server.url}/datasets/{name}"}).encode()
        if name in self.server.repositories:
            return 409, url, {}
        repository = Repository(private=said.get("private", said.get("visibility") == "private"))
        repository.commit("main", {".gitattributes": b"*.parquet filter=lfs\n"}, "initial commit")
        self.server.repositories[name] = repository
        return 200, url, {}

    def info(self, body: bytes, name: str, revision: str = "main") -> tuple[int, bytes, dict[str, str]]:
        found = self._find(name)
        sha = found and found.resolve(revision)
        if not found or not sha:
            return _missing()
        files = [{"rfilename": path} for path in found.commits[sha]]
        return _json({"id": name, "sha": sha, "private": found.private, "siblings": files, "tags": [],
                      "downloads": 0, "likes": 0, "cardData": {}})  # fmt: skip

    def branch(self, body: bytes, name: str, branch: str) -> tuple[int, bytes, dict[str, str]]:
        found = self._find(name)
        assert found is not None
        if branch in found.branches:
            return 409, b'{"error": "Reference already exists"}', {}
        found.branches[branch] = found.branches["main"]
        return _json({})

    def tree(
        self, body: bytes, name: str, revision: str, folder: str | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        found = self._find(name)
        sha = found and found.resolve(revision)
        if not found or not sha:
            return _missing()
        prefix = f"{folder}/" if folder else ""
        files = {path: content for path, content in found.commits[sha].items() if path.startswith(prefix)}
        if self.asked.get("recursive", ["false"])[0].lower() in ("true", "1"):
            return _json([_describe(path, content) for path, content in files.items()])
        names = sorted({path.removeprefix(prefix).partition("/")[0] for path in files})
        return _json(
            [
                _describe(prefix + name, files[prefix + name])
                if prefix + name in files
                else {"type": "directory", "path": prefix + name, "oid": "0" * 40}
                for name in names
            ]
        )

    def paths_info(self, body: bytes, name: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        found = self._find(name)
        sha = found and found.resolve(revision)
        if not found or not sha:
            return _missing()
        wanted = (
            json.loads(body)["paths"] if body[:1] == b"{" else re.findall(r"paths=([^&]+)", body.decode())
        )
        files = found.commits[sha]
        entries = [_describe(path, files[path]) for path in map(unquote, wanted) if path in files]
        folders = {path.rpartition("/")[0] for path in files}
        entries += [
            {"type": "directory", "path": path, "oid": "0" * 40} for path in wanted if path in folders
        ]
        return _json(entries)

    def preupload(self, body: bytes, name: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".parquet") else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        return _json({"files": files})

    def batch(self, body: bytes, name: str) -> tuple[int, bytes, dict[str, str]]:
        objects = json.loads(body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.server.objects:
                wanted["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"}}
        return _json({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> tuple[int, bytes, dict[str, str]]:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, b"", {}
        self.server.objects[oid] = body
        self.server.uploaded.append(oid)
        return 200, b"", {}

    def commit(self, body: bytes, name: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        found = self._find(name)
        assert found is not None
        if not self._is_allowed():
            return 403, b'{"error": "you may not"}', {}
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, found.branches[revision]):
            return 412, b'{"error": "the branch has moved"}', {}
        files = dict(found.commits[found.branches[revision]])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = found.commit(revision, files, header["summary"])
        return _json({"commitUrl": f"{self.server.url}/datasets/{name}/commit/{sha}", "commitOid": sha})

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        found = self._find(name)
        sha = found and found.resolve(revision)
        if not found or not sha:
            return _missing()
        if path not in found.commits[sha]:
            return 404, b"{}", {"X-Error-Code": "EntryNotFound"}
        content = found.commits[sha][path]
        return 200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": sha}

    def accept(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        return _json({"errors": [], "warnings": []})


def _json(value: Any) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


def _missing() -> tuple[int, bytes, dict[str, str]]:
    return 404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"}


def _describe(path: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if path.endswith(".parquet"):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


_NAME = r"([^/]+/[^/]+)"
_ROUTES: list[tuple[str, str, Any]] = [
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", "/api/validate-yaml", _Handler.accept),
    ("GET", f"/api/datasets/{_NAME}", _Handler.info),
    ("GET", f"/api/datasets/{_NAME}/revision/([^/]+)", _Handler.info),
    ("POST", f"/api/datasets/{_NAME}/branch/([^/]+)", _Handler.branch),
    ("GET", f"/api/datasets/{_NAME}/tree/([^/]+)", _Handler.tree),
    ("GET", f"/api/datasets/{_NAME}/tree/([^/]+)/(.+)", _Handler.tree),
    ("POST", f"/api/datasets/{_NAME}/paths-info/([^/]+)", _Handler.paths_info),
    ("POST", f"/api/datasets/{_NAME}/preupload/([^/]+)", _Handler.preupload),
    ("POST", f"/datasets/{_NAME}.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "/lfs/([0-9a-f]{64})", _Handler.upload),
    ("POST", f"/api/datasets/{_NAME}/commit/([^/]+)", _Handler.commit),
    ("GET", f"/datasets/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
]
