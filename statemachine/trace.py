# SPDX-License-Identifier: Apache-2.0
"""One trace for each snapshot's life, from the commit to every restored Pod, out of the records.

Nothing is measured here: the spans are a projection of instants that objects have recorded. They
can be computed again after a crash, telling twice tells the same, and parents and children need no
context passed between programs, because every id can be computed from the snapshot.

The traps are clocks and gaps. Several machines wrote the instants, some in whole seconds, so a
parent is stretched over its children, and nothing ends before it begins. A step whose instants are
not known has no span; its parent has one always.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from schemas.instants import parse_time
from schemas.names import CREATED_AT_ANNOTATION, POD_RESTORED
from schemas.pod import Pod
from schemas.restore_times import RestoreTimes
from schemas.snapshot import CaptureRecord, Snapshot
from schemas.span import AttributeValue, Span, span_id

CONTROLLER: Final = "podsnap-controller"
AGENT: Final = "podsnap-agent"

# A condition's instant has whole seconds.
_COARSE_S: Final = 1.0
_SHORT: Final = 12
_YEAR_2200_S: Final = 7_258_118_400.0


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of a save or a restore; an instant that is not known is 0."""

    name: str
    start_s: float
    end_s: float
    service: str = AGENT
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


def save_spans(snapshot: Snapshot) -> list[Span]:
    """Return the spans of a save as far as it is known now: the root first, then the save."""
    capture = snapshot.capture or CaptureRecord()
    begun_s = _created_s(snapshot)
    failure = f"{capture.failure.reason}: {capture.failure.message}" if capture.failure else ""
    failed_s = (instant_s(capture.failed_at) or _story_s(snapshot, "Failed")) if failure else 0.0
    root, *before = _origin_spans(snapshot)
    trace, save_id = snapshot.trace_id, _save_id(snapshot)
    save = Span(
        trace_id=trace,
        span_id=save_id,
        parent_id=root.span_id,
        name="save",
        service=CONTROLLER,
        start_s=begun_s,
        end_s=max(failed_s or instant_s(snapshot.control.ready_at), begun_s),
        attributes=_identity(snapshot)
        | _known(
            {
                "k8s.pod.name": capture.pod_name or snapshot.origin_pod,
                "k8s.pod.uid": capture.pod_uid or snapshot.origin_pod_uid,
                "k8s.node.name": capture.node or snapshot.origin_node,
                "podsnap.trigger.type": snapshot.trigger_type,
                "podsnap.save.attempt": capture.attempt,
                "podsnap.save.bytes": capture.size_bytes,
                "podsnap.save.scope": "rootfs-only" if capture.rootfs_only else "whole-pod",
            }
        ),
        links=((trace, root.span_id),),
        error=failure,
    )
    steps = _steps(save, _save_steps(snapshot, capture, begun_s), failed_s, str(capture.attempt))
    return [root, *before, _stretched(save, steps), *steps]


def restore_spans(snapshot: Snapshot, times: RestoreTimes) -> list[Span]:
    """Return the spans of one Pod's restore, the restore itself first; none if no instant is known.

    Its id is made of the Pod's UID: a Pod that is restored a second time tells of the last one.
    """
    known: dict[str, Any] = {
        f.name: _plausible_s(getattr(times, f.name)) for f in fields(times) if f.name.endswith("_s")
    }
    times = replace(times, **known)
    begun_s = min(filter(None, (times.fetching_s, times.asked_s, times.restoring_s)), default=0.0)
    begun_s = begun_s or times.restored_s or times.failed_s
    if not begun_s:
        return []
    restore = Span(
        trace_id=snapshot.trace_id,
        span_id=restore_id(snapshot, times.pod_uid),
        parent_id=_save_id(snapshot),
        name="restore",
        service=AGENT,
        start_s=begun_s,
        end_s=max(times.failed_s or times.ready_s or times.restored_s, begun_s),
        attributes=_identity(snapshot)
        | _known(
            {
                "k8s.namespace.name": times.namespace,
                "k8s.pod.name": times.pod_name,
                "k8s.pod.uid": times.pod_uid,
                "k8s.node.name": times.node,
                "podsnap.restore.outcome": "cold" if times.error else "restored",
            }
        ),
        links=((snapshot.trace_id, _save_id(snapshot)),),
        error=times.error,
    )
    steps = _steps(restore, _restore_steps(snapshot, times), times.failed_s, times.pod_uid)
    return [_stretched(restore, steps), *steps]


def restore_times(pod: Pod) -> RestoreTimes | None:
    """Return what a Pod's conditions tell of its restore, ``None`` if there was none."""
    restored = pod.conditions.get(POD_RESTORED)
    if restored is None:
        return None
    at_s = instant_s(restored.last_transition_time)
    sandbox = pod.conditions.get("PodReadyToStartContainers")
    known = RestoreTimes(
        namespace=pod.metadata.namespace,
        pod_name=pod.metadata.name,
        pod_uid=pod.metadata.uid,
        node=pod.node_name,
        # Of the sandbox that was restored, unless the Pod got another one since.
        restoring_s=min(instant_s(sandbox.last_transition_time), at_s)
        if sandbox is not None
        else 0.0,
    )
    if not restored.is_true:
        return replace(known, failed_s=at_s, error=restored.message)
    return replace(known, restored_s=at_s, ready_s=instant_s(pod.ready_since))


def instant_s(text: str) -> float:
    """Return an instant in seconds since the epoch, 0 if it is not known."""
    at = parse_time(text)
    # Without a zone nobody knows when that was.
    return _plausible_s(at.timestamp()) if at is not None and at.tzinfo is not None else 0.0


def restore_id(snapshot: Snapshot, pod_uid: str) -> str:
    """Return the id of the span that tells of a Pod's restore."""
    return span_id(snapshot.trace_id, "restore", pod_uid)


def save_traceparent(snapshot: Snapshot) -> str:
    """Return the W3C header of a snapshot's save."""
    return f"00-{snapshot.trace_id}-{_save_id(snapshot)}-01"


def restore_traceparent(snapshot: Snapshot, pod_uid: str) -> str:
    """Return the W3C header by which a restored program joins the trace."""
    return f"00-{snapshot.trace_id}-{restore_id(snapshot, pod_uid)}-01"


def _origin_spans(snapshot: Snapshot) -> list[Span]:
    """Return the root: the commit, or the policy if no commit brought it; then what followed."""
    origin, trace = snapshot.origin, snapshot.trace_id
    ready_s = instant_s(origin.ready_at)
    policy = Span(
        trace_id=trace,
        span_id=span_id(trace, "policy"),
        parent_id="",
        name="policy",
        service=CONTROLLER,
        start_s=instant_s(origin.created_at) or ready_s or _created_s(snapshot),
        end_s=0.0,
        attributes=_known(
            {
                "k8s.namespace.name": snapshot.metadata.namespace,
                "podsnap.policy.name": snapshot.policy_name,
            }
        ),
    )
    policy = replace(policy, end_s=max(ready_s, policy.start_s))
    if not origin.revision:
        return [policy]
    applied_s = instant_s(origin.applied_at)
    begun_s = instant_s(origin.seen_at) or applied_s or ready_s or _created_s(snapshot)
    commit = Span(
        trace_id=trace,
        span_id=span_id(trace, "commit"),
        parent_id="",
        name=f"commit {origin.commit[:_SHORT]}",
        service=CONTROLLER,
        start_s=begun_s,
        end_s=max(applied_s, begun_s),
        attributes=_known(
            {
                "vcs.ref.head.revision": origin.commit,
                "vcs.ref.head.name": origin.ref,
                "podsnap.git.revision": origin.revision,
                "podsnap.git.source": origin.source,
            }
        ),
    )
    if not applied_s or ready_s < applied_s - _COARSE_S:
        return [commit]  # it was ready before, and this commit left it as it was
    reconciled = replace(
        policy,
        parent_id=commit.span_id,
        name="policy reconciled",
        start_s=applied_s,
        end_s=max(ready_s, applied_s),
    )
    return [commit, reconciled]


def _save_steps(snapshot: Snapshot, capture: CaptureRecord, begun_s: float) -> Iterable[_Step]:
    dumped_s, uploading_s = instant_s(capture.dumped_at), instant_s(capture.uploading_at)
    uploaded_s = instant_s(capture.uploaded_at)
    yield _Step("wait", begun_s, instant_s(capture.claimed_at))
    yield _Step("freeze", instant_s(capture.frozen_at), dumped_s)
    yield _Step("dump", instant_s(capture.dumping_at), dumped_s)
    yield _Step("seal", instant_s(capture.checkpointed_at), instant_s(capture.sealed_at))
    yield _Step(
        "upload",
        uploading_s,
        uploaded_s,
        attributes=_known(
            {
                "podsnap.upload.bytes": capture.size_bytes,
                "podsnap.upload.parts": capture.upload_parts,
                "podsnap.upload.bytes_per_second": _rate(
                    capture.size_bytes, uploading_s, uploaded_s
                ),
                "podsnap.upload.location": capture.location.url if capture.location else "",
            }
        ),
    )
    yield _Step("ready", uploaded_s, instant_s(snapshot.control.ready_at), service=CONTROLLER)


def _restore_steps(snapshot: Snapshot, times: RestoreTimes) -> Iterable[_Step]:
    size_bytes = snapshot.capture.size_bytes if snapshot.capture else 0
    yield _Step("decision", times.asked_s, times.decided_s)
    yield _Step("gate", times.gating_s, times.gated_s)
    yield _Step(
        "fetch",
        times.fetching_s,
        times.fetched_s,
        attributes=_known(
            {
                "podsnap.fetch.bytes": size_bytes,
                "podsnap.fetch.bytes_per_second": _rate(
                    size_bytes, times.fetching_s, times.fetched_s
                ),
            }
        ),
    )
    yield _Step("verify", times.verifying_s, times.verified_s)
    yield _Step("runsc restore", times.restoring_s, times.restored_s)
    yield _Step("pod ready", times.restored_s, times.ready_s)


def _steps(parent: Span, steps: Iterable[_Step], failed_s: float, *which: str) -> list[Span]:
    """Return the spans of the steps that are known; what a failure cut short ends with it."""
    spans = []
    for step in steps:
        cut = bool(parent.error) and not step.end_s
        end_s = failed_s if cut else step.end_s
        if not step.start_s or not end_s:
            continue
        spans.append(
            Span(
                trace_id=parent.trace_id,
                span_id=span_id(parent.trace_id, parent.name, step.name, *which),
                parent_id=parent.span_id,
                name=step.name,
                service=step.service,
                start_s=step.start_s,
                end_s=max(end_s, step.start_s),
                attributes=step.attributes,
                error=parent.error if cut else "",
            )
        )
    return spans


def _stretched(parent: Span, children: Iterable[Span]) -> Span:
    """Return a span that begins no later and ends no earlier than its children."""
    spans = (parent, *children)
    return replace(parent, start_s=min(s.start_s for s in spans), end_s=max(s.end_s for s in spans))


def _identity(snapshot: Snapshot) -> dict[str, AttributeValue]:
    return _known(
        {
            "k8s.namespace.name": snapshot.metadata.namespace,
            "podsnap.snapshot.name": snapshot.metadata.name,
            "podsnap.snapshot.uid": snapshot.metadata.uid,
            "podsnap.policy.name": snapshot.policy_name,
        }
    )


def _known(attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    return {key: value for key, value in attributes.items() if value}


def _save_id(snapshot: Snapshot) -> str:
    return span_id(snapshot.trace_id, "save")


def _created_s(snapshot: Snapshot) -> float:
    metadata = snapshot.metadata
    exact = metadata.annotations.get(CREATED_AT_ANNOTATION, "")
    return instant_s(exact) or instant_s(metadata.creation_timestamp)


def _story_s(snapshot: Snapshot, state: str) -> float:
    return next((instant_s(e.at) for e in snapshot.control.story if e.state == state), 0.0)


def _rate(size_bytes: int, start_s: float, end_s: float) -> int:
    """Return bytes per second, 0 if it is not known."""
    took_s = end_s - start_s
    return round(size_bytes / took_s) if start_s and took_s > 0 else 0


def _plausible_s(at_s: float) -> float:
    """Return an instant, 0 if a clock was off by centuries: OTLP has unsigned nanoseconds."""
    return at_s if 0 < at_s < _YEAR_2200_S else 0.0
