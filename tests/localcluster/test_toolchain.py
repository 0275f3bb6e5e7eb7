# SPDX-License-Identifier: Apache-2.0
"""The toolchain: what decides a key, and what a failed build tells."""

import shutil
from pathlib import Path

import pytest

from localcluster import toolchain
from localcluster.toolchain import BINARIES, GROUPS, Toolchain, ToolchainError


@pytest.fixture
def pins(tmp_path: Path) -> Path:
    """Return a copy of the pins that a test may change."""
    shutil.copytree(toolchain.REPOSITORY / "tools", tmp_path / "tools")
    return tmp_path / "tools"


def paths(pins: Path, cache: Path) -> dict[str, Path]:
    """Return where every binary would lie."""
    chain = Toolchain(tools=pins, cache=cache, use_installed=False)
    return {binary.name: chain.path(binary.name) for binary in BINARIES}


def test_a_changed_pin_moves_the_binaries_of_its_module_and_no_others(
    pins: Path, tmp_path: Path
) -> None:
    """A pin decides the key of what is built from it, so nothing old is ever taken for new."""
    before = paths(pins, tmp_path)
    go_sum = pins / "cni" / "go.sum"
    go_sum.write_text(go_sum.read_text() + "\n")
    after = paths(pins, tmp_path)
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {"bridge", "host-local"}


def test_the_shim_has_another_key_where_oom_scores_cannot_be_lowered(
    pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The patched shim is never used where the plain one works."""
    monkeypatch.setattr(toolchain, "lacks_sys_resource", lambda: True)
    patched = paths(pins, tmp_path)
    monkeypatch.setattr(toolchain, "lacks_sys_resource", lambda: False)
    plain = paths(pins, tmp_path)
    moved = {name for name in plain if plain[name] != patched[name]}
    assert moved == {"containerd-shim-runsc-v1"}


def test_an_empty_cache_misses_every_binary(pins: Path, tmp_path: Path) -> None:
    """What is missing is found by looking, not by a record."""
    chain = Toolchain(tools=pins, cache=tmp_path / "cache", use_installed=False)
    assert chain.missing() == [binary.name for binary in BINARIES]


def test_a_group_is_built_for_itself(pins: Path, tmp_path: Path) -> None:
    """The local cluster never waits for what only tests want."""
    chain = Toolchain(tools=pins, cache=tmp_path / "cache", use_installed=False)
    by_group = {group: chain.missing(group) for group in GROUPS}
    assert by_group["gitops"] == ["kustomize-controller", "argocd"]
    assert chain.missing() == by_group["cluster"]
    assert not set(by_group["cluster"]) & set(by_group["gitops"])


def test_an_unknown_group_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is built."""
    assert toolchain.main(["build", "everything"]) == 2
    assert "build [cluster | gitops" in capsys.readouterr().err


def test_a_failed_build_shows_its_output_the_log_and_what_to_do(pins: Path, tmp_path: Path) -> None:
    """The Go command's own words reach the user, and nothing half-built stays."""
    module = pins / "etcd"
    (module / "go.mod").write_text("module broken\n\ngo 1.26.0\n")
    (module / "go.sum").write_text("")
    cache = tmp_path / "cache"
    chain = Toolchain(tools=pins, cache=cache, use_installed=False)
    with pytest.raises(ToolchainError) as caught:
        chain.build(lambda _line: None)
    assert "go.etcd.io/etcd/server/v3: " in str(caught.value)
    assert str(cache / "tools" / "etcd.log") in str(caught.value)
    assert "GOPROXY" in str(caught.value)
    assert not list((cache / "tools").glob("building-*"))


def test_the_kubernetes_version_comes_from_the_pin() -> None:
    """The binaries must report the version that is pinned, or the kubelet is refused."""
    go_mod = "require (\n\tk8s.io/kubernetes v1.36.3 // indirect\n)\n"
    kubelet = next(b for b in BINARIES if b.name == "kubelet")
    assert "gitVersion=v1.36.3" in toolchain.linker_flags(kubelet, go_mod)


def test_a_go_mod_without_the_pin_is_refused() -> None:
    """A broken tools folder is named, not built from."""
    with pytest.raises(ToolchainError, match=r"pins no k8s\.io/kubernetes"):
        toolchain.pinned("module x\n", "k8s.io/kubernetes")


@pytest.mark.parametrize(
    ("version", "floor", "fits"),
    [
        ("2.4", "2.1", True),
        ("2.0", "2.1", False),
        ("2.10", "2.9", True),
        ("1.36", "1.36=", True),
        ("1.37", "1.36=", False),
    ],
)
def test_an_installed_binary_must_reach_its_floor_or_match_the_minor(
    *, version: str, floor: str, fits: bool
) -> None:
    """A floor admits newer ones, except where the minor must be the same."""
    assert toolchain.good_enough(version, floor) is fits


@pytest.mark.parametrize(("version", "used"), [("3.6.16", True), ("3.4.23", False)])
def test_an_installed_binary_is_used_only_when_asked_for_and_new_enough(
    *, version: str, used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The program on the PATH is asked for its version; the pinned one stays the default."""
    program = tmp_path / "etcd"
    program.write_text(f"#!/bin/sh\necho etcd Version: {version}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    asked = Toolchain(cache=tmp_path / "cache", use_installed=True)
    assert (asked.path("etcd") == program) is used
    assert Toolchain(cache=tmp_path / "cache", use_installed=False).path("etcd") != program
