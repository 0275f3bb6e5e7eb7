# SPDX-License-Identifier: Apache-2.0
"""The sandboxes that wait for pages of one image, and their end if the pages do not come.

Used by whoever notices first: the server of the pages, also while no agent runs, or the agent when
it finds that a server is dead.
"""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from nodeexec.runsc import Runsc
from nodeexec.sandboxes import mark_cold, prepared_sandboxes


@dataclass(frozen=True, slots=True)
class Readers:
    """Where the node keeps what says which sandboxes there are."""

    runsc: Path
    runsc_root: Path
    bundles: Path
    attempts: Path
    cold_marks: Path

    def start_cold(self, image: Path, reason: str) -> None:
        """Let every Pod whose memory is still on its way start cold: marked first, then killed.

        The mark is for the Pod's next sandbox, which the kubelet makes at once. It is no fault of
        the snapshot.
        """
        runsc = Runsc(binary=self.runsc, root=self.runsc_root)
        for sandbox in prepared_sandboxes(self.bundles):
            if sandbox.image_dir != image or sandbox.has_its_pages:
                continue
            attempt, mark = self.attempts / sandbox.pod_uid, self.cold_marks / sandbox.pod_uid
            if not mark_cold(attempt, mark, reason, blame=False) and not mark.exists():
                continue  # without the mark its next sandbox would only do the same again
            pid = runsc.sandbox_pid(sandbox.id)
            if pid > 1:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
