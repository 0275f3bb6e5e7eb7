# SPDX-License-Identifier: Apache-2.0
"""Whether a Pod waits for all of its memory, and what becomes of one that does not."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from api_objects import pod
from stepped_clock import SteppedClock

from nodeexec import page_loads, podsnap_runtime
from nodeexec.fetch_rate import FetchRate
from nodeexec.page_loads import LoadState, LoadStatus, StatusTeller
from nodeexec.restore_reports import RestoreReports
from nodeexec.runsc import Runsc
from nodeexec.sandboxes import (
    DECISION_FILE,
    PAGES_LOCAL_FILE,
    STARTED_DIR,
    read_cold_mark,
    read_record,
)
from nodeexec.settings import AgentSettings
from policies.loading import (
    ASSUMED_BYTES_PER_S,
    BACKGROUND_FROM_BYTES,
    Unsure,
    after_no_answer,
    loads_in_background,
)

MB = 10**6
RATE = 100.0 * MB


@pytest.mark.parametrize(
    ("option", "size_bytes", "left_s", "expected"),
    [
        pytest.param(None, BACKGROUND_FROM_BYTES - 1, 85, False, id="a small image comes first"),
        pytest.param(None, BACKGROUND_FROM_BYTES, 85, True, id="a large one is not"),
        pytest.param(True, 1, 85, True, id="the policy says so"),
        pytest.param(False, 2000 * MB, 85, False, id="the policy says no"),
        pytest.param(False, 6000 * MB, 85, True, id="it would not come in time, whatever is said"),
        pytest.param(None, 100 * MB, 1.5, True, id="most of the time went to the gate"),
        pytest.param(None, 1, 0, True, id="no time is left"),
    ],
)
def test_who_waits_for_all_of_its_memory(
    option: bool | None,  # noqa: FBT001
    size_bytes: int,
    left_s: float,
    expected: bool,  # noqa: FBT001
) -> None:
    """The policy's word counts, unless the Pod would start cold for the image's size."""
    found = loads_in_background(option, size_bytes=size_bytes, bytes_per_s=RATE, left_s=left_s)
    assert found is expected


def test_the_rate_is_learned_from_large_fetches() -> None:
    """A small one says more about round trips; the last counts as much as all before."""
    rate = FetchRate()
    assert rate.bytes_per_s == ASSUMED_BYTES_PER_S
    rate.note(1 * MB, 1.0)
    assert rate.bytes_per_s == ASSUMED_BYTES_PER_S
    rate.note(300 * MB, 1.0)
    assert rate.bytes_per_s == pytest.approx(200 * MB)
    rate.note(300 * MB, 0.0)
    assert rate.bytes_per_s == pytest.approx(200 * MB)


@pytest.mark.parametrize(
    ("is_ending", "lives", "has_failed", "expected"),
    [
        pytest.param(True, False, True, Unsure.FORGET, id="a Pod that ends"),
        pytest.param(False, True, False, Unsure.ASK_AGAIN, id="a Pod that does well"),
        pytest.param(False, True, True, Unsure.START_COLD, id="its pages will not come"),
        pytest.param(False, False, False, Unsure.START_COLD, id="its sandbox is dead"),
    ],
)
def test_no_answer_of_runsc_never_kills_a_healthy_pod(
    is_ending: bool,  # noqa: FBT001
    lives: bool,  # noqa: FBT001
    has_failed: bool,  # noqa: FBT001
    expected: Unsure,
) -> None:
    """Its client may fail for reasons of its own."""
    assert after_no_answer(is_ending=is_ending, lives=lives, has_failed=has_failed) is expected


def test_threads_that_tell_of_a_load_do_not_meet_and_its_end_stays(tmp_path: Path) -> None:
    """What is told late is of before."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    teller = StatusTeller(tmp_path, descriptor)
    loading = LoadStatus(LoadState.LOADING, total_bytes=1)
    lost = LoadStatus(LoadState.FAILED, reason="wrong bytes", damaged=True)
    with ThreadPoolExecutor(8) as pool:
        for told in [loading] * 100 + [lost] + [loading] * 100:
            pool.submit(teller.tell, told).add_done_callback(lambda done: done.result())
    assert LoadStatus.read(tmp_path) == lost
    os.close(descriptor)


def test_a_status_that_cannot_be_written_ends_nobody(tmp_path: Path) -> None:
    """And nothing is told in a directory that is another load's by now."""
    place = tmp_path / "load"
    place.mkdir()
    descriptor = os.open(place, os.O_RDONLY)
    teller = StatusTeller(place, descriptor)
    (place / f"{page_loads.STATUS_FILE}.tmp").mkdir()
    teller.tell(LoadStatus(LoadState.LOADING))
    place.rename(tmp_path / "away")
    place.mkdir()
    teller.tell(LoadStatus(LoadState.LOADING))
    assert not list(place.iterdir())
    os.close(descriptor)


@pytest.fixture
def reports(tmp_path: Path) -> RestoreReports:
    """The agent's eyes on a Pod that is not Ready."""
    unready = pod(
        is_ready=False, containers=[{"name": "main", "image": "i", "readinessProbe": {"exec": {}}}]
    )
    view = Mock()
    view.pod.return_value = unready
    view.pods.store.by_uid.return_value = None
    settings = AgentSettings("node-1", *(tmp_path,) * 10, cluster_id="c1")
    return RestoreReports(
        settings=replace(settings, runtime_state_dir=tmp_path / "state"),
        view=view,
        runsc=Runsc(binary=tmp_path / "runsc", root=tmp_path / "root"),
        reports=Mock(),
        counts=Mock(),
        progress=Mock(),
        clock=SteppedClock(),
        metrics=Mock(),
        locks=Mock(),
        traces=Mock(),
    )


def _restored(reports: RestoreReports) -> Path:
    """Write what the runtime notes of a Pod that was restored in the background."""
    bundle = reports.settings.bundles_dir / "sandbox"
    (bundle / STARTED_DIR).mkdir(parents=True)
    (bundle / STARTED_DIR / "main").touch()
    restore: dict[str, Any] = {"snapshot": "one", "image_ids": {"main": "i"}, "background": True}
    named = {"uid": "uid-web-0", "name": "web-0", "namespace": "shop"}
    record = {"sandbox": "sandbox", "pod": named, "restore": restore}
    (bundle / DECISION_FILE).write_text(json.dumps(record))
    attempt = reports.settings.attempts_dir / "uid-web-0"
    attempt.parent.mkdir(parents=True)
    note = {"snapshot": "one", "reason": "it ended", "blame": False, "at": 1.0}
    attempt.write_text(json.dumps(note))
    return bundle


def _looks(reports: RestoreReports, seconds_s: int) -> None:
    sandbox = read_record(reports.settings.bundles_dir / "sandbox" / DECISION_FILE)
    assert sandbox is not None
    for _ in range(seconds_s):
        reports.look_after(sandbox)
        reports.clock.wait(Mock(is_set=lambda: False), 1.0)


def test_a_pod_that_waits_for_its_memory_may_be_unready_for_as_long(
    reports: RestoreReports,
) -> None:
    """From the moment at which all of it is here, it is a restored Pod like any other."""
    bundle = _restored(reports)
    mark = reports.settings.cold_marks_dir / "uid-web-0"
    _looks(reports, 300)
    assert not mark.exists()
    (bundle / PAGES_LOCAL_FILE).touch()
    _looks(reports, 10)
    assert not mark.exists()
    _looks(reports, 300)
    told = read_cold_mark(mark)
    assert told is not None
    assert "not Ready" in told.reason


@pytest.mark.parametrize("background", [True, False])
def test_a_sandbox_that_dies_counts_only_if_all_of_its_memory_was_here(
    tmp_path: Path,
    background: bool,  # noqa: FBT001
) -> None:
    """Its note of the attempt is what the Pod's next sandbox finds, if nobody was there to tell."""
    bundle = tmp_path / "sandbox"
    bundle.mkdir()
    cri = "io.kubernetes.cri."
    spec = {"annotations": {f"{cri}container-type": "sandbox", f"{cri}sandbox-id": "sandbox"}}
    (bundle / "config.json").write_text(podsnap_runtime.render(spec))
    restore = {"snapshot": "one", "image_dir": "/i", "image_ids": {"main": "i"}}
    record = {
        "pod": {"namespace": "shop", "name": "web-0", "uid": "uid-1"},
        "sandbox": "sandbox",
        "restore": {**restore, "background": background, "sandbox_deadline_s": 5},
    }
    podsnap_runtime.store(str(bundle / DECISION_FILE), record)
    settings = {"state_dir": str(tmp_path / "state"), "runsc": "/bin/true", "agent_socket": "/no"}
    log_flag = f"--log={bundle}/log.json"
    call = podsnap_runtime.Call([f"--root={tmp_path}", log_flag, "start", "sandbox"], settings)
    assert podsnap_runtime.start(call) == 0
    found = podsnap_runtime.earlier_failure(settings, "uid-1")
    assert found["blame"] is not background
