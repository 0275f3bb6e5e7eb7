# SPDX-License-Identifier: Apache-2.0
"""Policies that say more than a scene's own: groups, retention."""

from typing import Any, Final

from tests.cluster_scene import Scene, eventually

BY_TENANT: Final = {"snapshotGroupingRules": {"groupByLabelValue": {"labels": ["tenant"]}}}


def policy(scene: Scene, **spec: Any) -> None:  # noqa: ANN401 - fields of a policy's spec
    """Create the scene's manual policy with more in its spec."""
    base = {
        "storageConfigName": scene.namespace,
        "selector": {"matchLabels": {"app": "counter"}},
        "triggerConfig": {"type": "manual"},
    }
    scene.apply(
        {
            "apiVersion": "podsnapshot.gke.io/v1",
            "kind": "PodSnapshotPolicy",
            "metadata": {"name": "policy"},
            "spec": {**base, **spec},
        }
    )
    eventually("policy Ready", lambda: scene.is_true("psp", "policy", "Ready"))
