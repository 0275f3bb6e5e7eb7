# SPDX-License-Identifier: Apache-2.0
"""The CRI image ID (config digest) of each container of a Pod.

A Pod's status names an image by tag or repository digest, and two different images can have had one
tag; only containerd's record of the container says which bytes it was made from. The lookup starts
a process, so it is done when a Pod appears, and remembered by container.
"""

import base64
import json
import subprocess
from pathlib import Path

from schemas.pod import Pod

_LIMIT_S = 10.0
_REMEMBERED = 2000


class ImageIdUnknownError(Exception):
    """Containerd has no such container, or did not answer."""


class ImageIds:
    """Looks up and remembers image IDs."""

    def __init__(self, *, ctr: Path, address: Path) -> None:
        """Use ``ctr`` against containerd's socket."""
        self._ctr = ctr
        self._address = address
        self._known: dict[str, str] = {}

    def of_pod(self, pod: Pod) -> dict[str, str]:
        """Return container name to image ID for every container of the Pod.

        Raises:
            ImageIdUnknownError: for at least one container nothing was found.
        """
        return {name: self._of(identifier) for name, identifier in pod.container_ids.items()}

    def _of(self, container: str) -> str:
        known = self._known.get(container)
        if known is None:
            known = self._ask(container)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[container] = known
        return known

    def _ask(self, container: str) -> str:
        argv = [str(self._ctr), "-a", str(self._address), "-n", "k8s.io"]
        try:
            done = subprocess.run(
                [*argv, "containers", "info", container],
                capture_output=True,
                timeout=_LIMIT_S,
                check=True,
            )
            extensions = json.loads(done.stdout)["Extensions"]
            value = extensions["io.cri-containerd.container.metadata"]["value"]
            return str(json.loads(base64.b64decode(value))["Metadata"]["ImageRef"])
        except (subprocess.SubprocessError, OSError, ValueError, KeyError, TypeError) as error:
            raise ImageIdUnknownError(
                f"containerd does not say which image container {container} was made from: {error}"
            ) from error
