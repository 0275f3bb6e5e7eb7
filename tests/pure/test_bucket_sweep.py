# SPDX-License-Identifier: Apache-2.0
"""What the sweep leaves alone although nobody is seen to own it."""

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from stepped_clock import SteppedClock

from backends.kube.errors import NotFound
from backends.objects.localdir import LocalDirStore
from nodeexec.upload import ATTEMPT_KEY, CLUSTER_KEY, NAMESPACE_KEY, SNAPSHOT_UID_KEY
from reconciler.bucket_sweep import BucketSweep
from schemas.manifest import MANIFEST_NAME
from schemas.metadata import Metadata
from schemas.snapshot import Snapshot
from schemas.storage_config import Location, StorageConfig

if TYPE_CHECKING:
    from backends.kube.client import KubeClient
    from reconciler.cluster_cache import ClusterCache

CONFIG = StorageConfig(Metadata("store", uid="c"), Location("b", "p"))
OTHER = Snapshot(Metadata("other", "shop", uid="other"), "web")
MARKS = {CLUSTER_KEY: "c1", NAMESPACE_KEY: "shop", SNAPSHOT_UID_KEY: "uid", ATTEMPT_KEY: "1"}
GRACE_S = 20.0


class Api:
    """The API server's word about every object."""

    def __init__(self, answer: dict[str, Any] | Exception) -> None:
        """Answer the same always."""
        self._answer = answer

    def get(self, *_: object, **__: object) -> dict[str, Any]:
        """Return or raise it."""
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


NOBODY = NotFound("gone", details={"name": "s"})
# What the API server says of the owner, which PodSnapshots are known, and whether the bytes go.
LOOKS: dict[str, tuple[dict[str, Any] | Exception, list[Snapshot], bool]] = {
    "there is none": (NOBODY, [OTHER], True),
    "it cannot be parsed": ({"metadata": {"name": "s"}, "status": 7}, [OTHER], False),
    "its answer is no object": (ValueError("no JSON"), [OTHER], False),
    "the kind is gone": (NotFound("404 page not found"), [OTHER], False),
    "no snapshot is known at all": (NOBODY, [], False),
}


@pytest.mark.parametrize("what", LOOKS)
def test_bytes_go_only_if_it_is_certain_that_nobody_owns_them(tmp_path: Path, what: str) -> None:
    """Another version's object, a kind that is gone and a cluster built anew prove nothing."""
    answer, known, goes = LOOKS[what]
    store, clock = LocalDirStore(tmp_path), SteppedClock()
    for part in ("pages.img", MANIFEST_NAME):
        store.put_bytes(f"p/s/{part}", b"x", if_generation_match=0, metadata=MARKS)
    cache = SimpleNamespace(
        storage_configs=SimpleNamespace(store=SimpleNamespace(get=lambda *_: CONFIG)),
        snapshots=SimpleNamespace(store=SimpleNamespace(items=lambda: known)),
    )
    sweep = BucketSweep(
        cast("KubeClient", Api(answer)),
        cast("ClusterCache", cache),
        clock,
        "c1",
        lambda _: store,
        GRACE_S,
    )
    newest_s = max(info.created_s for info in store.list(""))
    clock.step(max(0.0, newest_s - clock.now().timestamp()) + GRACE_S + 1)
    for _ in range(2):
        sweep.reconcile(CONFIG.metadata.key)
        clock.step(GRACE_S + 1)
    assert (list(store.list("")) == []) == goes
    assert bool(sweep.stopped(CONFIG)) == (not known)
