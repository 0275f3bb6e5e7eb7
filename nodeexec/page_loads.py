# SPDX-License-Identifier: Apache-2.0
"""What the agent and the server of an image's pages tell each other, through one directory.

``<runtime state>/pages/<hex of the manifest's digest>/`` has the mount point ``image``, what the
server says (``status.json``), when the image was last handed out (``wanted``) and, if the bucket
needs one, the ``token`` that the agent renews. The server holds a lock (``flock``) on the directory
for as long as it lives: a directory without one belongs to a server that is dead.

The order itself goes through the server's standard input. It is neither in its arguments nor in a
file, so nothing of it outlives the server.
"""

import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from backends.objects.access_token import AccessToken
from backends.objects.factory import BucketAccess
from backends.objects.interface import StoreError
from nodeexec.image import write_durably
from nodeexec.page_readers import Readers

log = logging.getLogger(__name__)

IMAGE_DIR: Final = "image"
STATUS_FILE: Final = "status.json"
WANTED_FILE: Final = "wanted"
LOG_FILE: Final = "log"
TOKEN_FILE: Final = "token"  # noqa: S105 - a file's name
PAGES_PART: Final = "pages.img"


class LoadState(StrEnum):
    """How far a load is."""

    LOADING = "Loading"
    COMPLETE = "Complete"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class LoadStatus:
    """What a server says of its load. ``damaged`` if the bytes in the bucket are wrong.

    ``pid`` is the server's process, 0 if it did not say.
    """

    state: LoadState
    done_bytes: int = 0
    total_bytes: int = 0
    faults: int = 0
    wait_p50_s: float = 0.0
    wait_p99_s: float = 0.0
    took_s: float = 0.0
    reason: str = ""
    damaged: bool = False
    pid: int = 0

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Read a load's status, ``None`` if there is none."""
        try:
            raw = json.loads((directory / STATUS_FILE).read_text(encoding="utf-8"))
            return cls(**{**raw, "state": LoadState(raw["state"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, directory: Path) -> None:
        """Replace a load's status at once."""
        write_durably(directory / STATUS_FILE, json.dumps(asdict(self)).encode())


class StatusTeller:
    """Says how far a load is, from many threads; an end that was told stays."""

    def __init__(self, directory: Path, descriptor: int) -> None:
        """Tell in ``directory`` as long as it is the one that ``descriptor`` has open."""
        self._directory = directory
        self._descriptor = descriptor
        self._is_over = False
        self._lock = threading.Lock()

    def tell(self, status: LoadStatus) -> None:
        """Replace the status. What cannot be written is logged: a load goes on without it."""
        with self._lock:
            if self._is_over or not is_at(self._descriptor, self._directory):
                return
            try:
                status.write(self._directory)
            except OSError:
                log.exception("the status of a load could not be written")
            else:
                self._is_over = status.state is not LoadState.LOADING


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOrder:
    """What a server is to do.

    ``partial`` is the cache's directory that is filled; it holds every part but the pages, and the
    manifest. ``descriptor`` is the lock on it. ``folder`` is the snapshot's in the bucket. A read
    that waits longer than ``patience_s`` ends the load; a complete image is served for ``linger_s``
    after it was last handed out, and stays in the cache if ``keep``.
    """

    directory: Path
    partial: Path
    descriptor: int
    bucket: str
    folder: str
    access: BucketAccess
    has_token: bool
    patience_s: float
    linger_s: float
    cgroup: str
    readers: Readers
    keep: bool = True

    @property
    def image(self) -> Path:
        """Where the image is mounted."""
        return self.directory / IMAGE_DIR

    def to_bytes(self) -> bytes:
        """Render for the server's standard input."""
        return json.dumps(asdict(self), default=str).encode()

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read what ``to_bytes`` wrote."""
        raw: dict[str, Any] = json.loads(text)
        places = {f.name: Path(raw[f.name]) for f in fields(cls) if f.type is Path}
        readers = Readers(**{k: Path(v) for k, v in raw["readers"].items()})
        return cls(**{**raw, **places, "access": _access(raw["access"]), "readers": readers})


def _access(raw: Mapping[str, Any]) -> BucketAccess:
    return BucketAccess(**{**raw, "root": Path(raw["root"]) if raw["root"] else None})


def is_at(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to the directory that a descriptor has open."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def write_token(directory: Path, token: AccessToken) -> None:
    """Give a server a token, readable by root alone."""
    tree = {"value": token.value, "expires": token.expires_s}
    write_durably(directory / TOKEN_FILE, json.dumps(tree).encode())


def read_token(directory: Path) -> AccessToken:
    """Return the token that the agent gave last.

    Raises:
        StoreError: there is none.
    """
    try:
        raw = json.loads((directory / TOKEN_FILE).read_text(encoding="utf-8"))
        return AccessToken(raw["value"], float(raw["expires"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"the agent's token for the bucket cannot be read: {error}") from None
