# SPDX-License-Identifier: Apache-2.0
"""What a host lacks is said before anything is made."""

import subprocess
import sys
from pathlib import Path

import pytest

from localcluster import preflight
from localcluster.preflight import PreflightError

PRINT_PROBLEMS = (
    "from pathlib import Path; from localcluster import preflight; "
    "print('\\n'.join(preflight.problems(Path('/'))))"
)


@pytest.mark.parametrize(
    ("dropped", "name", "prevented"),
    [
        ("-sys_admin", "CAP_SYS_ADMIN", "namespaces and mounts"),
        ("-net_admin", "CAP_NET_ADMIN", "network"),
    ],
)
def test_a_missing_capability_is_named_with_what_it_prevents(
    *, able_host: None, dropped: str, name: str, prevented: str
) -> None:
    """A real process without the capability says so."""
    said = subprocess.run(
        ["setpriv", f"--bounding-set={dropped}", sys.executable, "-c", PRINT_PROBLEMS],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout
    assert said.startswith(f"{name} is missing: ")
    assert prevented in said


def test_everything_missing_is_listed_at_once() -> None:
    """Nobody has to run it again to learn of the next obstacle."""
    with pytest.raises(PreflightError) as caught:
        preflight.check(Path("/"), lambda _root: ["no bridge", "no overlay"])
    assert str(caught.value).splitlines()[1:] == ["  - no bridge", "  - no overlay"]


def test_a_full_disk_is_refused_with_the_directory(
    able_host: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The floor is compared with the file system that would hold the state."""
    monkeypatch.setattr(preflight, "FREE_FLOOR_BYTES", 1 << 60)
    (found,) = preflight.problems(tmp_path / "not" / "there")
    assert found.startswith(f"{tmp_path} has ")


def test_the_trial_leaves_nothing_behind(able_host: None) -> None:
    """What is tried is tried in namespaces that end with the trial."""
    mounts = Path("/proc/self/mountinfo")
    before = mounts.read_text()
    assert preflight.problems(Path("/")) == []
    assert mounts.read_text() == before
    assert not Path("/sys/class/net/trial0").exists()
