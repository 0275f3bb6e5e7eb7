# SPDX-License-Identifier: Apache-2.0
"""Whatever keeps a Pod from being restored, it runs: cold, told in one line, and without a loop.

Altered and cut bytes, a moved tag, an image that runsc refuses and an absent agent are in
tests/cluster/test_bad_input.py, a node of another kind in tests/contract/test_restoring.py; here is
the rest.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localcluster.cluster import LocalCluster
from tests.cluster_scene import Scene, eventually
from tests.faults.kill_scene import BALLAST, KillScene, converge
from tests.faults.kill_steps import kill_scene, reach_restore
from tests.faults.kill_table import CREATED, FETCHING

pytestmark = pytest.mark.cluster


@pytest.fixture
def holding(cluster: LocalCluster) -> Iterator[KillScene]:
    """A scene whose processes can be held."""
    with kill_scene(cluster, "cold") as scene:
        yield scene


def assert_started_cold(scene: Scene, pod: str, *, because: str, restarts: int = 0) -> None:
    """The Pod runs with a memory of its own, and one line says why."""
    eventually("Ready", lambda: scene.is_true("pod", pod, "Ready"))
    told = scene.event(pod, "falling back to a cold start")
    assert because in told
    assert "\n" not in told
    assert scene.nonce(pod) != scene.nonce("first")
    assert scene.restored_from(pod) == ""
    status = scene.get("pod", pod)["status"]["containerStatuses"][0]
    assert status["restartCount"] <= restarts
    assert status["state"].keys() == {"running"}


def lose_a_part(folder: Path) -> str:
    """Remove the pages."""
    (folder / "pages.img").unlink()
    return "pages.img is missing"


def lose_the_manifest(folder: Path) -> str:
    """Remove what says which bytes there were."""
    (folder / "manifest.json").unlink()
    return "manifest.json is missing"


def lose_everything(folder: Path) -> str:
    """Remove the whole folder."""
    shutil.rmtree(folder)
    return "manifest.json is missing"


def cut_the_manifest(folder: Path) -> str:
    """Leave half of the manifest."""
    manifest = folder / "manifest.json"
    with manifest.open("r+b") as file:
        file.truncate(manifest.stat().st_size // 2)
    return "manifest.json"


@pytest.mark.parametrize(
    "lose", [lose_a_part, lose_the_manifest, lose_everything, cut_the_manifest]
)
def test_lost_bytes_are_a_cold_start_and_take_the_snapshot_out_of_use(
    scene: Scene, lose: Callable[[Path], str]
) -> None:
    """The reason names the object; later Pods do not try again."""
    scene.policy()
    scene.ready_pod("first")
    name = scene.save("first").metadata.name
    scene.forget_cached_images()
    because = lose(scene.bucket / name)

    scene.pod("second")

    assert_started_cold(scene, "second", because=because)
    eventually("out of use", lambda: not scene.is_true("ps", name, "Ready"))
    scene.ready_pod("third")
    assert scene.restored_from("third") == ""


def test_a_pinned_snapshot_that_is_not_ready_is_a_cold_start(holding: KillScene) -> None:
    """Its bytes are still on the way; nobody waits for them."""
    scene = holding
    scene.ready_pod("first")
    scene.remove("ps", scene.save("first").metadata.name)
    converge("gone", lambda: not scene.snapshots())
    with scene.holding_bucket():
        scene.trigger("first")

        def uploading() -> str:
            return next(
                (
                    s.metadata.name
                    for s in scene.snapshots()
                    if (r := s.conditions.get("Ready")) and r.reason == "Uploading"
                ),
                "",
            )

        name = converge("Uploading", uploading)
        scene.pod("second", annotations={"podsnapshot.gke.io/ps-name": name})
        assert_started_cold(scene, "second", because=name)
    scene.wait_available(name)


def test_an_image_that_goes_after_the_decision_is_a_cold_start(holding: KillScene) -> None:
    """The sandbox exists and was promised an image; runsc does not find it."""
    scene = holding
    scene.ready_pod("first", container=BALLAST)
    scene.save("first")
    with reach_restore(scene, CREATED, "second"):
        scene.forget_cached_images()

    assert_started_cold(scene, "second", because="runsc restore")


def test_a_bucket_that_goes_in_the_middle_of_a_fetch_is_a_cold_start(holding: KillScene) -> None:
    """No damage: when the bucket is back, later Pods are restored."""
    scene = holding
    scene.ready_pod("first", container=BALLAST)
    name = scene.save("first").metadata.name
    away = scene.bucket.with_name(f"{scene.bucket.name}-away")
    with reach_restore(scene, FETCHING, "second"):
        scene.bucket.rename(away)
    try:
        converge("the Pod is Ready", lambda: scene.is_true("pod", "second", "Ready"))
        restored = scene.restored_from("second")
    finally:
        away.rename(scene.bucket)

    if not restored:  # the part that was open is read to its end, so it may even come through
        assert_started_cold(scene, "second", because="does not exist")
    assert scene.is_true("ps", name, "Ready")
    scene.ready_pod("third", container=BALLAST)
    assert scene.restored_from("third")
