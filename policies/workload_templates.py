# SPDX-License-Identifier: Apache-2.0
"""The Pods that a workload would make, read from its own object.

A Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, Job or CronJob holds a
template; a Pod stands for itself. The trap: people wrote these files, so nothing has the shape that
an API server would have insisted on. What is judged by name is checked here, once, so that no
judgement behind it stumbles over a container without a name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from schemas.pod import Pod

Path = tuple[str | int, ...]

# Where the Pod stands in an object of that group and kind.
_PLACES: Final[Mapping[tuple[str, str], Path]] = {
    ("", "Pod"): (),
    ("", "ReplicationController"): ("spec", "template"),
    ("apps", "Deployment"): ("spec", "template"),
    ("apps", "StatefulSet"): ("spec", "template"),
    ("apps", "DaemonSet"): ("spec", "template"),
    ("apps", "ReplicaSet"): ("spec", "template"),
    ("batch", "Job"): ("spec", "template"),
    ("batch", "CronJob"): ("spec", "jobTemplate", "spec", "template"),
}


class MalformedTemplateError(Exception):
    """An object holds no usable Pod; ``path`` is the field, the text says what it should be."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{'.'.join(map(str, path))} {message}")
        self.path = path


@dataclass(frozen=True, slots=True)
class WorkloadTemplate:
    """What a workload makes Pods from. ``pod`` bears the workload's name and namespace.

    ``path`` is the place of the Pod's tree in the workload's: ``(*path, "spec", "volumes")`` is
    where the volumes stand.
    """

    api_version: str
    kind: str
    pod: Pod
    path: Path

    @property
    def name(self) -> str:
        """The workload's name."""
        return self.pod.metadata.name

    @property
    def namespace(self) -> str:
        """The namespace in which the Pods would run."""
        return self.pod.metadata.namespace

    def __str__(self) -> str:
        return f"{self.kind} {self.pod.metadata}"

    @classmethod
    def parse(cls, obj: Mapping[str, Any], *, namespace: str = "default") -> Self | None:
        """Read an object; ``None`` if its kind makes no Pods.

        ``namespace`` is that of an object that names none.

        Raises:
            MalformedTemplateError: the kind makes Pods, but the object holds none that could be
                judged.
        """
        api_version, kind = str(obj.get("apiVersion") or ""), str(obj.get("kind") or "")
        group = api_version.rpartition("/")[0]
        path = _PLACES.get((group, kind))
        if path is None:
            return None
        found: Any = obj
        for done, step in enumerate(path, start=1):
            found = found.get(step)
            if not isinstance(found, Mapping):
                raise MalformedTemplateError(path[:done], "is no object")
        _check(found, _POD, path)
        _check(obj.get("metadata") or {}, _METADATA, ("metadata",))
        own = obj.get("metadata") or {}
        of_pod = found.get("metadata") or {}
        metadata = {
            "labels": of_pod.get("labels"),
            "annotations": of_pod.get("annotations"),
            "name": own.get("name") or own.get("generateName") or "",
            "namespace": own.get("namespace") or namespace,
        }
        return cls(
            api_version, kind, Pod.parse({"metadata": metadata, "spec": found["spec"]}), path
        )


# The types of what is judged: a type, ``[item]`` for a list, ``{field: …}`` for an object, where a
# field ending in ``!`` must be there; ``...`` stands for every field.
_TEXTS: Final = {...: str}
_METADATA: Final = {
    "name": str,
    "generateName": str,
    "namespace": str,
    "labels": _TEXTS,
    "annotations": _TEXTS,
}
_SOURCES: Final = ("configMap", "secret", "persistentVolumeClaim", "ephemeral", "emptyDir", "csi")
_REFERENCE: Final = {"name": str, "key": str}
_CONTAINER: Final = {
    "name!": str,
    "image": str,
    "env": [
        {"name!": str, "valueFrom": {"secretKeyRef": _REFERENCE, "configMapKeyRef": _REFERENCE}}
    ],
    "envFrom": [{"secretRef": {"name": str}, "configMapRef": {"name": str}}],
    "volumeMounts": [{"name!": str, "mountPath!": str, "subPath": str, "subPathExpr": str}],
    "volumeDevices": [{"name!": str}],
    "ports": [dict],
    "resources": {"requests": dict, "limits": dict},
    "lifecycle": {"postStart": dict, "preStop": dict},
    "securityContext": dict,
    "readinessProbe": dict,
    "startupProbe": dict,
    "livenessProbe": dict,
    "restartPolicy": str,
}
_POD: Final = {
    "metadata": {"labels": _TEXTS, "annotations": _TEXTS},
    "spec!": {
        "containers!": [_CONTAINER],
        "initContainers": [_CONTAINER],
        "ephemeralContainers": list,
        "volumes": [
            {"name!": str, **dict.fromkeys(_SOURCES, dict), "projected": {"sources": [dict]}}
        ],
        "runtimeClassName": str,
        "hostNetwork": bool,
        "securityContext": dict,
        "resources": {"requests": dict, "limits": dict},
    },
}
_NAMES: Final = {str: "text", bool: "true or false", dict: "an object", list: "a list"}


def _check(value: Any, shape: Any, path: Path) -> None:  # noqa: ANN401 - parts of trees
    kind: type[Any] = shape if isinstance(shape, type) else type(shape)
    if not isinstance(value, kind):
        raise MalformedTemplateError(path, f"is {value!r}, and should be {_NAMES[kind]}")
    if isinstance(shape, list):
        for index, item in enumerate(value):
            _check(item, shape[0], (*path, index))
    elif isinstance(shape, dict) and ... in shape:
        for name, child in value.items():
            _check(child, shape[...], (*path, name))
    elif isinstance(shape, dict):
        for field, child in shape.items():
            name = field.removesuffix("!")
            if value.get(name) is not None:
                _check(value[name], child, (*path, name))
            elif field.endswith("!"):
                raise MalformedTemplateError((*path, name), "is missing")
