# SPDX-License-Identifier: Apache-2.0
"""What a GitSource tells and survives: requests, drift, suspension, refused prunes, its own end."""

import subprocess
from pathlib import Path
from typing import Any

import pysequoia
import pytest
import yaml
from cluster_world import eventually
from dulwich.objects import Commit
from dulwich.repo import Repo
from git_repository import Repository
from git_servers import git, git_over_ssh

from backends.kube.client import (
    GIT_SOURCES,
    POD_SNAPSHOT_MANUAL_TRIGGERS,
    POD_SNAPSHOT_POLICIES,
    POD_SNAPSHOT_STORAGE_CONFIGS,
)
from schemas.instants import parse_time
from schemas.names import GIT_REVISION_ANNOTATION, GIT_SOURCE_FINALIZER
from schemas.names import GIT_SOURCE_ANNOTATION as MARK

pytestmark = pytest.mark.usefixtures("manager")


def three(repository: Repository) -> str:
    """Commit three policies and follow them."""
    made = repository.commit(**{n: repository.policy_text(n) for n in "abc"})
    repository.follow()
    repository.applied(made)
    return made


def test_the_status_follows_kstatus(repository: Repository) -> None:
    """Ready alone when all is well; Stalled beside it when only a change helps."""
    made = three(repository)
    status = eventually(
        lambda: repository.ready().get("status") == "True" and repository.status(), "ready"
    )
    generation = (repository.world.get(GIT_SOURCES, "repo") or {})["metadata"]["generation"]
    assert status["observedGeneration"] == generation
    assert list(repository.conditions()) == ["Ready"]
    seen, applied = (parse_time(status[k]) for k in ("revisionSeenTime", "revisionAppliedTime"))
    assert seen
    assert applied
    assert seen <= applied
    assert status["lastAttemptedRevision"] == status["lastAppliedRevision"]
    assert parse_time(status["nextLookTime"])

    bad = repository.commit(bad="kind: [")
    repository.refused("syntax error")
    conditions = repository.conditions()
    assert set(conditions) == {"Ready", "Stalled"}
    assert conditions["Stalled"]["reason"] == conditions["Ready"]["reason"] == "TreeRefused"
    status = repository.status()
    assert status["lastAppliedRevision"].endswith(made)
    assert status["lastAttemptedRevision"].endswith(bad)
    assert parse_time(status["revisionSeenTime"]) == seen

    repository.change({"ref": {"branch": "gone"}})
    eventually(lambda: "Reconciling" in repository.conditions(), "it is tried again")
    assert set(repository.conditions()) == {"Ready", "Reconciling"}
    assert repository.ready()["reason"] == "RefNotFound"
    assert repository.policy("a")


def test_a_look_can_be_asked_for(repository: Repository) -> None:
    """By an annotation, as Flux's; the status says which one was answered."""
    repository.commit(web=repository.policy_text())
    repository.follow(interval="1h")
    eventually(lambda: repository.ready().get("status") == "True", "the first is applied")
    second = repository.commit(b=repository.policy_text("b"))
    repository.change(requestedAt="now")
    repository.applied(second)
    eventually(lambda: repository.status().get("lastHandledReconcileAt") == "now", "answered")


def test_corrected_drift_is_told_with_names(repository: Repository) -> None:
    """Of a spec, of a label, of an object that is gone; and nothing is told where nothing was."""
    text = yaml.safe_load(repository.policy_text())
    text["metadata"]["labels"] = {"team": "red"}
    repository.commit(web=yaml.safe_dump(text), other=repository.policy_text("other"))
    repository.follow()
    eventually(lambda: repository.ready().get("status") == "True", "applied")
    admin, namespace = repository.world.admin, repository.world.namespace
    admin.merge_patch(
        POD_SNAPSHOT_POLICIES,
        "web",
        {"metadata": {"labels": {"team": "blue"}}},
        namespace=namespace,
        field_manager="user",
    )
    message = repository.told("DriftCorrected")
    assert message == "set back to Git: PodSnapshotPolicy web"

    def label() -> str:
        return str((repository.policy() or {})["metadata"]["labels"]["team"])

    eventually(lambda: label() == "red", "the label is back")


def test_a_suspended_source_does_nothing(repository: Repository) -> None:
    """Neither a new commit nor drift; what it said stays."""
    first = repository.commit(web=repository.policy_text())
    repository.follow(suspend=True)
    eventually(lambda: repository.status().get("observedGeneration") == 1, "it was seen")
    assert repository.policy() is None
    repository.change({"suspend": False})
    repository.applied(first)
    repository.change({"suspend": True})
    eventually(lambda: "nextLookTime" not in repository.status(), "no next look")
    repository.commit(b=repository.policy_text("b"))
    repository.change(requestedAt="x")
    repository.change({"interval": "1s"})
    eventually(lambda: repository.status().get("observedGeneration") == 4, "it was seen")
    assert repository.status()["lastAppliedRevision"].endswith(first)
    assert repository.ready()["status"] == "True"


def test_a_commit_that_removes_most_policies_is_refused_until_allowed(
    repository: Repository,
) -> None:
    """A wrong merge looks just like it."""
    first = three(repository)
    second = repository.commit(a=None, b=None, d=repository.policy_text("d"))
    message = repository.refused("would remove 2 of 3 policies at once")
    assert repository.ready()["reason"] == "PruneRefused"
    assert "PodSnapshotPolicy a, PodSnapshotPolicy b" in message
    assert repository.status()["lastAppliedRevision"].endswith(first)
    assert repository.policy("d") is None
    repository.change(allow_prune=second[:12])
    repository.applied(second)
    eventually(lambda: repository.policy("a") is None, "a is pruned")
    assert repository.told("Pruned")


def test_an_emptied_tree_prunes_nothing(repository: Repository) -> None:
    """And a folder that is gone does not either."""
    made = repository.commit(p__a=repository.policy_text("a"), other="kind: List\n")
    repository.follow(path="p")
    repository.applied(made)
    repository.commit(p__a=None, p__b="apiVersion: v1\nkind: ConfigMap\n")
    repository.refused("has no objects of podsnap any more")
    repository.commit(p__b=None)
    repository.refused("has no folder p")
    assert repository.ready()["reason"] == "PathNotFound"
    assert repository.policy("a")


def test_a_deleted_source_takes_its_objects_along(repository: Repository) -> None:
    """All kinds; and what somebody else made stays."""
    trigger = repository.world.object("PodSnapshotManualTrigger", "t", {"targetPod": "none"})
    config = {
        "apiVersion": "podsnapshot.gke.io/v1",
        "kind": "PodSnapshotStorageConfig",
        "metadata": {"name": repository.world.store},
        "spec": {"snapshotStorageConfig": {"gcs": {"bucket": "bucket-from-git"}}},
    }
    made = repository.commit(
        a=repository.policy_text("a"), t=yaml.safe_dump(trigger), s=yaml.safe_dump(config)
    )
    repository.follow()
    repository.applied(made)
    repository.world.policy("by-hand")
    source = repository.world.get(GIT_SOURCES, "repo") or {}
    assert GIT_SOURCE_FINALIZER in source["metadata"]["finalizers"]
    repository.delete()
    assert repository.policy("a") is None
    assert repository.world.get(POD_SNAPSHOT_MANUAL_TRIGGERS, "t") is None
    assert repository.world.get(POD_SNAPSHOT_STORAGE_CONFIGS, repository.world.store) is None
    assert repository.policy("by-hand")


@pytest.mark.parametrize("spec", [{"prune": False}, {"suspend": True}], ids=str)
def test_a_deleted_source_leaves_its_objects_if_told(
    repository: Repository, spec: dict[str, Any]
) -> None:
    """By prune, or because it is suspended."""
    three(repository)
    repository.change(spec)
    repository.delete()
    assert repository.policy("a")


def test_the_first_of_two_sources_keeps_an_object(repository: Repository) -> None:
    """The second is told whose it is, and gets it when the first is gone."""
    made = repository.commit(web=repository.policy_text())
    repository.follow()
    repository.applied(made)
    repository.follow("second")
    eventually(
        lambda: repository.conditions("second").get("Ready", {}).get("reason") == "OwnedByAnother",
        "the second is told",
    )
    namespace = repository.world.namespace
    message = repository.conditions("second")["Ready"]["message"]
    assert f"PodSnapshotPolicy web belongs to GitSource {namespace}/repo" in message
    annotations = (repository.policy() or {})["metadata"]["annotations"]
    assert annotations[MARK] == f"{namespace}/repo"
    repository.change({"prune": False})
    repository.delete()
    eventually(
        lambda: repository.conditions("second")["Ready"]["status"] == "True",
        "the second takes over",
    )


@pytest.mark.parametrize(
    ("metadata", "owner"),
    [
        ({"labels": {"kustomize.toolkit.fluxcd.io/name": "apps"}}, "Flux's Kustomization apps"),
        (
            {"annotations": {"argocd.argoproj.io/tracking-id": "shop:podsnapshot.gke.io/x"}},
            "Argo CD's Application shop",
        ),
    ],
    ids=["flux", "argo"],
)
def test_what_flux_or_argo_cd_applies_is_theirs(
    repository: Repository, metadata: dict[str, Any], owner: str
) -> None:
    """Two tools that write one object would undo each other for ever."""
    body = yaml.safe_load(repository.policy_text())
    body["metadata"] |= {"namespace": repository.world.namespace, **metadata}
    repository.world.create(POD_SNAPSHOT_POLICIES, body)
    repository.commit(web=repository.policy_text())
    repository.follow()
    repository.refused(owner)


def test_one_storage_config_may_come_from_two_sources(repository: Repository) -> None:
    """If both say the same: the first keeps it, neither fights, and the second inherits it."""
    config = {
        "apiVersion": "podsnapshot.gke.io/v1",
        "kind": "PodSnapshotStorageConfig",
        "metadata": {"name": repository.world.store},
        "spec": {"snapshotStorageConfig": {"gcs": {"bucket": "bucket-from-git"}}},
    }
    made = repository.commit(s=yaml.safe_dump(config))
    repository.follow()
    repository.applied(made)
    repository.follow("second")

    def ready() -> str:
        return str(repository.conditions("second").get("Ready", {}).get("status"))

    def owner() -> str:
        live = repository.world.get(POD_SNAPSHOT_STORAGE_CONFIGS, repository.world.store)
        return str(((live or {"metadata": {}})["metadata"].get("annotations") or {}).get(MARK, ""))

    eventually(lambda: ready() == "True", "the second is content")
    looks = {repository.status("second")["nextLookTime"]}
    eventually(
        lambda: looks.add(repository.status("second")["nextLookTime"]) or len(looks) > 2,
        "it looked again",
    )
    assert owner().endswith("/repo")
    repository.delete()
    eventually(lambda: owner().endswith("/second"), "the second brings it back")


def test_a_repository_that_is_gone_changes_nothing(repository: Repository) -> None:
    """It is tried again, and all is well when it is back."""
    made = repository.commit(web=repository.policy_text())
    repository.follow()
    repository.applied(made)
    away = repository.path.with_name("away")
    repository.path.rename(away)
    message = repository.refused("is no Git repository")
    assert f"revision HEAD@sha1:{made} stays applied" in message
    assert repository.ready()["reason"] == "RepositoryNotFound"
    assert set(repository.conditions()) == {"Ready", "Reconciling"}
    assert repository.policy()
    away.rename(repository.path)
    eventually(lambda: repository.ready()["status"] == "True", "it is back")


REFS = {
    "a name that Git does not allow": ({"branch": "a..b"}, "is no name that Git allows"),
    "a name with a line break": ({"tag": "a\nb"}, "is no name that Git allows"),
}


@pytest.mark.parametrize("what", REFS)
def test_a_ref_that_cannot_be_is_stalled(repository: Repository, what: str) -> None:
    """Nothing but a change of the spec helps, and tools that wait are told so."""
    ref, message = REFS[what]
    made = repository.commit(web=repository.policy_text())
    repository.follow()
    repository.applied(made)
    repository.change({"ref": ref})
    repository.refused(message)
    assert repository.conditions()["Stalled"]["reason"] == "InvalidSource"
    assert repository.policy()


def test_what_the_api_server_refuses_is_told(repository: Repository) -> None:
    """What no schema can say, a server's rule may; what was applied stays."""
    good = repository.commit(web=repository.policy_text())
    repository.follow()
    repository.applied(good)
    body = yaml.safe_load(repository.policy_text("x"))
    body["metadata"]["labels"] = {"team": "not a label"}
    changed = repository.policy_text(selector={"matchLabels": {"app": "changed"}})
    repository.commit(web=changed, x=yaml.safe_dump(body))
    repository.refused("PodSnapshotPolicy x was refused")
    assert repository.ready()["reason"] == "ApplyFailed"
    # Not even what is right: half a commit is a state that nobody wrote.
    web = repository.policy() or {}
    assert web["spec"]["selector"] == {"matchLabels": {"app": "web"}}
    assert web["metadata"]["annotations"][GIT_REVISION_ANNOTATION].endswith(good)
    assert {e["name"] for e in repository.status()["inventory"]} == {"web"}
    repository.applied(repository.commit(x=None))


def test_a_forced_push_is_applied_and_told(repository: Repository) -> None:
    """The new head counts; who looks at the source learns that the old one is gone."""
    repository.commit(a=repository.policy_text("a"))
    lost = repository.commit(b=repository.policy_text("b"))
    repository.follow(ref={"branch": "main"})
    repository.applied(lost)
    git(repository.path, "reset", "-q", "--hard", "HEAD~1")
    new = repository.commit(c=repository.policy_text("c"))
    message = repository.applied(new)["message"]
    assert f"main was rewritten: commit {lost[:12]}" in message
    assert repository.told("ForcedPush")
    assert repository.policy("c")


def test_old_spellings_are_applied_and_told_with_their_place(repository: Repository) -> None:
    """File, line and what v1 has, in Ready and as an event."""
    old = repository.policy_text(triggerConfig={"type": "Workload"}).replace(
        "podsnapshot.gke.io/v1", "podsnapshot.gke.io/v1alpha1"
    )
    made = repository.commit(web=old)
    repository.follow()
    message = repository.applied(made)["message"]
    for text in (message, repository.told("OldSpelling")):
        assert "web.yaml:1:" in text
        assert "v1 is apiVersion: podsnapshot.gke.io/v1" in text
        assert "v1 is type: workload" in text
    assert (repository.policy() or {})["spec"]["triggerConfig"]["type"] == "workload"


def test_a_private_repository_is_followed_over_ssh(repository: Repository) -> None:
    """A Secret that may not be read is told with what to do; a wrong host key with which it is."""
    made = repository.commit(web=repository.policy_text())
    with git_over_ssh(repository.path.parent) as server, git_over_ssh(repository.path) as other:
        repository.follow(url=f"{server.url}/repository", secretRef={"name": "git"})
        assert "docs/git-source.md" in repository.refused("may not read")
        assert repository.ready()["reason"] == "SecretNotReadable"
        wrong = server.known_hosts.split(" ")[0] + " " + other.known_hosts.split(" ", 1)[1]
        repository.secret("git", identity=server.identity, known_hosts=wrong)
        repository.refused("not the one in known_hosts")
        assert repository.conditions()["Stalled"]["reason"] == "HostKeyRefused"
        repository.secret("git", identity=server.identity, known_hosts=server.known_hosts)
        repository.applied(made)
    repository.refused("cannot be reached")
    assert set(repository.conditions()) == {"Ready", "Reconciling"}
    assert repository.policy()


def test_an_unsigned_commit_is_not_applied(repository: Repository) -> None:
    """Nor one whose signer is not named; the last signed one stays."""
    key = repository.path.parent / "signer"
    stranger = repository.path.parent / "stranger"
    for path in (key, stranger):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    repository.secret("signers", allowed_signers=f'me@example.org namespaces="git" {public}\n')
    first = signed(repository, key, "a")
    repository.follow(verify={"secretRef": {"name": "signers"}})
    assert "signed by me@example.org" in repository.applied(first)["message"]
    signed(repository, stranger, "b")
    repository.refused("is by nobody in allowed_signers")
    repository.commit(c=repository.policy_text("c"))
    repository.refused("is not signed")
    assert repository.conditions()["Stalled"]["reason"] == "SignatureRefused"
    assert repository.status()["lastAppliedRevision"].endswith(first)
    assert repository.policy("b") is None
    good = signed(repository, key, "d")
    repository.applied(good)


def signed(repository: Repository, key: Path, name: str) -> str:
    """Commit a policy, signed by an SSH key, as git does it."""
    (repository.path / f"{name}.yaml").write_text(repository.policy_text(name))
    git(repository.path, "add", ".")
    options = ["gpg.format=ssh", f"user.signingkey={key}"]
    config = [word for option in options for word in ("-c", option)]
    git(repository.path, *config, "commit", "-q", "-S", "-m", name)
    return git(repository.path, "rev-parse", "HEAD")


def test_an_openpgp_signature_holds_for_its_content_alone(repository: Repository) -> None:
    """A signature of another commit is none."""
    secret = pysequoia.Tsk.generate("me <me@example.org>")
    public = str(secret.extract_certificate())
    repository.secret("signers", me__asc=public)
    repository.commit(a=repository.policy_text("a"))
    first = openpgp(repository, secret)
    repository.follow(verify={"secretRef": {"name": "signers"}})
    assert "signed by OpenPGP" in repository.applied(first)["message"]
    repository.commit(b=repository.policy_text("b"))
    openpgp(repository, secret, content=b"something else")
    repository.refused("the OpenPGP signature of commit")
    assert repository.policy("b") is None


def openpgp(repository: Repository, secret: Any, content: bytes | None = None) -> str:  # noqa: ANN401 - a Sequoia key
    """Sign the last commit, or something else in its name; returns its new name."""
    with Repo(str(repository.path)) as repo:
        made = repo[repo.refs[b"HEAD"]]
        assert isinstance(made, Commit)
        made.gpgsig = pysequoia.sign(
            secret.signer(), content or made.as_raw_string(), mode=pysequoia.SignatureMode.DETACHED
        )
        repo.object_store.add_object(made)
        repo.refs[b"refs/heads/main"] = made.id
        return made.id.decode()
