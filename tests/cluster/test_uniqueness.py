# SPDX-License-Identifier: Apache-2.0
"""What the Pods of one snapshot do not share: their own state, other users', a rotated key's."""

import base64
import json
import urllib.request
from typing import Any

import pytest
import yaml

from localcluster.images import build_image, default_cache
from tests.cluster_scene import COUNTER, INTERPRETER, Scene
from tests.conftest import EXAMPLES

pytestmark = pytest.mark.cluster

EXAMPLE = EXAMPLES / "uniqueness"
READER = f"key = open('/key/word').read()\n{INTERPRETER}"


def _apply(scene: Scene, manifest: str) -> dict[str, Any]:
    """Apply a manifest of the example, with the scene's own bucket."""
    obj: dict[str, Any] = yaml.safe_load((EXAMPLE / manifest).read_text(encoding="utf-8"))
    if "storageConfigName" in obj["spec"]:
        obj["spec"]["storageConfigName"] = scene.namespace
    scene.apply(obj)
    return obj


def _ask(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{address}:8080/", timeout=10) as answer:
        parsed: dict[str, Any] = json.load(answer)
        return parsed


def test_restored_replicas_of_the_example_are_no_twins(scene: Scene) -> None:
    """Memory is shared, which is the point; identifiers, randomness and environment are not.

    The snapshot and the event name the variable that differs, without its value.
    """
    scene.cluster.load(build_image(EXAMPLE, cache=default_cache(), progress=print).archive)
    _apply(scene, "policies/policy.yaml")
    _apply(scene, "golden.yaml")
    (golden,) = scene.times.wait_ready("uniqueness", 1, limit_s=60)
    before = _ask(golden.pod.pod_ip)
    trigger = _apply(scene, "trigger.yaml")["metadata"]["name"]
    assert scene.triggered(trigger)["reason"] == "Complete"
    (made,) = scene.snapshots()
    snapshot = scene.wait_available(made.metadata.name)

    _apply(scene, "deployment.yaml")

    pods = scene.times.wait_ready("uniqueness", 3, limit_s=60)
    one, two = (_ask(p.pod.pod_ip) for p in pods if p is not golden)
    assert one["memory"] == two["memory"] == before["memory"]
    assert one["forgotten"] == two["forgotten"]
    for renewed in ("instance", "random", "tls", "hostname"):
        assert len({before[renewed], one[renewed], two[renewed]}) == 3, renewed
    assert [before["mode"], one["mode"], two["mode"]] == ["warming-up", "serving", "serving"]
    assert [before["restores"], one["restores"], two["restores"]] == [0, 1, 1]
    after = _ask(golden.pod.pod_ip)
    assert (after["restores"], after["instance"]) == (0, before["instance"])

    capture = scene.get("ps", snapshot.metadata.name)["status"]["podsnap"]["capture"]
    assert sorted(capture["env"]["app"]) == ["MODE", "POD_UID"]
    assert "warming-up" not in json.dumps(capture)
    user = next(p.pod.metadata.name for p in pods if p is not golden)
    assert "MODE differs" in scene.event(user, "Successfully restored")
    refused = scene.triggered(scene.trigger(user))
    assert refused["message"].startswith("NotGolden: ")


def _reader() -> dict[str, Any]:
    """Return a container that has read a key into its memory."""
    return {
        "name": "counter",
        "image": COUNTER,
        "imagePullPolicy": "Never",
        "command": ["/usr/bin/python3", "-c", READER, "8080"],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
        "volumeMounts": [{"name": "key", "mountPath": "/key"}],
    }


def _secret(scene: Scene, word: str) -> None:
    data = {"word": base64.b64encode(word.encode()).decode()}
    named = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}}
    scene.apply({**named, "data": data})


def test_a_rotated_key_makes_a_new_identity(scene: Scene) -> None:
    """The agent reads what is mounted; a Pod of the old key is neither restored nor saved again."""
    volumes = [{"name": "key", "secret": {"secretName": "key"}}]
    spec = {"containers": [_reader()], "volumes": volumes}
    _secret(scene, "first")
    scene.policy(annotations={"podsnap.dev/strict-identity": "secrets"})
    scene.ready_pod("old", spec=spec)
    saved = scene.save("old")
    scene.ready_pod("same-key", spec=spec)
    assert scene.restored_from("same-key")
    digest = saved.capture.identity.fields["spec.volumes[key].content"] if saved.capture else ""
    assert digest.startswith('"scrypt:')

    _secret(scene, "rotated")
    scene.ready_pod("new-key", spec=spec)

    assert scene.restored_from("new-key") == ""
    assert "spec.volumes[key].content" in scene.event("new-key", "falling back to a cold start")
    scene.save("new-key")
    scene.ready_pod("next", spec=spec)
    assert scene.restored_from("next")
    assert scene.tell("next", "answer = __import__('__main__').key") == "rotated"
