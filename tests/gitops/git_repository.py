# SPDX-License-Identifier: Apache-2.0
"""Git repositories that are served on loopback, as a forge serves them: smart HTTP, no files."""

import os
import threading
import wsgiref.simple_server
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn

from dulwich import porcelain
from dulwich.archive import tar_stream
from dulwich.repo import Repo
from dulwich.server import BackendRepo, FileSystemBackend
from dulwich.web import make_wsgi_chain

_WHO = b"A Developer <developer@example.org>"


class _Folder(FileSystemBackend):
    """The repositories of one folder; dulwich takes a URL's path for one of the host."""

    def open_repository(self, path: str | bytes) -> BackendRepo:
        return super().open_repository(self.root + os.fsdecode(path).removeprefix("/"))


class _Server(ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


class _Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep the tests' output for the tests."""


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository; what is committed is at once on its only branch, ``main``."""

    path: Path
    url: str

    def commit(self, **files: str | None) -> str:
        """Write files (``None`` removes; ``__`` is a slash, the suffix is .yaml) and commit."""
        for name, text in files.items():
            file = self.path / f"{name.replace('__', '/')}.yaml"
            file.parent.mkdir(exist_ok=True, parents=True)
            if text is None:
                porcelain.remove(str(self.path), [str(file)])
            else:
                file.write_text(text, encoding="utf-8")
                porcelain.add(str(self.path), [str(file)])
        made = porcelain.commit(str(self.path), message=b"change", author=_WHO, committer=_WHO)
        return made.decode()

    def archive(self, commit: str) -> bytes:
        """Return the tree of a commit as Flux's source-controller packs it, a gzipped tarball."""
        with Repo(str(self.path)) as repo:
            tree = repo[repo[commit.encode()].tree]
            return b"".join(tar_stream(repo.object_store, tree, mtime=0, format="gz"))


@dataclass(frozen=True, slots=True)
class GitServer:
    """A folder whose repositories are served."""

    root: Path
    address: str

    def repository(self, name: str) -> Repository:
        """Make an empty repository."""
        Repo.init(str(self.root / name), mkdir=True, default_branch=b"main").close()
        return Repository(self.root / name, f"http://{self.address}/{name}")


@contextmanager
def serving(root: Path) -> Iterator[GitServer]:
    """Serve all repositories below a folder."""
    server = wsgiref.simple_server.make_server(
        "127.0.0.1",
        0,
        make_wsgi_chain(_Folder(str(root))),
        server_class=_Server,
        handler_class=_Quiet,
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield GitServer(root, f"127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
