# SPDX-License-Identifier: Apache-2.0
"""The real cluster, once per run, and a scene of its own for each test that wants one."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from localcluster.cluster import LocalCluster
from localcluster.images import build_image, default_cache
from tests.cluster_scene import Scene, new_scene

EXAMPLES = Path(__file__).parent.parent / "examples"
_numbers = itertools.count(1)
TESTS = Path(__file__).parent
# Here nothing depends on the time that anything takes.
ALONE = frozenset({"alerts", "bench", "docs", "pure"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a test on real parts a second try.

    Their bounds are of a machine that may be busy with anything. Whatever needed it is listed at
    the end as RERUN, and is to be looked at.
    """
    for item in items:
        if item.path.relative_to(TESTS).parts[0] not in ALONE:
            item.add_marker(pytest.mark.flaky(reruns=1))


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
    with new_scene(cluster, f"scene-{next(_numbers)}") as found:
        yield found
