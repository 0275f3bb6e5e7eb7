# SPDX-License-Identifier: Apache-2.0
"""Whether a node can run memory that another node saved (reference: gVisor's restore checks).

runsc itself notices only a different version string; another platform or base image restores with
exit code 0 and crashes later. So everything is compared here, before any byte is fetched. CPU
features are the one unequal comparison: the node may have more than were saved, never fewer.
"""

import re
from typing import Final

from schemas.snapshot import Compatibility

# Google's n2-standard-4, Amazon's m5.large, Azure's Standard_D4s_v5: the size is no matter.
_INSTANCE_TYPES: Final = (
    re.compile(r"(?P<series>[a-z]+[0-9]+[a-z]*)-[a-z].*"),
    re.compile(r"(?P<series>[a-z][a-z0-9-]*)\.[a-z0-9-]+"),
    re.compile(r"Standard_(?P<series>[A-Z]+)[0-9]+(-[0-9]+)?(?P<kind>[a-z]*(_.+)?)"),
)


def machine_series(instance_type: str) -> str:
    """Return the series of a node's label ``node.kubernetes.io/instance-type``.

    Anything that is of no known form is a series by itself.
    """
    for form in _INSTANCE_TYPES:
        found = form.fullmatch(instance_type)
        if found:
            return found["series"] + found.groupdict().get("kind", "")
    return instance_type


def incompatibilities(saved: Compatibility, node: Compatibility) -> list[str]:
    """Return a sentence for each difference that forbids a restore; empty means it fits."""
    found = [
        f"{what} is {have or 'unknown'} on this node, saved with {want or 'unknown'}"
        for what, want, have in (
            ("the runsc version", saved.runsc_version, node.runsc_version),
            ("the runsc build", saved.runsc_digest, node.runsc_digest),
            ("the gVisor platform", saved.platform, node.platform),
            ("the architecture", saved.architecture, node.architecture),
            ("the machine series", saved.machine_series, node.machine_series),
        )
        if want != have
    ]
    for flag in sorted(saved.runtime_config.keys() | node.runtime_config.keys()):
        want, have = saved.runtime_config.get(flag), node.runtime_config.get(flag)
        if want != have:
            found.append(f"the runsc flag {flag} is {have} on this node, saved with {want}")
    missing = sorted(set(saved.cpu_features) - set(node.cpu_features))
    if missing:
        found.append(f"this node's CPU lacks features that were saved: {', '.join(missing[:8])}")
    return found
