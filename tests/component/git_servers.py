# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ARG002 - methods have the signatures that paramiko and http.server call
"""Git servers on loopback: git's own behind HTTPS or SSH, and ones that no honest program is.

The honest ones run ``git http-backend`` and ``git upload-pack``. The hostile ones are written by
hand, because no real server can be made to send two gigabytes or to drip.
"""

import base64
import hashlib
import io
import os
import socket
import ssl
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import paramiko
from dulwich import porcelain
from dulwich.objects import Blob, Commit, ShaFile, Tree
from dulwich.repo import Repo

from localcluster.certificates import Authority, Identity

WHO = b"t <t@example.org>"


def make_repository(path: Path, **files: str) -> str:
    """Make a repository with one commit (``__`` is a slash, the suffix .yaml); returns its name."""
    path.mkdir(parents=True)
    Repo.init(str(path), default_branch=b"main").close()
    return commit(path, **files)


def commit(path: Path, **files: str) -> str:
    """Write files and commit; returns the commit's name."""
    for name, text in files.items():
        file = path / f"{name.replace('__', '/')}.yaml"
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text, encoding="utf-8")
        porcelain.add(str(path), [str(file)])
    made = porcelain.commit(str(path), message=b"change", author=WHO, committer=WHO)
    return made.decode()


def git(path: Path, *arguments: str, **environment: str) -> str:
    """Run git, whatever the user has configured."""
    return subprocess.run(
        ["git", "-C", str(path), *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(path),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.org",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.org",
            **environment,
        },
    ).stdout.strip()


@dataclass(slots=True)
class HttpServer:
    """A running server; ``requests`` are the paths that were asked for."""

    url: str
    requests: list[str] = field(default_factory=list)


@contextmanager
def git_over_http(
    root: Path, *, authorization: str = "", authority: Authority | None = None
) -> Iterator[HttpServer]:
    """Serve the repositories below a folder by ``git http-backend``; https with an authority."""
    server = HttpServer("")

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def _serve(self) -> None:
            server.requests.append(self.path)
            if authorization and self.headers.get("Authorization") != authorization:
                self.send_response(401)
                self.send_header("WWW-Authenticate", "Basic")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            done = subprocess.run(
                ["git", "http-backend"],
                input=body,
                capture_output=True,
                check=False,  # it dies of what it refuses, and has said why
                env={
                    "PATH": os.environ["PATH"],
                    "GIT_PROJECT_ROOT": str(root),
                    "GIT_HTTP_EXPORT_ALL": "1",
                    "GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
                    "PATH_INFO": path,
                    "QUERY_STRING": query,
                    "REQUEST_METHOD": self.command,
                    "CONTENT_TYPE": self.headers.get("Content-Type") or "",
                    "CONTENT_LENGTH": str(len(body)),
                    "GIT_CONFIG_COUNT": "2",
                    "GIT_CONFIG_KEY_0": "safe.directory",
                    "GIT_CONFIG_VALUE_0": "*",
                    "GIT_CONFIG_KEY_1": "uploadpack.allowFilter",
                    "GIT_CONFIG_VALUE_1": "true" if "filter" in root.name else "false",
                },
            ).stdout
            head, _, content = done.partition(b"\r\n\r\n")
            headers = dict(h.decode().split(": ", 1) for h in head.split(b"\r\n"))
            self.send_response(int(headers.pop("Status", "200").split()[0]))
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with serving(Handler, authority) as address:
        server.url = address
        yield server


@contextmanager
def hostile_http(
    objects: list[ShaFile], pack: Callable[[], Iterator[bytes]]
) -> Iterator[HttpServer]:
    """Serve one commit, the first object, whose pack is whatever ``pack`` yields."""
    name = objects[0].id
    server = HttpServer("")

    class Handler(QuietHandler):
        def do_GET(self) -> None:
            server.requests.append(self.path)
            refs = name + b" HEAD\0shallow side-band-64k ofs-delta agent=x\n"
            body = _line(b"# service=git-upload-pack\n") + b"0000" + _line(refs) + b"0000"
            self.send_response(200)
            self.send_header("Content-Type", "application/x-git-upload-pack-advertisement")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Type", "application/x-git-upload-pack-result")
            self.end_headers()
            with suppress(OSError):  # it hangs up, which is what is tested
                self.wfile.write(_line(b"shallow " + name + b"\n") + b"0000" + _line(b"NAK\n"))
                for data in pack():
                    self.wfile.write(_line(b"\1" + data))
                self.wfile.write(b"0000")

    with serving(Handler, None) as address:
        server.url = address
        yield server


def pack_of(*entries: bytes) -> bytes:
    """Return a pack of encoded entries."""
    body = b"PACK" + (2).to_bytes(4, "big") + len(entries).to_bytes(4, "big") + b"".join(entries)
    return body + hashlib.sha1(body, usedforsecurity=False).digest()


def entry(kind: int, size_bytes: int, compressed: bytes, base: bytes = b"") -> bytes:
    """Return one entry of a pack, which says that it has ``size_bytes``."""
    first = (kind << 4) | (size_bytes & 15)
    rest, head = size_bytes >> 4, bytearray()
    while rest:
        head.append(first | 0x80)
        first, rest = rest & 0x7F, rest >> 7
    head.append(first)
    return bytes(head) + base + compressed


def entry_of(thing: ShaFile) -> bytes:
    """Return an honest entry."""
    raw = thing.as_raw_string()
    return entry(thing.type_num, len(raw), zlib.compress(raw))


def zeros(size_mib: int) -> bytes:
    """Return a zlib stream of so many MiB of zeros, made of one that is repeated."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflate.compress(bytes(1 << 20)) + deflate.flush(zlib.Z_FULL_FLUSH)
    end = deflate.flush(zlib.Z_FINISH)
    size = size_mib << 20
    return b"\x78\xda" + block * size_mib + end + ((size % 65521) << 16 | 1).to_bytes(4, "big")


def small_commit(**files: bytes) -> list[ShaFile]:
    """Return a commit, its tree and its files."""
    tree, blobs = Tree(), [Blob.from_string(data) for data in files.values()]
    for name, blob in zip(files, blobs, strict=True):
        tree.add(f"{name}.yaml".encode(), 0o100644, blob.id)
    made = Commit()
    made.tree, made.message = tree.id, b"x"
    made.author = made.committer = WHO
    made.author_time = made.commit_time = 0
    made.author_timezone = made.commit_timezone = 0
    return [made, tree, *blobs]


@dataclass(frozen=True, slots=True)
class SshServer:
    """A running server, and what a client's Secret needs."""

    url: str
    known_hosts: str
    identity: str


@contextmanager
def git_over_ssh(root: Path, *, passphrase: str = "") -> Iterator[SshServer]:
    """Serve the repositories below a folder by ``git upload-pack`` to one key."""
    host_key, user_key = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    transports: list[paramiko.Transport] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                transport = paramiko.Transport(connection)
                transport.add_server_key(host_key)
                transports.append(transport)
                with suppress(paramiko.SSHException, EOFError):
                    transport.start_server(server=_Login(user_key, root))

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    identity = io.StringIO()
    user_key.write_private_key(identity, password=passphrase or None)
    name = f"[127.0.0.1]:{port}"
    line = f"{name} {host_key.get_name()} {host_key.get_base64()}\n"
    try:
        yield SshServer(f"ssh://git@127.0.0.1:{port}", line, identity.getvalue())
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for transport in transports:
            transport.close()
        thread.join(5)


class _Login(paramiko.ServerInterface):
    """Lets one key in, and runs what git asks for."""

    def __init__(self, key: paramiko.PKey, root: Path) -> None:
        self._key = key
        self._root = root
        self._protocol = ""

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        is_known = username == "git" and key == self._key
        return paramiko.AUTH_SUCCESSFUL if is_known else paramiko.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED

    def check_channel_env_request(
        self, channel: paramiko.Channel, name: bytes, value: bytes
    ) -> bool:
        self._protocol = value.decode()
        return True

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        path = command.decode().removeprefix("git-upload-pack ").strip("'").lstrip("/")
        threading.Thread(target=self._run, args=(channel, path), daemon=True).start()
        return True

    def _run(self, channel: paramiko.Channel, path: str) -> None:
        with suppress(OSError, EOFError, paramiko.SSHException):  # clients that hang up
            self._serve(channel, path)

    def _serve(self, channel: paramiko.Channel, path: str) -> None:
        config = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory"}
        process = subprocess.Popen(
            ["git", "upload-pack", str(self._root / path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                "PATH": os.environ["PATH"],
                "GIT_PROTOCOL": self._protocol,
                **config,
                "GIT_CONFIG_VALUE_0": "*",
            },
        )
        assert process.stdin
        assert process.stdout
        assert process.stderr

        def feed() -> None:
            assert process.stdin
            with suppress(OSError, EOFError):
                while data := channel.recv(1 << 16):
                    process.stdin.write(data)
                    process.stdin.flush()
                process.stdin.close()

        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        with process:
            while data := os.read(process.stdout.fileno(), 1 << 16):
                channel.sendall(data)
            channel.sendall_stderr(process.stderr.read())
            channel.send_exit_status(process.wait())
        channel.close()
        feeder.join(5)


class QuietHandler(BaseHTTPRequestHandler):
    """A handler that logs nothing."""

    protocol_version = "HTTP/1.0"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Say nothing."""


@contextmanager
def serving(handler: type[QuietHandler], authority: Authority | None) -> Iterator[str]:
    """Serve on loopback, with TLS if there is an authority; gives the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up
    scheme = "http"
    if authority is not None:
        scheme = "https"
        authority.ensure([Identity(file="git", common_name="git", hosts=("127.0.0.1",))])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.certificate("git"), authority.key("git"))
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def basic(username: str, password: str) -> str:
    """Return the header that a user and a password make."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def _line(data: bytes) -> bytes:
    return f"{len(data) + 4:04x}".encode() + data
