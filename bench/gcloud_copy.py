# SPDX-License-Identifier: Apache-2.0
"""``gcloud storage cp`` of the same bytes from and to the same server, where it is installed.

It has a configuration of its own, no credentials and no update check. The trap is its start: it is
a large program, and its time includes that.
"""

import os
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from bucket_server import BucketServer
from room import BenchError
from transfer import Order

_LIMIT_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class GcloudCopy:
    """One copy, to be run many times."""

    program: str
    endpoint: str
    source: str
    target: str
    name: str = "gcloud storage cp"

    def run(self) -> tuple[float, float, float]:
        """Copy; returns seconds, processor seconds, and MiB of the largest process.

        Raises:
            BenchError: it failed; the text has what it said last.
        """
        words = [self.program, "storage", "cp", "--quiet", self.source, self.target]
        with TemporaryDirectory(prefix="podsnap-gcloud-") as home:
            before, began_s = _children(), time.monotonic()
            ended = subprocess.run(
                words,
                env=self._environment(Path(home)),
                capture_output=True,
                text=True,
                timeout=_LIMIT_S,
                check=False,
            )
            taken_s, after = time.monotonic() - began_s, _children()
        if ended.returncode:
            raise BenchError(f"gcloud storage cp failed: {ended.stderr.strip()[-500:]}")
        return taken_s, after[0] - before[0], after[1]

    def _environment(self, home: Path) -> dict[str, str]:
        return {
            **os.environ,
            "CLOUDSDK_CONFIG": str(home),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": f"{self.endpoint}/storage/v1/",
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
            "CLOUDSDK_CORE_PROJECT": "bench",
            "CLOUDSDK_STORAGE_CHECK_HASHES": "never",  # the double has no MD5 of large objects
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
        }


def gcloud_copy(server: BucketServer, order: Order, *, up: bool = False) -> GcloudCopy | None:
    """Return the copy that moves what an order moves, ``None`` where gcloud is not installed."""
    program = shutil.which("gcloud")
    if program is None:
        return None
    url = f"gs://{order.bucket}/{order.name}"
    source, target = (order.path, url) if up else (url, order.path)
    return GcloudCopy(program, server.endpoint, source, target)


def _children() -> tuple[float, float]:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
