# SPDX-License-Identifier: Apache-2.0
"""From a commit to the policy in the cluster, and what a GitSource costs that has nothing to do.

The repository holds 2,000 manifests, 50 of them podsnap's. The wait for the next look is not
measured: each look is asked for by annotation, as ``flux reconcile`` does. The trap is the
controller's other work, so the processor time of an equally long quiet time is taken off.
"""

import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dulwich import porcelain
from figure import Figure, Target
from idle_cost import processor_s
from manifest_tree import write_tree
from room import MANAGER, Room, room, until

from backends.kube.client import GIT_SOURCES, POD_SNAPSHOT_POLICIES, KubeClient
from backends.kube.reflector import Reflector
from localcluster import control_plane
from localcluster.cluster import LocalCluster
from schemas.names import OWN_API_VERSION, REQUESTED_AT_ANNOTATION
from schemas.policy import Policy

MANIFESTS = 2000
COMMITS = 20
LOOKS = 50
_SOURCE = "bench"
_AUTHOR = b"bench <bench@example.org>"
_LIMIT_S = 60.0
_POLICY = "service-0"


def measure(cluster: LocalCluster, say: Callable[[str], None]) -> list[Figure]:
    """Follow one repository: twenty commits, then fifty looks at the same one."""
    with room(cluster, "git") as place, _repository(place) as (folder, policy_file):
        _follow(place, folder)
        applied_ms = _commits(place, folder, policy_file)
        say(f"{COMMITS} commits of one policy each")
        quiet_s, looks_s = _looks(place)
        say(f"{LOOKS} looks at the same commit")
    return [
        Figure.of(
            applied_ms,
            part="git",
            name="commit to policy applied",
            unit="ms",
            target=Target(limit=1000),
            covers=(
                f"from the commit in a tree of {MANIFESTS} manifests, through a look that is asked "
                "for, until a watch sees the policy's new spec"
            ),
        ),
        Figure.of(
            [1e3 * (looks_s - quiet_s) / LOOKS],
            part="git",
            name="look that finds nothing new",
            unit="ms",
            target=Target(limit=50),
            covers="processor time of the controller, less that of a quiet time of the same length",
        ),
    ]


@contextmanager
def _repository(place: Room) -> Iterator[tuple[Path, Path]]:
    with tempfile.TemporaryDirectory(prefix="podsnap-bench-") as scratch:
        folder = Path(scratch)
        write_tree(folder, MANIFESTS)
        policy_file = Path()
        for file in folder.rglob("*.yaml"):
            text = re.sub(r"(?m)^  namespace: .*\n", "", file.read_text("utf-8"))
            file.write_text(text.replace("models", place.namespace), "utf-8")
            if "kind: PodSnapshotPolicy" in text and f"name: {_POLICY}\n" in text:
                policy_file = file
        porcelain.init(str(folder))
        _commit(folder)
        yield folder, policy_file


def _commit(folder: Path, *files: Path) -> None:
    repository = str(folder)
    porcelain.add(repository, [str(f) for f in files or folder.rglob("*.yaml")])
    porcelain.commit(repository, message=b"change", author=_AUTHOR, committer=_AUTHOR)


def _follow(place: Room, folder: Path) -> None:
    body = {
        "apiVersion": OWN_API_VERSION,
        "kind": "GitSource",
        "metadata": {"name": _SOURCE, "namespace": place.namespace},
        "spec": {"url": f"file://{folder}", "interval": "1h"},
    }
    place.client.create(GIT_SOURCES, body, field_manager=MANAGER)
    until("the first commit applied", lambda: _status(place, "lastAppliedRevision"), limit_s=60)


def _status(place: Room, name: str) -> str:
    found = place.client.get(GIT_SOURCES, _SOURCE, namespace=place.namespace)
    return str((found.get("status") or {}).get(name) or "")


def _request(place: Room, text: str) -> None:
    asked = {"metadata": {"annotations": {REQUESTED_AT_ANNOTATION: text}}}
    place.client.merge_patch(
        GIT_SOURCES, _SOURCE, asked, namespace=place.namespace, field_manager=MANAGER
    )


def _commits(place: Room, folder: Path, policy_file: Path) -> list[float]:
    seen = _Timeouts(place.client, place.namespace)
    took_ms = []
    try:
        for number in range(1, COMMITS + 1):
            text = policy_file.read_text("utf-8").partition("  retentionConfig:")[0].rstrip()
            text += f"\n  retentionConfig:\n    lastAccessTimeout: {number}h\n"
            policy_file.write_text(text, "utf-8")
            _commit(folder, policy_file)
            began_s = time.monotonic()
            _request(place, f"commit-{number}")
            until(f"commit {number}", partial(seen.at_s.get, f"{number}h"), limit_s=_LIMIT_S)
            took_ms.append(1e3 * (seen.at_s[f"{number}h"] - began_s))
    finally:
        seen.stop()
    return took_ms


class _Timeouts:
    """Stamps the instant at which each ``lastAccessTimeout`` of the policy was first seen."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        self.at_s: dict[str, float] = {}
        self._reflector = Reflector(
            client,
            POD_SNAPSHOT_POLICIES,
            project=Policy.parse,
            namespace=namespace,
            on_change=self._on_change,
        )
        self._reflector.start()
        self._reflector.synced.wait(10)

    def stop(self) -> None:
        self._reflector.stop()

    def _on_change(self, _: Policy | None, new: Policy | None) -> None:
        now_s = time.monotonic()
        if new is not None and new.metadata.name == _POLICY and new.last_access_timeout:
            self.at_s.setdefault(new.last_access_timeout, now_s)


def _looks(place: Room) -> tuple[float, float]:
    """Return the controller's processor seconds of a quiet time, and of looks in a time as long."""

    def used_s() -> float:
        return processor_s(place.cluster, control_plane.NAME, "controller")

    before_s, began_s = used_s(), time.monotonic()
    for number in range(LOOKS):
        _request(place, f"look-{number}")
        until(
            f"look {number}",
            lambda n=number: _status(place, "lastHandledReconcileAt") == f"look-{n}",
            limit_s=_LIMIT_S,
        )
    lasted_s, looks_s = time.monotonic() - began_s, used_s() - before_s
    before_s = used_s()
    time.sleep(lasted_s)
    return used_s() - before_s, looks_s
