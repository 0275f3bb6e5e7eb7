# SPDX-License-Identifier: Apache-2.0
"""``podsnap plan`` against a real API server, a real Git repository, and what kubectl printed."""

import json
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from cluster_world import World, eventually
from kube_apiserver import ApiServer

from backends.kube.client import LEASES, POD_SNAPSHOTS, Resource
from localcluster.toolchain import Toolchain
from policies.distill import distill
from reconciler.command_line import main
from reconciler.commands.exit_codes import PlanExit
from schemas.instants import to_micro_time
from schemas.names import API_VERSION, SYSTEM_NAMESPACE
from schemas.node_facts import NodeFacts
from schemas.pod import Pod
from schemas.snapshot import CaptureRecord, Compatibility

DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
SAVED_AT = "2026-01-01T10:00:00.000000Z"
# docs/plan.md has this command.
KINDS = (
    "podsnapshots,podsnapshotpolicies,podsnapshotstorageconfigs,leases,runtimeclasses,"
    "pods,deployments,statefulsets,daemonsets,replicasets,replicationcontrollers,jobs,cronjobs"
)
LIMIT_S = 30


def deployment(image: str = "registry.example/web:1") -> dict[str, Any]:
    """Return a Deployment without a token, because this API server adds none."""
    template = {
        "metadata": {"labels": {"app": "web"}},
        "spec": {
            "runtimeClassName": "gvisor",
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": image}],
        },
    }
    selector = {"matchLabels": {"app": "web"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {"replicas": 0, "selector": selector, "template": template},
    }


@dataclass(slots=True)
class Planned:
    """A namespace with one node and one snapshot, and a repository of manifests about it."""

    world: World
    kubeconfig: Path
    folder: Path
    node: str
    snapshot: str = ""

    def write(self, *objects: dict[str, Any]) -> None:
        """Write the manifests anew."""
        (self.folder / "web.yaml").write_text(yaml.safe_dump_all(objects), encoding="utf-8")

    def git(self, *arguments: str) -> None:
        """Run git in the repository, whatever the user has configured."""
        author = ["-c", "user.name=tests", "-c", "user.email=tests@podsnap.invalid"]
        subprocess.run(
            ["git", "-C", str(self.folder.parent), *author, *arguments],
            check=True,
            capture_output=True,
            timeout=LIMIT_S,
        )

    def ask(self, *words: str) -> Result:
        """Run the command in this process; its output is no terminal."""
        namespace = ["-n", self.world.namespace]
        return CliRunner().invoke(main, ["plan", str(self.folder), *namespace, *words])

    def told(self, *words: str, code: int) -> Any:  # noqa: ANN401 - any JSON
        """Return what programs are told by the cluster, or by what ``words`` name."""
        source = [] if "--offline" in words else [f"--kubeconfig={self.kubeconfig}"]
        done = self.ask(*source, *words, "-o", "json")
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    def start(self, told: Any) -> dict[str, Any]:  # noqa: ANN401 - a parsed plan
        """Return how the one workload starts on this test's node, or on any."""
        (workload,) = told["workloads"]
        starts: list[dict[str, Any]] = workload["after"]["starts"]
        return next(s for s in starts if not s["nodes"] or self.node in s["nodes"])


@pytest.fixture
def planned(world: World, api_server: ApiServer, tmp_path: Path) -> Iterator[Planned]:
    """A Deployment that stands, whose Pods are restored, in a repository with one commit."""
    folder = tmp_path / "repository" / "deploy"
    folder.mkdir(parents=True)
    node = f"node-{world.namespace}"
    made = Planned(world, api_server.kubeconfig("admin"), folder, node)
    made.write(deployment())
    made.git("init", "--quiet", "--initial-branch=main")
    made.git("add", "--all")
    made.git("commit", "--quiet", "--message=first")
    world.storage()
    world.policy()
    standing = deployment()
    standing["metadata"]["namespace"] = world.namespace
    world.create(DEPLOYMENTS, standing)
    compatibility = Compatibility("release-1", "sha256:aa", "systrap", "x86_64", "n2")
    facts = NodeFacts(node, compatibility).to_annotation()
    name = f"podsnap-node-{node}"
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": name,
            "namespace": SYSTEM_NAMESPACE,
            "annotations": {"podsnap.dev/node-facts": facts},
        },
        "spec": {"holderIdentity": node, "renewTime": to_micro_time(datetime.now(UTC))},
    }
    world.admin.apply(LEASES, lease, field_manager="tests")
    made.snapshot = _saved(world, node, compatibility)
    yield made
    world.admin.delete(POD_SNAPSHOTS, made.snapshot, namespace=world.namespace)
    world.admin.delete(LEASES, name, namespace=SYSTEM_NAMESPACE)


def _saved(world: World, node: str, compatibility: Compatibility) -> str:
    """Leave what an agent leaves of a Pod of the Deployment."""
    pod = Pod.parse(deployment()["spec"]["template"])
    name = str(uuid.uuid4())
    made = world.create(POD_SNAPSHOTS, world.object("PodSnapshot", name, {"policyName": "web"}))
    record = CaptureRecord(
        node=node,
        attempt=1,
        pod_name="web-0",
        claimed_at=SAVED_AT,
        checkpointed_at=SAVED_AT,
        uploaded_at=SAVED_AT,
        size_bytes=50_000_000,
        identity=distill(pod),
        compatibility=compatibility,
        image_ids={"main": "sha256:00"},
    )
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "AllSnapshotsAvailable",
        "message": "",
        "lastTransitionTime": "2026-01-01T10:00:03Z",
    }
    body = {
        "apiVersion": API_VERSION,
        "kind": "PodSnapshot",
        "metadata": {
            "name": name,
            "namespace": world.namespace,
            "uid": made["metadata"]["uid"],
        },
        "status": {
            "conditions": [ready],
            "podsnap": {"version": 1, "capture": record.to_object()},
        },
    }
    world.admin.apply(POD_SNAPSHOTS, body, field_manager="tests", subresource="status")
    return name


# -- against a cluster


def test_a_tree_that_stands_already_changes_nothing(planned: Planned) -> None:
    """The API server itself says what a Pod of it would be."""
    told = planned.told(code=PlanExit.NO_CHANGES)
    assert planned.start(told)["restoredFrom"] == planned.snapshot
    assert planned.start(told)["unknown"] == ["tag: container main: registry.example/web:1"]
    assert told["completed"] == ["1 by a dry run of the API server"]
    assert (told["version"], told["unknown"], told["hasChanges"]) == (1, [], False)
    assert (
        planned.world.admin.list(
            Resource("", "v1", "pods", "Pod"), namespace=planned.world.namespace
        )[0]
        == []
    )


def test_another_image_is_told_with_all_that_follows(planned: Planned) -> None:
    """In each form, and by the exit code."""
    planned.write(deployment("registry.example/web:2"))
    told = planned.told(code=PlanExit.CHANGES)
    assert planned.start(told)["differences"] == [
        {
            "path": "spec.containers[main].image",
            "pod": '"registry.example/web:2"',
            "saved": '"registry.example/web:1"',
        }
    ]
    (workload,) = told["workloads"]
    assert (workload["change"], workload["before"]["governedBy"]) == ("StartsCold", "web")
    (lost,) = told["snapshots"]
    assert (lost["name"], lost["wantedBy"]) == (planned.snapshot, ["Deployment web"])
    config = f"--kubeconfig={planned.kubeconfig}"
    page = planned.ask(config).stdout
    for text in ("1 workload starts cold", "the first replica of its next rollout", "IN THE TREE"):
        assert text in page
    assert "\x1b" not in page
    comment = planned.ask(config, "-o", "markdown").stdout
    assert comment.startswith("**podsnap plan** ⚠️ 1 workload starts cold")
    assert "| spec.containers\\[main\\].image |" in comment


def test_what_admission_adds_is_part_of_the_verdict(planned: Planned) -> None:
    """Only the API server knows it, so a dry run asks."""
    world, group = planned.world, "admissionregistration.k8s.io"
    injected = 'Object{spec: Object.spec{volumes: [Object.spec.volumes{name: "injected"}]}}'
    name = f"inject-{world.namespace}"
    here = f"object.metadata.namespace == '{world.namespace}'"
    mutation = {
        "patchType": "ApplyConfiguration",
        "applyConfiguration": {"expression": injected},
    }
    rule = {
        "apiGroups": [""],
        "apiVersions": ["v1"],
        "operations": ["CREATE"],
        "resources": ["pods"],
    }
    spec = {
        "matchConstraints": {"resourceRules": [rule]},
        "matchConditions": [{"name": "here", "expression": here}],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [mutation],
    }
    kinds = ("MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding")
    resources = [
        Resource(group, "v1", plural, kind, namespaced=False)
        for plural, kind in zip(
            ("mutatingadmissionpolicies", "mutatingadmissionpolicybindings"), kinds, strict=True
        )
    ]
    for resource, body in zip(resources, (spec, {"policyName": name}), strict=True):
        obj = {"apiVersion": f"{group}/v1", "kind": resource.kind, "metadata": {"name": name}}
        world.create(resource, {**obj, "spec": body})

    def is_injected() -> list[dict[str, Any]]:
        done = planned.ask(f"--kubeconfig={planned.kubeconfig}", "-o", "json")
        differences: list[dict[str, Any]] = planned.start(json.loads(done.stdout))["differences"]
        return differences

    found = eventually(is_injected, "the policy is in force")
    for resource in resources:
        world.admin.delete(resource, name)
    assert [d["path"] for d in found] == ["spec.volumes[injected]"]
    assert found[0]["saved"] is None


def test_who_may_not_create_pods_is_told_by_our_own_rules(
    planned: Planned, api_server: ApiServer
) -> None:
    """And what else could not be read is named; the verdict is the same."""
    planned.kubeconfig = api_server.kubeconfig("agent")
    told = planned.told(code=PlanExit.NO_CHANGES)
    assert planned.start(told)["restoredFrom"] == planned.snapshot
    assert told["completed"] == [
        "1 by podsnap's own rules, because you may not create Pods there, not even as a dry run"
    ]
    unknown = "\n".join(told["unknown"])
    for text in ("deployments", "leases", "RuntimeClasses", "the workloads that stand there"):
        assert text in unknown


def test_what_kubectl_printed_gives_the_same_plan(
    planned: Planned, toolchain: Toolchain, tmp_path: Path
) -> None:
    """With the documented command, and without a cluster."""
    done = subprocess.run(
        [
            str(toolchain.path("kubectl")),
            f"--kubeconfig={planned.kubeconfig}",
            *("get", KINDS, "-A", "-o", "json"),
        ],
        check=True,
        capture_output=True,
        timeout=LIMIT_S,
    )
    file = tmp_path / "snapshots.json"
    file.write_bytes(done.stdout)
    planned.write(deployment("registry.example/web:2"))
    online, offline = (
        planned.told(*source, code=PlanExit.CHANGES) for source in ((), ("--offline", str(file)))
    )
    for part in ("summary", "workloads", "policies", "snapshots", "deletions", "unknown"):
        assert offline[part] == online[part]
    assert offline["completed"] == ["1 by podsnap's own rules, because no API server is asked"]


# -- against a revision


def test_a_revision_is_compared_with_whatever_stands(planned: Planned) -> None:
    """What the work tree and the commit have in common is no change."""
    policy = planned.world.object(
        "PodSnapshotPolicy",
        "later",
        {
            "selector": {"matchLabels": {"app": "other"}},
            "storageConfigName": planned.world.store,
            "triggerConfig": {"type": "Workload"},
        },
    )
    policy["apiVersion"] = "podsnapshot.gke.io/v1alpha1"
    planned.write(deployment("registry.example/web:2"))
    planned.git("commit", "--quiet", "--all", "--message=second")
    assert planned.told("--base", "HEAD", code=PlanExit.NO_CHANGES)["workloads"]
    told = planned.told("--base", "HEAD~1", code=PlanExit.CHANGES)
    assert told["comparedWith"].startswith("revision HEAD~1 (")
    assert told["workloads"][0]["change"] == "StartsCold"
    planned.write(deployment("registry.example/web:2"), policy)
    (added,) = planned.told("--base", "main", code=PlanExit.CHANGES)["policies"]
    assert (added["name"], added["change"]) == ("later", "Added")
    gone = planned.ask(f"--kubeconfig={planned.kubeconfig}", "--base", "nowhere")
    assert gone.exit_code == PlanExit.ERROR
    assert "no revision 'nowhere'" in gone.stderr


def test_a_base_that_the_api_server_refuses_does_not_hold_up_what_mends_it(
    planned: Planned,
) -> None:
    """Our own rules judge it, which is told."""
    planned.write(deployment(""))
    planned.git("commit", "--quiet", "--all", "--message=broken")
    planned.write(deployment())
    told = planned.told("--base", "HEAD", code=PlanExit.CHANGES)
    assert told["workloads"][0]["change"] == "IsRestored"
    assert any("by podsnap's own rules" in text for text in told["completed"])


# -- errors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: Deployment\n  x: 1\n", "web.yaml:2:"),
        (
            json.dumps({"apiVersion": API_VERSION, "kind": "PodSnapshotPolicy", "spec": {}}),
            "storageConfigName",
        ),
        (json.dumps({"apiVersion": "apps/v1", "kind": "Deployment"}), "spec"),
        (json.dumps(deployment("")), "the API server refuses it"),
    ],
    ids=["no YAML", "no policy", "no Deployment", "no Pod"],
)
def test_a_tree_that_is_wrong_is_not_planned(planned: Planned, text: str, said: str) -> None:
    """The place is named, and the exit code is not that of a change."""
    (planned.folder / "web.yaml").write_text(text, encoding="utf-8")
    done = planned.ask(f"--kubeconfig={planned.kubeconfig}")
    assert done.exit_code == PlanExit.ERROR
    assert "web.yaml:" in done.stderr
    assert said in done.stderr
    assert done.stdout == ""
