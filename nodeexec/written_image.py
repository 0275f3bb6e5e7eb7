# SPDX-License-Identifier: Apache-2.0
"""What a save left in its directory: the image that was asked for, or something to be rid of.

The trap: a client of runsc that passed its deadline may still write.
"""

import shutil
import subprocess
import threading
from pathlib import Path
from typing import Final

from nodeexec.capture_job import CaptureFailed, CaptureJob
from nodeexec.image import ImageError, ImageInfo, inspect, inspect_files
from schemas.manifest import MANIFEST_NAME, Manifest, ManifestError

_ABANDONED_LIMIT_S: Final = 3600.0


def inspected(directory: Path, job: CaptureJob, runsc_version: str) -> ImageInfo:
    """Return what the image holds; one that is not what was asked for is removed.

    Raises:
        CaptureFailed: it is not whole, or of other containers or another runsc.
    """
    try:
        if job.rootfs_only:
            return inspect_files(directory, job.pod.writable_names)
        info = inspect(directory)
    except ImageError as error:
        shutil.rmtree(directory, ignore_errors=True)
        raise CaptureFailed("ImageIncomplete", str(error)) from error
    expected = len(job.pod.running_names) + 1
    if (info.container_count, info.runsc_version) != (expected, runsc_version):
        shutil.rmtree(directory, ignore_errors=True)
        raise CaptureFailed(
            "ImageUnexpected",
            f"the image holds {info.container_count} containers of runsc {info.runsc_version}; "
            f"expected {expected} of {runsc_version}",
        )
    return info


def sealed_manifest(directory: Path) -> Manifest:
    """Read the manifest of a sealed image.

    Raises:
        CaptureFailed: it is gone.
    """
    try:
        return Manifest.parse((directory / MANIFEST_NAME).read_bytes())
    except (OSError, ManifestError) as error:
        raise CaptureFailed("ImageLost", f"the saved image cannot be read: {error}") from error


def remove_when_ended(process: subprocess.Popen[bytes], directory: Path) -> None:
    """Remove the directory of an abandoned save once its client has ended."""

    def wait() -> None:
        try:
            process.communicate(timeout=_ABANDONED_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
        shutil.rmtree(directory, ignore_errors=True)

    threading.Thread(target=wait, name="abandoned-save", daemon=True).start()
