# SPDX-License-Identifier: Apache-2.0
"""``postCheckpoint: stop``: a Pod that ends with its save, so that nothing is served after it.

The sandbox is paused before the save and stays so. Once the image is sealed, each application
container gets a SIGKILL that waits, and the resume delivers it: no instruction runs in between. The
runtime reports exit status 0 for them, which is how a Pod becomes ``Succeeded``.

The trap: what is killed or deleted while paused never ends. So a note lies beside the bundle before
the pause, and whoever finds it (the next agent, or the runtime before a signal) resumes first.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.kube.client import PODS, KubeClient
from backends.kube.errors import ApiError, NotFound
from nodeexec.pod_reports import PodReports
from nodeexec.runsc import Runsc, RunscError
from nodeexec.sandboxes import ENDED_FILE, PreparedSandbox
from schemas.pod import Pod

log = logging.getLogger(__name__)

_PAUSED: Final = "paused"


@dataclass(frozen=True, slots=True)
class Stopper:
    """Pauses, resumes and ends sandboxes of this node."""

    runsc: Runsc
    client: KubeClient
    reports: PodReports
    bundles_dir: Path

    def pause(self, sandbox: PreparedSandbox) -> None:
        """Let the sandbox stand still until ``resume`` or ``stop``.

        Raises:
            RunscError: it could not be paused.
        """
        sandbox.paused_note.touch(mode=0o600)
        self.runsc.pause(sandbox.id)

    def resume(self, sandbox: PreparedSandbox) -> None:
        """Let a sandbox go on, if it was paused."""
        try:
            if self.runsc.status(sandbox.id) == _PAUSED:
                self.runsc.resume(sandbox.id)
        except RunscError as error:
            if self.runsc.status(sandbox.id) == _PAUSED:
                log.warning("sandbox %s could not be resumed: %s", sandbox.id, error)
                return  # the note stays, and the next scan tries again
        sandbox.paused_note.unlink(missing_ok=True)

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
