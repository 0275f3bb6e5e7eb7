# SPDX-License-Identifier: Apache-2.0
"""Which store a bucket's name means."""

import re
from pathlib import Path
from typing import Final

from backends.objects.interface import ObjectStore, StoreError
from backends.objects.localdir import LocalDirStore

# https://cloud.google.com/storage/docs/buckets#naming
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]")


def open_store(bucket: str, *, bucket_root: Path | None) -> ObjectStore:
    """Open a bucket. On a local cluster buckets are directories below ``bucket_root``.

    Raises:
        StoreError: Cloud Storage was asked for, which this version does not have yet.
    """
    if bucket_root is None:
        raise StoreError(
            "Cloud Storage is not done yet; run with --bucket-root, where buckets are directories"
        )
    if not _BUCKET.fullmatch(bucket):
        raise StoreError(f"{bucket!r} is no name of a bucket; use 3 to 63 of a-z, 0-9, - _ and .")
    return LocalDirStore(bucket_root / bucket)
