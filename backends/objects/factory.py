# SPDX-License-Identifier: Apache-2.0
"""Which bucket a name means: a directory where a root is given.

A real bucket will be opened here too, with its library imported only then.
"""

from pathlib import Path

from backends.objects.interface import ObjectStore, StoreError
from backends.objects.localdir import LocalDirectory


def open_store(gcs_bucket: str, *, bucket_root: Path | None) -> ObjectStore:
    """Open a bucket; nothing is asked of it yet.

    Raises:
        StoreError: the name is no bucket's, or no root is given.
    """
    if bucket_root is None:
        raise StoreError(
            f"bucket {gcs_bucket} would be in Google Cloud Storage, which this build cannot reach "
            "yet; set the bucket root to a directory that all nodes share"
        )
    return LocalDirectory(bucket_root, gcs_bucket)
