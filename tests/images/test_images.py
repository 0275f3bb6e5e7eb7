# SPDX-License-Identifier: Apache-2.0
"""Images are built from a recipe, always the same, and are valid OCI archives."""

import hashlib
import json
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localcluster.images import BuiltImage, ImageError, build_image, default_cache

EXAMPLES = Path(__file__).parents[2] / "examples"
Build = Callable[..., BuiltImage]

RECIPE = """
ref = "podsnap.local/small:1"
entrypoint = ["/app/run"]
remove = ["app/*.txt"]
[files]
"app/run" = "run"
"app/unwanted.txt" = "run"
[symlinks]
"usr/bin/run" = "../../app/run"
[env]
GREETING = "hello"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Return a directory with a small recipe that needs no network."""
    directory = tmp_path / "small"
    directory.mkdir()
    (directory / "image.toml").write_text(RECIPE)
    (directory / "run").write_text("#!/bin/sh\necho ran\n")
    (directory / "run").chmod(0o755)
    return directory


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Return a builder with a cache of its own."""

    def run(directory: Path, cache: str = "cache") -> BuiltImage:
        return build_image(directory, cache=tmp_path / cache, progress=lambda _: None)

    return run


def blob(archive: Path, digest: str) -> bytes:
    """Read one blob and check that it is what its name says."""
    with tarfile.open(archive) as tar:
        content = tar.extractfile(f"blobs/sha256/{digest.removeprefix('sha256:')}")
        assert content is not None
        found = content.read()
    assert f"sha256:{hashlib.sha256(found).hexdigest()}" == digest
    return found


def descend(archive: Path) -> tuple[dict[str, Any], dict[str, Any], list[bytes]]:
    """Follow every digest from the index; return manifest descriptor, configuration and layers."""
    with tarfile.open(archive) as tar:
        layout, index = tar.extractfile("oci-layout"), tar.extractfile("index.json")
        assert layout is not None
        assert index is not None
        assert json.load(layout) == {"imageLayoutVersion": "1.0.0"}
        (descriptor,) = json.load(index)["manifests"]
    manifest = json.loads(blob(archive, descriptor["digest"]))
    config = json.loads(blob(archive, manifest["config"]["digest"]))
    layers = [blob(archive, layer["digest"]) for layer in manifest["layers"]]
    assert [len(layer) for layer in layers] == [layer["size"] for layer in manifest["layers"]]
    diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    assert config["rootfs"] == {"type": "layers", "diff_ids": diff_ids}
    return descriptor, config, layers


def members(layer: bytes, tmp_path: Path) -> dict[str, tarfile.TarInfo]:
    """List a layer."""
    path = tmp_path / "listed.tar"
    path.write_bytes(layer)
    with tarfile.open(path) as tar:
        return {member.name: member for member in tar}


def test_the_same_recipe_gives_the_same_bytes_whoever_builds_it(recipe: Path, build: Build) -> None:
    """Neither the time, nor the file mode mask, nor another cache shows in the archive."""
    first = build(recipe, "one")
    os.utime(recipe / "run", (1, 1))
    mask = os.umask(0o077)
    try:
        second = build(recipe, "two")
    finally:
        os.umask(mask)
    assert first.archive != second.archive
    assert first.image_id == second.image_id
    assert first.archive.read_bytes() == second.archive.read_bytes()


def test_the_archive_is_a_valid_oci_layout_that_names_its_image(
    recipe: Path, build: Build, tmp_path: Path
) -> None:
    """Every digest and size is right, and containerd finds the name that it shall import."""
    image = build(recipe)
    descriptor, config, (layer,) = descend(image.archive)
    assert descriptor["annotations"] == {
        "io.containerd.image.name": "podsnap.local/small:1",
        "org.opencontainers.image.ref.name": "1",
    }
    assert config["config"] == {
        "Entrypoint": ["/app/run"],
        "Env": ["GREETING=hello"],
        "WorkingDir": "/",
    }
    assert image.layer_bytes == len(layer)
    listed = members(layer, tmp_path)
    assert set(listed) == {"app", "app/run", "usr", "usr/bin", "usr/bin/run"}
    assert listed["app/run"].mode == 0o755
    assert listed["usr/bin/run"].linkname == "../../app/run"
    assert {(m.uid, m.gid, m.mtime) for m in listed.values()} == {(0, 0, 0)}


def test_the_image_id_is_the_digest_of_the_configuration(recipe: Path, build: Build) -> None:
    """It is what CRI reports, and what a restore is compared by."""
    image = build(recipe)
    assert json.loads(blob(image.archive, image.image_id))["os"] == "linux"


def test_a_second_build_comes_from_the_cache_at_once(recipe: Path, build: Build) -> None:
    """Nothing is built when nothing has changed."""
    first = build(recipe)
    written = first.archive.stat().st_mtime_ns
    began_s = time.monotonic()
    assert build(recipe) == first
    assert time.monotonic() - began_s < 0.3
    assert first.archive.stat().st_mtime_ns == written


@pytest.mark.parametrize("changed", ["image.toml", "run"])
def test_a_changed_input_gives_another_image(recipe: Path, build: Build, changed: str) -> None:
    """The cache is keyed by the content of everything that goes in."""
    before = build(recipe)
    text = (recipe / changed).read_text()
    (recipe / changed).write_text(text.replace("hello", "good day").replace("ran", "walked"))
    assert build(recipe).image_id != before.image_id


def test_an_image_has_the_layers_and_the_settings_of_its_base(
    recipe: Path, build: Build, tmp_path: Path
) -> None:
    """Layers are shared; what a recipe leaves out is inherited."""
    base = build(recipe)
    above = tmp_path / "above"
    above.mkdir()
    (above / "image.toml").write_text(
        'ref = "podsnap.local/above:1"\nbase = "../small"\n'
        '[files]\n"app/more" = "more"\n[env]\nOWN = "1"\n'
    )
    (above / "more").write_text("more\n")
    image = build(above)
    _, config, layers = descend(image.archive)
    assert layers[0] == descend(base.archive)[2][0]
    assert "app/more" in members(layers[1], tmp_path)
    assert config["config"] == {
        "Entrypoint": ["/app/run"],
        "Env": ["GREETING=hello", "OWN=1"],
        "WorkingDir": "/",
    }
    (recipe / "run").write_text("changed\n")
    assert build(above).image_id != image.image_id


def test_what_a_killed_builder_left_is_cleared_and_built_again(recipe: Path, build: Build) -> None:
    """A half-written entry is never used, and nothing piles up."""
    image = build(recipe)
    home = image.archive.parent
    (home / "image.json").write_text("{")
    leftover = home.parent / "building-killed"
    (leftover / "root").mkdir(parents=True)
    assert build(recipe) == image
    assert not leftover.exists()


def test_a_target_that_leads_out_of_the_image_is_refused(
    recipe: Path, build: Build, tmp_path: Path
) -> None:
    """A link inside the image must never make the builder write on the host."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (recipe / "image.toml").write_text(
        f'ref = "x.local/x:1"\n[symlinks]\n"var" = "{outside}"\n"var/link" = "x"\n'
    )
    with pytest.raises(ImageError, match="leads out of the image's root"):
        build(recipe)
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('ref = "x.local/x:1"\npackage = ["libc6"]\n', "unknown keys package"),
        ("packages = []\n", "ref must be a string"),
        ('ref = "x.local/x:1"\n[files]\n"a" = "absent"\n', "names absent"),
        ('ref = "x.local/x:1"\n[files]\n"../a" = "run"\n', r"without \.\."),
        ('ref = "x.local/x:1"\nbase = "."\n', "its own base"),
        ('ref = "x.local/x:1"\nprogram = "run"\n', "run by hand|by hand with a directory"),
        ("ref = \n", "not valid TOML"),
    ],
)
def test_a_wrong_recipe_is_an_error_that_says_what_to_correct(
    recipe: Path, build: Build, toml: str, said: str
) -> None:
    """Nothing is ignored in silence."""
    (recipe / "image.toml").write_text(toml)
    with pytest.raises(ImageError, match=said):
        build(recipe)


def test_an_unknown_package_is_an_error_that_names_it(recipe: Path, build: Build) -> None:
    """The message has the package, and nothing is left in the cache."""
    (recipe / "image.toml").write_text(
        'ref = "x.local/x:1"\npackages = ["podsnap-no-such-package"]\n'
    )
    with pytest.raises(ImageError, match=r"podsnap-no-such-package.*check the package names"):
        build(recipe)


def test_the_pause_image_is_one_static_program(tmp_path: Path) -> None:
    """It is built from the real package, and has nothing but its program."""
    directory = EXAMPLES / "images" / "pause"
    image = build_image(directory, cache=default_cache(), progress=lambda _: None)
    _, config, (layer,) = descend(image.archive)
    files = [name for name, member in members(layer, tmp_path).items() if member.isreg()]
    assert files == ["usr/bin/catatonit"]
    assert config["config"]["Entrypoint"] == ["/usr/bin/catatonit", "-P"]
