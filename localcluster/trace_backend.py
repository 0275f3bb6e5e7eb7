# SPDX-License-Identifier: Apache-2.0
"""A real trace backend on this host: Zipkin, and the OpenTelemetry Collector in front of it.

podsnap speaks OTLP and Zipkin does not, so the collector translates. Both run as children of
whoever started them, in memory, and end with it. Zipkin is on loopback alone; the collector listens
where it is told, because the machines of a local cluster have networks of their own and reach the
host by its address on their bridge.
"""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from localcluster.toolchain import Toolchain, default_cache

ZIPKIN: Final = "3.6.1"
# The slim build: all of the page and the query API, without the clients of databases.
_JAR: Final = f"zipkin-server-{ZIPKIN}-slim.jar"
_JAR_SHA256: Final = "981b1de6139b4f8f787a909c308028732f9713ae5284353d2a5aa404d1094775"
_REPOSITORY: Final = "https://repo1.maven.org/maven2"
_DOWNLOAD_LIMIT_S: Final = 600.0
_STALL_LIMIT_S: Final = 60.0
_TELL_EVERY_BYTES: Final = 20 << 20
_START_LIMIT_S: Final = 90.0
_STOP_LIMIT_S: Final = 10.0
_PROBE_LIMIT_S: Final = 2.0
_POLL_S: Final = 0.1


class TraceBackendError(Exception):
    """The backend cannot be had or started; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class TraceBackend:
    """A backend that runs: ``url`` is Zipkin's page and API, ``otlp_endpoint`` takes spans."""

    url: str
    otlp_endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What makes a program send its spans here; metrics are none of a trace backend's."""
        return {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{self.otlp_endpoint}/v1/traces"}


@contextmanager
def trace_backend(
    directory: Path,
    *,
    listen: str = "127.0.0.1",
    port: int = 0,
    progress: Callable[[str], None] = lambda _line: None,
) -> Iterator[TraceBackend]:
    """Run a backend for as long as the context lasts; logs and settings lie in ``directory``.

    ``listen`` is the address for spans, ``port`` that of the page, any free one if it is 0.

    Raises:
        TraceBackendError: Java is missing, Zipkin cannot be fetched, or one of them does not start.
        ToolchainError: the collector cannot be built.
    """
    java = shutil.which("java")
    if java is None:
        raise TraceBackendError(
            "Zipkin needs Java 17 or newer, and there is no `java`; install it "
            "(apt-get install openjdk-17-jre-headless) and try again"
        )
    toolchain = Toolchain()
    toolchain.build(progress, "telemetry")
    jar = zipkin_jar(default_cache(), progress)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    backend = TraceBackend(
        url=f"http://127.0.0.1:{port or _free_port('127.0.0.1')}",
        otlp_endpoint=f"http://{listen}:{_free_port(listen)}",
    )
    zipkin = [
        *(java, "-XX:TieredStopAtLevel=1", "-Xmx256m", "-jar", str(jar)),
        "--armeria.ports[0].ip=127.0.0.1",
        f"--armeria.ports[0].port={backend.url.rpartition(':')[2]}",
        "--armeria.ports[0].protocols[0]=http",
    ]
    settings = directory / "otelcol.json"
    settings.write_text(json.dumps(_collector_settings(backend)), encoding="utf-8")
    collector = [str(toolchain.path("otelcol")), f"--config={settings}"]
    progress("starting Zipkin and the OpenTelemetry Collector")
    with (
        _running(zipkin, directory / "zipkin.log", lambda: _answers(f"{backend.url}/health")),
        # A GET is no way to send spans, but an answer.
        _running(collector, directory / "otelcol.log", lambda: _answers(backend.otlp_endpoint)),
    ):
        yield backend


def zipkin_jar(cache: Path, progress: Callable[[str], None]) -> Path:
    """Return Zipkin's jar from the cache, fetched from Maven Central if it is not there.

    ``PODSNAP_MAVEN_REPOSITORY`` names another repository; the digest is pinned, so any will do.

    Raises:
        TraceBackendError: it cannot be fetched, or it is not what it should be.
    """
    path = cache / "zipkin" / _JAR
    if path.exists():
        return path
    repository = os.environ.get("PODSNAP_MAVEN_REPOSITORY", _REPOSITORY).rstrip("/")
    address = f"{repository}/io/zipkin/zipkin-server/{ZIPKIN}/{_JAR}"
    progress(f"fetching {address} (86 MB, once)")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        digest = _fetch(address, partial, progress)
        if digest != _JAR_SHA256:
            raise TraceBackendError(
                f"{address} has the SHA-256 {digest}, not {_JAR_SHA256}: it is not the Zipkin that "
                "is pinned; nothing of it was kept"
            )
        partial.rename(path)
    except (OSError, urllib.error.URLError) as error:
        raise TraceBackendError(
            f"{address} cannot be fetched: {error}; check the network and its proxy "
            "(https_proxy), name a mirror in PODSNAP_MAVEN_REPOSITORY, or put the file at "
            f"{path} by hand"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _fetch(address: str, target: Path, progress: Callable[[str], None]) -> str:
    """Download a file and return its SHA-256."""
    digest, done_bytes, told_bytes = hashlib.sha256(), 0, 0
    deadline_s = time.monotonic() + _DOWNLOAD_LIMIT_S
    with (
        urllib.request.urlopen(address, timeout=_STALL_LIMIT_S) as answer,  # noqa: S310 - the user's repository
        target.open("wb") as file,
    ):
        while chunk := answer.read(1 << 20):
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{done_bytes >> 20} MB came in {_DOWNLOAD_LIMIT_S:.0f} s")
            file.write(chunk)
            digest.update(chunk)
            done_bytes += len(chunk)
            if done_bytes - told_bytes >= _TELL_EVERY_BYTES:
                told_bytes = done_bytes
                progress(f"  {done_bytes >> 20} MB")
    return digest.hexdigest()


def _collector_settings(backend: TraceBackend) -> dict[str, object]:
    address = backend.otlp_endpoint.partition("//")[2]
    return {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": address}}}},
        "exporters": {"zipkin": {"endpoint": f"{backend.url}/api/v2/spans"}},
        "service": {
            "telemetry": {"metrics": {"level": "none"}},
            "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["zipkin"]}},
        },
    }


@contextmanager
def _running(argv: list[str], log: Path, is_up: Callable[[], bool]) -> Iterator[None]:
    """Run a program until the context ends, from when it answers.

    Raises:
        TraceBackendError: it ended, or did not answer in time; with its last words.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline_s = time.monotonic() + _START_LIMIT_S
        while not is_up():
            if process.poll() is not None or time.monotonic() > deadline_s:
                words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                raise TraceBackendError(
                    f"{Path(argv[0]).name} did not start: {words[-1] if words else 'no word'}; "
                    f"the whole log is {log}"
                )
            time.sleep(_POLL_S)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(address: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy reaches it
    try:
        opener.open(address, timeout=_PROBE_LIMIT_S).close()
    except urllib.error.HTTPError as error:
        return error.code < 500  # noqa: PLR2004 - it answered, and is not in trouble
    except OSError:
        return False
    return True


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
