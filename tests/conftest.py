# SPDX-License-Identifier: Apache-2.0
"""The real cluster, once per run, and a scene of its own for each test that wants one."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcluster.cluster import LocalCluster
from localcluster.images import build_image, default_cache
from localcluster.pod_times import watching
from tests.cluster_scene import Scene

EXAMPLES = Path(__file__).parent.parent / "examples"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Bring a cluster up for the whole run, and take it down at the end whatever happened."""
    reporter = request.config.pluginmanager.getplugin("terminalreporter")

    def progress(line: str) -> None:
        if reporter is not None:
            reporter.write_line(f"  cluster: {line}")

    made = LocalCluster("test", progress=progress)
    made.down()
    try:
        made.up()
        made.load(
            build_image(EXAMPLES / "counter", cache=default_cache(), progress=progress).archive
        )
        yield made
    finally:
        made.down()


@pytest.fixture
def scene(cluster: LocalCluster) -> Iterator[Scene]:
    """Give a test its own namespace, bucket and storage config."""
    namespace = f"scene-{next(_numbers)}"
    cluster.kubectl("create", "namespace", namespace)
    with watching(cluster.kubeconfig, namespace) as times:
        found = Scene(cluster, namespace, times)
        found.storage()
        try:
            yield found
        finally:
            with contextlib.suppress(Exception):
                found.kubectl("delete", "pods,ps,psmt,psp", "--all", "--wait=false")
            cluster.kubectl("delete", "namespace", namespace, "--wait=false")
            cluster.kubectl("delete", "pssc", namespace, "--ignore-not-found")
