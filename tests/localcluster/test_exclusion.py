# SPDX-License-Identifier: Apache-2.0
"""Two commands on one cluster take turns."""

from pathlib import Path

import pytest

from localcluster.exclusion import BusyError, exclusively


def test_the_second_one_waits_and_says_so(tmp_path: Path) -> None:
    """It gives up after its bound, naming the file to look at."""
    lock = tmp_path / "lock"
    said: list[str] = []
    with (
        exclusively(lock, remove=False, progress=said.append),
        pytest.raises(BusyError, match=f"fuser {lock}"),
        exclusively(lock, remove=False, progress=said.append, limit_s=0.2),
    ):
        pytest.fail("both held the lock")
    assert said == ["waiting: another up or down of this cluster is at work"]


def test_the_lock_is_free_after_use_and_gone_after_a_removal(tmp_path: Path) -> None:
    """`down` leaves no file behind, and the next command makes a new one."""
    lock = tmp_path / "lock"
    for remove in (False, True, False):
        with exclusively(lock, remove=remove, progress=pytest.fail):
            assert lock.exists()
        assert lock.exists() is not remove


def test_a_lock_whose_file_was_removed_meanwhile_does_not_count(tmp_path: Path) -> None:
    """Holding a file without a name excludes nobody: the name is locked anew."""
    lock = tmp_path / "lock"
    with exclusively(lock, remove=True, progress=pytest.fail):
        lock.unlink()
        with exclusively(lock, remove=False, progress=pytest.fail, limit_s=0.2):
            assert lock.exists()
