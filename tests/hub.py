"""A Hugging Face Hub on this machine, with real repositories, that fails in every way in which hubs fail.

    with Hub() as hub:
        repo = hub.repo("owner/name")
        first = repo.commit({"config.json": b"{}", "model.safetensors": data}, lfs={"model.safetensors"})
        repo.commit({"config.json": b"[]"})           # main moves; ``repo.tag("v1", first)``
        hub.fault("corrupt", match="model", times=1)  # what the next requests that fit meet
        monkeypatch.setenv("HF_ENDPOINT", hub.url)    # or ``hub.env(cache)`` for a subprocess
        hub.requests                                  # who asked for what

Files are served as the Hub serves them: small ones by the Hub itself under their git blob id, large ones
(LFS) by another origin to which it redirects, under their sha256. It takes uploads too, from clients that
bring :data:`TOKEN`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

from hub_faults import FAULTS, KINDS

TOKEN = "hf_loopback"


@dataclass(frozen=True)
class File:
    """A file at a commit."""

    data: bytes
    is_lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def oid(self) -> str:
        """The git blob id of what git holds: the file, or the pointer to a large one."""
        data = self.data
        if self.is_lfs:
            data = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n"
            ).encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid


Tree = dict[str, File]


@dataclass
class Repo:
    """A model repository. Every commit holds a whole tree; branches and tags are names of commits."""

    name: str
    commits: dict[str, Tree] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    is_gated: bool = False
    is_disabled: bool = False
    is_private: bool = False

    def commit(
        self,
        files: Mapping[str, bytes],
        lfs: Collection[str] = (),
        *,
        branch: str = "main",
        delete: Collection[str] = (),
    ) -> str:
        """Add files to a branch and return the commit, 40 hex digits."""
        parent = self.branches.get(branch, "")
        tree = {path: file for path, file in self.commits.get(parent, {}).items() if path not in delete}
        tree |= {path: File(data, path in lfs) for path, data in files.items()}
        return self._add(tree, branch, parent)

    def squash(self, branch: str = "main") -> str:
        """Forget the history: from now on only one commit exists, which is another one."""
        tree = self.commits[self.branches[branch]]
        self.commits.clear()
        self.tags.clear()
        return self._add(tree, branch, "squashed")

    def tag(self, name: str, commit: str | None = None) -> None:
        self.tags[name] = commit or self.branches["main"]

    def branch(self, name: str, commit: str | None = None) -> None:
        self.branches[name] = commit or self.branches["main"]

    def gate(self, on: bool = True) -> None:
        """Give files only to those who bring the token."""
        self.is_gated = on
        self.info["gated"] = "manual" if on else False

    def disable(self) -> None:
        """Take the repository down, as the Hub does on complaints."""
        self.is_disabled = True

    @property
    def head(self) -> str:
        return self.branches["main"]

    def find(self, revision: str) -> str | None:
        """The commit that a revision stands for."""
        found = self.branches.get(revision) or self.tags.get(revision)
        return found or (revision if revision in self.commits else None)

    def history(self, commit: str) -> Iterator[str]:
        """A commit and those before it."""
        while commit in self.commits:
            yield commit
            commit = self.parents[commit]

    def _add(self, tree: Tree, branch: str, parent: str) -> str:
        text = f"{self.name} {parent} {len(self.commits)} " + " ".join(
            f"{path} {file.etag}" for path, file in sorted(tree.items())
        )
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits[sha] = tree
        self.parents[sha] = parent
        self.branches[branch] = sha
        return sha


@dataclass
class Request:
    """What a client asked. ``kind`` is head, body, api or upload; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    kind: str


@dataclass
class Fault:
    """A fault that is set: its name, which requests it meets, and how often."""

    name: str
    match: str
    times: int | None
    kinds: Collection[str]
    options: dict[str, Any]


class Hub:
    """The servers: the Hub, and the other origin that has the large files. A context manager."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.uploaded: dict[str, bytes] = {}
        self.lfs_uploads = False  # whether uploads of *.safetensors take the way of large files
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._servers = [_Server(self, is_cdn) for is_cdn in (False, True)]
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            for server in self._servers
        ]
        self.url = f"http://127.0.0.1:{self._servers[0].server_port}"
        # By another name, because clients before 2.0 look at the host only to tell another origin.
        self.cdn = f"http://localhost:{self._servers[1].server_port}"

    def repo(self, name: str) -> Repo:
        """Return a repository, made when it is asked for first."""
        return self.repos.setdefault(name, Repo(name))

    def delete(self, name: str) -> None:
        del self.repos[name]

    def fault(
        self,
        name: str,
        *,
        match: str = "",
        times: int | None = None,
        on: Collection[str] | str | None = None,
        **options: Any,
    ) -> None:
        """Let requests meet a fault of ``hub_faults.FAULTS``.

        Args:
            name: of the fault.
            match: a regular expression that is looked for in the path that is asked.
            times: how many requests meet it; all of them without.
            on: kinds of requests (head, body, api, upload); those that the fault is made for without.
            options: of the fault.
        """
        kinds = KINDS[name] if on is None else ({on} if isinstance(on, str) else on)
        self.faults.append(Fault(name, match, times, kinds, options))

    def forget(self) -> None:
        """Begin to count anew, and end all faults."""
        self.requests.clear()
        self.faults.clear()

    def env(self, cache: Path) -> dict[str, str]:
        """The environment that lets a process use this hub, and a folder as home of the client."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def met(self, request: Request) -> Fault | None:
        """Note a request and return the fault that it meets."""
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if request.kind in fault.kinds and re.search(fault.match, request.path) and fault.times != 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def blob(self, sha256: str) -> bytes | None:
        """A large file by its digest, wherever it lies."""
        for repo in list(self.repos.values()):
            for tree in list(repo.commits.values()):
                for file in tree.values():
                    if file.is_lfs and file.sha256 == sha256:
                        return file.data
        return self.uploaded.get(sha256)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: Hub, is_cdn: bool) -> None:
        self.hub, self.is_cdn = hub, is_cdn
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are none of a server's business."""


class Exchange(BaseHTTPRequestHandler):
    """One connection. What faults need: answering, and breaking the connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def head(self, status: int, headers: Mapping[str, object]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        self.wfile.flush()

    def answer(
        self,
        status: int = 200,
        body: bytes = b"",
        headers: Mapping[str, object] | None = None,
    ) -> None:
        self.head(status, {"Content-Length": len(body), **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)
            self.wfile.flush()

    def json(self, value: object, headers: Mapping[str, object] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def error(self, status: int, code: str, message: str = "", **headers: object) -> None:
        """An error as the Hub says it."""
        told = {"X-Error-Code": code or None, "X-Error-Message": message or code, **headers}
        body = json.dumps({"error": message or code}).encode()
        self.answer(status, body, {"Content-Type": "application/json", **told})

    def cut(self) -> None:
        """End the connection in an orderly way."""
        self.wfile.flush()
        self.close_connection = True

    def reset(self) -> None:
        """Break the connection so that the client sees a reset."""
        self.close_connection = True
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # http.server holds the socket in three places; only when all are gone is it closed.
        self.rfile.close()
        self.connection.close()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()


class _Handler(Exchange):
    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        self.sent = int(self.headers.get("Content-Length") or 0)
        self.received = self.rfile.read(self.sent)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, self._kind())
        fault = self.hub.met(request)
        with contextlib.suppress(OSError):
            if fault is not None:
                FAULTS[fault.name](self, **fault.options)
            else:
                self.good()

    def _kind(self) -> str:
        path = urlsplit(self.path).path
        is_upload = self.command == "PUT" or re.search(r"/(preupload|commit)/|/create$|/batch$|yaml$", path)
        if is_upload:
            return "upload"
        if path.startswith("/api/"):
            return "api"
        return "head" if self.command == "HEAD" else "body"

    # --- what a good hub does ----------------------------------------------------------------------

    def good(self, alter: Mapping[str, object] | None = None) -> None:
        """Answer as the Hub does; ``alter`` replaces headers of a file's answer."""
        path = urlsplit(self.path).path
        if self.command == "PUT":
            self.hub.uploaded[path.rpartition("/")[2]] = self.received
            return self.answer()
        if self.server.is_cdn:
            return self._cdn(path.strip("/").rpartition("/")[2], alter or {})
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(match[1], unquote(match[2]), unquote(match[3]), alter or {})
        if match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._lfs_batch()
        if path.startswith("/api/"):
            return self._api(path.removeprefix("/api/"))
        return self.error(404, "", "Not found")

    def file(self) -> File | None:
        """The file that is asked for, if there is one."""
        path = urlsplit(self.path).path
        if self.server.is_cdn:
            data = self.hub.blob(path.rpartition("/")[2])
            return None if data is None else File(data, is_lfs=True)
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repo = self.hub.repos.get(match[1]) if match else None
        commit = repo.find(unquote(match[2])) if match and repo else None
        return repo.commits[commit].get(unquote(match[3])) if match and repo and commit else None

    def body_headers(self, file: File) -> dict[str, object]:
        headers: dict[str, object] = {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        return headers | {"Content-Type": "application/octet-stream"}

    def _cdn(self, sha256: str, alter: Mapping[str, object]) -> None:
        if "authorization" in self.headers:
            return self.answer(400, b"the token was sent to another origin")
        data = self.hub.blob(sha256)
        if data is None:
            return self.answer(404)
        return self._send(File(data, is_lfs=True), {}, alter)

    def _resolve(self, name: str, revision: str, path: str, alter: Mapping[str, object]) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        repo, commit = found
        file = repo.commits[commit].get(path)
        if file is None:
            self.error(404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit})
        elif file.is_lfs:
            self.answer(
                302,
                b"",
                {
                    "X-Repo-Commit": commit,
                    "X-Linked-Etag": f'"{file.sha256}"',
                    "X-Linked-Size": len(file.data),
                    "Location": f"{self.hub.cdn}/{name}/{file.sha256}",
                    **alter,
                },
            )
        else:
            self._send(file, {"X-Repo-Commit": commit}, alter)

    def _send(self, file: File, more: Mapping[str, object], alter: Mapping[str, object]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        headers = {**self.body_headers(file), **more}
        if not match or self.command == "HEAD":
            return self.answer(200, file.data, {**headers, **alter})
        start, size = int(match[1]), len(file.data)
        if start >= size:
            return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
        stop = min(size, int(match[2]) + 1) if match[2] else size
        content = f"bytes {start}-{stop - 1}/{size}"
        return self.answer(206, file.data[start:stop], {**headers, "Content-Range": content, **alter})

    def _find(self, name: str, revision: str | None) -> tuple[Repo, str] | None:
        """The repository and commit that are asked for; or say why not."""
        repo = self.hub.repos.get(name)
        is_known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.is_private and not is_known):
            self.error(401, "RepoNotFound", "Repository not found")
        elif repo.is_disabled:
            self.error(403, "", "Access to this resource is disabled.")
        elif repo.is_gated and not is_known and not self.path.startswith("/api/"):
            self.error(401, "GatedRepo", "Access to this model is restricted. You must be authenticated.")
        elif (commit := repo.find(revision or "main")) is None:
            self.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repo, commit
        return None

    # --- api ---------------------------------------------------------------------------------------

    def _api(self, path: str) -> None:
        match path:
            case "whoami-v2":
                return self._whoami()
            case "agent-harnesses":
                return self.json({})
            case "validate-yaml":
                return self.json({"errors": [], "warnings": []})
            case "repos/create":
                return self._create()
            case "models":
                return self.json([{"id": name} for name in self.hub.repos])
        return self._model(path)

    def _model(self, path: str) -> None:
        match = re.fullmatch(r"models/([^/]+/[^/]+)(?:/([a-z-]+)(?:/(.+))?)?", path)
        if not match:
            return self.error(404, "", "Not found")
        name, what, rest = match.groups()
        revision, _, inside = (rest or "main").partition("/")
        revision, inside = unquote(revision), unquote(inside)
        if what in ("preupload", "commit") and not self.hub.repo(name).commits:
            return self._preupload() if what == "preupload" else self._commit(self.hub.repo(name), "main")
        found = self._find(name, revision)
        if found is None:
            return None
        repo, commit = found
        match what:
            case None | "revision":
                return self.json(self._info(repo, commit))
            case "tree":
                return self._tree(repo.commits[commit], inside)
            case "paths-info":
                asked = parse_qs(self.received.decode()).get("paths", [])
                tree = {path: file for path, file in repo.commits[commit].items() if path in asked}
                return self.json(list(_entries(tree)))
            case "refs":
                return self._refs(repo)
            case "commits":
                told = {"authors": [], "date": "2026-01-01T00:00:00.000Z", "title": "", "message": ""}
                return self.json([{"id": sha, **told} for sha in repo.history(commit)])
            case "preupload":
                return self._preupload()
            case "commit":
                return self._commit(repo, revision or "main")
        return self.error(404, "", "Not found")

    def _whoami(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.error(401, "", "Invalid credentials in Authorization header")
        return self.json({"type": "user", "name": "owner", "orgs": [], "auth": {"type": "access_token"}})

    def _info(self, repo: Repo, commit: str) -> dict[str, Any]:
        with_blobs = "blobs" in parse_qs(urlsplit(self.path).query)
        siblings = [_sibling(path, file, with_blobs) for path, file in repo.commits[commit].items()]
        return {
            "_id": "0",
            "id": repo.name,
            "modelId": repo.name,
            "author": repo.name.partition("/")[0],
            "sha": commit,
            "private": repo.is_private,
            "disabled": repo.is_disabled,
            "gated": False,
            "tags": [],
            "siblings": siblings,
            **repo.info,
        }

    def _tree(self, tree: Tree, inside: str, page: int = 1000) -> None:
        query = parse_qs(urlsplit(self.path).query)
        start = int(query.get("cursor", ["0"])[0])
        inside = f"{inside}/" if inside else ""
        entries = list(_entries({path: file for path, file in tree.items() if path.startswith(inside)}))
        link = None
        if start + page < len(entries):
            where = urlsplit(self.path).path
            link = f'<{self.hub.url}{where}?recursive=true&cursor={start + page}>; rel="next"'
        self.json(entries[start : start + page], {"Link": link})

    def _refs(self, repo: Repo) -> None:
        def rows(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
                for name, commit in names.items()
            ]

        self.json({"branches": rows("heads", repo.branches), "tags": rows("tags", repo.tags), "converts": []})

    # --- uploads -----------------------------------------------------------------------------------

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return True
        self.error(401, "", "Invalid username or password.")
        return False

    def _create(self) -> None:
        if not self._may_write():
            return
        asked = json.loads(self.received)
        name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        if name in self.hub.repos:
            taken = {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
            self.answer(409, json.dumps(taken).encode(), {"Content-Type": "application/json"})
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.repo(name).is_private = bool(private)
        self.hub.repo(name).commit({".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.json({"url": f"{self.hub.url}/{name}", "id": "0", "name": name})

    def _is_large(self, path: str) -> bool:
        return self.hub.lfs_uploads and path.endswith(".safetensors")

    def _preupload(self) -> None:
        if self._may_write():
            files = [file["path"] for file in json.loads(self.received)["files"]]
            self.json(
                {
                    "files": [
                        {
                            "path": path,
                            "uploadMode": "lfs" if self._is_large(path) else "regular",
                            "shouldIgnore": False,
                        }
                        for path in files
                    ]
                }
            )

    def _lfs_batch(self) -> None:
        if self._may_write():
            objects = json.loads(self.received)["objects"]
            for entry in objects:
                href = f"{self.hub.cdn}/upload/{entry['oid']}"
                entry["actions"] = {"upload": {"href": href, "header": {}}}
            self.json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: Repo, branch: str) -> None:
        if not self._may_write():
            return
        files: dict[str, bytes] = {}
        large: set[str] = set()
        deleted: set[str] = set()
        for line in self.received.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.uploaded[value["oid"]]
                    large.add(value["path"])
                case "deletedFile":
                    deleted.add(value["path"])
        large |= {path for path in files if path.endswith(".safetensors")}
        sha = repo.commit(files, large, branch=branch, delete=deleted)
        url = f"{self.hub.url}/{repo.name}/commit/{sha}"
        self.json(
            {"commitUrl": url, "commitOid": sha, "pullRequestUrl": None, "hookOutput": "", "success": True}
        )


def _sibling(path: str, file: File, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    entry: dict[str, Any] = {"rfilename": path, "size": len(file.data), "blobId": file.oid}
    if file.is_lfs:
        entry["lfs"] = {"sha256": file.sha256, "size": len(file.data), "pointerSize": 130}
    return entry


def _entries(tree: Tree) -> Iterator[dict[str, Any]]:
    folders: set[str] = set()
    for path, file in tree.items():
        parts = path.split("/")[:-1]
        for end in range(1, len(parts) + 1):
            folder = "/".join(parts[:end])
            if folder not in folders:
                folders.add(folder)
                yield {"type": "directory", "oid": "0" * 40, "size": 0, "path": folder}
        entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": len(file.data), "path": path}
        if file.is_lfs:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": 130}
        yield entry
