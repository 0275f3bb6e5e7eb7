# SPDX-License-Identifier: Apache-2.0
"""The distilled Pod spec: the fields that decide whether memory fits a Pod (contract, 6.3).

Both sides are normalised first: a field at its API default counts as absent, because templates do
not carry defaults, and a volume that the cluster injects (``kube-api-access-x7k2p``) is named by
its role, because its suffix differs in every Pod. Without the two nothing would ever match.

The format is versioned: a change of what goes in must change ``FORMAT``, so that old snapshots miss
with a reason instead of by accident.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from schemas.pod import Pod
from schemas.snapshot import SpecIdentity

FORMAT: Final = "1"

_INJECTED_VOLUME = re.compile(r"^(kube-api-access)-[a-z0-9]{5}$")

_CONTAINER_FIELDS: Final = (
    "image",
    "command",
    "args",
    "workingDir",
    "lifecycle",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
)
_PORT_FIELDS: Final = ("name", "containerPort", "protocol")
_MOUNT_FIELDS: Final = (
    "name",
    "readOnly",
    "recursiveReadOnly",
    "mountPath",
    "subPath",
    "mountPropagation",
    "subPathExpr",
)
_POD_FIELDS: Final = (
    "dnsPolicy",
    "automountServiceAccountToken",
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "shareProcessNamespace",
    "securityContext",
    "dnsConfig",
    "runtimeClassName",
    "os",
    "hostUsers",
)
# What the API server fills in (core/v1 defaults); equal to absent on either side.
_DEFAULTS: Final[Mapping[str, Any]] = {
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
    "protocol": "TCP",
    "dnsPolicy": "ClusterFirst",
    "defaultMode": 420,
    "readOnly": False,
    "hostNetwork": False,
    "hostPID": False,
    "hostIPC": False,
    "stdin": False,
    "stdinOnce": False,
    "tty": False,
    "expirationSeconds": 3607,
}


def distill(pod: Pod) -> SpecIdentity:
    """Return the hash (64 hex digits) and the fields of a Pod, path to canonical JSON."""
    fields = {
        path: json.dumps(value, sort_keys=True, separators=(",", ":"))
        for path, value in _fields(pod)
    }
    digest = hashlib.sha256(f"podsnap distilled spec {FORMAT}\n".encode())
    for path in sorted(fields):
        digest.update(f"{path}={fields[path]}\n".encode())
    return SpecIdentity(hash=digest.hexdigest(), fields=fields)


def differences(saved: SpecIdentity, wanted: SpecIdentity) -> list[str]:
    """Name every field that differs, with both values, in path order."""
    return [
        f"{path} is {_shown(wanted.fields.get(path))}, saved with {_shown(saved.fields.get(path))}"
        for path in sorted(saved.fields.keys() | wanted.fields.keys())
        if saved.fields.get(path) != wanted.fields.get(path)
    ]


def _shown(value: str | None, limit: int = 120) -> str:
    if value is None:
        return "absent"
    return value if len(value) <= limit else f"{value[:limit]}…"


def _fields(pod: Pod) -> Iterator[tuple[str, Any]]:
    for key, value in pod.metadata.annotations.items():
        if key.startswith("dev.gvisor."):
            yield f"metadata.annotations[{key}]", value
    index = pod.metadata.labels.get("batch.kubernetes.io/job-completion-index")
    if index is not None:
        yield "metadata.labels[batch.kubernetes.io/job-completion-index]", index
    spec = pod.spec
    yield from _present("spec", spec, _POD_FIELDS)
    for volume in spec.get("volumes") or ():
        source = _normal({k: v for k, v in volume.items() if k != "name"})
        # kubectl and templates write `emptyDir: {}`: the kind of source counts, empty or not.
        yield f"spec.volumes[{_volume_name(volume['name'])}]", source
    for group in ("initContainers", "containers"):
        for position, container in enumerate(spec.get(group) or ()):
            yield from _container(f"spec.{group}[{container['name']}]", position, container)


def _container(path: str, position: int, container: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield f"{path}.position", position
    yield from _present(path, container, _CONTAINER_FIELDS)
    ports = [_picked(p, _PORT_FIELDS) for p in container.get("ports") or ()]
    if ports:
        yield f"{path}.ports", ports
    mounts = [
        _picked({**m, "name": _volume_name(m["name"])}, _MOUNT_FIELDS)
        for m in container.get("volumeMounts") or ()
    ]
    if mounts:
        yield f"{path}.volumeMounts", sorted(mounts, key=lambda m: str(m["mountPath"]))
    devices = [d["name"] for d in container.get("volumeDevices") or ()]
    if devices:
        yield f"{path}.volumeDevices", devices


def _picked(tree: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {path.removeprefix("."): value for path, value in _present("", tree, names)}


def _present(
    path: str, tree: Mapping[str, Any], names: tuple[str, ...]
) -> Iterator[tuple[str, Any]]:
    for name in names:
        value = _normal(tree.get(name))
        if value not in (None, {}, []) and value != _DEFAULTS.get(name):
            yield f"{path}.{name}", value


def _normal(value: Any) -> Any:  # noqa: ANN401 - a JSON tree has no narrower type
    """Drop defaults and empty parts at any depth."""
    if isinstance(value, Mapping):
        kept = {}
        for key, child in value.items():
            plain = _normal(child)
            if plain is None or plain == _DEFAULTS.get(key):
                continue
            kept[key] = plain
        return kept
    if isinstance(value, (list, tuple)):
        return [_normal(child) for child in value]
    return value


def _volume_name(name: str) -> str:
    injected = _INJECTED_VOLUME.match(name)
    return f"<{injected[1]}>" if injected else name
