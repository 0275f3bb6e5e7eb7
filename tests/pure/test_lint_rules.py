# SPDX-License-Identifier: Apache-2.0
"""Each rule of lint finds its mistake at its place, and nothing in files that are right."""

import ast
import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.lint_catalogue import RULES
from policies.lint_documents import document_findings
from schemas.documents import Document, read_all
from schemas.findings import Finding, Severity

ROOT = Path(__file__).resolve().parents[2]
RIGHT = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, tenant: a}}
    spec:
      runtimeClassName: gvisor
      containers:
      - name: main
        image: web:1
        readinessProbe: {tcpSocket: {port: 80}}
        resources: {limits: {memory: 1Gi}}
---
apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotPolicy
metadata:
  name: web
spec:
  selector: {matchLabels: {app: web}}
  storageConfigName: models
  triggerConfig: {type: manual, postCheckpoint: resume}
  snapshotGroupingRules: {groupByLabelValue: {labels: [tenant]}}
---
apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotStorageConfig
metadata: {name: models}
spec: {snapshotStorageConfig: {gcs: {bucket: models}}}
"""
_POLICY = RIGHT.split("---\n")[1]
_STORAGE = RIGHT.split("---\n")[2]
# The policy's, which differ from the Deployment's in what follows.
_SELECTOR = "  selector: {matchLabels: {app: web}}\n  storage"
_NAME = "name: web\nspec"
_KEEP = "  retentionConfig: {lastAccessTimeout: 3d}\n"
_FILES = ("  storageConfigName", "  snapshotScope: rootfs-only\n  storageConfigName")
_POD = "      runtimeClassName: gvisor\n"
_IMAGE = "        image: web:1\n"
_PROBE = "        readinessProbe: {tcpSocket: {port: 80}}\n"
_MODE = "type: manual, postCheckpoint: resume"


def _with_volume(volume: str, mount: str) -> tuple[tuple[str, str], ...]:
    return (
        (_POD, f"{_POD}      volumes: [{{name: v, {volume}}}]\n"),
        (_IMAGE, f"{_IMAGE}        volumeMounts: [{{name: v, {mount}}}]\n"),
    )


def _storage_of(namespace: str, bucket: str) -> str:
    named = _STORAGE.replace("{name: models}", f"{{name: models, namespace: {namespace}}}")
    return named.replace("bucket: models", f"bucket: {bucket}")


CLAIM = "persistentVolumeClaim: {claimName: c}"
FOLDER = "configMap: {name: c}"
STRICT = (_NAME, "name: web\n  annotations: {podsnap.dev/strict-identity: configmaps}\nspec")
# Changes of the right files; then rule, severity, place, and words of the message with its hint.
WRONG: dict[str, tuple[tuple[tuple[str, str], ...], str, str, str, str]] = {
    "a storage config that no file has": (
        ((_STORAGE, ""),), "missing-storage", "warning", "22:3", "unless the cluster has it",
    ),
    "a storage config of other namespaces": (
        (("{name: models}", "{name: models, annotations: {podsnap.dev/namespaces: prod}}"),),
        "unusable-storage", "error", "22:3", "may not be used by namespace default",
    ),
    "two policies for one Deployment": (
        ((_STORAGE, _STORAGE + "---\n" + _POLICY.replace("name: web\n", "name: zweb\n")),),
        "overlapping-policies", "warning", "36:3",
        "policy zweb selects what policy web (f.yaml:16:1) selects too: Deployment default/web",
    ),
    "a selector with a slip": (
        ((_SELECTOR, _SELECTOR.replace("app: web", "app: weeb")),),
        "selects-nothing", "warning", "21:3", "labels there are app=web",
    ),
    "a selector of another namespace": (
        ((_NAME, "name: web\n  namespace: prod\nspec"),
         (_STORAGE, _STORAGE + "---\napiVersion: v1\nkind: Pod\n"
          "metadata: {name: p, namespace: prod}\nspec: {containers: [{name: c}]}\n")),
        "selects-nothing", "warning", "22:3", "none of the 1 Pod templates of namespace prod",
    ),
    "an empty selector": (
        ((_SELECTOR, "  selector: {}\n  storage"),),
        "empty-selector", "warning", "21:3", "every Pod of namespace default",
    ),
    "a group label that Pods lack": (
        ((", tenant: a", ""),), "missing-group-label", "warning", "7:16", "groups by label tenant",
    ),
    "retention under a manual trigger": (
        ((_SELECTOR, _KEEP + _SELECTOR),),
        "deletes-only-snapshot", "warning", "21:21", "podsnap.dev/keep-last: 'true' keeps it",
    ),
    "a probe trigger without a probe": (
        ((_PROBE, ""), ("type: manual", "type: readinessProbe")),
        "no-readiness-probe", "warning", "10:7", "add a readinessProbe",
    ),
    "a runtime class that is not gVisor's": (
        ((_STORAGE, _STORAGE + "---\napiVersion: node.k8s.io/v1\nkind: RuntimeClass\n"
          "metadata: {name: gvisor}\nhandler: kata\n"),),
        "not-gvisor", "warning", "9:7", "RuntimeClass gvisor has handler kata",
    ),
    "a runtime class that no file has": (
        ((_POD, "      runtimeClassName: fast\n"),), "not-gvisor", "warning", "9:7",
        "no file has RuntimeClass fast",
    ),
    "no runtime class": (
        ((_POD, ""),), "not-gvisor", "warning", "8:5", "set runtimeClassName: gvisor",
    ),
    "the network of the node": (
        ((_POD, _POD + "      hostNetwork: true\n"),), "not-restorable", "warning", "10:7",
        "its sockets belong to the node",
    ),
    "a GPU": (
        (("{memory: 1Gi}", "{nvidia.com/gpu: 1}"),), "not-restorable", "warning", "8:5",
        "a GPU (container main)",
    ),
    "a sidecar with a startup probe": (
        ((_POD, _POD + "      initContainers:\n"
          "      - {name: s, restartPolicy: Always, startupProbe: {tcpSocket: {port: 1}}}\n"),),
        "not-restorable", "warning", "8:5", "a startup probe on sidecar s",
    ),
    "a claim under resume": (
        _with_volume(CLAIM, "mountPath: /v"), "claim-with-resume", "warning", "14:24",
        "set postCheckpoint: stop",
    ),
    "a StatefulSet's claim under resume": (
        (("kind: Deployment", "kind: StatefulSet"),
         (_IMAGE, _IMAGE + "        volumeMounts: [{name: v, mountPath: /v}]\n")),
        "claim-with-resume", "warning", "13:24", "the persistent volume v",
    ),
    "a ConfigMap as a folder": (
        _with_volume(FOLDER, "mountPath: /v"), "configmap-folder", "note", "14:24",
        "mount single files by subPath",
    ),
    "a ConfigMap whose content counts": (
        (*_with_volume(FOLDER, "mountPath: /v"), STRICT), "configmap-folder", "warning", "14:24",
        "every snapshot miss",
    ),
    "a Secret in a variable": (
        ((_IMAGE, _IMAGE
          + "        env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}]\n"),),
        "secret-in-env", "warning", "13:15", "takes Secret s into its environment",
    ),
    "a Secret in all variables": (
        ((_IMAGE, _IMAGE + "        envFrom: [{secretRef: {name: s}}]\n"),),
        "secret-in-env", "warning", "13:19", "takes Secret s into its environment",
    ),
    "an option that cannot be read": (
        ((_NAME, "name: web\n  annotations:\n    podsnap.dev/gate: soon\nspec"),),
        "rejected-option", "error", "21:5", "'soon' is not a duration",
    ),
    "a combination that is not acted on": (
        (("type: manual", "type: workload"), _FILES),
        "unsupported-policy", "error", "20:1", "use snapshotScope whole-pod",
    ),
    "one session for all": (
        (("  snapshotGroupingRules: {groupByLabelValue: {labels: [tenant]}}\n", ""),),
        "shared-state", "note", "20:1", "keep users apart with snapshotGroupingRules",
    ),
    "an amount that is none": (
        (("memory: 1Gi", "memory: much"),), "wrong-quantity", "error", "14:30",
        "memory: 'much' is not a quantity; write it like 512Mi or 2G",
    ),
    "a container without a name": (
        (("- name: main\n        image", "- image"),), "malformed-template", "error", "11:9",
        "spec.template.spec.containers.0.name is missing",
    ),
    "a storage config twice, in two namespaces": (
        ((_STORAGE, _storage_of("a", "models") + "---\n" + _storage_of("b", "other")),),
        "duplicate-object", "error", "31:1",
        "PodSnapshotStorageConfig models stands in f.yaml:26:1 already, with other content",
    ),
    "a policy twice": (
        ((_POLICY, f"{_POLICY}---\n{_POLICY}"),), "duplicate-object", "warning", "26:1",
        "PodSnapshotPolicy default/web stands in f.yaml:16:1 already",
    ),
    "a group with a slip": (
        ((_POLICY, _POLICY.replace("gke.io", "gke.com")),), "wrong-group", "error", "16:1",
        "did you mean the group podsnapshot.gke.io?",
    ),
    "a group without its version": (
        ((_POLICY, _POLICY.replace("gke.io/v1", "gke.io")),), "unknown-kind", "error", "16:1",
        "did you mean PodSnapshotPolicy of podsnapshot.gke.io/v1?",
    ),
    "a kind of ours in the core group": (
        ((_POLICY, _POLICY.replace("podsnapshot.gke.io/v1", "v1")),), "unknown-kind", "error",
        "16:1", "v1 has no kind PodSnapshotPolicy",
    ),
    "no group at all": (
        ((_POLICY, _POLICY.replace("apiVersion: podsnapshot.gke.io/v1\n", "")),),
        "unknown-kind", "error", "16:1", "no apiVersion has no kind PodSnapshotPolicy",
    ),
}  # fmt: skip
# Told beside, since a change has more than one consequence.
BESIDE = {
    "a storage config twice, in two namespaces": {"namespaced-storage"},
    "a policy twice": {"overlapping-policies"},
}


def lint(text: str) -> list[Finding]:
    """Return what is said of a file."""
    documents = [d for d in read_all("f.yaml", text.encode()) if isinstance(d, Document)]
    return document_findings(documents)


def test_right_files_are_silent() -> None:
    """A linter that always has a word is not listened to."""
    assert lint(RIGHT) == []


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_found_at_its_place(what: str) -> None:
    """And nothing else is said of files that were right before."""
    changes, rule, severity, place, words = WRONG[what]
    text = RIGHT
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (finding,) = (f for f in lint(text) if f.rule not in BESIDE.get(what, set()))
    assert (finding.rule, finding.severity) == (rule, Severity(severity))
    assert finding.place == f"f.yaml:{place}"
    assert words in str(finding)


# What looks like a mistake and is none.
FINE: dict[str, tuple[tuple[str, str], ...]] = {
    "a limit that is empty": (("{limits: {memory: 1Gi}}", "{limits: ~, requests: {}}"),),
    "a claim that is read only": _with_volume(CLAIM, "mountPath: /v, readOnly: true"),
    "a claim whose volume is read only": _with_volume(
        CLAIM.replace("claimName: c", "claimName: c, readOnly: true"), "mountPath: /v"
    ),
    "a claim under stop": (
        *_with_volume(CLAIM, "mountPath: /v"),
        (_MODE, "type: manual, postCheckpoint: stop"),
    ),
    "a claim under onDelete": (*_with_volume(CLAIM, "mountPath: /v"), ("manual", "onDelete")),
    "a file of a ConfigMap": _with_volume(FOLDER, "mountPath: /v/f, subPath: f"),
    "init containers": ((_POD, f"{_POD}      initContainers: [{{name: i, image: i}}]\n"),),
    "retention that keeps the last": (
        (_NAME, "name: web\n  annotations: {podsnap.dev/keep-last: 'true'}\nspec"),
        (_SELECTOR, _KEEP + _SELECTOR),
    ),
    "files alone of a Pod on the node's network": (
        (_POD, f"{_POD}      hostNetwork: true\n"),
        _FILES,
    ),
    "another class with gVisor's handler": (
        (_POD, "      runtimeClassName: fast\n"),
        (_STORAGE, _STORAGE + "---\napiVersion: node.k8s.io/v1\nkind: RuntimeClass\n"
         "metadata: {name: fast}\nhandler: runsc\n"),
    ),
    "a Pod that no policy selects": (
        (_STORAGE, _STORAGE + "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p}\n"
         "spec: {hostNetwork: true, containers: [{name: c, envFrom: [{secretRef: {name: s}}]}]}\n"),
    ),
    "a policy without any template": ((RIGHT.split("---\n", maxsplit=1)[0] + "---\n", ""),),
    "a kind of our name in another group": (
        (_STORAGE, f"{_STORAGE}---\napiVersion: podsnapshot.nvidia.com/v1\nkind: PodSnapshot\n"),
    ),
    "a kind of our name in Kubernetes": (
        (_STORAGE, f"{_STORAGE}---\napiVersion: podsnapshot.x-k8s.io/v1\nkind: PodSnapshot\n"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FINE)
def test_what_only_looks_like_a_mistake_is_none(what: str) -> None:
    """Each of these differs from a mistake in one thing."""
    text = RIGHT
    for old, new in FINE[what]:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    assert lint(text) == []


def test_two_folders_may_be_of_two_clusters() -> None:
    """The same name with another content is a mistake within a folder, else perhaps none."""
    texts = {
        "a/s.yaml": _STORAGE,
        "b/s.yaml": _storage_of("", "other").replace(", namespace: ", ""),
    }
    documents = [
        d
        for file, text in texts.items()
        for d in read_all(file, text.encode())
        if isinstance(d, Document)
    ]
    (finding,) = document_findings(documents)
    assert (finding.rule, finding.severity) == ("duplicate-object", Severity.WARNING)


def test_each_folder_has_its_own_storage_config() -> None:
    """One name for every cluster; only where no config can be used is there an error."""

    def judged(dev: str) -> set[tuple[str, str]]:
        texts = {"prod/p.yaml": _in("prod", _POLICY), "dev/p.yaml": _in("dev", _POLICY)}
        for folder, allowed in (("dev", dev), ("prod", "prod")):
            named = f"{{name: models, annotations: {{podsnap.dev/namespaces: {allowed}}}}}"
            texts[f"{folder}/s.yaml"] = _STORAGE.replace("{name: models}", named)
        found = document_findings(
            [
                d
                for f, t in texts.items()
                for d in read_all(f, t.encode())
                if isinstance(d, Document)
            ]
        )
        return {(f.file, f.rule) for f in found} - {("prod/s.yaml", "duplicate-object")}

    assert judged("dev") == set()
    assert judged("other") == {("dev/p.yaml", "unusable-storage")}


def _in(namespace: str, text: str) -> str:
    return text.replace("name: web\n", f"name: web\n  namespace: {namespace}\n")


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:  # noqa: ANN401
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, child in children:
        yield (*path, key)
        if isinstance(child, dict | list):
            yield from _paths(child, (*path, key))


JUNK = [None, 1, -1.5, True, "", "x\n", [], {}, [None], [{}], {"a": None}, {"name": []}, "soon"]
# The same with all that could be junk: what the API server fills in, a status, a volume.
FULL = list(yaml.safe_load_all(RIGHT))
for _tree in FULL:
    _tree["metadata"] |= {
        "ownerReferences": [{"controller": True}],
        "deletionGracePeriodSeconds": 1,
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "annotations": {},
    }
FULL[0]["spec"]["template"] |= {"status": {"conditions": [], "containerStatuses": []}}
FULL[0]["spec"]["template"]["spec"]["volumes"] = [{"name": "v", "hostPath": {"path": "/data"}}]
FULL[0]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = [
    {"name": "v", "mountPath": "/v"}
]
PATHS = sorted(_paths(FULL), key=str)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(JUNK)), min_size=1, max_size=3))
def test_no_file_makes_it_stumble(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    """Whatever stands where something else should, there is an answer."""
    documents = copy.deepcopy(FULL)
    for path, junk in changes:
        tree: Any = documents
        for step in path[:-1]:
            tree = tree[step] if isinstance(tree, dict | list) and _has(tree, step) else None
        if isinstance(tree, dict | list) and _has(tree, path[-1]):
            tree[path[-1]] = copy.deepcopy(junk)
    text = yaml.safe_dump_all(documents)
    assert all(f.rule in RULES and f.file == "f.yaml" for f in lint(text))


def _has(tree: dict[Any, Any] | list[Any], step: Any) -> bool:  # noqa: ANN401 - key or index
    return step in tree if isinstance(tree, dict) else isinstance(step, int) and step < len(tree)


def test_every_rule_is_told_in_the_documentation_and_no_other() -> None:
    """Whoever meets a rule's name finds what it says."""
    page = (ROOT / "docs" / "lint.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \| (.+?) \|$", page, re.MULTILINE)
    assert {rule: says for rule, _, says in rows} == dict(RULES)
    severities = {rule: set(told.split(", ")) for rule, told, _ in rows}
    for _, rule, severity, *_ in WRONG.values():
        assert severity in severities[rule], rule


STUMBLED = {
    "a status": "spec: {containers: [{name: c}]}\nstatus: x",
    "a volume that is a text": (
        "spec:\n  runtimeClassName: gvisor\n  volumes: [{name: v, hostPath: /data}]\n"
        "  containers: [{name: c, volumeMounts: [{name: v, mountPath: /v}]}]"
    ),
    "owners": "metadata: {ownerReferences: 5}\nspec: {containers: [{name: c}]}",
    "a grace period": (
        "metadata: {deletionGracePeriodSeconds: soon}\nspec: {containers: [{name: c}]}"
    ),
}


@pytest.mark.parametrize("what", STUMBLED)
def test_a_pod_is_judged_whatever_stands_beside_what_is_judged(what: str) -> None:
    """A Pod that somebody exported has more in it, and not all of it is sound."""
    policy = _POLICY.replace("{matchLabels: {app: web}}", "{}")
    text = f"{_STORAGE}---\n{policy}---\napiVersion: v1\nkind: Pod\n{STUMBLED[what]}\n"
    assert {"empty-selector", "missing-group-label"} <= {f.rule for f in lint(text)}


def test_two_policies_are_ordered_only_if_their_times_are_sound() -> None:
    """Nothing is compared that is no time."""
    texts = [
        _POLICY.replace("name: web\n", f"name: {name}\n  creationTimestamp: {time}\n")
        for name, time in (("a", "5"), ("b", "x"))
    ]
    assert "wrong-type" in {f.rule for f in lint("---\n".join([RIGHT, *texts]))}


# Rules of one word, which any text could be.
SINGLE = {"syntax", "unreadable"}


def _rules(path: Path) -> Iterator[str]:
    """Yield the rules that a file gives to findings."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        values: list[ast.expr] = []
        if isinstance(node, ast.Call):
            called = node.func
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name in {"finding", "Finding", "_error", "_error_at", "OldSpelling"}:
                values = node.args
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(getattr(t, "id", "") in {"rule", "_RULES"} for t in targets):
                values = [n for n in ast.walk(node.value) if isinstance(n, ast.Constant)]
        texts = [v.value for v in values if isinstance(v, ast.Constant)]
        yield from (
            t
            for t in texts
            if isinstance(t, str) and (t in SINGLE or re.fullmatch("[a-z]+(-[a-z]+)+", t))
        )


def test_every_rule_that_the_code_names_is_in_the_catalogue() -> None:
    """SARIF looks each up, and the catalogue has no rule that nothing tells."""
    reading = ("manifest_files.py", "kubernetes_schemas.py")
    files = [
        *(ROOT / "schemas").glob("*.py"),
        *(ROOT / "policies").glob("*.py"),
        *(ROOT / "reconciler" / name for name in reading),
    ]
    named = {rule for file in files for rule in _rules(file)}
    assert named == set(RULES)
