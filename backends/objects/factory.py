# SPDX-License-Identifier: Apache-2.0
"""Which store a bucket's name means."""

from pathlib import Path

from backends.objects.interface import ObjectStore, StoreError
from backends.objects.localdir import LocalDirStore


def open_store(bucket: str, *, bucket_root: Path | None) -> ObjectStore:
    """Open a bucket. On a local cluster buckets are directories below ``bucket_root``.

    Raises:
        StoreError: Cloud Storage was asked for, which this version does not have yet.
    """
    if bucket_root is None:
        raise StoreError(
            "Cloud Storage is not done yet; run with --bucket-root, where buckets are directories"
        )
    return LocalDirStore(bucket_root / bucket)
