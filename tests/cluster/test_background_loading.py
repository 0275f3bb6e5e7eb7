# SPDX-License-Identifier: Apache-2.0
"""Pods that run before all of their memory is on the node."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localcluster.cluster import LocalCluster
from localcluster.fuse_library import fuse_library
from localcluster.toolchain import default_cache
from schemas.names import BACKGROUND_LOADING_ANNOTATION, PAGES_LOCAL, POD_RESTORED
from tests.cluster.slow_bucket import SlowBucket, end_loads, mounts, slow_bucket
from tests.cluster.told_pods import ballast, memory
from tests.cluster_scene import Scene, eventually, new_scene

pytestmark = pytest.mark.cluster

MEBIBYTES = 300
# The whole image takes twenty seconds.
SLOW_BYTES_PER_S = 15e6
FAST_BYTES_PER_S = 400e6
DIGEST = "import __main__, hashlib; answer = hashlib.md5(__main__.ballast).hexdigest()"


@pytest.fixture(scope="module")
def saved(cluster: LocalCluster) -> Iterator[Scene]:
    """A Pod of 300 MiB that was saved; its policy loads in the background."""
    with new_scene(cluster, "background") as scene:
        scene.policy(annotations={BACKGROUND_LOADING_ANNOTATION: "true"})
        scene.ready_pod("first", container=ballast(MEBIBYTES))
        scene.save("first")
        yield scene


@pytest.fixture
def bucket(saved: Scene) -> Iterator[SlowBucket]:
    """The bucket, slow, and a node that has nothing of it."""
    library: Path = fuse_library(default_cache(), progress=lambda _: None)
    end_loads(saved.cluster)
    saved.forget_cached_images()
    with slow_bucket(saved.cluster, saved.bucket, library, SLOW_BYTES_PER_S) as slow:
        yield slow
    saved.kubectl("delete", "pod", "second", "third", "--ignore-not-found")


def pages(scene: Scene, pod: str) -> dict[str, Any]:
    """Return the condition that says whether a Pod's memory is here."""
    return scene.condition("pod", pod, PAGES_LOCAL) or {"status": "", "reason": "", "message": ""}


def test_a_pod_answers_before_its_memory_is_here(saved: Scene, bucket: SlowBucket) -> None:
    """It says when the rest has come, and nothing of it is wrong."""
    second = saved.ready_pod("second", container=ballast(MEBIBYTES))
    assert memory(saved, "second") == memory(saved, "first")
    early = pages(saved, "second")
    assert early["status"] == "False", early
    assert early["reason"] == "Loading"
    assert saved.restored_from("second")
    bucket.at(FAST_BYTES_PER_S)
    done = eventually(
        "all pages", lambda: (p := pages(saved, "second"))["status"] == "True" and p, limit_s=30
    )
    assert saved.tell("second", DIGEST) == saved.tell("first", DIGEST)
    ready_s = (second.ready_s or 0.0) - second.created_s
    print(f"\nReady after {ready_s:.1f} s\n{early['message']}\n{done['message']}")  # noqa: T201
    assert "p99" in done["message"]
    # A second one finds all of it on the node.
    saved.ready_pod("third", container=ballast(MEBIBYTES))
    assert memory(saved, "third") == memory(saved, "first")


def test_the_agents_end_does_not_end_a_load(saved: Scene, bucket: SlowBucket) -> None:
    """The Pod goes on reading its memory, and the next agent says when it has all of it."""
    saved.ready_pod("second", container=ballast(MEBIBYTES))
    with saved.without_agent():
        assert memory(saved, "second") == memory(saved, "first")
        bucket.at(FAST_BYTES_PER_S)
        assert saved.tell("second", DIGEST) == saved.tell("first", DIGEST)
    eventually("all pages", lambda: pages(saved, "second")["status"] == "True", limit_s=30)
    assert saved.restored_from("second")


def test_a_bucket_that_dies_in_the_middle_starts_the_pod_cold(
    saved: Scene, bucket: SlowBucket
) -> None:
    """With the reason; what was mounted for it is gone."""
    saved.ready_pod("second", container=ballast(MEBIBYTES))
    nonce = memory(saved, "second")
    assert nonce == memory(saved, "first")
    bucket.die()
    fell_back = "falling back to a cold start of pod"
    found = eventually(
        "the event", lambda: [e for e in saved.events("second") if fell_back in e], limit_s=40
    )
    assert "pages.img stood still for 20 s: " in found[0]
    told = eventually("the Pod says so", lambda: _failed(saved))
    assert told["reason"] == "FailedToRestore"
    eventually("a cold Pod", lambda: _is_another(saved, nonce))
    assert saved.condition("pod", "second", PAGES_LOCAL) is None
    eventually("nothing is mounted", lambda: "/pages/" not in mounts(saved.cluster))
    assert not saved.snapshot(saved.snapshots()[0].metadata.name).failures


def _failed(scene: Scene) -> dict[str, Any] | None:
    told = scene.condition("pod", "second", POD_RESTORED)
    return told if told and told["status"] == "False" else None


def _is_another(scene: Scene, nonce: str) -> bool:
    try:
        return memory(scene, "second") != nonce
    except (OSError, AssertionError):
        return False
