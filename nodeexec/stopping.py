# SPDX-License-Identifier: Apache-2.0
"""``postCheckpoint: stop``: a Pod that ends with its save, so that nothing is served after it.

The sandbox is paused before the save and stays so. Once the image is sealed, each application
container gets a SIGKILL that waits, and the resume delivers it: no instruction runs in between. The
runtime reports exit status 0 for them, which is how a Pod becomes ``Succeeded``.

The trap: what is killed or deleted while paused never ends. So a note lies beside the bundle before
the pause, and whoever finds it (the next agent, or the runtime before a signal) resumes first.
"""

import logging
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from backends.kube.client import PODS, KubeClient
from backends.kube.errors import ApiError, NotFound
from nodeexec.pod_reports import PodReports
from nodeexec.runsc import Runsc, RunscError, RunscTimeoutError, finish
from nodeexec.sandboxes import ENDED_FILE, PreparedSandbox
from schemas.pod import Pod

log = logging.getLogger(__name__)

_PAUSED: Final = "paused"
_OVER: Final = frozenset({"running", "stopped"})
_PAUSE_LIMIT_S: Final = 30.0
_RESUME_LIMIT_S: Final = 10.0


@dataclass(slots=True)
class Stopper:
    """Pauses, resumes and ends sandboxes of this node."""

    runsc: Runsc
    client: KubeClient
    reports: PodReports
    bundles_dir: Path
    # Clients of runsc that did not end in time; the next step for their sandbox waits for them.
    _late: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def pause(self, sandbox: PreparedSandbox, save: str) -> None:
        """Let the sandbox stand still until ``resume`` or ``stop``; ``save`` is a snapshot's UID.

        Raises:
            RunscError: it could not be paused, or not in time.
        """
        descriptor = os.open(sandbox.paused_note, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as note:
            note.write(save)
        self._end_late(sandbox.id)
        self._finish(sandbox.id, self.runsc.pause(sandbox.id), _PAUSE_LIMIT_S)

    def resume(self, sandbox: PreparedSandbox) -> None:
        """Let a sandbox go on, if it was paused; the note stays until that is certain."""
        try:
            self._end_late(sandbox.id)
            if self.runsc.status(sandbox.id) == _PAUSED:
                self._finish(sandbox.id, self.runsc.resume(sandbox.id), _RESUME_LIMIT_S)
        except RunscError as error:
            log.warning("sandbox %s is not resumed yet: %s", sandbox.id, error)
        if self.runsc.status(sandbox.id) in _OVER or not self.runsc.sandbox_pid(sandbox.id):
            sandbox.paused_note.unlink(missing_ok=True)

    def _end_late(self, sandbox: str) -> None:
        """Wait for a client of an earlier pause or resume that did not end in time."""
        late = self._late.get(sandbox)
        if late is not None:
            self._finish(sandbox, late, _RESUME_LIMIT_S)

    def _finish(self, sandbox: str, client: subprocess.Popen[bytes], limit_s: float) -> None:
        self._late.pop(sandbox, None)
        try:
            finish(client, limit_s=limit_s)
        except RunscTimeoutError:
            self._late[sandbox] = client
            raise

    def stop(self, sandbox: PreparedSandbox, pod: Pod, *, going: bool = False) -> None:
        """End the application containers of a saved Pod. ``going`` if it is deleted anyway.

        A crash in between is made good by a second call.
        """
        if not going and pod.spec.get("restartPolicy", "Always") == "Always":
            self._replace(pod)
        for container in pod.container_ids.values():
            bundle = self.bundles_dir / container
            try:
                (bundle / ENDED_FILE).touch(mode=0o600)
                self.runsc.kill(container)
            except (FileNotFoundError, RunscError) as error:
                log.debug("container %s has ended already: %s", container, error)
        self.resume(sandbox)

    def _replace(self, pod: Pod) -> None:
        """A kubelet restarts what ends in such a Pod; only its controller can make a new one."""
        name = pod.metadata.name
        if not pod.metadata.has_controller:
            self.reports.event(
                pod,
                "Warning",
                f"Pod {name} was saved with postCheckpoint stop and has restartPolicy Always and "
                "no controller: its containers are restarted in place; set restartPolicy Never",
            )
            return
        try:
            self.client.delete(PODS, name, namespace=pod.metadata.namespace, uid=pod.metadata.uid)
        except NotFound:
            return
        except ApiError as error:
            self.reports.event(
                pod,
                "Warning",
                f"Pod {name} was saved with postCheckpoint stop and could not be deleted "
                f"({error}): its containers are restarted in place",
            )
            return
        self.reports.event(
            pod,
            "Normal",
            f"Pod {name} was saved with postCheckpoint stop and is deleted, because its "
            "restartPolicy Always would start it again; its controller makes the next one",
        )
