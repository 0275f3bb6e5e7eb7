# SPDX-License-Identifier: Apache-2.0
"""The Pod that a workload would make is read from its file, whatever the file says."""

from typing import Any

import pytest

from policies.workload_templates import MalformedTemplateError, WorkloadTemplate
from schemas.metadata import Metadata

CONTAINERS = [{"name": "main"}]
POD = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": CONTAINERS}}

KINDS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "Deployment": ("apps/v1", {"template": POD}, ("spec", "template")),
    "StatefulSet": ("apps/v1", {"template": POD}, ("spec", "template")),
    "DaemonSet": ("apps/v1", {"template": POD}, ("spec", "template")),
    "ReplicaSet": ("apps/v1", {"template": POD}, ("spec", "template")),
    "ReplicationController": ("v1", {"template": POD}, ("spec", "template")),
    "Job": ("batch/v1", {"template": POD}, ("spec", "template")),
    "CronJob": (
        "batch/v1",
        {"jobTemplate": {"spec": {"template": POD}}},
        ("spec", "jobTemplate", "spec", "template"),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_workload_gives_its_pod(kind: str) -> None:
    """With the workload's name, its namespace, and the labels of the template."""
    version, spec, path = KINDS[kind]
    body = {"apiVersion": version, "kind": kind, "metadata": {"name": "a"}, "spec": spec}
    found = WorkloadTemplate.parse(body, namespace="prod")
    assert found is not None
    assert (str(found), found.path) == (f"{kind} prod/a", path)
    assert found.pod.metadata.labels == {"app": "web"}
    assert found.pod.running_names == ("main",)


def test_a_pod_stands_for_itself() -> None:
    """Its own namespace counts before the one that is given."""
    body = {"apiVersion": "v1", "kind": "Pod", **POD, "metadata": {"name": "a", "namespace": "b"}}
    found = WorkloadTemplate.parse(body, namespace="prod")
    assert found is not None
    assert (str(found), found.path) == ("Pod b/a", ())


@pytest.mark.parametrize(
    ("version", "kind"),
    [("v1", "Service"), ("other.example/v1", "Deployment"), ("", ""), ("apps/v1", "Pod")],
)
def test_other_kinds_make_no_pods(version: str, kind: str) -> None:
    """A kind of the same name in another group is another kind."""
    assert WorkloadTemplate.parse({"apiVersion": version, "kind": kind}) is None


MALFORMED: dict[str, tuple[Any, str]] = {
    "no spec": (None, "spec is no object"),
    "a list for the spec": ([], "spec is no object"),
    "no template": ({}, "spec.template is no object"),
    "no containers": ({"template": {"spec": {}}}, "spec.template.spec.containers is missing"),
    "an object for the containers": (
        {"template": {"spec": {"containers": {}}}},
        "spec.template.spec.containers is {}, and should be a list",
    ),
    "nothing for a container": (
        {"template": {"spec": {"containers": [None]}}},
        "spec.template.spec.containers.0 is None, and should be an object",
    ),
    "a number for a label": (
        {"template": {"metadata": {"labels": {"a": 1}}, "spec": {"containers": CONTAINERS}}},
        "spec.template.metadata.labels.a is 1, and should be text",
    ),
    "a mount without a path": (
        {"template": {"spec": {"containers": [{"name": "m", "volumeMounts": [{"name": "v"}]}]}}},
        "spec.template.spec.containers.0.volumeMounts.0.mountPath is missing",
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_pod_that_could_not_be_judged_is_told_with_its_field(what: str) -> None:
    """No judgement stumbles over what a person left out."""
    spec, message = MALFORMED[what]
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": spec}
    with pytest.raises(MalformedTemplateError) as caught:
        WorkloadTemplate.parse(body)
    assert str(caught.value) == message
    assert message.startswith(".".join(map(str, caught.value.path)))


def test_what_only_an_api_server_sets_may_be_anything_in_a_file() -> None:
    """A Pod that somebody exported and edited is still a Pod."""
    metadata = {"name": "a", "deletionGracePeriodSeconds": "soon"}
    assert Metadata.parse({"metadata": metadata}).deletion_grace_period_s == 0
    body = {"apiVersion": "v1", "kind": "Pod", **POD, "status": "x"}
    for owners in (5, ["x"]):
        found = WorkloadTemplate.parse(
            {**body, "metadata": {**metadata, "ownerReferences": owners}}
        )
        assert str(found) == "Pod default/a"
