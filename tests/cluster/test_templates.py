# SPDX-License-Identifier: Apache-2.0
"""What a workload's template asks for is what its Pods have, whatever admission adds to them."""

from typing import Any

import pytest

from policies.distill import distill
from policies.obsolescence import Template, Wish
from schemas.pod import Pod
from schemas.snapshot import SpecIdentity
from tests.cluster_scene import Scene, eventually

pytestmark = pytest.mark.cluster

LABELS = {"app": "templated"}
CONTAINER = {"name": "main", "image": "podsnap.local/counter:1", "imagePullPolicy": "Never"}
DATA = {
    "metadata": {"name": "data"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
}
SELECTED = {"selector": {"matchLabels": LABELS}}
# What each kind adds to its template, so that everything that its controller fills in is there.
WORKLOADS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Deployment": ("apps/v1", SELECTED, {}),
    "DaemonSet": ("apps/v1", SELECTED, {}),
    "StatefulSet": (
        "apps/v1",
        {**SELECTED, "serviceName": "templated", "volumeClaimTemplates": [DATA]},
        {"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
    ),
    "Job": ("batch/v1", {"completionMode": "Indexed", "completions": 1}, {}),
}


@pytest.mark.parametrize("kind", WORKLOADS)
def test_a_template_wants_the_snapshots_of_its_pods(scene: Scene, kind: str) -> None:
    """As the real controllers and the real admission made them; another image is not wanted."""
    version, spec, container = WORKLOADS[kind]
    pod_spec = {"runtimeClassName": "gvisor", "containers": [{**CONTAINER, **container}]}
    if kind == "Job":
        pod_spec["restartPolicy"] = "Never"
    template = {"metadata": {"labels": LABELS}, "spec": pod_spec}
    scene.apply(
        {
            "apiVersion": version,
            "kind": kind,
            "metadata": {"name": "templated"},
            "spec": {**spec, "template": template},
        }
    )

    def made() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = scene.get("pods", "--selector=app=templated")["items"]
        return found

    saved = distill(Pod.parse(eventually("its Pod", made)[0]))
    stands = Template.parse(scene.get(kind.lower(), "templated"))
    assert stands.labels.items() >= LABELS.items()
    assert stands.counts
    assert any("kube-api-access" in path for path in saved.fields)
    wish = Wish(stands.identity, claims=stands.claims)
    assert wish.differs_in(saved) == []
    image = "spec.containers[main].image"
    assert wish.differs_in(SpecIdentity("", {**saved.fields, image: '"another:1"'})) == [image]
    scene.kubectl("delete", kind.lower(), "templated", "--wait=false")
