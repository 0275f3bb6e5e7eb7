# SPDX-License-Identifier: Apache-2.0
"""What a GitSource costs: a look at a large repository that did not change, and a new commit."""

import statistics
import time
from datetime import datetime

import pytest
import yaml
from git_repository import Repository
from git_servers import git, git_over_http

from backends.clock import SystemClock
from backends.kube.client import EVENTS, KubeClient
from reconciler.git_source_controller import GitSourceController
from reconciler.manager import Manager
from schemas.instants import parse_time

OURS, OTHERS = 50, 1950


def large(repository: Repository) -> str:
    """Commit 2,000 manifests, 50 of them ours; returns the commit."""
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"paused": True}}
    for n in range(OTHERS):
        folder = repository.path / f"apps-{n % 40}"
        folder.mkdir(exist_ok=True)
        body = {**deployment, "metadata": {"name": f"d{n}", "annotations": {"x": "y" * 400}}}
        (folder / f"d{n}.yaml").write_text(yaml.safe_dump(body))
    for n in range(OURS):
        (repository.path / f"p{n}.yaml").write_text(repository.policy_text(f"p{n}"))
    git(repository.path, "add", ".")
    git(repository.path, "commit", "-q", "-m", "large")
    return git(repository.path, "rev-parse", "HEAD")


def test_a_look_at_2000_unchanged_manifests_takes_no_50_ms_of_cpu(
    repository: Repository, manager: Manager, controller_client: KubeClient
) -> None:
    """It asks where the head is, and compares 50 objects with the caches."""
    made = large(repository)
    with git_over_http(repository.path.parent) as server:
        repository.follow(url=f"{server.url}/repository", interval="1h")
        repository.applied(made)
        key = (repository.world.namespace, "repo")
        controller = GitSourceController(
            controller_client, manager.cache, SystemClock(), manager._events
        )
        controller.reconcile(key)  # reads the commit, and finds it applied
        events, _ = repository.world.admin.list(EVENTS, namespace=repository.world.namespace)
        assert "DriftCorrected" not in {e["reason"] for e in events}
        asked, costs_s = len(server.requests), []
        for _ in range(5):
            began_s = time.thread_time()
            controller.reconcile(key)
            costs_s.append(time.thread_time() - began_s)
        # Two requests a look are the question for the head, and nothing is fetched.
        assert len(server.requests) - asked == 2 * len(costs_s)
    assert statistics.median(costs_s) < 0.05, costs_s


@pytest.mark.usefixtures("manager")
def test_a_pushed_commit_is_applied_within_a_second(repository: Repository) -> None:
    """Counted from the push, with a look every 200 ms; the looks' own part is in the status."""
    made = repository.commit(web=repository.policy_text())
    repository.follow()
    repository.applied(made)
    whole_s, own_s = [], []
    for n in range(5):
        began = datetime.now().astimezone()
        text = repository.policy_text(selector={"matchLabels": {"app": f"web-{n}"}})
        made = repository.commit(web=text)
        repository.applied(made)
        status = repository.status()
        seen, applied = (parse_time(status[k]) for k in ("revisionSeenTime", "revisionAppliedTime"))
        assert seen
        assert applied
        own_s.append((applied - seen).total_seconds())
        whole_s.append((applied - began).total_seconds())
    assert statistics.median(own_s) < 0.5, own_s
    assert statistics.median(whole_s) < 1.0, whole_s
