# SPDX-License-Identifier: Apache-2.0
"""The Pod that a workload would make next, as its controller and admission would leave it.

A template is not a Pod: a StatefulSet adds volumes and labels, an indexed Job an index, admission
the volume of the service account's token. Without these a template would fit no snapshot. The trap:
admission webhooks and a ServiceAccount of the cluster may add or leave out more, which only the API
server can say; so this is what is judged where it cannot be asked.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from policies.workload_templates import WorkloadTemplate
from schemas.metadata import Metadata
from schemas.pod import Pod

_TOKEN_PATH: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a folder
_GROUPS: Final = ("initContainers", "containers")
# Five characters after the dash, as the API server's own; ``distill`` names it by its role.
_TOKEN_VOLUME: Final = "kube-api-access-00000"  # noqa: S105 - a volume
_TOKEN_SOURCES: Final = (
    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    {
        "downwardAPI": {
            "items": [
                {
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }
            ]
        }
    },
)


def controlled_pod(template: WorkloadTemplate, obj: Mapping[str, Any]) -> Pod:
    """Return a workload's first Pod with what its controller adds, before admission.

    ``obj`` is the workload's object. Of a StatefulSet it is the Pod with the lowest ordinal, of an
    indexed Job the one with index 0.
    """
    spec = obj.get("spec") or {}
    job = (spec.get("jobTemplate") or {}).get("spec") or spec
    pod, name = template.pod, template.name
    labels: dict[str, str] = {}
    match template.kind:
        case "StatefulSet":
            ordinal = (spec.get("ordinals") or {}).get("start") or 0
            labels["apps.kubernetes.io/pod-index"] = str(ordinal)
            labels["statefulset.kubernetes.io/pod-name"] = f"{name}-{ordinal}"
            claims = [
                {"name": c, "persistentVolumeClaim": {"claimName": f"{c}-{name}-{ordinal}"}}
                for c in claim_names(obj)
            ]
            named = {c["name"] for c in claims}
            others = [v for v in pod.spec.get("volumes") or () if v["name"] not in named]
            if claims:
                pod = replace(pod, spec={**pod.spec, "volumes": [*claims, *others]})
        case "Job" | "CronJob" if job.get("completionMode") == "Indexed":
            labels["batch.kubernetes.io/job-completion-index"] = "0"
        case _:
            return pod
    metadata = replace(pod.metadata, labels={**pod.metadata.labels, **labels})
    return replace(pod, metadata=metadata)


def claim_names(obj: Mapping[str, Any]) -> list[str]:
    """Return the names of a StatefulSet's claims; each is a volume of its Pods."""
    claims = (obj.get("spec") or {}).get("volumeClaimTemplates") or ()
    return [Metadata.parse(claim).name for claim in claims]


def admitted_pod(pod: Pod) -> Pod:
    """Add the service account's token as the API server's own admission does, once."""
    if pod.spec.get("automountServiceAccountToken") is False:
        return pod
    groups = {g: list(_mounting(pod.spec[g])) for g in _GROUPS if pod.spec.get(g)}
    if all(list(pod.spec[group]) == containers for group, containers in groups.items()):
        return pod
    volume = {"name": _TOKEN_VOLUME, "projected": {"sources": list(_TOKEN_SOURCES)}}
    volumes = [*(pod.spec.get("volumes") or ()), volume]
    return replace(pod, spec={**pod.spec, **groups, "volumes": volumes})


def _mounting(containers: Any) -> Iterator[Mapping[str, Any]]:  # noqa: ANN401 - a JSON list
    mount = {"name": _TOKEN_VOLUME, "mountPath": _TOKEN_PATH, "readOnly": True}
    for container in containers:
        mounts = container.get("volumeMounts") or ()
        if any(m["mountPath"].rstrip("/") == _TOKEN_PATH for m in mounts):
            yield container
        else:
            yield {**container, "volumeMounts": [*mounts, mount]}


def manifest_of(pod: Pod) -> dict[str, Any]:
    """Return a Pod to be created under a name that the API server makes up."""
    metadata = pod.metadata
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": f"{metadata.name[:200]}-",
            "namespace": metadata.namespace,
            "labels": dict(metadata.labels),
            "annotations": dict(metadata.annotations),
        },
        "spec": dict(pod.spec),
    }
