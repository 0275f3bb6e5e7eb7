# SPDX-License-Identifier: Apache-2.0
"""What a Git tree says, judged as a whole before anything of it is applied.

One wrong file stops all: half a commit applied is a state that nobody wrote. Kinds of other groups
are listed and left alone, because a repository may hold an application beside its policies. Old
spellings are read as v1 and told, each with its file and line.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from schemas.crd_validation import OUR_GROUPS, findings, is_namespaced
from schemas.documents import Document, DocumentError, read_all
from schemas.findings import Finding, Severity
from schemas.git_source import InventoryEntry
from schemas.names import API_VERSION, GROUP
from schemas.old_spellings import WRONG_GROUPS, modernised

# What others refer to comes first.
KINDS_IN_ORDER: Final = (
    "PodSnapshotStorageConfig",
    "PodSnapshotPolicy",
    "PodSnapshotManualTrigger",
)


# Who applies a hundred files with a thousand mistakes reads the first ones.
_FINDINGS_TOLD: Final = 20
# Each stands in status.inventory, and an object of the API has 1.5 MiB at most.
_OBJECTS: Final = 2_000


class TreeRefusedError(Exception):
    """The tree is not applied; each line of the text begins with ``file:line:column``."""


@dataclass(frozen=True, slots=True)
class DesiredObject:
    """One object to apply."""

    entry: InventoryEntry
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class DesiredState:
    """What a tree wants: objects in the order to apply them, the kinds left alone, what to mend."""

    objects: tuple[DesiredObject, ...]
    foreign: tuple[str, ...]
    warnings: tuple[Finding, ...] = ()

    def without(self, other: "DesiredState") -> "DesiredState":
        """Return what the other does not say in the same words."""
        said = {o.entry: o.body for o in other.objects}
        objects = tuple(o for o in self.objects if said.get(o.entry) != o.body)
        return replace(self, objects=objects)


@dataclass(frozen=True, slots=True)
class _Written:
    """An object as it stands in a file."""

    desired: DesiredObject
    document: Document

    @property
    def namespace(self) -> str | None:
        """The namespace that the file says, which a cluster-scoped object has not."""
        metadata = self.document.tree.get("metadata") or {}
        return metadata.get("namespace")


@dataclass(slots=True)
class _Reading:
    """What was found so far."""

    namespace: str
    problems: list[Finding] = field(default_factory=list)
    warnings: list[Finding] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    objects: dict[InventoryEntry, _Written] = field(default_factory=dict)


def desired_state(
    files: Mapping[str, bytes], *, namespace: str, in_time: Callable[[], object] = lambda: None
) -> DesiredState:
    """Read and judge a tree; objects without a namespace go into ``namespace``.

    ``in_time`` is asked at each file, and raises if there is no time left.

    Raises:
        TreeRefusedError: something in it is wrong; all findings are named.
    """
    reading = _Reading(namespace)
    for file, text in sorted(files.items()):
        in_time()
        for found in read_all(file, text):
            if len(reading.objects) > _OBJECTS:
                raise TreeRefusedError(
                    f"{file}:1:1: more than {_OBJECTS} objects of podsnap up to here, which one "
                    "GitSource does not apply; make several, each with a folder"
                )
            if isinstance(found, DocumentError):
                reading.problems.append(found.finding)
            elif found.group in OUR_GROUPS | WRONG_GROUPS:
                _read(reading, found)
            else:
                reading.foreign.add(found.kind or "(no kind)")
    if reading.problems:
        raise TreeRefusedError(_told(reading.problems))
    ordered = sorted(
        (written.desired for written in reading.objects.values()),
        key=lambda d: (KINDS_IN_ORDER.index(d.entry.kind), d.entry.namespace, d.entry.name),
    )
    return DesiredState(tuple(ordered), tuple(sorted(reading.foreign)), tuple(reading.warnings))


def _told(problems: list[Finding]) -> str:
    lines = [str(problem) for problem in problems[:_FINDINGS_TOLD]]
    more = len(problems) - len(lines)
    return "\n".join([*lines, f"and {more} more"] if more else lines)


def _read(reading: _Reading, written: Document) -> None:
    body, old = modernised(written)
    if not old and written.group in WRONG_GROUPS:
        reading.foreign.add(written.kind)  # another project's group
        return
    reading.warnings += [replace(f, severity=Severity.WARNING) for f in old]
    document = replace(written, tree=body)
    wrong = findings(document) or list(_not_from_git(document, reading.namespace))
    if wrong:
        reading.problems += wrong
        return
    found = _Written(_desired(document, reading.namespace), written)
    before = reading.objects.setdefault(found.desired.entry, found)
    if before is not found:
        _judge_twice(reading, before, found)


def _judge_twice(reading: _Reading, before: _Written, found: _Written) -> None:
    """Judge an object that stands there twice."""
    entry, document = found.desired.entry, found.document
    place = before.document.place()
    if entry.namespace or before.namespace == found.namespace:
        reading.problems.append(
            document.finding(
                (),
                "duplicate-object",
                f"{entry} stands in {place} already",
                "remove one of the two",
            )
        )
    elif before.desired.body.get("spec") != found.desired.body.get("spec"):
        # The preview had them in namespaces; two of them may mean two buckets.
        one, other = (w.namespace or "(none)" for w in (before, found))
        reading.problems.append(
            document.finding(
                ("metadata", "namespace"),
                "conflicting-storage",
                f"{entry} of namespace {other} has another content than that of namespace {one} "
                f"in {place}, and v1 has one for the whole cluster",
                "give one of the two another name, in its policies too",
            )
        )


def _not_from_git(document: Document, namespace: str) -> Iterator[Finding]:
    if document.kind not in KINDS_IN_ORDER:
        yield document.finding(
            ("kind",),
            "not-from-git",
            f"a {document.kind} cannot be brought by Git"
            + (", it is made by the system" if document.group == GROUP else ""),
            "remove it from the repository",
        )
        return
    metadata = document.tree.get("metadata") or {}
    wanted = metadata.get("namespace")
    if not metadata.get("name"):
        yield document.finding(
            ("metadata", "generateName"),
            "missing-field",
            "metadata.name is missing, and generateName would make another object at each apply",
            "give a name",
        )
    elif is_namespaced(document) and wanted not in {None, namespace}:
        # The controller may write everywhere; whoever may create a GitSource may not.
        yield document.finding(
            ("metadata", "namespace"),
            "other-namespace",
            f"a GitSource of namespace {namespace} brings nothing into namespace {wanted}",
            "create one there",
        )


def _desired(document: Document, namespace: str) -> DesiredObject:
    body = document.to_object()
    body.pop("status", None)
    body["apiVersion"] = API_VERSION  # the preview's version has the same schema
    written = body["metadata"]
    # What an exported file has beside these is the server's.
    metadata = {k: written[k] for k in ("name", "labels", "annotations") if written.get(k)}
    if is_namespaced(document):
        metadata["namespace"] = namespace
    body["metadata"] = metadata
    entry = InventoryEntry(
        group=document.group,
        kind=document.kind,
        namespace=metadata.get("namespace", ""),
        name=metadata["name"],
    )
    return DesiredObject(entry=entry, body=body)
