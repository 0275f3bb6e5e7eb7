# SPDX-License-Identifier: Apache-2.0
"""What makes two Pods' memory interchangeable: the distilled spec of the contract, section 6.3."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from api_objects import policy
from hypothesis import given
from hypothesis import strategies as st

from policies.distill import content_volumes, differences, distill
from schemas.names import STRICT_IDENTITY_ANNOTATION
from schemas.pod import Pod
from schemas.policy import Policy
from schemas.policy_options import PolicyOptions
from schemas.snapshot import SpecIdentity

Change = Callable[[dict[str, Any]], Any]


def full_pod() -> dict[str, Any]:
    """Return a Pod that uses everything that goes into the hash."""
    return {
        "metadata": {
            "name": "web-0",
            "namespace": "shop",
            "labels": {"app": "web", "batch.kubernetes.io/job-completion-index": "0"},
            "annotations": {"dev.gvisor.flag.debug": "true", "note": "x"},
        },
        "spec": {
            "runtimeClassName": "gvisor",
            "nodeName": "node-1",
            "serviceAccountName": "default",
            "securityContext": {"runAsUser": 1000},
            "dnsConfig": {"searches": ["a.example"]},
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "settings", "configMap": {"name": "settings"}},
                {"name": "scratch", "emptyDir": {}},
                {"name": "host", "hostPath": {"path": "/srv"}},
                {
                    "name": "kube-api-access-x7k2p",
                    "projected": {
                        "defaultMode": 420,
                        "sources": [{"serviceAccountToken": {"path": "token"}}],
                    },
                },
            ],
            "initContainers": [{"name": "side", "image": "side:1", "restartPolicy": "Always"}],
            "containers": [
                {
                    "name": "main",
                    "image": "web:1",
                    "command": ["/web"],
                    "args": ["--port=80"],
                    "workingDir": "/srv",
                    "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}],
                    "volumeMounts": [
                        {"name": "scratch", "mountPath": "/scratch"},
                        {"name": "kube-api-access-x7k2p", "mountPath": "/var/run/secrets"},
                    ],
                    "volumeDevices": [{"name": "block", "devicePath": "/dev/b"}],
                    "lifecycle": {"preStop": {"exec": {"command": ["/bye"]}}},
                    "securityContext": {"readOnlyRootFilesystem": True},
                    "env": [{"name": "A", "value": "1"}],
                    "resources": {"limits": {"memory": "1Gi"}},
                },
                {"name": "second", "image": "second:1"},
            ],
        },
    }


def changed(change: Change) -> SpecIdentity:
    """Distil the full Pod after a change."""
    obj = full_pod()
    change(obj)
    return distill(Pod.parse(obj))


def main(obj: dict[str, Any]) -> dict[str, Any]:
    """Return the first container."""
    container: dict[str, Any] = obj["spec"]["containers"][0]
    return container


def _set(path: str, value: Any) -> Change:  # noqa: ANN401 - any JSON
    def change(obj: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        node: Any = obj
        for step in parents:
            node = node[int(step)] if isinstance(node, list) else node.setdefault(step, {})
        node[int(last) if isinstance(node, list) else last] = value

    return change


C = "spec/containers/0"
MAIN = "spec.containers[main]"

# What is changed, and the field that the explanation must name.
HASHED: dict[str, tuple[Change, str]] = {
    "a gVisor annotation": (
        _set("metadata/annotations/dev.gvisor.flag.debug", "false"),
        "metadata.annotations[dev.gvisor.flag.debug]",
    ),
    "the job's completion index": (
        _set("metadata/labels/batch.kubernetes.io~1job-completion-index", "1"),
        "metadata.labels[batch.kubernetes.io/job-completion-index]",
    ),
    "a volume's claim": (
        _set("spec/volumes/0/persistentVolumeClaim/claimName", "other"),
        "spec.volumes[data]",
    ),
    "a volume's ConfigMap": (_set("spec/volumes/1/configMap/name", "o"), "spec.volumes[settings]"),
    "a volume's source": (
        _set("spec/volumes/2", {"name": "scratch", "hostPath": {"path": "/x"}}),
        "spec.volumes[scratch]",
    ),
    "a volume's host path": (_set("spec/volumes/3/hostPath/path", "/x"), "spec.volumes[host]"),
    "a volume's name": (_set("spec/volumes/0/name", "renamed"), "spec.volumes[renamed]"),
    "a file mode": (
        _set("spec/volumes/1/configMap/defaultMode", 384),
        "spec.volumes[settings]",
    ),
    "a container's name": (_set(f"{C}/name", "renamed"), "spec.containers[renamed].image"),
    "the order of containers": (
        lambda obj: obj["spec"]["containers"].reverse(),
        f"{MAIN}.position",
    ),
    "one container more": (
        lambda obj: obj["spec"]["containers"].append({"name": "third", "image": "t:1"}),
        "spec.containers[third].image",
    ),
    "an image": (_set(f"{C}/image", "web:2"), f"{MAIN}.image"),
    "a command": (_set(f"{C}/command", ["/web2"]), f"{MAIN}.command"),
    "arguments": (_set(f"{C}/args", []), f"{MAIN}.args"),
    "the working directory": (_set(f"{C}/workingDir", "/"), f"{MAIN}.workingDir"),
    "a port's number": (_set(f"{C}/ports/0/containerPort", 81), f"{MAIN}.ports"),
    "a port's name": (_set(f"{C}/ports/0/name", "web"), f"{MAIN}.ports"),
    "a port's protocol": (_set(f"{C}/ports/0/protocol", "UDP"), f"{MAIN}.ports"),
    "a mount's path": (_set(f"{C}/volumeMounts/0/mountPath", "/t"), f"{MAIN}.volumeMounts"),
    "a mount's volume": (_set(f"{C}/volumeMounts/0/name", "data"), f"{MAIN}.volumeMounts"),
    "a read-only mount": (_set(f"{C}/volumeMounts/0/readOnly", True), f"{MAIN}.volumeMounts"),
    "a recursively read-only mount": (
        _set(f"{C}/volumeMounts/0/recursiveReadOnly", "Enabled"),
        f"{MAIN}.volumeMounts",
    ),
    "a mount's subPath": (_set(f"{C}/volumeMounts/0/subPath", "s"), f"{MAIN}.volumeMounts"),
    "a mount's subPathExpr": (
        _set(f"{C}/volumeMounts/0/subPathExpr", "$(A)"),
        f"{MAIN}.volumeMounts",
    ),
    "a mount's propagation": (
        _set(f"{C}/volumeMounts/0/mountPropagation", "HostToContainer"),
        f"{MAIN}.volumeMounts",
    ),
    "a volume device": (_set(f"{C}/volumeDevices/0/name", "b2"), f"{MAIN}.volumeDevices"),
    "a hook": (_set(f"{C}/lifecycle/preStop/exec/command", ["/b"]), f"{MAIN}.lifecycle"),
    "the termination message's path": (
        _set(f"{C}/terminationMessagePath", "/x"),
        f"{MAIN}.terminationMessagePath",
    ),
    "the termination message's policy": (
        _set(f"{C}/terminationMessagePolicy", "FallbackToLogsOnError"),
        f"{MAIN}.terminationMessagePolicy",
    ),
    "a container's security context": (
        _set(f"{C}/securityContext/readOnlyRootFilesystem", False),
        f"{MAIN}.securityContext",
    ),
    "privilege": (_set(f"{C}/securityContext/privileged", True), f"{MAIN}.securityContext"),
    "stdin": (_set(f"{C}/stdin", True), f"{MAIN}.stdin"),
    "stdinOnce": (_set(f"{C}/stdinOnce", True), f"{MAIN}.stdinOnce"),
    "a terminal": (_set(f"{C}/tty", True), f"{MAIN}.tty"),
    "a sidecar's image": (
        _set("spec/initContainers/0/image", "side:2"),
        "spec.initContainers[side].image",
    ),
    "the DNS policy": (_set("spec/dnsPolicy", "Default"), "spec.dnsPolicy"),
    "the token's mounting": (
        _set("spec/automountServiceAccountToken", False),
        "spec.automountServiceAccountToken",
    ),
    "the host's network": (_set("spec/hostNetwork", True), "spec.hostNetwork"),
    "the host's processes": (_set("spec/hostPID", True), "spec.hostPID"),
    "the host's IPC": (_set("spec/hostIPC", True), "spec.hostIPC"),
    "a shared process namespace": (
        _set("spec/shareProcessNamespace", True),
        "spec.shareProcessNamespace",
    ),
    "the Pod's security context": (
        _set("spec/securityContext/runAsUser", 0),
        "spec.securityContext",
    ),
    "DNS settings": (_set("spec/dnsConfig/searches", ["b.example"]), "spec.dnsConfig"),
    "the RuntimeClass": (_set("spec/runtimeClassName", "gvisor-2"), "spec.runtimeClassName"),
    "the operating system": (_set("spec/os", {"name": "linux"}), "spec.os"),
    "host users": (_set("spec/hostUsers", False), "spec.hostUsers"),
}


@pytest.mark.parametrize("what", HASHED)
def test_a_hashed_field_changes_the_hash_and_is_named(what: str) -> None:
    """The explanation names the field in the user's own terms."""
    change, named = HASHED[what]
    if what == "the job's completion index":

        def change(obj: dict[str, Any]) -> None:
            obj["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] = "1"

    before, after = distill(Pod.parse(full_pod())), changed(change)
    assert before.hash != after.hash
    found = differences(before, after)
    assert any(line.startswith(f"{named} is ") for line in found), found


NOT_HASHED: dict[str, Change] = {
    "the Pod's name": _set("metadata/name", "web-1"),
    "an ordinary label": _set("metadata/labels/app", "other"),
    "an ordinary annotation": _set("metadata/annotations/note", "y"),
    "the environment": _set(f"{C}/env", [{"name": "B", "value": "2"}]),
    "resources": _set(f"{C}/resources", {"limits": {"memory": "2Gi", "cpu": "1"}}),
    "a readiness probe": _set(f"{C}/readinessProbe", {"httpGet": {"port": 80}}),
    "a liveness probe": _set(f"{C}/livenessProbe", {"httpGet": {"port": 80}}),
    "a startup probe": _set(f"{C}/startupProbe", {"httpGet": {"port": 80}}),
    "the pull policy": _set(f"{C}/imagePullPolicy", "Always"),
    "the node": _set("spec/nodeName", "node-2"),
    "a node selector": _set("spec/nodeSelector", {"zone": "a"}),
    "affinity": _set("spec/affinity", {"nodeAffinity": {}}),
    "tolerations": _set("spec/tolerations", [{"operator": "Exists"}]),
    "the service account": _set("spec/serviceAccountName", "other"),
    "the deprecated service account": _set("spec/serviceAccount", "other"),
    "a priority": _set("spec/priority", 5),
    "the grace period": _set("spec/terminationGracePeriodSeconds", 1),
    "the scheduler": _set("spec/schedulerName", "other"),
    "a host port": _set(f"{C}/ports/0/hostPort", 8080),
    "the order of mounts": lambda obj: main(obj)["volumeMounts"].reverse(),
    "the order of volumes": lambda obj: obj["spec"]["volumes"].reverse(),
}


@pytest.mark.parametrize("what", NOT_HASHED)
def test_any_other_field_changes_nothing(what: str) -> None:
    """Env, resources, probes and placement may differ between source and replica."""
    before = distill(Pod.parse(full_pod()))
    assert differences(before, changed(NOT_HASHED[what])) == []
    assert before == changed(NOT_HASHED[what])


def _rename_injected(obj: dict[str, Any]) -> None:
    obj["spec"]["volumes"][4]["name"] = "kube-api-access-zzzzz"
    main(obj)["volumeMounts"][1]["name"] = "kube-api-access-zzzzz"


def _with_defaults(obj: dict[str, Any]) -> None:
    spec = obj["spec"]
    spec |= {"dnsPolicy": "ClusterFirst", "hostNetwork": False, "restartPolicy": "Always"}
    spec["volumes"][1]["configMap"]["defaultMode"] = 420
    spec["volumes"][4]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"] = 3607
    for container in (*spec["containers"], *spec["initContainers"]):
        container |= {
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent",
            "stdin": False,
            "tty": False,
        }
    main(obj)["volumeMounts"][0]["readOnly"] = False
    del main(obj)["ports"][0]["protocol"]


def _with_empty_parts(obj: dict[str, Any]) -> None:
    second = obj["spec"]["containers"][1]
    second |= {"securityContext": {}, "ports": [], "args": None, "volumeMounts": []}


def test_the_suffix_of_an_injected_volume_does_not_matter() -> None:
    """It is random in every Pod; its role is what counts."""
    assert changed(_rename_injected) == distill(Pod.parse(full_pod()))


def test_a_users_volume_of_a_similar_name_is_not_taken_for_injected() -> None:
    """Only the exact form that the API server generates is a role."""
    before = changed(_set("spec/volumes/0/name", "kube-api-access-mine"))
    after = changed(_set("spec/volumes/0/name", "kube-api-access-other1"))
    assert before.hash != after.hash


def test_api_defaults_equal_absent_fields() -> None:
    """A template in Git carries no defaults, the Pod made from it does."""
    assert changed(_with_defaults) == distill(Pod.parse(full_pod()))


def test_empty_parts_equal_absent_ones() -> None:
    """``securityContext: {}`` says nothing."""
    assert changed(_with_empty_parts) == distill(Pod.parse(full_pod()))


def test_distilling_is_stable_and_changes_nothing_of_the_pod() -> None:
    """The hash is 64 hex digits and survives its own record."""
    obj = full_pod()
    before = copy.deepcopy(obj)
    identity = distill(Pod.parse(obj))
    assert obj == before
    assert len(identity.hash) == 64
    assert SpecIdentity.parse(identity.to_object()) == identity
    assert differences(identity, SpecIdentity.parse(identity.to_object())) == []


def test_long_values_are_cut_in_explanations() -> None:
    """An event holds a thousand bytes."""
    one = changed(_set(f"{C}/args", ["a" * 5000]))
    two = changed(_set(f"{C}/args", ["b" * 5000]))
    (line,) = differences(one, two)
    assert len(line) < 400


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["runAsUser", "sysctls", "x"]), _JSON), _JSON)
def test_equal_hashes_mean_no_differences(context: dict[str, Any], command: Any) -> None:  # noqa: ANN401 - any JSON
    """The hash and the explanation never contradict each other, whatever a Pod holds."""
    before = distill(Pod.parse(full_pod()))
    after = changed(
        lambda obj: (_set("spec/securityContext", context)(obj), _set(f"{C}/command", command)(obj))
    )
    assert (before.hash == after.hash) is (differences(before, after) == [])


# -- stricter identities

USES_CONTENTS: dict[str, Any] = {
    "metadata": {"name": "web-0", "namespace": "shop"},
    "spec": {
        "containers": [
            {
                "name": "main",
                "image": "web:1",
                "env": [{"name": "MODE", "value": "fast"}],
                "envFrom": [{"configMapRef": {"name": "defaults"}}],
            }
        ],
        "volumes": [
            {"name": "key", "secret": {"secretName": "key"}},
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "scratch", "emptyDir": {}},
            {
                "name": "kube-api-access-x7k2p",
                "projected": {
                    "sources": [
                        {"serviceAccountToken": {"path": "token"}},
                        {"configMap": {"name": "kube-root-ca.crt"}},
                        {"downwardAPI": {"items": [{"path": "namespace"}]}},
                        {"podCertificate": {"keyPath": "key.pem", "credentialBundlePath": "all"}},
                    ]
                },
            },
        ],
    },
}


def strict(text: str, uid: str = "uid-1") -> Policy:
    """Return a policy that counts more."""
    under = policy()
    options = PolicyOptions.parse({STRICT_IDENTITY_ANNOTATION: text})
    return replace(under, metadata=replace(under.metadata, uid=uid), options=options)


def with_env(*variables: dict[str, Any], **more: Any) -> Pod:  # noqa: ANN401 - parts of a container
    """Return the Pod with another environment."""
    obj = copy.deepcopy(USES_CONTENTS)
    obj["spec"]["containers"][0] |= {"env": list(variables), **more}
    return Pod.parse(obj)


ENVIRONMENTS = {
    "another value": with_env({"name": "MODE", "value": "slow"}),
    "another name": with_env({"name": "MOOD", "value": "fast"}),
    "one more": with_env({"name": "MODE", "value": "fast"}, {"name": "X"}),
    "none": with_env(),
    "a reference": with_env({"name": "MODE", "valueFrom": {"secretKeyRef": {"name": "s"}}}),
    "other defaults": with_env({"name": "MODE", "value": "fast"}, envFrom=[]),
}


@pytest.mark.parametrize("what", ENVIRONMENTS)
def test_the_environment_counts_where_a_policy_says_so_and_is_not_written_down(what: str) -> None:
    """The explanation names the container; no value stands in the identity."""
    saved, other = Pod.parse(USES_CONTENTS), ENVIRONMENTS[what]
    assert distill(saved) == distill(other) == distill(other, policy())
    found = differences(distill(saved, strict("env")), distill(other, strict("env")))
    assert found == [f"{MAIN}.env has another value than was saved"]
    assert "fast" not in str(distill(saved, strict("env")).to_object())


def test_an_environment_counts_the_same_in_a_template_and_in_the_pod_made_from_it() -> None:
    """The API server adds a default to a reference to the Pod's own fields."""
    template = with_env({"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
    made = with_env(
        {
            "name": "IP",
            "valueFrom": {"fieldRef": {"fieldPath": "status.podIP", "apiVersion": "v1"}},
        }
    )
    assert distill(template, strict("env")) == distill(made, strict("env"))


TOKENS = frozenset({"token", "namespace", "key.pem", "all"})
COUNTED = {
    "env": {},
    "secrets": {"key": frozenset()},
    "configmaps": {"settings": frozenset(), "kube-api-access-x7k2p": TOKENS},
    "secrets,configmaps": {
        "key": frozenset(),
        "settings": frozenset(),
        "kube-api-access-x7k2p": TOKENS,
    },
}


@pytest.mark.parametrize("text", COUNTED)
def test_volumes_count_by_kind_and_never_by_what_differs_in_every_pod(text: str) -> None:
    """Tokens and a Pod's own certificates are in no identity."""
    assert content_volumes(Pod.parse(USES_CONTENTS), strict(text)) == COUNTED[text]


def test_a_rotated_key_makes_a_new_identity_and_no_guess_can_be_checked_elsewhere() -> None:
    """Digests are salted by the policy, and another volume's content changes nothing of them."""
    pod, under = Pod.parse(USES_CONTENTS), strict("secrets")
    saved = distill(pod, under, {"key": "digest-1"})
    assert distill(pod, under, {"key": "digest-1"}) == saved
    assert differences(saved, distill(pod, under, {"key": "digest-2"})) == [
        "spec.volumes[key].content has another value than was saved"
    ]
    assert differences(saved, distill(pod, under)) == [
        "spec.volumes[key].content is absent, saved with a value that counts"
    ]
    elsewhere = distill(pod, strict("secrets", uid="uid-2"), {"key": "digest-1"})
    assert elsewhere.fields.keys() == saved.fields.keys()
    assert elsewhere.hash != saved.hash


def test_an_older_format_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot of another format misses with that as a reason, whatever else is equal."""
    now = distill(Pod.parse(full_pod()))
    monkeypatch.setattr("policies.distill.FORMAT", "1")
    assert differences(distill(Pod.parse(full_pod())), now) == ['format is "2", saved with "1"']
