# SPDX-License-Identifier: Apache-2.0
"""What one save is asked to do, and how it ends if it does not end well."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nodeexec.sandboxes import PreparedSandbox
from schemas.encoding import Encoding
from schemas.pod import Pod
from schemas.snapshot import Failure, Snapshot, SpecIdentity
from schemas.storage_config import Location


@dataclass(frozen=True, slots=True)
class CaptureJob:
    """All that a save needs to know.

    ``stops`` if the Pod ends with it. A Pod that is being deleted waits for the write until
    ``ends_s`` on the monotonic clock, when its signal is passed on; ``on_written`` does it sooner.
    """

    snapshot: Snapshot
    pod: Pod
    sandbox: PreparedSandbox
    identity: SpecIdentity
    image_ids: dict[str, str]
    location: Location
    env_marks: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    group_labels: Mapping[str, str] = field(default_factory=dict)
    stops: bool = False
    rootfs_only: bool = False
    encoding: Encoding = Encoding.RAW
    ends_s: float | None = None
    on_written: Callable[[], None] | None = None


class CaptureFailed(Exception):  # noqa: N818 - an outcome, not an error of ours
    """The save ended without an image; carries what to tell."""

    def __init__(self, reason: str, message: str) -> None:
        """Keep both parts for the record."""
        super().__init__(f"{reason}: {message}")
        self.failure = Failure(reason, message)


class StoppedError(Exception):
    """The snapshot is gone or was taken away from this node: drop everything."""
