# SPDX-License-Identifier: Apache-2.0
"""What ``podsnap plan`` foretells of the examples is what then happens to their Pods.

The semantic search takes minutes, so it is planned where it runs anyway: ``test_demo.py``.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from backends.kube.client import PODS, KubeClient
from backends.kube.transport import Transport
from localcluster.images import build_image, default_cache
from localcluster.pod_times import Observed
from policies.distill import distill
from policies.expected_pod import admitted_pod, manifest_of
from reconciler.planned_manifests import workload
from schemas.pod import Pod
from tests.cluster_scene import COUNTER, LIMIT_S, Scene, eventually
from tests.conftest import EXAMPLES
from tests.planned_starts import Foretold, foretell

pytestmark = pytest.mark.cluster


@dataclass(slots=True)
class Follower:
    """Follows an example in a scene: plans each manifest that makes a Pod, then applies it."""

    scene: Scene
    example: Path
    folder: Path

    def objects(self, manifest: str) -> Iterator[dict[str, Any]]:
        """Yield a file's objects with the scene's own namespace and bucket."""
        text = (self.example / manifest).read_text(encoding="utf-8")
        for obj in yaml.safe_load_all(text):
            obj["metadata"]["namespace"] = self.scene.namespace
            if "storageConfigName" in obj.get("spec", ()):
                obj["spec"]["storageConfigName"] = self.scene.namespace
            yield obj

    def apply(self, manifest: str) -> None:
        """Apply a file; policies are waited for."""
        for obj in self.objects(manifest):
            self.scene.apply(obj)
            name = obj["metadata"]["name"]
            if obj["kind"] == "PodSnapshotPolicy":
                eventually("policy Ready", lambda n=name: self.scene.is_true("psp", n, "Ready"))

    def foretell(self, obj: dict[str, Any]) -> Foretold:
        """Plan one object."""
        file = self.folder / "planned.yaml"
        file.write_text(yaml.safe_dump(obj), encoding="utf-8")
        return foretell(self.scene.cluster.kubeconfig, self.scene.namespace, file)

    def start(self, obj: dict[str, Any], app: str) -> tuple[Foretold, list[Observed]]:
        """Plan an object, apply it, and see that its new Pods start as was foretold."""
        before = {o.pod.metadata.uid for o in self.scene.times.pods(app)}
        foretold = self.foretell(obj)
        self.scene.apply(obj)

        def new() -> list[Observed]:
            made = [o for o in self.scene.times.pods(app) if o.pod.metadata.uid not in before]
            return made if all(o.pod.is_ready for o in made) else []

        made: list[Observed] = self.scene.times.wait(f"new Pods of {app}", new, limit_s=LIMIT_S)
        for observed in made:
            self.see(observed.pod.metadata.name, foretold)
        return foretold, made

    def see(self, pod: str, foretold: Foretold) -> None:
        """See that a Pod started so: by its condition, or by its Event."""
        if foretold.restored_from:
            assert self.scene.restored_from(pod).endswith(foretold.restored_from)
        else:
            assert self.scene.restored_from(pod) == ""
            if foretold.governed_by:
                self.scene.event(pod, f": {foretold.why}; see `podsnap explain")


def follower(scene: Scene, folder: Path, name: str) -> Follower:
    """Load an example's image."""
    image = build_image(EXAMPLES / name, cache=default_cache(), progress=print)
    scene.cluster.load(image.archive)
    return Follower(scene, EXAMPLES / name, folder)


def test_the_counter_starts_as_was_planned(scene: Scene, tmp_path: Path) -> None:
    """Cold at first, restored when scaled, and cold again for a change that the plan named."""
    example = Follower(scene, EXAMPLES / "counter", tmp_path)
    example.apply("policies/policy.yaml")
    (deployment,) = example.objects("deployment.yaml")
    first, (made,) = example.start(deployment, "counter")
    assert (first.cause, first.exit_code) == ("NoSnapshotYet", 2)
    saved = scene.save(made.pod.metadata.name).metadata.name

    deployment["spec"]["replicas"] = 2
    second, _ = example.start(deployment, "counter")
    assert (second.restored_from, second.exit_code) == (saved, 0)
    assert second.completed == ["1 by a dry run of the API server"]

    deployment["spec"]["template"]["spec"]["containers"][0]["workingDir"] = "/"
    third, _ = example.start(deployment, "counter")
    assert (third.cause, third.exit_code, third.change) == ("SpecDiffers", 2, "StartsCold")
    assert third.differences == ["spec.containers[counter].workingDir"]
    assert third.obsolete == [saved]


def test_the_how_to_starts_as_was_planned(scene: Scene, tmp_path: Path) -> None:
    """From the newest, from the one that is named, and cold without policies."""
    example = follower(scene, tmp_path, "gke-how-to")
    example.apply("02-manual-policy.yaml")
    (app,) = example.objects("03-app.yaml")
    assert example.start(app, "how-to")[0].cause == "NoSnapshotYet"
    older, newest = (scene.save("app-1").metadata.name for _ in range(2))
    (new,) = example.objects("06-new-pod.yaml")
    assert example.start(new, "how-to")[0].restored_from == newest
    (chosen,) = example.objects("07-chosen-pod.yaml")
    chosen["metadata"]["annotations"]["podsnapshot.gke.io/ps-name"] = older
    assert example.start(chosen, "how-to")[0].restored_from == older

    example.apply("08-workload-policy.yaml")
    (asking,) = example.objects("09-workload-app.yaml")
    assert example.start(asking, "how-to-self")[0].cause == "NoSnapshotYet"
    own = eventually(
        "the program's own save",
        lambda: next((s for s in scene.snapshots() if s.policy_name == "workload"), None),
    )
    scene.wait_available(own.metadata.name)
    (again,) = example.objects("10-workload-new-pod.yaml")
    assert example.start(again, "how-to-self")[0].restored_from == own.metadata.name
    scene.kubectl("delete", "psp", "--all")
    scene.delete("self-2")
    assert example.start(again, "how-to-self")[0].cause == "NotGoverned"


def test_the_replicas_of_a_golden_pod_start_as_was_planned(scene: Scene, tmp_path: Path) -> None:
    """With the variable that differs, which forbids nothing."""
    example = follower(scene, tmp_path, "uniqueness")
    example.apply("policies/policy.yaml")
    (golden,) = example.objects("golden.yaml")
    assert example.start(golden, "uniqueness")[0].cause == "NoSnapshotYet"
    saved = scene.save("golden").metadata.name
    (deployment,) = example.objects("deployment.yaml")
    foretold, made = example.start(deployment, "uniqueness")
    assert len(made) == 2
    assert foretold.restored_from == saved
    assert foretold.environment == ["container app: MODE differs"]


def test_our_own_rules_complete_a_pod_as_admission_does(scene: Scene) -> None:
    """So that a plan without a cluster is the same one."""
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {
            "initContainers": [{"name": "init", "image": COUNTER}],
            "containers": [
                {"name": "main", "image": COUNTER, "ports": [{"containerPort": 80}]},
                {
                    "name": "side",
                    "image": COUNTER,
                    "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
                },
            ],
            "volumes": [{"name": "c", "configMap": {"name": "c"}}],
            "runtimeClassName": "gvisor",
        },
    }
    body = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "web"},
        "spec": {"template": template, "volumeClaimTemplates": [{"metadata": {"name": "data"}}]},
    }
    made = workload(body, scene.namespace)
    assert made is not None
    eventually("a service account", lambda: "default" in scene.kubectl("get", "sa"))
    transport = Transport.from_kubeconfig(scene.cluster.kubeconfig, user_agent="tests")
    try:
        answer = KubeClient(transport).create(
            PODS, manifest_of(made.pod), field_manager="tests", dry_run=True
        )
    finally:
        transport.close()
    assert distill(admitted_pod(made.pod)) == distill(Pod.parse(answer))
    assert json.dumps(distill(Pod.parse(answer)).fields).count("kube-api-access") == 4
