# SPDX-License-Identifier: Apache-2.0
"""The governed sandboxes of this node, as the runtime recorded them beside their bundles.

The files are the truth, not the agent's memory: they are written before a container exists and go
away with the bundle, so an agent that was away learns everything again. A sandbox without a record
was started before its policy or while the agent was away, and cannot be saved.
"""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DECISION_FILE = "podsnap.json"
STARTED_DIR = "podsnap-started"
REPORTED_FILE = "podsnap-reported"
PAUSED_FILE = "podsnap-paused"
ENDED_FILE = "podsnap-ended"
PAGES_LOCAL_FILE = "podsnap-pages-local"


@dataclass(frozen=True, slots=True)
class PreparedSandbox:
    """A sandbox that the runtime prepared. ``restored_from`` is empty for a cold start.

    ``image_dir`` is where the image lies that it is restored from; ``background`` if it runs before
    all of its memory is there.
    """

    id: str
    bundle: Path
    pod_uid: str
    pod_name: str
    namespace: str
    policy: str
    workload_dir: Path | None
    restored_from: str
    expected_containers: int
    rootfs_only: bool = False
    stops: bool = False
    image_dir: Path | None = None
    background: bool = False

    @property
    def paused_for(self) -> str:
        """The UID of the snapshot for which the sandbox was paused, empty if it was not."""
        try:
            return self.paused_note.read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    @property
    def paused_note(self) -> Path:
        """The file that says: the agent is about to pause this sandbox, or did."""
        return self.bundle / PAUSED_FILE

    @property
    def restore_is_complete(self) -> bool:
        """Whether every container of a restoring sandbox has started."""
        started = self.bundle / STARTED_DIR
        return (
            bool(self.restored_from)
            and started.is_dir()
            and len(list(started.iterdir())) >= self.expected_containers
        )

    @property
    def is_reported(self) -> bool:
        """Whether the restore was told on the Pod."""
        return (self.bundle / REPORTED_FILE).exists()

    @property
    def has_its_pages(self) -> bool:
        """Whether all of its memory is in the sandbox, as far as was noted."""
        return not self.background or (self.bundle / PAGES_LOCAL_FILE).exists()

    def mark_pages_local(self) -> None:
        """Remember that nothing of its memory is missing any more."""
        try:
            (self.bundle / PAGES_LOCAL_FILE).touch(mode=0o600)
        except FileNotFoundError:
            return  # the Pod is already gone

    def mark_reported(self) -> None:
        """Remember that the restore was told; lost with the sandbox, as it should be."""
        try:
            (self.bundle / REPORTED_FILE).touch(mode=0o600)
        except FileNotFoundError:
            return  # the Pod is already gone


@dataclass(frozen=True, slots=True)
class ColdMark:
    """The runtime's note that a restore of a Pod failed and that it starts cold from now on.

    ``blame`` if it counts against the snapshot: another image is the Pod's own matter.
    """

    snapshot: str
    reason: str
    at_s: float
    snapshot_uid: str = ""
    is_told: bool = False
    blame: bool = True


def read_cold_mark(mark: Path) -> ColdMark | None:
    """Read a mark, ``None`` if it is gone or unreadable."""
    try:
        raw: dict[str, Any] = json.loads(mark.read_text(encoding="utf-8"))
        return ColdMark(
            snapshot=raw["snapshot"],
            reason=raw["reason"],
            at_s=float(raw["at"]),
            snapshot_uid=raw.get("snapshot_uid", ""),
            is_told=bool(raw.get("told")),
            blame=bool(raw.get("blame", True)),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def mark_told(mark: Path) -> None:
    """Remember on disk that a failure was told, so that no later agent counts it again."""
    try:
        raw: dict[str, Any] = json.loads(mark.read_text(encoding="utf-8"))
        temporary = mark.with_name(f".{mark.name}")
        temporary.write_text(json.dumps({**raw, "told": True}), encoding="utf-8")
        temporary.rename(mark)
    except (OSError, ValueError):
        return  # told once more, at worst


def mark_cold(attempt: Path, mark: Path, reason: str, *, blame: bool = True) -> bool:
    """Turn the note of an attempt into that of a failure; whether there was one.

    ``blame`` if it counts against the snapshot. On a full disk the note stays as it was.
    """
    try:
        mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        raw: dict[str, Any] = json.loads(attempt.read_text(encoding="utf-8"))
        raw |= {"reason": reason, "blame": blame}
        temporary = attempt.with_name(f".{attempt.name}")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(raw), encoding="utf-8")
            temporary.rename(attempt)
        attempt.rename(mark)
    except (OSError, ValueError):
        return False
    return True


def prepared_sandboxes(bundles: Path) -> Iterator[PreparedSandbox]:
    """Yield every recorded sandbox; a record that is being removed is skipped."""
    for record in bundles.glob(f"*/{DECISION_FILE}"):
        sandbox = read_record(record)
        if sandbox is not None:
            yield sandbox


def images_to_be_opened(bundles: Path, cold_marks: Path) -> set[Path]:
    """Return the directories of images that restores need which are not complete yet."""
    return {
        sandbox.image_dir
        for sandbox in prepared_sandboxes(bundles)
        if sandbox.image_dir is not None
        and not sandbox.restore_is_complete
        and not (cold_marks / sandbox.pod_uid).exists()
    }


def read_record(record: Path) -> PreparedSandbox | None:
    """Read one record, ``None`` if it is gone or unreadable."""
    try:
        raw: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        restore = raw.get("restore") or {}
        workload_dir = raw.get("workload_dir") or ""
        return PreparedSandbox(
            id=raw["sandbox"],
            bundle=record.parent,
            pod_uid=raw["pod"]["uid"],
            pod_name=raw["pod"]["name"],
            namespace=raw["pod"]["namespace"],
            policy=raw.get("policy", ""),
            workload_dir=Path(workload_dir) if workload_dir else None,
            restored_from=restore.get("snapshot", ""),
            expected_containers=len(restore.get("image_ids") or {}),
            rootfs_only=bool(restore.get("rootfs_only")),
            stops=bool(raw.get("stop")),
            image_dir=Path(restore["image_dir"]) if "image_dir" in restore else None,
            background=bool(restore.get("background")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def sandbox_of_pod(bundles: Path, pod_uid: str) -> PreparedSandbox | None:
    """Return the newest recorded sandbox of a Pod."""
    found = [s for s in prepared_sandboxes(bundles) if s.pod_uid == pod_uid]
    return max(found, key=lambda s: _changed_ns(s.bundle), default=None)


def _changed_ns(bundle: Path) -> int:
    try:
        return bundle.stat().st_ctime_ns
    except OSError:
        return 0  # removed meanwhile
