# SPDX-License-Identifier: Apache-2.0
"""What is fetched for the trace backend is what is pinned, or nothing; what is missing is said."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from localcluster import trace_backend
from localcluster.trace_backend import TraceBackendError, zipkin_jar

JAR = trace_backend._JAR
BYTES = b"bytes of a jar"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """A test says what it finds."""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A Maven repository that has the file; returns where it lies."""
    root = tmp_path / "maven"
    file = root / "io" / "zipkin" / "zipkin-server" / trace_backend.ZIPKIN / JAR
    file.parent.mkdir(parents=True)
    file.write_bytes(BYTES)
    handler = partial(_Quiet, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("PODSNAP_MAVEN_REPOSITORY", f"http://127.0.0.1:{server.server_port}/")
        yield file
        server.shutdown()
        thread.join()


def test_the_jar_is_fetched_once(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time it is there, whatever became of the repository."""
    monkeypatch.setattr(trace_backend, "_JAR_SHA256", hashlib.sha256(BYTES).hexdigest())
    told: list[str] = []
    jar = zipkin_jar(tmp_path, told.append)
    repository.unlink()
    assert zipkin_jar(tmp_path, told.append) == jar
    assert jar.read_bytes() == BYTES
    assert len(told) == 1
    assert [p.name for p in jar.parent.iterdir()] == [JAR]


def test_a_file_that_is_not_the_pinned_one_is_not_kept(repository: Path, tmp_path: Path) -> None:
    """Nor run."""
    with pytest.raises(TraceBackendError, match="not the Zipkin that is pinned"):
        zipkin_jar(tmp_path, lambda _: None)
    assert list((tmp_path / "zipkin").iterdir()) == []


def test_a_repository_without_it_is_told_with_what_to_do(repository: Path, tmp_path: Path) -> None:
    """A mirror, or the file by hand."""
    repository.unlink()
    with pytest.raises(TraceBackendError, match=r"404.*PODSNAP_MAVEN_REPOSITORY"):
        zipkin_jar(tmp_path, lambda _: None)


def test_without_java_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is fetched or built."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(TraceBackendError, match="apt-get install openjdk-17-jre-headless"),
        trace_backend.trace_backend(tmp_path / "state"),
    ):
        pass
    assert not (tmp_path / "state").exists()
