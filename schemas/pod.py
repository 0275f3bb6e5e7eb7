# SPDX-License-Identifier: Apache-2.0
"""The part of a Pod that podsnap looks at.

``spec`` stays the API's own tree, because matching compares fields of it by path; everything that
is judged by name has a property here. The trap: a Pod read from a template has no API defaults.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from schemas.conditions import Condition, parse_conditions
from schemas.metadata import Metadata
from schemas.names import PS_NAME_ANNOTATION

MIRROR_ANNOTATION = "kubernetes.io/config.mirror"


@dataclass(frozen=True, slots=True)
class Pod:
    """A Pod, live or as a template would make it."""

    metadata: Metadata
    spec: Mapping[str, Any]
    phase: str = ""
    pod_ip: str = ""
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    container_ids: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, obj: Mapping[str, Any]) -> Self:
        """Read the API object."""
        status = obj.get("status") or {}
        return cls(
            metadata=Metadata.parse(obj),
            spec=obj.get("spec") or {},
            phase=status.get("phase", ""),
            pod_ip=status.get("podIP", ""),
            conditions=parse_conditions(status),
            container_ids=dict(_container_ids(status)),
        )

    @property
    def node_name(self) -> str:
        """The node the Pod is bound to, or an empty string."""
        name: str = self.spec.get("nodeName") or ""
        return name

    @property
    def runtime_class(self) -> str:
        """The RuntimeClass the Pod names, or an empty string."""
        name: str = self.spec.get("runtimeClassName") or ""
        return name

    @property
    def is_ready(self) -> bool:
        """Whether the kubelet reports the Pod Ready."""
        ready = self.conditions.get("Ready")
        return ready is not None and ready.is_true

    @property
    def are_containers_ready(self) -> bool:
        """Whether all containers are; a Pod may wait longer, for its readiness gates."""
        ready = self.conditions.get("ContainersReady")
        return ready is not None and ready.is_true

    @property
    def gets_new_sandboxes(self) -> bool:
        """Whether the kubelet makes another sandbox if this one ends."""
        return self.spec.get("restartPolicy") != "Never"

    @property
    def ready_since(self) -> str:
        """When the Pod became Ready (RFC 3339), empty if it is not or nobody says."""
        ready = self.conditions.get("Ready")
        return (ready.last_transition_time or "") if ready is not None and ready.is_true else ""

    @property
    def is_over(self) -> bool:
        """Whether the Pod will not run again."""
        return self.phase in {"Succeeded", "Failed"}

    @property
    def writable_names(self) -> tuple[str, ...]:
        """Names of the containers that can change their root file system."""
        return tuple(
            c["name"]
            for c in self.running_containers
            if not (c.get("securityContext") or {}).get("readOnlyRootFilesystem")
        )

    @property
    def is_evicted_by_kubelet(self) -> bool:
        """Whether the kubelet ends the Pod because its node runs out of something."""
        target = self.conditions.get("DisruptionTarget")
        return target is not None and target.is_true and target.reason == "TerminationByKubelet"

    @property
    def is_static(self) -> bool:
        """Whether the Pod mirrors a file of a node; such a Pod is never governed."""
        return MIRROR_ANNOTATION in self.metadata.annotations

    @property
    def pinned_snapshot(self) -> str | None:
        """The snapshot that ``ps-name`` names; empty means "never restore", ``None`` no pin."""
        return self.metadata.annotations.get(PS_NAME_ANNOTATION)

    @property
    def running_containers(self) -> tuple[Mapping[str, Any], ...]:
        """All containers that run side by side: sidecars and the ordinary ones."""
        sidecars = (
            c for c in self.spec.get("initContainers") or () if c.get("restartPolicy") == "Always"
        )
        return (*sidecars, *(self.spec.get("containers") or ()))

    @property
    def running_names(self) -> tuple[str, ...]:
        """Names of all containers that run side by side."""
        return tuple(c["name"] for c in self.running_containers)


def _container_ids(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and CRI id (without ``containerd://``) of every container that was made."""
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or ():
            identifier = container.get("containerID") or ""
            if identifier:
                yield container["name"], identifier.rpartition("/")[2]
