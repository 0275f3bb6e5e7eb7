# SPDX-License-Identifier: Apache-2.0
"""A tree of manifests as a team would have it: teams, workloads, policies, and much else.

In 2,000 manifests of 1 MB a tenth are workloads and 50 are of our kinds. Nothing in it is wrong,
which costs a linter most: it has to look at all.
"""

import json
from pathlib import Path
from typing import Any

import yaml

_TEAM_SIZE = 40  # workloads
_WORKLOADS = 10  # one in so many manifests
_OURS = 40  # one in so many manifests
_FILLING = "x" * 150


def write_tree(folder: Path, manifests: int) -> None:
    """Write so many manifests, one a file, into a new folder; every team has a namespace."""
    workloads = [_deployment(n) for n in range(manifests // _WORKLOADS)]
    storage = [_storage()] if manifests >= _OURS else []
    policies = [_policy(n) for n in range(manifests // _OURS - len(storage))]
    ours = [*workloads, *storage, *policies]
    rest = [_config_map(n) if n % 2 else _service(n) for n in range(manifests - len(ours))]
    for number, body in enumerate([*ours, *rest]):
        namespace = body["metadata"].get("namespace", "cluster")
        place = folder / namespace / f"{body['kind'].lower()}-{number}.yaml"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(yaml.dump(body, Dumper=yaml.CSafeDumper, sort_keys=False), "utf-8")


def _metadata(name: str, number: int) -> dict[str, Any]:
    return {"name": name, "namespace": f"team-{number // _TEAM_SIZE}", "labels": {"app": name}}


def _deployment(number: int) -> dict[str, Any]:
    name = f"service-{number}"
    container = {
        "name": "main",
        "image": f"registry.example.org/{name}:1.4.2",
        "args": ["--listen=:8080", "--cache=/cache"],
        "ports": [{"name": "http", "containerPort": 8080}],
        "env": [{"name": "LOG_LEVEL", "value": "info"}, {"name": "ZONE", "value": "a"}],
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5},
        "securityContext": {"runAsNonRoot": True, "allowPrivilegeEscalation": False},
        "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
    }
    spec = {
        "runtimeClassName": "gvisor",
        "containers": [container],
        "volumes": [{"name": "cache", "emptyDir": {}}],
    }
    metadata = _metadata(name, number)
    template = {"metadata": {"labels": {**metadata["labels"], "tenant": "t"}}, "spec": spec}
    body = {"replicas": 3, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": body}


def _policy(number: int) -> dict[str, Any]:
    name = f"service-{number}"
    spec = {
        "selector": {"matchLabels": {"app": name}},
        "storageConfigName": "models",
        "triggerConfig": {"type": "workload", "postCheckpoint": "resume"},
        "snapshotGroupingRules": {"groupByLabelValue": {"labels": ["tenant"]}},
    }
    return {
        "apiVersion": "podsnapshot.gke.io/v1",
        "kind": "PodSnapshotPolicy",
        "metadata": _metadata(name, number),
        "spec": spec,
    }


def _storage() -> dict[str, Any]:
    return {
        "apiVersion": "podsnapshot.gke.io/v1",
        "kind": "PodSnapshotStorageConfig",
        "metadata": {"name": "models"},
        "spec": {"snapshotStorageConfig": {"gcs": {"bucket": "models", "path": "snapshots"}}},
    }


def _service(number: int) -> dict[str, Any]:
    port = {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(f"service-{number}", number // 10),
        "spec": {"selector": {"app": f"service-{number}"}, "ports": [port]},
    }


def _config_map(number: int) -> dict[str, Any]:
    settings = json.dumps({"number": number, "filling": _FILLING})
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(f"settings-{number}", number // 10),
        "data": {"settings.json": settings, "mode": "standard", "note": _FILLING},
    }
