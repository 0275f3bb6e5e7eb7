# SPDX-License-Identifier: Apache-2.0
"""Which fields of a Pod decide whether saved memory fits it: all there are, from the API's schema.

The schema is the real API server's, so a field that a later Kubernetes adds is judged here too.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Final

import pytest
from cluster_world import World
from kube_apiserver import ApiServer

from backends.kube.transport import Transport
from policies.distill import distill
from policies.matching import Candidate, judge
from policies.verdict import Reason, Verdict
from schemas.pod import Pod
from tests.pure.api_objects import NODE, capture_of, policy, snapshot

Tree = dict[str, Any]

# Contract, section 6.3: what is in the distilled spec, with all that lies below each of these.
CONTAINER: Final = (
    "name",
    "image",
    "command",
    "args",
    "workingDir",
    "ports.name",
    "ports.containerPort",
    "ports.protocol",
    "volumeMounts.name",
    "volumeMounts.readOnly",
    "volumeMounts.recursiveReadOnly",
    "volumeMounts.mountPath",
    "volumeMounts.subPath",
    "volumeMounts.mountPropagation",
    "volumeMounts.subPathExpr",
    "volumeDevices.name",
    "lifecycle.postStart",
    "lifecycle.preStop",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
)
COUNTED: Final = (
    "metadata.annotations.dev.gvisor.x",
    "metadata.labels.batch.kubernetes.io/job-completion-index",
    "spec.volumes",
    *(f"spec.{group}.{field}" for group in ("containers", "initContainers") for field in CONTAINER),
    "spec.dnsPolicy",
    "spec.automountServiceAccountToken",
    "spec.hostNetwork",
    "spec.hostPID",
    "spec.hostIPC",
    "spec.shareProcessNamespace",
    "spec.securityContext",
    "spec.dnsConfig",
    "spec.runtimeClassName",
    "spec.os",
    "spec.hostUsers",
)
# Not in the distilled spec, and yet no snapshot fits: why, and the finding.
DOCUMENTED: Final[Mapping[str, tuple[str, Reason]]] = {
    "metadata.namespace": ("a snapshot never leaves its namespace", Reason.OTHER_NAMESPACE),
    "spec.initContainers.restartPolicy": (
        "a sidecar is in the saved memory, an init container that ended is not",
        Reason.SPEC_DIFFERS,
    ),
}
# Keys that stand for all of a map, and values where the schema's type alone would say too little.
KEYS: Final = {
    "metadata.annotations": ("example.com/note", "dev.gvisor.x"),
    "metadata.labels": ("tier", "batch.kubernetes.io/job-completion-index"),
}
VALUES: Final = {"spec.initContainers.restartPolicy": ("Always", "OnFailure")}
SCALARS: Final[Mapping[str, tuple[Any, Any]]] = {
    "string": ("a", "b"),
    "integer": (1, 2),
    "number": (1, 2),
    "boolean": (True, False),
}
BASE: Final[Tree] = {
    "metadata": {"name": "web-0", "namespace": "shop", "uid": "uid-1", "labels": {"app": "web"}},
    "spec": {
        "containers": [{"name": "main", "image": "web:1"}],
        "initContainers": [{"name": "side", "image": "side:1"}],
    },
}


@dataclass(frozen=True, slots=True)
class Field:
    """One scalar of a Pod: how to come to it, and two values that differ.

    A step is a property's name, a map's key, or ``[]`` into a list.
    """

    steps: tuple[str, ...]
    values: tuple[Any, Any]

    @property
    def path(self) -> str:
        """The field's name, without the places in lists."""
        return ".".join(step for step in self.steps if step != "[]")


class Schema:
    """The API server's own schema of a Pod."""

    def __init__(self, schemas: Tree) -> None:
        """Read ``components.schemas`` of the OpenAPI document."""
        self._schemas = schemas

    def fields(self) -> list[Field]:
        """Return every scalar of metadata and spec."""
        pod = self._schemas["io.k8s.api.core.v1.Pod"]["properties"]
        return [f for part in ("metadata", "spec") for f in self._below(pod[part], (part,), ())]

    def _resolved(self, node: Tree) -> tuple[Tree, str]:
        node = node["allOf"][0] if "allOf" in node else node
        name = node.get("$ref", "").rpartition("/")[2]
        return (self._schemas[name], name) if name else (node, "")

    def _below(self, node: Tree, steps: tuple[str, ...], above: tuple[str, ...]) -> Iterator[Field]:
        found, name = self._resolved(node)
        if name in above:
            return
        above = (*above, name) if name else above
        path = ".".join(step for step in steps if step != "[]")
        if "properties" in found:
            for key, child in found["properties"].items():
                yield from self._below(child, (*steps, key), above)
        elif "additionalProperties" in found:
            for key in KEYS.get(path, ("k",)):
                yield from self._below(found["additionalProperties"], (*steps, key), above)
        elif "items" in found:
            yield from self._below(found["items"], (*steps, "[]"), above)
        else:
            kind = found.get("type") or found.get("oneOf", [{}])[0].get("type")
            if kind in SCALARS:
                yield Field(steps, VALUES.get(path, SCALARS[kind]))

    def pod(self, field: Field, value: object) -> Pod:
        """Return the plain Pod with one field set, and what its surroundings require."""
        root = self._schemas["io.k8s.api.core.v1.Pod"]
        return Pod.parse(self._put(deepcopy(BASE), root, field.steps, value))

    def _put(self, tree: Any, node: Tree, steps: tuple[str, ...], value: object) -> Any:  # noqa: ANN401 - any JSON
        if not steps:
            return value
        found, _ = self._resolved(node)
        step, *rest = steps
        if step == "[]":
            items = tree or [None]
            return [self._put(items[0], found["items"], tuple(rest), value), *items[1:]]
        tree = {**self._required(found), **(tree or {})}
        child = (
            found["properties"][step] if "properties" in found else found["additionalProperties"]
        )
        tree[step] = self._put(tree.get(step), child, tuple(rest), value)
        return tree

    def _required(self, found: Tree) -> Tree:
        return {key: self._sample(found["properties"][key]) for key in found.get("required", ())}

    def _sample(self, node: Tree) -> Any:  # noqa: ANN401 - any JSON
        found, _ = self._resolved(node)
        if "properties" in found:
            return self._required(found)
        if "items" in found:
            return []
        return SCALARS.get(found.get("type", "string"), ("a",))[0]


def is_below(path: str, prefixes: Iterator[str] | tuple[str, ...]) -> bool:
    """Whether a field is one of these or a part of one."""
    return any(path == p or path.startswith(f"{p}.") for p in prefixes)


def named(field: Field) -> str:
    """Return how an explanation must name a field, as far as all of its kind have it."""
    part, second, *rest = field.path.split(".")
    if part == "metadata":
        return f"metadata.{second}[{'.'.join(rest)}]"
    if second == "volumes":
        return "spec.volumes["
    if second in {"containers", "initContainers"}:
        # A renamed container is told by its image, under the new name and the old.
        return f"].{'image' if rest[0] == 'name' else rest[0]} "
    return f"spec.{second} "


def judged(saved: Pod, wanted: Pod) -> Verdict:
    """Judge a snapshot of one Pod for another."""
    under = policy()
    candidate = Candidate(pod=wanted, policy=under, identity=distill(wanted), node=NODE)
    return judge(candidate, replace(snapshot(), capture=capture_of(saved)))


def complaint(schema: Schema, field: Field) -> str:
    """Say what is wrong with the judgement on one field; empty if it is right."""
    saved, wanted = (schema.pod(field, value) for value in field.values)
    verdict = judged(saved, wanted)
    if field.path in DOCUMENTED:
        right = DOCUMENTED[field.path][1] in {f.reason for f in verdict.findings}
        return "" if right else f"{field.path}: {verdict.message or 'matches'}, and is documented"
    if not is_below(field.path, COUNTED):
        return f"{field.path}: counts, {verdict.message}" if verdict.findings else ""
    if verdict.usable:
        return f"{field.path}: does not count"
    told = [f for f in verdict.findings if f.reason is Reason.SPEC_DIFFERS]
    return "" if any(named(field) in str(f) for f in told) else f"{field.path}: {verdict.message}"


@pytest.fixture(scope="module")
def schema(api_server: ApiServer) -> Schema:
    """The schema that the real API server publishes."""
    transport = Transport.from_kubeconfig(api_server.kubeconfig("admin"), user_agent="tests")
    try:
        return Schema(transport.request("GET", "/openapi/v3/api/v1")["components"]["schemas"])
    finally:
        transport.close()


@pytest.mark.contract(18)
def test_every_field_of_a_pod_counts_or_does_not_as_the_contract_says(schema: Schema) -> None:
    """Each of section 6.3 is a miss that names it; every other one that Kubernetes has matches."""
    fields = schema.fields()

    assert [c for c in (complaint(schema, f) for f in fields) if c] == []

    paths = {f.path for f in fields}
    assert len(paths) > 800
    assert [p for p in COUNTED if not any(is_below(f, (p,)) for f in paths)] == []
    assert DOCUMENTED.keys() <= paths


FULL: Final[Tree] = {
    "automountServiceAccountToken": False,
    "serviceAccountName": "default",
    "securityContext": {"runAsUser": 1000, "fsGroup": 1000},
    "dnsConfig": {"searches": ["a.example"]},
    "volumes": [
        {"name": "scratch", "emptyDir": {}},
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "key", "secret": {"secretName": "key"}},
        {"name": "host", "hostPath": {"path": "/srv"}},
        {
            "name": "self",
            "downwardAPI": {
                "items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]
            },
        },
        {
            "name": "all",
            "projected": {
                "sources": [
                    {"secret": {"name": "key"}},
                    {"serviceAccountToken": {"path": "token"}},
                    {
                        "downwardAPI": {
                            "items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]
                        }
                    },
                ]
            },
        },
        {"name": "claim", "persistentVolumeClaim": {"claimName": "data"}},
        {
            "name": "own",
            "ephemeral": {
                "volumeClaimTemplate": {
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "resources": {"requests": {"storage": "1Gi"}},
                    }
                }
            },
        },
        {"name": "driver", "csi": {"driver": "csi.example"}},
        {"name": "remote", "nfs": {"server": "nfs.example", "path": "/x"}},
        {
            "name": "disk",
            "iscsi": {"targetPortal": "10.0.0.1", "iqn": "iqn.2026-01.example:a", "lun": 0},
        },
    ],
    "containers": [
        {
            "name": "main",
            "image": "web:1",
            "ports": [{"containerPort": 80}],
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
            "securityContext": {"capabilities": {"drop": ["ALL"]}},
            "lifecycle": {
                "postStart": {"httpGet": {"port": 80}},
                "preStop": {"sleep": {"seconds": 1}},
            },
            "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        }
    ],
    "initContainers": [{"name": "side", "image": "side:1", "restartPolicy": "Always"}],
}


@pytest.mark.contract(18)
def test_a_template_and_the_pod_that_the_server_makes_of_it_are_one(
    api_server: ApiServer, world: World
) -> None:
    """What the API server fills in is no difference, in any kind of volume, hook or port."""
    template = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "web-0", "namespace": world.namespace},
        "spec": FULL,
    }
    transport = Transport.from_kubeconfig(api_server.kubeconfig("admin"), user_agent="tests")
    try:
        path = f"/api/v1/namespaces/{world.namespace}/pods"
        made = transport.request("POST", path, params={"dryRun": "All"}, body=template)
    finally:
        transport.close()

    assert made["spec"]["containers"][0]["terminationMessagePath"]  # the server did fill in
    assert distill(Pod.parse(made)).fields == distill(Pod.parse(template)).fields
