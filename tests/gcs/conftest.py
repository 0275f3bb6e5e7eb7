# SPDX-License-Identifier: Apache-2.0
"""The double, with one bucket."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gcs.server import CloudStorageDouble, running_cloud_storage


@pytest.fixture
def gcs(tmp_path: Path) -> Iterator[CloudStorageDouble]:
    """Cloud Storage with the bucket ``snapshots``; everybody may do everything."""
    with running_cloud_storage(tmp_path, "snapshots") as double:
        yield double
