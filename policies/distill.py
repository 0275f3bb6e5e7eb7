# SPDX-License-Identifier: Apache-2.0
"""The distilled Pod spec: the fields that decide whether memory fits a Pod (contract, 6.3).

Both sides are normalised first: a field at its API default counts as absent, because templates do
not carry defaults, and a volume that the cluster injects (``kube-api-access-x7k2p``) is named by
its role, because its suffix differs in every Pod. Without the two nothing would ever match.

The format is versioned: a change of what goes in must change ``FORMAT``, so that old snapshots miss
with a reason instead of by accident.

A policy may ask for more: values of the environment, contents of mounted Secrets and ConfigMaps.
They go in as digests that are slow to make and salted by the policy, since a value that could be
guessed from an object would be as good as written there. Only a node can see contents, so nobody
else can compute the whole identity of a Pod whose policy counts them.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from schemas.pod import Pod
from schemas.policy import Policy
from schemas.policy_options import Strictness
from schemas.snapshot import SpecIdentity

FORMAT: Final = "2"

_INJECTED_VOLUME = re.compile(r"^(kube-api-access)-[a-z0-9]{5}$")

_CONTAINER_FIELDS: Final = (
    "image",
    "command",
    "args",
    "workingDir",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "securityContext",
    "stdin",
    "stdinOnce",
    "tty",
)
_HOOKS: Final = ("postStart", "preStop")
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
_CONTENT_SOURCES: Final = {"secret": Strictness.SECRETS, "configMap": Strictness.CONFIG_MAPS}
_PATH_FIELDS: Final = ("path", "credentialBundlePath", "keyPath", "certificateChainPath")
_DIGEST_MARK: Final = '"scrypt:'  # as it stands in JSON
# What the API server fills in (core/v1 defaults); equal to absent on either side.
_DEFAULTS: Final[Mapping[str, tuple[Any, ...]]] = {
    "terminationMessagePath": ("/dev/termination-log",),
    "terminationMessagePolicy": ("File",),
    "protocol": ("TCP",),
    "dnsPolicy": ("ClusterFirst",),
    "defaultMode": (420,),
    "readOnly": (False,),
    "hostNetwork": (False,),
    "hostPID": (False,),
    "hostIPC": (False,),
    "stdin": (False,),
    "stdinOnce": (False,),
    "tty": (False,),
    # A hook's, a volume's from the Pod's own fields, a token's (the second is an injected one's).
    "scheme": ("HTTP",),
    "path": ("/",),
    "apiVersion": ("v1",),
    "expirationSeconds": (3600, 3607),
    "type": ("",),
    "volumeMode": ("Filesystem",),
    "metadata": ({},),
    "iscsiInterface": ("default",),
}


def distill(
    pod: Pod, policy: Policy | None = None, contents: Mapping[str, str] | None = None
) -> SpecIdentity:
    """Return the hash (64 hex digits) and the fields of a Pod, path to canonical JSON.

    The policy adds what its strictness asks for. ``contents`` maps volumes to digests of what is
    mounted; a node gives those of ``content_volumes``, nobody else can.
    """
    everything = [*_fields(pod), *(_strict_fields(pod, policy, contents or {}) if policy else ())]
    fields = {path: _canonical(value) for path, value in everything}
    digest = hashlib.sha256(b"podsnap distilled spec\n")
    for path in sorted(fields):
        digest.update(f"{path}={fields[path]}\n".encode())
    return SpecIdentity(hash=digest.hexdigest(), fields=fields)


def content_volumes(pod: Pod, policy: Policy) -> dict[str, frozenset[str]]:
    """Return the volumes whose content counts, each with paths in it that do not.

    A projected volume counts as a whole if it has any source of a kind that counts, without the
    tokens and certificates in it, which differ in every Pod.
    """
    strict = policy.options.strict
    kinds = {kind for kind, asked in _CONTENT_SOURCES.items() if asked in strict}
    found = {}
    for volume in pod.spec.get("volumes") or ():
        sources = (volume.get("projected") or {}).get("sources") or ()
        if kinds & volume.keys():
            found[volume["name"]] = frozenset[str]()
        elif any(kinds & source.keys() for source in sources):
            found[volume["name"]] = frozenset(p for s in sources for p in _own_paths(s))
    return found


def differences(saved: SpecIdentity, wanted: SpecIdentity) -> list[str]:
    """Name every field that differs, with both values, in path order."""
    found = []
    for path in sorted(saved.fields.keys() | wanted.fields.keys()):
        want, have = saved.fields.get(path), wanted.fields.get(path)
        if want != have:
            both_digests = all(v is not None and v.startswith(_DIGEST_MARK) for v in (want, have))
            text = f"is {_shown(have)}, saved with {_shown(want)}"
            found.append(f"{path} {'has another value than was saved' if both_digests else text}")
    return found


def _shown(value: str | None, limit: int = 120) -> str:
    if value is None:
        return "absent"
    if value.startswith(_DIGEST_MARK):
        return "a value that counts"
    return value if len(value) <= limit else f"{value[:limit]}…"


def _strict_fields(
    pod: Pod, policy: Policy, contents: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    salt = policy.metadata.uid
    if Strictness.ENV in policy.options.strict:
        for group in ("initContainers", "containers"):
            for container in pod.spec.get(group) or ():
                environment = [container.get("envFrom") or [], container.get("env") or []]
                plain = hashlib.sha256(_canonical(_normal(environment)).encode()).hexdigest()
                yield f"spec.{group}[{container['name']}].env", _slow_digest(salt, plain)
    for name, plain in contents.items():
        yield f"spec.volumes[{_volume_name(name)}].content", _slow_digest(salt, plain)


@functools.lru_cache(maxsize=1 << 16)
def _slow_digest(salt: str, plain: str) -> str:
    """Return a digest that takes tens of milliseconds a guess; the same one is made once."""
    found = hashlib.scrypt(plain.encode(), salt=salt.encode(), n=1 << 13, r=8, p=1, dklen=16)
    return f"scrypt:{found.hex()}"


def _own_paths(source: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a projected source of another kind writes: tokens, certificates, a Pod's name."""
    for kind, given in source.items():
        if kind in _CONTENT_SOURCES:
            continue
        yield from (given[key] for key in _PATH_FIELDS if key in given)
        yield from (item["path"] for item in given.get("items") or ())


def _canonical(value: Any) -> str:  # noqa: ANN401 - a JSON tree has no narrower type
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _fields(pod: Pod) -> Iterator[tuple[str, Any]]:
    yield "format", FORMAT
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
    hooks = _picked(container.get("lifecycle") or {}, _HOOKS)
    if hooks:
        yield f"{path}.lifecycle", hooks
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
        if value not in (None, {}, []) and value not in _DEFAULTS.get(name, ()):
            yield f"{path}.{name}", value


def _normal(value: Any) -> Any:  # noqa: ANN401 - a JSON tree has no narrower type
    """Drop defaults and empty parts at any depth."""
    if isinstance(value, Mapping):
        kept = {}
        for key, child in value.items():
            plain = _normal(child)
            if plain is None or plain in _DEFAULTS.get(key, ()):
                continue
            kept[key] = plain
        return kept
    if isinstance(value, (list, tuple)):
        return [_normal(child) for child in value]
    return value


def _volume_name(name: str) -> str:
    injected = _INJECTED_VOLUME.match(name)
    return f"<{injected[1]}>" if injected else name
