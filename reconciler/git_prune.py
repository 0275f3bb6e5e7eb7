# SPDX-License-Identifier: Apache-2.0
"""What may be deleted because it left the repository, and when that looks like an accident.

A wrong folder, an emptied branch or a bad merge looks just like "delete everything". So a commit
that would empty the source, or take more than half of its policies at once, is refused as a whole
until somebody says that it is meant.
"""

from collections.abc import Collection, Sequence
from typing import Final

from reconciler.git_manifests import KINDS_IN_ORDER
from schemas.git_source import GitSource, InventoryEntry
from schemas.names import ALLOW_PRUNE_ANNOTATION

_POLICY: Final = "PodSnapshotPolicy"
_COMMIT_PREFIX: Final = 7
_NAMES_TOLD: Final = 10


def leaving(
    inventory: Sequence[InventoryEntry], wanted: Collection[InventoryEntry]
) -> list[InventoryEntry]:
    """Return what left the repository, in the order to delete it: the reverse of applying."""
    left = [entry for entry in inventory if entry not in wanted]
    return sorted(left, key=lambda e: (-_rank(e.kind), e.namespace, e.name))


def refusal(source: GitSource, wanted: Collection[InventoryEntry], revision: str) -> str:
    """Return why a revision must not prune, empty if it may."""
    left = leaving(source.inventory, wanted)
    if not source.prune or not left or _is_allowed(source, revision):
        return ""
    policies = [e for e in source.inventory if e.kind == _POLICY]
    lost = [e for e in left if e.kind == _POLICY]
    if not wanted:
        what = f"has no objects of podsnap any more, where {len(source.inventory)} were"
    elif 2 * len(lost) > len(policies):
        what = f"would remove {len(lost)} of {len(policies)} policies at once"
    else:
        return ""
    names = ", ".join(map(str, left[:_NAMES_TOLD])) + (", …" if len(left) > _NAMES_TOLD else "")
    return (
        f"revision {revision} {what} ({names}), so it is not applied. If it is meant: kubectl "
        f"annotate gitsource {source.metadata.name} -n {source.metadata.namespace} "
        f"{ALLOW_PRUNE_ANNOTATION}={revision.rpartition(':')[2]}"
    )


def _is_allowed(source: GitSource, revision: str) -> bool:
    said = source.metadata.annotations.get(ALLOW_PRUNE_ANNOTATION, "")
    commit = revision.rpartition(":")[2]
    return said in {"true", revision} or (
        len(said) >= _COMMIT_PREFIX and commit.startswith(said.lower())
    )


def _rank(kind: str) -> int:
    return KINDS_IN_ORDER.index(kind) if kind in KINDS_IN_ORDER else len(KINDS_IN_ORDER)
