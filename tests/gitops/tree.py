# SPDX-License-Identifier: Apache-2.0
"""What stands in the tests' repositories, and what must hold for whoever applies it."""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from backends.kube.client import (
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
    POD_SNAPSHOTS,
    KubeClient,
)
from localcluster.toolchain import REPOSITORY
from tests.cluster_scene import eventually
from tests.component.cluster_world import World
from tests.component.snapshot_bytes import complete
from tests.gitops.git_repository import Repository

TROUBLESHOOTING = REPOSITORY / "docs/troubleshooting.md"
# So many times a tool is asked to look again; each would bring a drift to light.
LOOKS = 20


@dataclass(frozen=True, slots=True)
class Tree:
    """A repository for one namespace, with one storage config and policies for ``app=web``."""

    world: World
    repository: Repository

    def storage(self) -> str:
        """Return the example's storage config as a file, for the world's own bucket."""
        body = example("storage")
        body["metadata"]["name"] = self.world.store
        gcs = {"bucket": self.world.bucket.name, "path": "snapshots"}
        body["spec"]["snapshotStorageConfig"]["gcs"] |= gcs
        return yaml.safe_dump(body)

    def policy(self, name: str = "web", **changes: Any) -> str:  # noqa: ANN401 - spec fields
        """Return the example's policy as a file, for manual triggers."""
        body = example("policy")
        body["metadata"]["name"] = name
        body["spec"] |= {
            "selector": {"matchLabels": {"app": "web"}},
            "storageConfigName": self.world.store,
            "triggerConfig": {"type": "manual"},
            **changes,
        }
        return yaml.safe_dump(body)

    def trigger(self) -> str:
        """Return a trigger for the Pod ``web-0`` as a file, without a namespace."""
        body = self.world.object("PodSnapshotManualTrigger", "now", {"targetPod": "web-0"})
        del body["metadata"]["namespace"]
        return yaml.safe_dump(body)

    def old_spelling(self, what: str) -> str:
        """Return a policy in a spelling that no cluster takes."""
        if what == "Workload":
            return self.policy(triggerConfig={"type": "Workload"})
        return self.policy().replace("podsnapshot.gke.io/v1", what)

    def saved_snapshot(self, agent: KubeClient) -> dict[str, Any]:
        """Wait for the trigger's PodSnapshot, save it as an agent would, and return it.

        The Pod's node must be the test's own: one that gives no sign of life for a minute is lost.
        """
        (made,) = eventually("the trigger's snapshot", self.world.snapshots)
        complete(self.world, agent, made)
        name = made["metadata"]["name"]

        def is_ready() -> bool:
            return self.world.condition(POD_SNAPSHOTS, name, "Ready").get("status") == "True"

        eventually("the snapshot is available", is_ready)
        found: dict[str, Any] = self.world.get(POD_SNAPSHOTS, name) or {}
        return found

    def applied_objects(self) -> list[dict[str, Any]]:
        """Return what Git brought, as it is in the cluster."""
        client, namespace = self.world.admin, self.world.namespace
        return [
            client.get(POD_SNAPSHOT_STORAGE_CONFIGS, self.world.store),
            *client.list(POD_SNAPSHOT_POLICIES, namespace=namespace)[0],
            *client.list(POD_SNAPSHOT_MANUAL_TRIGGERS, namespace=namespace)[0],
        ]

    def versions(self) -> dict[str, str]:
        """Return the resourceVersion of everything that Git brought; any write would change it."""
        return {
            f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["resourceVersion"]
            for o in self.applied_objects()
        }


def example(name: str) -> dict[str, Any]:
    """Return an object of the example's tree."""
    path = REPOSITORY / f"examples/gitops/shop/{name}.yaml"
    body: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return body


def assert_podsnap_owns_status_only(objects: list[dict[str, Any]]) -> None:
    """Nothing of an object that Git brought is podsnap's, its status aside."""
    for found in objects:
        for entry in found["metadata"]["managedFields"]:
            if entry["manager"].startswith("podsnap"):
                assert set(entry["fieldsV1"]) == {"f:status"}, (found["kind"], entry)


def quoted(tool: str, wrong: str, namespace: str) -> list[str]:
    """Return what troubleshooting.md quotes of a tool about a spelling, each up to its ellipsis."""
    row = re.compile(rf"^\| {tool} \| `{re.escape(wrong)}` \| (.+) \|$", re.MULTILINE)
    found = row.search(TROUBLESHOOTING.read_text(encoding="utf-8"))
    assert found, f"no row of {tool} and {wrong}"
    quotes = re.findall(r"`([^`]+?)(?: …)?`", found[1])
    return [quote.replace("shop/", f"{namespace}/") for quote in quotes]
