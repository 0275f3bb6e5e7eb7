# SPDX-License-Identifier: Apache-2.0
"""Which store a bucket's name means: a directory on a local cluster, else Cloud Storage."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.objects.access_token import TokenSource
from backends.objects.interface import ObjectStore, StoreError
from backends.objects.localdir import LocalDirStore

# https://cloud.google.com/storage/docs/buckets#naming
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")
DEFAULT_CONNECTIONS: Final = 8


@dataclass(frozen=True, slots=True)
class BucketAccess:
    """How a program reaches buckets.

    With ``root`` buckets are directories below it. ``endpoint`` is the address of a server that
    speaks Cloud Storage's JSON API, empty for Google's own; ``connections`` how many streams one
    upload or download may use.
    """

    root: Path | None = None
    endpoint: str = ""
    connections: int = DEFAULT_CONNECTIONS


def open_store(
    bucket: str, access: BucketAccess, *, tokens: TokenSource | None = None
) -> ObjectStore:
    """Open a bucket, as whom ``tokens`` says, else by Application Default Credentials.

    Raises:
        StoreError: the name is none, or there are no credentials.
    """
    if not _BUCKET.fullmatch(bucket):
        raise StoreError(f"{bucket!r} is no name of a bucket; use 3 to 63 of a-z, 0-9, - _ and .")
    if access.root is not None:
        return LocalDirStore(access.root / bucket)
    from backends.objects.gcs.store import GcsStore  # 190 ms that a local cluster need not pay

    return GcsStore(bucket, access, tokens=tokens)
