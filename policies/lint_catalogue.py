# SPDX-License-Identifier: Apache-2.0
"""Every rule that a finding may name, and what it says: for SARIF, and for docs/lint.md."""

from collections.abc import Mapping
from typing import Final

RULES: Final[Mapping[str, str]] = {
    # a file, read
    "no-yaml": "The file is no text, or no YAML.",
    "unreadable": "The file cannot be read.",
    "syntax": "The YAML has an error.",
    "duplicate-key": "A key stands twice in one object, and only one of the two would count.",
    "no-object": "A document is a list or a scalar, and no object.",
    "no-key": "A key is empty, a list or an object, which JSON does not have.",
    "no-json": "A value is not what its tag says, or a number that JSON does not have.",
    "too-deep": "A document is nested too deeply.",
    "too-large": "The aliases of a document unfold to too much, or a file is too large.",
    "not-rendered": "A Helm chart or a kustomization, which has to be rendered first.",
    # an object of ours, by its CRD
    "unknown-kind": "The API group or its version does not have this kind.",
    "unknown-field": "The schema does not have this field.",
    "unknown-value": "The schema has other values here.",
    "missing-field": "A field that has to be there is not.",
    "wrong-type": "A value has another type than the schema's.",
    "wrong-format": "A text does not have the form that the schema asks for.",
    "out-of-range": "A value is too small, too large or too short.",
    "duplicate-object": "An object stands in the files twice.",
    # old spellings, which `podsnap convert` mends
    "old-version": "The version of GKE's preview.",
    "wrong-group": "An API group that means ours and is spelled otherwise.",
    "old-value": "A value that is right but for capitals and dashes.",
    "namespaced-storage": "A storage config with a namespace; it is cluster-scoped.",
    # a Pod template
    "malformed-template": "A workload holds no Pod that could be judged.",
    "wrong-quantity": "An amount that is no quantity.",
    # policies
    "rejected-option": "An annotation of ours that cannot be read.",
    "unsupported-policy": "A combination of fields that podsnap does not act on.",
    "missing-storage": "No file has the storage config that a policy names.",
    "unusable-storage": "The storage config that a policy names cannot be used by it.",
    "overlapping-policies": "Several policies select the same Pods; the oldest governs.",
    "empty-selector": "A selector that selects every Pod of its namespace.",
    "selects-nothing": "A selector that no Pod template of the files carries.",
    "deletes-only-snapshot": "Retention would delete the last snapshot of a workload that rests.",
    "shared-state": "Any Pod may be saved, so one user's session may become every Pod's start.",
    # Pod templates that a policy selects
    "missing-group-label": "A label that the policy groups by is absent.",
    "no-readiness-probe": "The policy saves on readiness, and no container has a readiness probe.",
    "not-gvisor": "The Pod does not run in gVisor, as far as the files tell.",
    "not-restorable": "A Pod of this shape is never saved: hostNetwork, GPU, some hooks, probes.",
    "claim-with-resume": "The Pod goes on writing to a persistent volume after its save.",
    "configmap-folder": "A ConfigMap is mounted as a whole folder.",
    "secret-in-env": "A Secret is taken into the environment, which a restored process keeps.",
}
