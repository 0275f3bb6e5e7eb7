# SPDX-License-Identifier: Apache-2.0
"""Which commit brought a policy, and when: pinned on a PodSnapshot when it is created.

It stands in one annotation, so that whoever reads the snapshot later needs nothing else: the source
may be at another commit by then, or gone. The trap: the tool that applies may write its own status
only after the policy is there, so instants may be missing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class PolicyOrigin:
    """Where a policy came from. Instants are RFC 3339 texts, empty if nobody recorded them.

    ``revision`` is as the tool writes it (``main@sha1:…`` or a bare commit), empty without Git;
    ``source`` names the object of the tool, as in ``Kustomization flux-system/apps``.
    """

    revision: str = ""
    source: str = ""
    seen_at: str = ""
    applied_at: str = ""
    created_at: str = ""
    ready_at: str = ""

    @property
    def commit(self) -> str:
        """The commit alone."""
        return self.revision.rpartition(":")[2]

    @property
    def ref(self) -> str:
        """The branch or tag, empty if the revision names none."""
        return self.revision.rpartition("@")[0]

    def to_annotation(self) -> str:
        """Render; what is unknown is left out."""
        known = {key: value for key, value in self._texts().items() if value}
        return json.dumps(known, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what ``to_annotation`` wrote; anything else says nothing."""
        try:
            raw = json.loads(text) if text else {}
        except ValueError:
            raw = {}
        known: Mapping[str, str] = raw if isinstance(raw, dict) else {}
        return cls(
            revision=str(known.get("revision", "")),
            source=str(known.get("source", "")),
            seen_at=str(known.get("seenAt", "")),
            applied_at=str(known.get("appliedAt", "")),
            created_at=str(known.get("policyCreatedAt", "")),
            ready_at=str(known.get("policyReadyAt", "")),
        )

    def _texts(self) -> dict[str, str]:
        return {
            "revision": self.revision,
            "source": self.source,
            "seenAt": self.seen_at,
            "appliedAt": self.applied_at,
            "policyCreatedAt": self.created_at,
            "policyReadyAt": self.ready_at,
        }
