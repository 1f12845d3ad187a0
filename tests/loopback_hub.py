"""A Hub on 127.0.0.1, for tests: real HTTP, spoken with the installed `huggingface_hub` client.

It creates repos, takes commits of regular and of LFS files, keeps branches, pull requests and revisions, serves whole
files and ranges, knows tokens, and answers errors in the Hub's own types. Repos live in memory. [`LoopbackHub.fail`]
and [`LoopbackHub.cut`] make it misbehave.

The client reads `HF_ENDPOINT` when it is imported, so what talks to the Hub runs in a process of its own, with
[`LoopbackHub.env`] or through [`LoopbackHub.python`].
"""

import base64
import hashlib
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


# What the Hub keeps as LFS objects whatever its size, as the `.gitattributes` of a new repo says.
LFS_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".gif", ".mp4", ".npz", ".png", ".pth")

# The client waits seconds before it asks again. Tests wait a twentieth of that.
_IMPATIENT = "import time as _time; _sleep = _time.sleep; _time.sleep = lambda seconds: _sleep(seconds / 20)\n"


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """What the client compares with its own file: the hash of the object for LFS, git's hash of a blob else."""
        git_blob = b"blob %d\0" % len(self.content) + self.content
        return self.sha256 if self.lfs else hashlib.sha1(git_blob).hexdigest()


@dataclass
class Repo:
    private: bool = False
    # Branches and pull requests ("refs/pr/1") by name.
    refs: dict[str, str] = field(default_factory=dict)
    # The files of every commit by path.
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    # The titles of the commits.
    titles: dict[str, str] = field(default_factory=dict)

    def commit(self, ref: str, files: Mapping[str, File], title: str = "initial commit") -> str:
        described = [ref, len(self.commits), [(path, file.oid) for path, file in sorted(files.items())]]
        sha = hashlib.sha1(json.dumps(described).encode()).hexdigest()
        self.commits[sha], self.titles[sha], self.refs[ref] = dict(files), title, sha
        return sha

    def resolve(self, revision: str) -> str | None:
        sha = self.refs.get(revision, revision)
        return sha if sha in self.commits else None


@dataclass
class Fault:
    """Something that goes wrong in the next `times` requests whose "METHOD /path" matches `pattern`."""

    pattern: re.Pattern[str]
    times: float
    status: int | None = None
    cut_after: int | None = None
    error_code: str = ""


@dataclass(frozen=True)
class Request:
    method: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass
class Response:
    status: int
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def _json(content: Any, status: int = 200) -> Response:
    return Response(status, json.dumps(content).encode(), {"Content-Type": "application/json"})


def _error(status: int, message: str, code: str = "") -> Response:
    response = _json({"error": message}, status)
    response.headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return response


class LoopbackHub:
    """The server. A context manager: it serves from entering to leaving.

    Args:
        home (`Path`): A folder for the caches of clients (`HF_HOME`).
    """

    WRITE_TOKEN = "hf_may_write"
    READ_TOKEN = "hf_may_read"
    USER = "tester"

    def __init__(self, home: Path) -> None:
        self.home = home
        # "METHOD /path?query" of every request, in order, those that went wrong too.
        self.requests: list[str] = []
        self.repos: dict[tuple[str, str], Repo] = {}
        self._lfs_objects: dict[str, bytes] = {}
        self._roles = {self.WRITE_TOKEN: "write", self.READ_TOKEN: "read"}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "LoopbackHub":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def env(self) -> dict[str, str]:
        """The environment of a process that takes this for the Hub, logged in with a token that may write."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DIFFUSERS_"))}
        return inherited | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home),
            "HF_TOKEN": self.WRITE_TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # What went wrong is on the last line then.
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            # What tests share is there for scripts too.
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), inherited.get("PYTHONPATH", "")]),
            # How many threads share a sum decides its last bits.
            "OMP_NUM_THREADS": "1",
        }

    def python(self, script: str, *arguments: str | Path, **env: str | None) -> subprocess.CompletedProcess[str]:
        """Runs a script in a fresh interpreter that takes this for the Hub.

        Args:
            script (`str`): Its code.
            arguments: Its `sys.argv[1:]`.
            env: Changes to [`LoopbackHub.env`]; `None` takes a variable away.

        Returns:
            The finished process with its output, whether it went well or not.
        """
        environment = {name: value for name, value in (self.env | env).items() if value is not None}
        command = [sys.executable, "-c", _IMPATIENT + script, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)

    def fail(self, pattern: str, status: int, times: float = 1, error_code: str = "") -> None:
        """Answers the next `times` requests whose "METHOD /path" matches `pattern` with an error and nothing done."""
        self._faults.append(Fault(re.compile(pattern), times, status=status, error_code=error_code))

    def cut(self, pattern: str, after: int, times: float = 1) -> None:
        """Cuts the connection of the next `times` matching requests after so many bytes of what is sent.

        That is the body of the request for PUT and POST, and of the response else.
        """
        self._faults.append(Fault(re.compile(pattern), times, cut_after=after))

    def heal(self) -> None:
        """Takes back every [`fail`] and [`cut`]."""
        self._faults.clear()

    def add_repo(
        self, repo_id: str, files: Mapping[str, str | bytes], repo_type: str = "model", private: bool = False
    ) -> str:
        """Puts a repo there without any request.

        Returns:
            The hash of its commit.
        """
        repo = self.repos.setdefault((repo_type, repo_id), Repo(private))
        contents = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
        return repo.commit("main", {path: File(c, path.endswith(LFS_SUFFIXES)) for path, c in contents.items()})

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """What a repo holds at a revision, by path."""
        repo = self.repos[repo_type, repo_id]
        return {path: file.content for path, file in repo.commits[repo.refs.get(revision, revision)].items()}

    def take_fault(self, request: str) -> Fault | None:
        """Notes a request, and gives the fault that it runs into."""
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                if fault.times > 0 and fault.pattern.search(request):
                    fault.times -= 1
                    return fault
        return None

    def answer(self, path: str, request: Request) -> Response:
        """Does what a request asks for."""
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self._roles:
            return _error(401, "Invalid credentials in Authorization header")
        role = self._roles.get(token)
        for pattern, route in _ROUTES:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            groups = {name: unquote(value or "") for name, value in match.groupdict().items()}
            repo_type = {"datasets": "dataset", "spaces": "space"}.get(groups.pop("kind", ""), "model")
            with self._lock:
                if "repo_id" not in groups:
                    return route(self, request, role, **groups)
                repo_id = groups.pop("repo_id")
                repo = self.repos.get((repo_type, repo_id))
                if repo is None or (repo.private and role is None):
                    return _error(404 if role else 401, "Repository not found", "RepoNotFound")
                if request.method in ("POST", "DELETE") and not path.endswith("/paths-info") and role != "write":
                    return _error(*_refusal(role))
                return route(self, request, repo_id, repo, **groups)
        return _error(404, f"no route for {request.method} {path}")

    def _whoami(self, request: Request, role: str | None) -> Response:
        if role is None:
            return _error(401, "Invalid username or password.")
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return _json({"type": "user", "id": "1", "name": self.USER, "fullname": self.USER, "orgs": [], "auth": access})

    def _validate_yaml(self, request: Request, role: str | None) -> Response:
        return _json({"errors": [], "warnings": []})

    def _create(self, request: Request, role: str | None) -> Response:
        if role != "write":
            return _error(*_refusal(role))
        asked_for = request.json()
        repo_type = asked_for.get("type") or "model"
        repo_id = f"{asked_for.get('organization') or self.USER}/{asked_for['name']}"
        url = f"{self.endpoint}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"
        if (repo_type, repo_id) in self.repos:
            return _json({"error": f"You already created this {repo_type} repo: {repo_id}", "url": url}, 409)
        repo = Repo(private=asked_for.get("visibility") == "private" or bool(asked_for.get("private")))
        repo.commit("main", {".gitattributes": File(b"", lfs=False)})
        self.repos[repo_type, repo_id] = repo
        return _json({"url": url, "name": repo_id})

    def _put_lfs_object(self, request: Request, role: str | None, sha256: str) -> Response:
        if hashlib.sha256(request.body).hexdigest() != sha256:
            return _error(400, "The object is not what was announced.")
        self._lfs_objects[sha256] = request.body
        return _json({})

    def _verify_lfs_object(self, request: Request, role: str | None, sha256: str) -> Response:
        arrived = len(self._lfs_objects.get(sha256, b"")) == request.json()["size"]
        return _json({}) if arrived else _error(404, "The object did not arrive.")

    def _lfs_batch(self, request: Request, repo_id: str, repo: Repo) -> Response:
        objects = []
        for wanted in request.json()["objects"]:
            url = f"{self.endpoint}/lfs/{wanted['oid']}"
            actions = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
            known = wanted["oid"] in self._lfs_objects
            objects.append({"oid": wanted["oid"], "size": wanted["size"]} | ({} if known else {"actions": actions}))
        return _json({"transfer": "basic", "objects": objects})

    def _branch(self, request: Request, repo_id: str, repo: Repo, ref: str) -> Response:
        if request.method == "DELETE":
            del repo.refs[ref]
            return _json({})
        if ref in repo.refs:
            return _error(409, f"Reference already exists: {ref}")
        start = repo.resolve(request.json().get("startingPoint") or "main")
        if start is None:
            return _error(404, "Invalid rev id", "RevisionNotFound")
        repo.refs[ref] = start
        return _json({})

    def _list_refs(self, request: Request, repo_id: str, repo: Repo) -> Response:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
            for name, sha in repo.refs.items()
            if not name.startswith("refs/")
        ]
        return _json({"branches": branches, "tags": [], "converts": []})

    def _info(self, request: Request, repo_id: str, repo: Repo, ref: str = "") -> Response:
        sha = repo.resolve(ref or "main")
        if sha is None:
            return _error(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        return _json(
            {
                "_id": sha[:24],
                "id": repo_id,
                "author": repo_id.partition("/")[0],
                "sha": sha,
                "private": repo.private,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "createdAt": "2026-01-01T00:00:00.000Z",
                "lastModified": "2026-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": path} for path in repo.commits[sha]],
            }
        )

    def _tree(self, request: Request, repo_id: str, repo: Repo, ref: str, folder: str = "") -> Response:
        sha = repo.resolve(ref)
        if sha is None:
            return _error(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        prefix = f"{folder}/" if folder else ""
        files = {path: file for path, file in repo.commits[sha].items() if path.startswith(prefix)}
        if folder and not files:
            return _error(404, f"{folder} does not exist", "EntryNotFound")
        recursive = request.query.get("recursive", ["false"])[0].lower() == "true"
        folders = {
            prefix + "/".join(path.removeprefix(prefix).split("/")[:depth])
            for path in files
            for depth in range(1, path.removeprefix(prefix).count("/") + 1)
        }
        entries: list[dict[str, Any]] = [
            {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
            for path in sorted(folders)
        ]
        entries += [_entry(path, file) for path, file in sorted(files.items())]
        return _json([entry for entry in entries if recursive or "/" not in entry["path"].removeprefix(prefix)])

    def _paths_info(self, request: Request, repo_id: str, repo: Repo, ref: str) -> Response:
        sha = repo.resolve(ref)
        if sha is None:
            return _error(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        as_json = "json" in request.headers.get("Content-Type", "")
        paths = request.json()["paths"] if as_json else parse_qs(request.body.decode())["paths"]
        files = repo.commits[sha]
        return _json([_entry(path, files[path]) for path in paths if path in files])

    def _preupload(self, request: Request, repo_id: str, repo: Repo, ref: str) -> Response:
        sha = repo.resolve(ref)
        if sha is None:
            return _error(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        answers = []
        for file in request.json()["files"]:
            path, known = file["path"], repo.commits[sha].get(file["path"])
            mode = "lfs" if path.endswith(LFS_SUFFIXES) else "regular"
            answer = {"path": path, "shouldIgnore": False, "uploadMode": mode}
            answers.append(answer | ({} if known is None else {"oid": known.oid}))
        return _json({"files": answers})

    def _commit(self, request: Request, repo_id: str, repo: Repo, ref: str) -> Response:
        sha = repo.resolve(ref)
        if sha is None:
            return _error(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        header, *operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        if header["value"].get("parentCommit", sha) != sha:
            return _error(412, "A commit has happened since. Please refresh and try again.")
        files = dict(repo.commits[sha])
        for operation in operations:
            value = operation["value"]
            path = value["path"]
            if operation["key"] == "file":
                files[path] = File(base64.b64decode(value["content"]), lfs=False)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in self._lfs_objects:
                    return _error(400, f"The LFS object of {path} was not uploaded.")
                files[path] = File(self._lfs_objects[value["oid"]], lfs=True)
            elif operation["key"] == "deletedFile":
                del files[path]
            else:
                return _error(400, f"Unknown operation {operation['key']}.")
        answer = {"success": True, "hookOutput": ""}
        if "create_pr" in request.query:
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
            ref = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.endpoint}/{repo_id}/discussions/{number}"
        oid = repo.commit(ref, files, header["value"]["summary"])
        return _json(answer | {"commitOid": oid, "commitUrl": f"{self.endpoint}/{repo_id}/commit/{oid}"})

    def _resolve(self, request: Request, repo_id: str, repo: Repo, ref: str, path: str) -> Response:
        sha = repo.resolve(ref)
        if sha is None:
            return _error(404, f"Invalid rev id: {ref}", "RevisionNotFound")
        file = repo.commits[sha].get(path)
        if file is None:
            response = _error(404, f"{path} does not exist", "EntryNotFound")
            response.headers["X-Repo-Commit"] = sha
            return response
        size = len(file.content)
        headers = {"ETag": f'"{file.oid}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-ETag": f'"{file.oid}"', "X-Linked-Size": str(size)}
        asked_for = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if asked_for is None:
            return Response(200, file.content, headers)
        start, end = int(asked_for[1]), int(asked_for[2] or size - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        return Response(206, file.content[start : end + 1], headers)


def _refusal(role: str | None) -> tuple[int, str]:
    if role is None:
        return 401, "Invalid username or password."
    return 403, "Your token may only read: you don't have the rights to do this"


def _entry(path: str, file: File) -> dict[str, Any]:
    size = len(file.content)
    lfs = {"lfs": {"oid": file.sha256, "size": size, "pointerSize": 134}} if file.lfs else {}
    return {"type": "file", "path": path, "size": size, "oid": file.oid} | lfs


_REPO = r"(?P<kind>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
_FILES = r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+?)"
_ROUTES: list[tuple[re.Pattern[str], Callable[..., Response]]] = [
    (re.compile(pattern), route)
    for pattern, route in (
        (r"/api/whoami-v2", LoopbackHub._whoami),
        (r"/api/validate-yaml", LoopbackHub._validate_yaml),
        (r"/api/repos/create", LoopbackHub._create),
        (r"/lfs/(?P<sha256>[0-9a-f]{64})", LoopbackHub._put_lfs_object),
        (r"/lfs/(?P<sha256>[0-9a-f]{64})/verify", LoopbackHub._verify_lfs_object),
        (rf"{_FILES}\.git/info/lfs/objects/batch", LoopbackHub._lfs_batch),
        (rf"{_FILES}/resolve/(?P<ref>[^/]+)/(?P<path>.+)", LoopbackHub._resolve),
        (rf"/api/{_REPO}", LoopbackHub._info),
        (rf"/api/{_REPO}/revision/(?P<ref>[^/]+)", LoopbackHub._info),
        (rf"/api/{_REPO}/refs", LoopbackHub._list_refs),
        (rf"/api/{_REPO}/branch/(?P<ref>[^/]+)", LoopbackHub._branch),
        (rf"/api/{_REPO}/tree/(?P<ref>[^/]+)(?:/(?P<folder>.+))?", LoopbackHub._tree),
        (rf"/api/{_REPO}/paths-info/(?P<ref>[^/]+)", LoopbackHub._paths_info),
        (rf"/api/{_REPO}/preupload/(?P<ref>[^/]+)", LoopbackHub._preupload),
        (rf"/api/{_REPO}/commit/(?P<ref>[^/]+)", LoopbackHub._commit),
    )
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *arguments: object) -> None:
        pass

    def _serve(self) -> None:
        url = urlsplit(self.path)
        fault = self.hub.take_fault(f"{self.command} {self.path}")
        sends_body = self.command in ("POST", "PUT")
        if fault is not None and fault.cut_after is not None and sends_body:
            self.rfile.read(fault.cut_after)
            return self._cut()
        request = Request(self.command, parse_qs(url.query), self.headers, self._read_body())
        if fault is not None and fault.status is not None:
            response = _error(fault.status, "Something went wrong on this side.", fault.error_code)
        else:
            response = self.hub.answer(url.path, request)
        self.send_response(response.status)
        for name, value in ({"Content-Length": str(len(response.content))} | response.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        if fault is not None and fault.cut_after is not None:
            self.wfile.write(response.content[: fault.cut_after])
            self.wfile.flush()
            return self._cut()
        self.wfile.write(response.content)
        return None

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _cut(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True
        # What the base class still flushes would have nowhere to go.
        self.wfile = io.BytesIO()
