# SPDX-License-Identifier: Apache-2.0
"""Whether a node can run memory that another node saved (reference: gVisor's restore checks).

runsc itself notices only a different version string; another platform or base image restores with
exit code 0 and crashes later. So everything is compared here, before any byte is fetched. CPU
features are the one unequal comparison: the node may have more than were saved, never fewer.
"""

from schemas.snapshot import Compatibility


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
