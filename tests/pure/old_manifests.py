# SPDX-License-Identifier: Apache-2.0
"""Manifests as GKE's preview and some articles have them; the API server is asked about each."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class OldManifest:
    """A manifest named web1, the place of its old word, and the file as v1 spells it."""

    text: str
    place: str
    rule: str
    is_refused: bool
    modern: str


_POLICY: Final = """\
# who: the web team
apiVersion: podsnapshot.gke.io/v1   # of GKE
kind: PodSnapshotPolicy
metadata: {name: web1}
spec:
    selector: {matchLabels: {app: web}}

    storageConfigName:   models
    snapshotScope: whole-pod
    triggerConfig: {type: workload, postCheckpoint: "resume"}  # or manual
"""
_STORAGE: Final = """\
apiVersion: podsnapshot.gke.io/v1
kind: PodSnapshotStorageConfig
metadata:
  # one for all
  name: web1
spec: {snapshotStorageConfig: {gcs: {bucket: models}}}
"""


def _old(text: str, new: str, old: str, place: str, rule: str, *, refused: bool) -> OldManifest:
    assert text.count(new) == 1
    return OldManifest(text.replace(new, old), place, rule, refused, text)


OLD: Final[dict[str, OldManifest]] = {
    "the preview's version": _old(
        _POLICY, "gke.io/v1 ", "gke.io/v1alpha1 ", "2:1", "old-version", refused=False
    ),
    "an article's group": _old(
        _POLICY, "podsnapshot.gke", "snapshot.gke", "2:1", "wrong-group", refused=True
    ),
    "the plural for the group": _old(
        _POLICY, "podsnapshot.gke", "podsnapshots.gke", "2:1", "wrong-group", refused=True
    ),
    "a capital in the trigger": _old(
        _POLICY, "type: workload", "type: Workload", "10:21", "old-value", refused=True
    ),
    "capitals in quotes": _old(_POLICY, '"resume"', '"Resume"', "10:37", "old-value", refused=True),
    "camel case for a dash": _old(
        _POLICY, "whole-pod", "wholePod", "9:5", "old-value", refused=True
    ),
    "a namespace on the storage config": _old(
        _STORAGE,
        "  name: web1\n",
        "  namespace: default\n  name: web1\n",
        "5:3",
        "namespaced-storage",
        refused=False,
    ),
    "a namespace at its end": _old(
        _STORAGE.replace("  name: web1\n", "  name: web1\n  # old\n"),
        "  name: web1\n  # old\n",
        "  name: web1\n  namespace: default   # old\n",
        "6:3",
        "namespaced-storage",
        refused=False,
    ),
    "a namespace within braces": _old(
        _STORAGE.replace("metadata:\n  # one for all\n  name: web1\n", "metadata: {name: web1}\n"),
        "{name: web1}",
        "{namespace: default, name: web1}",
        "3:12",
        "namespaced-storage",
        refused=False,
    ),
    "a namespace at the end of braces": _old(
        _STORAGE.replace("metadata:\n  # one for all\n  name: web1\n", "metadata: {name: web1}\n"),
        "{name: web1}",
        "{name: web1, namespace: default}",
        "3:24",
        "namespaced-storage",
        refused=False,
    ),
}
