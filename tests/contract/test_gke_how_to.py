# SPDX-License-Identifier: Apache-2.0
"""GKE's how-to, followed with kubectl alone: the commands of the example's page, as they stand."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from localcluster.cluster import LocalCluster
from localcluster.images import build_image, default_cache
from tests.cluster_scene import eventually

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).resolve().parents[2]
HOW_TO = REPOSITORY / "examples" / "gke-how-to"
NAMESPACE = "how-to"
LIMIT_S = 240
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_COMMANDS = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(slots=True)
class HowTo:
    """The page, and the cluster that its commands are for."""

    cluster: LocalCluster
    sections: dict[str, list[str]]

    def run(self, section: str, block: int = 0) -> str:
        """Run one block of commands, as somebody who follows the page; returns its output."""
        kubectl = self.cluster.toolchain.path("kubectl")
        environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        environment["PATH"] = f"{kubectl.parent}:{environment['PATH']}"
        environment["KUBECONFIG"] = str(self.cluster.kubeconfig)
        done = subprocess.run(
            ["bash", "-eu", "-c", self.sections[section][block]],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        assert not done.returncode, f"{section}, block {block}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def shows(self, section: str, *texts: str, block: int = 0) -> str:
        """Run a block again until its output has all texts; events come a moment later."""

        def output() -> str:
            found = self.run(section, block)
            return found if all(text in found for text in texts) else ""

        return eventually(f"{section}: {texts}", output)

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl in the page's namespace."""
        return self.cluster.kubectl("-n", NAMESPACE, *arguments)

    def snapshot_of(self, trigger: str) -> str:
        """Return the name that a trigger was answered with."""
        return self.kubectl("get", "psmt", trigger, "-o=jsonpath={.status.snapshotCreated.name}")

    def nonce(self, pod: str) -> str:
        """Return what a Pod holds in memory, as its log says under its own hostname."""
        found = eventually(
            f"a count of {pod}",
            lambda: re.findall(rf"nonce (\w+), on {pod}$", self.kubectl("logs", pod), re.MULTILINE),
        )
        return str(found[-1])

    def has_started(self, pod: str) -> bool:
        """Whether a Pod's log has the program's beginning."""
        return "Started" in self.kubectl("logs", pod)

    def is_restored(self, pod: str) -> bool:
        """Whether the Pod says so."""
        conditions = json.loads(self.kubectl("get", "pod", pod, "-o", "json"))["status"]
        found: list[dict[str, Any]] = conditions["conditions"]
        return any(c["type"] == "PodRestored" and c["status"] == "True" for c in found)

    @contextmanager
    def watching(self, log: Path) -> Iterator[None]:
        """Watch the snapshots, by kubectl, into a file."""
        kubectl = [str(self.cluster.toolchain.path("kubectl")), "-n", NAMESPACE]
        watch = ["get", "ps", "--watch", "--output-watch-events"]
        with (
            log.open("wb") as out,
            subprocess.Popen(
                [*kubectl, f"--kubeconfig={self.cluster.kubeconfig}", *watch], stdout=out
            ) as process,
        ):
            try:
                eventually("the watch began", lambda: "ADDED" in log.read_text(encoding="utf-8"))
                yield
                eventually("DELETED", lambda: "DELETED" in log.read_text(encoding="utf-8"))
            finally:
                process.terminate()


def parts(page: str) -> dict[str, list[str]]:
    """Return the commands of each section, block by block."""
    _, *found = _SECTION.split(page)
    return {
        title: _COMMANDS.findall(text) for title, text in zip(found[::2], found[1::2], strict=True)
    }


@pytest.fixture(scope="module")
def how_to(cluster: LocalCluster) -> Iterator[HowTo]:
    """The page, followed up to its second section; at the end it is cleaned up as it says."""
    image = build_image(HOW_TO, cache=default_cache(), progress=lambda _: None)
    cluster.load(image.archive)
    (cluster.buckets / "how-to-snapshots").mkdir(mode=0o700)
    made = HowTo(cluster, parts((HOW_TO / "README.md").read_text(encoding="utf-8")))
    made.run("Prepare")
    yield made
    made.run("Clean up")


@pytest.fixture(scope="module")
def saved(how_to: HowTo) -> HowTo:
    """A Pod that was saved twice."""
    how_to.run("Say which Pods are saved")
    how_to.run("Save one")
    how_to.run("Save one", 1)
    return how_to


@pytest.mark.contract(9, 16, 32)
def test_a_save_is_seen_by_its_status_and_by_an_event(saved: HowTo) -> None:
    """Found by the field selector of the documentation."""
    found = saved.shows("See that they are saved", *map(saved.snapshot_of, ("save-1", "save-2")))
    assert found.count("AllSnapshotsAvailable") == 2
    for name in map(saved.snapshot_of, ("save-1", "save-2")):
        line = f"Successfully checkpointed the pod to PodSnapshot [{NAMESPACE}/{name}]"
        assert line in found


@pytest.mark.contract(16, 18)
def test_a_new_pod_goes_on_from_the_newest(saved: HowTo) -> None:
    """Its event and its log show it."""
    saved.run("Restore the newest")
    newest = f"{NAMESPACE}/{saved.snapshot_of('save-2')}"
    event = f"Successfully restored the pod from PodSnapshot {newest}"
    saved.shows("Restore the newest", event, "Count: ", block=1)
    assert saved.nonce("app-2") == saved.nonce("app-1")
    assert saved.has_started("app-1")
    assert not saved.has_started("app-2")


@pytest.mark.contract(19)
def test_a_new_pod_goes_on_from_the_one_that_it_names(saved: HowTo) -> None:
    """Although there is a newer one."""
    saved.run("Restore a chosen one")
    saved.shows("Restore a chosen one", saved.snapshot_of("save-1"), block=1)
    assert saved.is_restored("app-3")
    assert saved.nonce("app-3") == saved.nonce("app-1")


@pytest.fixture(scope="module")
def asked(how_to: HowTo) -> tuple[HowTo, str, str]:
    """What a program that asks for its save says, and what a Pod says that is restored from it."""
    said = how_to.run("Let the program ask")
    return how_to, said, how_to.run("Let the program ask", 1)


@pytest.mark.contract(12)
def test_the_program_learns_whether_it_was_saved_or_is_restored(
    asked: tuple[HowTo, str, str],
) -> None:
    """By the calls of the documentation: text mode, one descriptor."""
    how_to, saved_says, restored_says = asked
    assert "GKE Pod Snapshot: resume" in saved_says
    assert "GKE Pod Snapshot: restore" in restored_says
    assert how_to.nonce("self-2") == how_to.nonce("self-1")


@pytest.mark.contract(28, 29)
def test_without_policies_a_pod_starts_cold_and_its_snapshots_can_be_deleted(
    saved: HowTo, asked: tuple[HowTo, str, str], tmp_path: Path
) -> None:
    """The program runs on, told by an error; who watches sees the snapshots go, bytes and all."""
    first = saved.nonce("self-1")
    said = saved.run("Disable")
    assert "GKE Pod Snapshot: not possible: [Errno 1] Operation not permitted" in said
    assert saved.nonce("self-2") != first
    assert not saved.is_restored("self-2")
    assert saved.has_started("self-2")
    assert saved.nonce("self-1") == first

    bucket = saved.cluster.buckets / "how-to-snapshots"
    assert list(bucket.rglob("pages.img"))
    with saved.watching(tmp_path / "watch"):
        saved.run("Delete")
    assert list(bucket.rglob("pages.img")) == []


def test_manifests_of_the_preview_save_a_pod(how_to: HowTo) -> None:
    """And the snapshot is read in the preview's version."""
    assert "AllSnapshotsAvailable" in how_to.run("Manifests of the preview")
