# SPDX-License-Identifier: Apache-2.0
"""Images without a registry and without a container engine.

The concept: a directory with an ``image.toml`` says which Debian packages, wheels and files make up
an image; the result is an OCI archive for ``ctr images import``, kept in a cache under the digest
of everything that went in. Same recipe, same answer, at once; a layer holds nothing of the builder.

The trap: a package unpacked into a directory may bring absolute symbolic links. Writing "into the
image" through one of them would write on the host, so every target is resolved and must stay
below the image's root.

``python -m localcluster.images DIRECTORY...`` builds and prints one line for each.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from localcluster import debian, image_recipe, oci_archive
from localcluster.image_recipe import ImageError, Recipe, read_recipe

__all__ = ["BuiltImage", "ImageError", "build_image", "default_cache"]

# Another process may be building the largest image, over a slow mirror, before it is our turn.
_LOCK_LIMIT_S: Final = 1800.0
_LOCK_POLL_S: Final = 0.1
_PROGRAM_LIMIT_S: Final = 900
# Wheels that run on the C library of the Debian release that the images come from.
_WHEEL_PLATFORMS: Final = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)
_SOURCES: Final = (__file__, image_recipe.__file__, debian.__file__, oci_archive.__file__)


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image in the cache. ``layer_bytes`` counts every layer, those of its base included."""

    ref: str
    archive: Path
    image_id: str
    layer_bytes: int


def default_cache() -> Path:
    """Return ``$PODSNAP_CACHE``, or ``~/.cache/podsnap``."""
    chosen = os.environ.get("PODSNAP_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "podsnap"


def build_image(directory: Path, *, cache: Path, progress: Callable[[str], None]) -> BuiltImage:
    """Return the image that ``directory/image.toml`` describes; build it if the cache lacks it.

    Raises:
        ImageError: the recipe is wrong, or a package, a wheel or a program failed.
    """
    recipe = read_recipe(directory)
    home = cache.resolve() / "images"
    if (found := _cached(home, _key(recipe))) is not None:
        return found.image
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(home / "lock"):
        # Whoever holds the lock builds alone: what lies here was left by a killed builder.
        for leftover in home.glob("building-*"):
            shutil.rmtree(leftover)
        return _build(recipe, home=home, progress=progress).image


@dataclass(frozen=True, slots=True)
class _Entry:
    image: BuiltImage
    layers: tuple[oci_archive.Layer, ...]


def _build(recipe: Recipe, *, home: Path, progress: Callable[[str], None]) -> _Entry:
    key = _key(recipe)
    if (found := _cached(home, key)) is not None:
        return found
    below = _build(recipe.base, home=home, progress=progress).layers if recipe.base else ()
    progress(f"building {recipe.ref}")
    work = Path(tempfile.mkdtemp(prefix="building-", dir=home))
    try:
        root = work / "root"
        root.mkdir()
        _fill(recipe, root, work=work, apt=debian.Apt(home.parent / "apt"), progress=progress)
        done = work / "done"
        done.mkdir(mode=0o700)
        own = oci_archive.write_layer(root, done / "layer.tar")
        layers = (*below, own)
        image_id = oci_archive.write_archive(
            done / "image.tar",
            ref=recipe.ref,
            layers=layers,
            process=oci_archive.Process(recipe.entrypoint, recipe.env, recipe.cwd),
        )
        _write_record(done / "image.json", recipe.ref, image_id, layers)
        # A directory of this name without a readable record is of no use to anybody.
        shutil.rmtree(home / key, ignore_errors=True)
        done.rename(home / key)
    except debian.PackageError as error:
        raise ImageError(f"{recipe.directory / 'image.toml'}: {error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    entry = _cached(home, key)
    if entry is None:
        raise ImageError(f"{home / key} vanished while it was being read; build {recipe.ref} again")
    return entry


def _fill(
    recipe: Recipe, root: Path, *, work: Path, apt: debian.Apt, progress: Callable[[str], None]
) -> None:
    if recipe.packages:
        progress(f"{recipe.ref}: {len(recipe.packages)} Debian packages")
        archives = work / "debs"
        archives.mkdir()
        for archive in apt.download(recipe.packages, archives, progress=progress):
            debian.unpack(archive, root)
    if recipe.requirements is not None:
        progress(f"{recipe.ref}: wheels of {recipe.requirements.name}")
        _install_wheels(recipe.requirements, _inside(root, recipe.wheels_target), work=work)
    for target, source in recipe.files.items():
        place = _inside(root, target)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)
        place.chmod(source.stat().st_mode & 0o777)
    for path, points_to in recipe.symlinks.items():
        place = _inside(root, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(points_to)
    if recipe.program is not None:
        progress(f"{recipe.ref}: running {recipe.program.name}")
        _run_program(recipe.program, root, apt=apt, progress=progress)
    for pattern in recipe.remove:
        # Deepest first, so that nothing is looked for below what is gone.
        for found in sorted(root.glob(pattern), reverse=True):
            if found.is_dir() and not found.is_symlink():
                shutil.rmtree(found)
            else:
                found.unlink()


def _install_wheels(requirements: Path, target: Path, *, work: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-compile", "--only-binary=:all:", "--target", str(target)]
    command += ["--implementation=cp", "--python-version=3.11"]
    command += [f"--platform={platform}" for platform in _WHEEL_PLATFORMS]
    command += ["--root-user-action=ignore", "--requirement", str(requirements)]
    _run(command, cwd=work, env=dict(os.environ), fix=f"check the pins in {requirements}")
    # Console scripts name the builder's interpreter, and RECORD holds their digests.
    shutil.rmtree(target / "bin", ignore_errors=True)
    for record in target.glob("*.dist-info/RECORD"):
        record.unlink()


def _run_program(
    program: Path, root: Path, *, apt: debian.Apt, progress: Callable[[str], None]
) -> None:
    command = [sys.executable, "-I", str(program), str(root)]
    fix = f"run {program} by hand with a directory as its argument"
    try:
        _run(command, cwd=root, env=apt.environment(), fix=fix)
    except ImageError:
        apt.refresh(progress)  # a program that reads package lists may have found none
        _run(command, cwd=root, env=apt.environment(), fix=fix)


def _run(command: list[str], *, cwd: Path, env: dict[str, str], fix: str) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PROGRAM_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ImageError(
            f"`{' '.join(command)}` did not end within {_PROGRAM_LIMIT_S} s; {fix}"
        ) from error
    if done.returncode != 0:
        tail = " | ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise ImageError(
            f"`{' '.join(command)}` failed with status {done.returncode}: {tail}; {fix}"
        )


def _inside(root: Path, target: str) -> Path:
    place = root / target
    if not place.parent.resolve().is_relative_to(root.resolve()) or place.is_symlink():
        raise ImageError(
            f"the target {target} leads out of the image's root, or is a symbolic link there; "
            "name the place that the link points to"
        )
    return place


def _key(recipe: Recipe) -> str:
    digest = hashlib.sha256()
    parts = [recipe.directory / "image.toml", *recipe.inputs(), *map(Path, _SOURCES)]
    for path in parts:
        content = path.read_bytes()
        digest.update(f"{len(content)} {path.stat().st_mode & 0o111:o}\n".encode())
        digest.update(content)
    if recipe.base is not None:
        digest.update(_key(recipe.base).encode())
    return digest.hexdigest()[:32]


def _write_record(
    path: Path, ref: str, image_id: str, layers: tuple[oci_archive.Layer, ...]
) -> None:
    content = {
        "ref": ref,
        "imageID": image_id,
        "layers": [
            {"path": str(layer.path), "digest": layer.digest, "bytes": layer.size_bytes}
            for layer in layers[:-1]
        ]
        + [{"path": "layer.tar", "digest": layers[-1].digest, "bytes": layers[-1].size_bytes}],
    }
    with path.open("w") as out:
        json.dump(content, out)
        out.flush()
        os.fsync(out.fileno())


def _cached(home: Path, key: str) -> _Entry | None:
    place = home / key
    try:
        record = json.loads((place / "image.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    layers = tuple(
        oci_archive.Layer(place / layer["path"], layer["digest"], layer["bytes"])
        for layer in record["layers"]
    )
    archive = place / "image.tar"
    if not archive.exists() or not all(layer.path.exists() for layer in layers):
        return None
    layer_bytes = sum(layer.size_bytes for layer in layers)
    return _Entry(BuiltImage(record["ref"], archive, record["imageID"], layer_bytes), layers)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    limit = time.monotonic() + _LOCK_LIMIT_S
    with path.open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise ImageError(
                        f"another process has held {path} for {_LOCK_LIMIT_S:.0f} s; "
                        "end that build, then try again"
                    ) from None
                time.sleep(_LOCK_POLL_S)
        yield


def main(directories: list[str]) -> int:
    """Build the image of each directory; one line each, and an exit status."""
    if not directories:
        sys.stderr.write("usage: python -m localcluster.images DIRECTORY...\n")
        return 2
    for directory in directories:
        started_s = time.monotonic()
        try:
            image = build_image(
                Path(directory),
                cache=default_cache(),
                progress=_say,
            )
        except ImageError as error:
            sys.stderr.write(f"{directory}: {error}\n")
            return 1
        took_s = time.monotonic() - started_s
        sys.stdout.write(
            f"{image.ref} {image.image_id} {image.layer_bytes / 1e6:.1f} MB "
            f"{took_s:.2f} s {image.archive}\n"
        )
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
