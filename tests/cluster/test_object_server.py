# SPDX-License-Identifier: Apache-2.0
"""A cluster whose buckets are of a server that speaks Cloud Storage's protocol."""

from collections.abc import Iterator

import pytest

from localcluster.cluster import LocalCluster
from localcluster.images import build_image, default_cache
from localcluster.object_server import make_bucket
from tests.cluster_scene import Scene, eventually, new_scene
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.cluster


@pytest.fixture
def served() -> Iterator[Scene]:
    """Give the test a namespace and a bucket on a cluster of its own."""
    cluster = LocalCluster("served")
    cluster.down()
    try:
        cluster.up(bucket="gcs")
        counter = EXAMPLES / "counter"
        cluster.load(build_image(counter, cache=default_cache(), progress=print).archive)
        make_bucket(cluster, "served")
        with new_scene(cluster, "served") as scene:
            yield scene
    finally:
        cluster.down()


def test_a_pod_is_saved_to_and_restored_from_an_object_server(served: Scene) -> None:
    """All of its life goes over Cloud Storage's protocol: save, restore, deletion."""
    served.policy()
    served.ready_pod("first")
    saved = served.save("first")
    served.forget_cached_images()
    served.ready_pod("second")

    assert served.nonce("second") == served.nonce("first")
    assert saved.metadata.name in served.restored_from("second")
    names = {path.rpartition("/")[2] for path in served.stored()}
    images = {"checkpoint.img", "pages_meta.img", "pages.img"}
    assert names == {*images, "metadata", "manifest.json"}
    served.kubectl("delete", "ps", saved.metadata.name, "--wait=false")
    eventually("an empty bucket", lambda: not served.stored())
