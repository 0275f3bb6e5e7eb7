# SPDX-License-Identifier: Apache-2.0
"""GitSources: a repository's policies, applied as they stand at one commit.

A look asks the repository where its head is, and fetches only a commit that is news. Whatever is
wrong with that commit changes nothing: the last good revision stays. What is remembered between
looks is a cache; a controller that starts anew reads the commit again.
"""

import logging
import threading
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

from backends.clock import Clock
from backends.git.errors import (
    EntryRefused,
    GitError,
    InvalidSource,
    LimitExceeded,
    PathNotFound,
    SignatureRefused,
)
from backends.git.signatures import verify
from backends.git.source import Checkout, Head, Repository, Wanted, open_repository
from backends.kube.client import GIT_SOURCES, KubeClient
from backends.kube.errors import ApiError, Conflict, Invalid, NotFound
from backends.kube.events import EventRecorder
from reconciler.cluster_cache import ClusterCache
from reconciler.controller import Key
from reconciler.git_access import Access, read_access
from reconciler.git_apply import ApplyError, GitApplier, Known, OwnedByAnotherError, Pruned
from reconciler.git_manifests import DesiredState, TreeRefusedError, desired_state
from reconciler.git_prune import leaving, refusal
from reconciler.git_status import Failure, Status, applied, failed, render, suspended, working
from schemas.git_source import GitSource, InventoryEntry
from schemas.instants import to_micro_time, to_time
from schemas.names import CONTROLLER_MANAGER, GIT_SOURCE_FINALIZER, OWN_API_VERSION, READY
from schemas.sentences import some_of

log = logging.getLogger(__name__)

_RETRY_S: Final = 10.0
# What is stalled may be mended by a Secret, of which nobody tells.
_STALLED_S: Final = 60.0
_SHORTEST_S: Final = 0.1
# Of the four threads; a namespace whose repositories drip leaves the others two.
_LOOKS_PER_NAMESPACE: Final = 2
_BUSY_S: Final = 0.5
# What another try of the same commit finds again, and so is remembered.
_OF_THE_COMMIT: Final = (EntryRefused, InvalidSource, LimitExceeded, PathNotFound, SignatureRefused)
_NAMES_TOLD: Final = 20
_NOTHING: Final = DesiredState((), ())


class _ChangedMeanwhile(Exception):  # noqa: N818 - reads as what happened
    """The GitSource is a newer one by now, or gone: nothing is applied for this one."""


@dataclass(slots=True)
class _Memory:
    """What was found at a commit, for a spec and its Secrets: ``basis``.

    ``accepted`` is what this process applied before, so the API server has taken it once.
    """

    basis: tuple[str, int, str]
    accepted: DesiredState = _NOTHING
    desired: DesiredState = _NOTHING
    failure: Failure | None = None
    notes: tuple[str, ...] = ()
    known: Known = field(default_factory=dict)
    is_applied: bool = False

    @property
    def revision(self) -> str:
        """The revision, as the status has it."""
        return self.basis[0]


@dataclass(slots=True)
class _Look:
    """One look; ``source`` is what the status will say of it when it ends, however it ends."""

    source: GitSource

    @property
    def wanted(self) -> Wanted:
        """What of the repository is followed."""
        return Wanted(self.source.branch, self.source.tag, self.source.commit)

    def is_as_applied(self, revision: str) -> bool:
        """Whether the status says that all of this revision is applied, by this spec."""
        ready = self.source.conditions.get(READY)
        return (
            ready is not None
            and ready.is_true
            and self.source.applied_revision == revision
            and self.source.observed_generation == self.source.metadata.generation
        )


@dataclass(slots=True)
class GitSourceController:
    """Reconciles GitSources."""

    client: KubeClient
    cache: ClusterCache
    clock: Clock
    events: EventRecorder
    _memories: dict[str, _Memory] = field(default_factory=dict)
    _looking: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reconcile(self, key: Key) -> float | None:
        """Look at one repository when it is due, apply what it says, prune what left it."""
        if self.cache.git_sources.store.get(*key) is None:
            return None
        namespace, name = key
        with self._lock:
            if self._looking[namespace] >= _LOOKS_PER_NAMESPACE:
                return _BUSY_S
            self._looking[namespace] += 1
        try:
            # The cache may not have what the last look wrote.
            source = GitSource.parse(self.client.get(GIT_SOURCES, name, namespace=namespace))
            if source.metadata.is_deleting:
                return self._let_go(source)
            return self._reconcile(source)
        except NotFound:
            return None
        except _ChangedMeanwhile:
            return _SHORTEST_S
        finally:
            with self._lock:
                self._looking[namespace] -= 1

    def _reconcile(self, source: GitSource) -> float | None:
        if source.is_suspended:
            if (status := suspended(source)) is not None:
                self._write(source, status)
            return None
        look = _Look(replace(source, handled_request=source.request))
        if not source.is_held:
            self._set_finalizers(source, [*source.metadata.finalizers, GIT_SOURCE_FINALIZER])
        try:
            notes = self._carry_out(look, self._commit(look))
        except _ChangedMeanwhile:
            raise
        except GitError as error:
            return self._fail(look, Failure(error.reason, str(error), is_stalled=error.is_stalled))
        except ApiError as error:
            return self._fail(look, Failure("ApiServerFailed", str(error)))
        except Failure as failure:
            return self._fail(look, failure)
        except Exception as error:  # noqa: BLE001 - the last place where it can be told
            # Its text may hold what a Secret holds; the log has where it came from, not what.
            log.error("%s: %s", source.metadata, _where(error))  # noqa: TRY400 - see above
            what = f"the controller met an error it does not know ({type(error).__name__})"
            told = f"{what}; its log says where. It is tried again"
            return self._fail(look, Failure("InternalError", told))
        again_s = max(source.interval_s, _SHORTEST_S)
        status = replace(applied(look.source, notes), next_look=self._in(again_s))
        if not status.ready.says_the_same_as(source.conditions.get(READY)):
            log.info("%s: %s", source.metadata, status.ready.message)
            self._emit(source, "Normal", "Applied", status.ready.message)
        self._write(look.source, status)
        return again_s

    # -- what the repository says

    def _commit(self, look: _Look) -> _Memory:
        """Return what the head says; it is read only if that is not known."""
        source = look.source
        access = read_access(self.client, source)
        memory = self._memories.get(source.metadata.uid)
        with open_repository(
            source.url, access.credentials, timeout_s=source.timeout_s
        ) as repository:
            head = repository.head(look.wanted)
            revision = look.wanted.revision(head.commit.decode())
            if revision != source.attempted_revision:
                look.source = replace(
                    source,
                    attempted_revision=revision,
                    attempted_seen_time=to_micro_time(self.clock.now()),
                )
            basis = (revision, source.metadata.generation, access.version)
            if memory is not None and memory.basis == basis:
                return memory
            is_new_spec = source.observed_generation != source.metadata.generation
            if is_new_spec or revision != source.attempted_revision:
                self._begin(look.source, f"reading revision {revision}")
            accepted = memory.desired if memory is not None and memory.is_applied else _NOTHING
            memory = _Memory(basis, accepted)
            try:
                checkout = repository.fetch(look.wanted, head)
                self._judge(look, checkout, access, memory)
                self._tell_of_rewriting(look, repository, head, checkout, memory)
            except _OF_THE_COMMIT as error:
                memory.failure = Failure(error.reason, str(error), is_stalled=error.is_stalled)
            except TreeRefusedError as error:
                memory.failure = Failure("TreeRefused", str(error), is_stalled=True)
        self._memories[source.metadata.uid] = memory
        return memory

    def _judge(self, look: _Look, checkout: Checkout, access: Access, memory: _Memory) -> None:
        """Read a commit.

        Raises:
            GitError, TreeRefusedError: it is not to be applied.
        """
        source = look.source
        notes = []
        if source.verify and access.signers:
            signer = verify(checkout, look.wanted, source.verify.mode, access.signers)
            notes.append(f"signed by {signer}")
        memory.desired = desired_state(
            checkout.tree(source.path).files,
            namespace=source.metadata.namespace,
            in_time=checkout.in_time,
        )
        if memory.desired.foreign:
            notes.append(f"left alone: {', '.join(memory.desired.foreign)}")
        if memory.desired.warnings:
            warnings = "; ".join(map(str, memory.desired.warnings))
            self._emit(source, "Warning", "OldSpelling", warnings)
            notes.append(f"old spellings: {warnings}")
        memory.notes = tuple(notes)

    def _tell_of_rewriting(
        self,
        look: _Look,
        repository: Repository,
        head: Head,
        checkout: Checkout,
        memory: _Memory,
    ) -> None:
        ref, _, before = look.source.applied_revision.rpartition("@sha1:")
        same_ref = look.wanted.revision(before) == look.source.applied_revision
        if not ref or not same_ref or look.wanted.tag:
            return
        if before.encode() in {head.commit, *checkout.commit.parents}:
            return
        if repository.is_rewritten(head, before):
            note = f"{ref} was rewritten: commit {before[:12]}, applied before, is gone from it"
            self._emit(look.source, "Warning", "ForcedPush", note)
            memory.notes = (*memory.notes, note)

    # -- the cluster made so

    def _carry_out(self, look: _Look, memory: _Memory) -> tuple[str, ...]:
        """Make the cluster what a commit says; returns what there is to tell."""
        if memory.failure is not None:
            raise memory.failure.with_traceback(None)  # which would grow at each look
        source, desired = look.source, memory.desired
        entries = tuple(d.entry for d in desired.objects)
        if refused := refusal(source, entries, memory.revision):
            raise Failure("PruneRefused", refused, is_stalled=True)
        applier = GitApplier(self.client, self.cache)
        try:
            if memory.is_applied or look.is_as_applied(memory.revision):
                drifted, shared = applier.correct(source, desired, memory.revision, memory.known)
                if drifted:
                    told = f"set back to Git: {some_of(drifted, _NAMES_TOLD)}"
                    log.info("%s: %s", source.metadata, told)
                    self._emit(source, "Normal", "DriftCorrected", told)
            else:
                shared = applier.shared(source, desired)
                self._apply(look, applier, memory, shared)
        except OwnedByAnotherError as error:
            raise Failure("OwnedByAnother", str(error)) from error
        except ApplyError as error:
            is_stalled = isinstance(error.error, Invalid)
            raise Failure("ApplyFailed", str(error), is_stalled=is_stalled) from error
        memory.is_applied = True
        self._prune(look, applier, tuple(e for e in entries if e not in shared))
        commit = memory.revision.rpartition(":")[2][:12]
        return (f"commit {commit} applied, {len(entries)} objects", *memory.notes)

    def _apply(
        self,
        look: _Look,
        applier: GitApplier,
        memory: _Memory,
        shared: frozenset[InventoryEntry],
    ) -> None:
        source = look.source
        news = memory.desired.without(memory.accepted)
        applier.rehearse(source, news, memory.revision, shared)
        ours = (d.entry for d in memory.desired.objects if d.entry not in shared)
        union = tuple(dict.fromkeys([*source.inventory, *ours]))
        if union != source.inventory:
            # Before the objects: whoever dies in between still knows what to prune.
            look.source = source = replace(source, inventory=union)
            self._begin(source, f"applying revision {memory.revision}")
        applier.apply(source, memory.desired, memory.revision, memory.known, shared)
        if memory.revision != source.applied_revision:  # else the same commit by another spec
            look.source = replace(
                source,
                applied_revision=memory.revision,
                revision_seen_time=source.attempted_seen_time,
                revision_applied_time=to_micro_time(self.clock.now()),
            )

    def _prune(self, look: _Look, applier: GitApplier, entries: tuple[InventoryEntry, ...]) -> None:
        source = look.source
        left = leaving(source.inventory, set(entries))
        pruned = applier.prune(source, left) if source.prune else Pruned()
        kept = pruned.failed if source.prune else left
        if pruned.deleted:
            told = f"left the repository: {some_of(pruned.deleted, _NAMES_TOLD)}"
            self._emit(source, "Normal", "Pruned", told)
        look.source = replace(source, inventory=(*entries, *kept))
        _raise_failed(pruned)

    # -- the end of a source

    def _let_go(self, source: GitSource) -> float | None:
        """Prune or keep what a deleted source applied, then let it go."""
        self._memories.pop(source.metadata.uid, None)
        if not source.is_held:
            return None
        if source.prune and not source.is_suspended:
            applier = GitApplier(self.client, self.cache)
            try:
                _raise_failed(applier.prune(source, leaving(source.inventory, ())))
            except Failure as failure:
                return self._fail(_Look(source), failure)
        remaining = [f for f in source.metadata.finalizers if f != GIT_SOURCE_FINALIZER]
        self._set_finalizers(source, remaining)
        return None

    def _set_finalizers(self, source: GitSource, finalizers: list[str]) -> None:
        """Set them.

        Raises:
            _ChangedMeanwhile: the object is a newer one by now.
            NotFound: it is gone.
        """
        patch = {
            "metadata": {
                "finalizers": finalizers,
                "resourceVersion": source.metadata.resource_version,
                "uid": source.metadata.uid,
            }
        }
        try:
            self.client.merge_patch(
                GIT_SOURCES,
                source.metadata.name,
                patch,
                namespace=source.metadata.namespace,
                field_manager=CONTROLLER_MANAGER,
            )
        except Conflict as error:
            raise _ChangedMeanwhile from error

    # -- telling

    def _fail(self, look: _Look, failure: Failure) -> float:
        source = look.source
        limit_s = _STALLED_S if failure.is_stalled else _RETRY_S
        again_s = max(min(source.interval_s, limit_s), _SHORTEST_S)
        status = replace(failed(source, failure), next_look=self._in(again_s))
        if not status.ready.says_the_same_as(source.conditions.get(READY)):
            log.info("%s is not applied: %s: %s", source.metadata, failure.reason, failure)
            self._emit(source, "Warning", failure.reason, status.ready.message)
        self._write(source, status)
        return again_s

    def _begin(self, source: GitSource, what: str) -> None:
        """Tell before something is done, and leave it if there is nobody to tell."""
        try:
            self._put(source, working(source, what))
        except (NotFound, Conflict) as error:
            raise _ChangedMeanwhile from error

    def _write(self, source: GitSource, status: Status) -> None:
        with suppress(NotFound, Conflict):
            self._put(source, status)

    def _put(self, source: GitSource, status: Status) -> None:
        self.client.apply(
            GIT_SOURCES,
            render(source, status, to_time(self.clock.now())),
            field_manager=CONTROLLER_MANAGER,
            subresource="status",
            force=True,
        )

    def _emit(self, source: GitSource, event_type: str, reason: str, message: str) -> None:
        about = {
            "apiVersion": OWN_API_VERSION,
            "kind": "GitSource",
            **source.metadata.identity(),
        }
        self.events.emit(about, event_type, reason, message)

    def _in(self, seconds: float) -> str:
        return to_time(self.clock.now() + timedelta(seconds=seconds))


def _raise_failed(pruned: Pruned) -> None:
    if pruned.failed:
        what = "; ".join(f"{entry}: {error}" for entry, error in pruned.failed.items())
        raise Failure("PruneFailed", f"could not be deleted, and is tried again: {what}")


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at " + ", ".join(f"{f.name}:{f.lineno}" for f in frames)
