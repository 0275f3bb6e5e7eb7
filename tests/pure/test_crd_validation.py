# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an object of ours is told in full, with its place and what to write."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from schemas.crd_validation import findings
from schemas.documents import read_documents
from schemas.findings import Severity

POLICY = """\
apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotPolicy
metadata:
  name: web
spec:
  selector:
    matchLabels: {app: web}
  storageConfigName: models
  triggerConfig:
    type: workload
"""
_KIND = "PodSnapshotPolicy"

# What is replaced, by what; then the place, the rule, and words of the message with its hint.
WRONG: dict[str, tuple[str, str, str, str, str]] = {
    "a field with a slip": (
        "spec:",
        "spec:\n  snapshotscope: whole-pod",
        "6:3",
        "unknown-field",
        "did you mean snapshotScope?",
    ),
    "a field in another place": (
        "  storageConfigName",
        "  postCheckpoint: stop\n  storageConfigName",
        "8:3",
        "unknown-field",
        "it belongs into spec.triggerConfig",
    ),
    "a field of somebody else": (
        "  storageConfigName",
        "  bananas: 1\n  storageConfigName",
        "8:3",
        "unknown-field",
        "('bananas' was unexpected); remove it or mend its spelling",
    ),
    "a field of metadata with a slip": (
        "  name: web",
        "  name: web\n  anotations: {}",
        "5:3",
        "unknown-field",
        "did you mean annotations?",
    ),
    "a value with a slip": (
        "type: workload",
        "type: worklaod",
        "10:5",
        "unknown-value",
        "did you mean workload?",
    ),
    "a value of somebody else": (
        "type: workload",
        "type: banana",
        "10:5",
        "unknown-value",
        "use one of these",
    ),
    "a number for a text": ("models", "5", "8:3", "wrong-type", "quote it"),
    "a yes for a text": ("app: web", "app: y", "7:19", "wrong-type", "quote it"),
    "nothing for a text": ("models", "~", "5:1", "missing-field", "add it"),
    "a field that is absent": (
        "  storageConfigName: models\n",
        "",
        "5:1",
        "missing-field",
        "'storageConfigName' is a required property; add it",
    ),
    "no name": ("  name: web", "  labels: {}", "3:1", "missing-field", "metadata.name is missing"),
    "a retention in seconds": (
        "spec:",
        "spec:\n  retentionConfig: {lastAccessTimeout: 30s}",
        "6:21",
        "wrong-format",
        "write a whole number and y, mo, d, h or min, such as 30d",
    ),
    "a retention with an end of line": (
        "spec:",
        'spec:\n  retentionConfig: {lastAccessTimeout: "30d\\n"}',
        "6:21",
        "wrong-format",
        "such as 30d",
    ),
    "a name that no object has": (
        "name: web",
        "name: Web Policy",
        "4:3",
        "wrong-format",
        "is no name of an object",
    ),
    "an owner that is no object": (
        "  name: web",
        "  name: web\n  ownerReferences: [x]",
        "5:21",
        "wrong-type",
        "'x'",
    ),
    "a grace period in words": (
        "  name: web",
        "  name: web\n  deletionGracePeriodSeconds: soon",
        "5:3",
        "wrong-type",
        "'soon'",
    ),
    "a group of no labels": (
        "spec:",
        "spec:\n  snapshotGroupingRules: {groupByLabelValue: {labels: []}}",
        "6:47",
        "out-of-range",
        "[]",
    ),
    "a kind with a slip": (
        _KIND,
        "PodSnapshotPolicies",
        "2:1",
        "unknown-kind",
        "did you mean PodSnapshotPolicy of podsnapshot.gke.io/v1?",
    ),
    "a kind of somebody else": (_KIND, "Banana", "2:1", "unknown-kind", "the kinds are GitSource,"),
    "a version that never was": (
        "gke.io/v1",
        "gke.io/v2",
        "1:1",
        "unknown-kind",
        "podsnapshot.gke.io/v2 has no kind PodSnapshotPolicy; did you mean PodSnapshotPolicy of "
        "podsnapshot.gke.io/v1?",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mistake_is_told_with_its_place_and_what_to_write(what: str) -> None:
    """Whoever reads it needs neither the CRD nor a count of lines."""
    old, new, place, rule, words = WRONG[what]
    assert POLICY.count(old) == 1 or what == "no name"
    (document,) = read_documents("f.yaml", POLICY.replace(old, new, 1).encode())
    (finding,) = findings(document)
    assert (finding.place, finding.rule) == (f"f.yaml:{place}", rule)
    assert finding.severity is Severity.ERROR
    assert words in str(finding)


def test_all_mistakes_are_told_in_the_order_of_the_file() -> None:
    """Nobody has to mend one to see the next."""
    text = POLICY.replace("workload", "banana").replace("models", "5").replace("name: web", "a: b")
    (document,) = read_documents("f.yaml", text.encode())
    assert [(f.line, f.rule) for f in findings(document)] == [
        (3, "missing-field"),
        (4, "unknown-field"),
        (8, "wrong-type"),
        (10, "unknown-value"),
    ]


EXPORTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "fields of the server": lambda o: o["metadata"].update(
        {"uid": "u", "resourceVersion": "1", "creationTimestamp": None, "managedFields": []}
    ),
    "fields without a value": lambda o: (
        o["metadata"].update(annotations=None),
        o["spec"].update(retentionConfig=None),
    ),
    "a status": lambda o: o.update(status={"observedGeneration": 1}),
}


@pytest.mark.parametrize("what", EXPORTED)
def test_what_kubectl_prints_is_no_mistake(what: str) -> None:
    """People keep exported objects, and the API server takes them."""
    body = copy.deepcopy(yaml.safe_load(POLICY))
    EXPORTED[what](body)
    (document,) = read_documents("f.yaml", yaml.safe_dump(body).encode())
    assert findings(document) == []


def test_a_trigger_may_leave_its_name_to_the_api_server() -> None:
    """As the first steps of the documentation make it."""
    text = (
        "apiVersion: podsnapshot.gke.io/v1\nkind: PodSnapshotManualTrigger\n"
        "metadata: {generateName: web-}\nspec: {targetPod: web}\n"
    )
    (document,) = read_documents("f.yaml", text.encode())
    assert findings(document) == []
