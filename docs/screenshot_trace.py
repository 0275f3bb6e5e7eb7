#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make ``docs/images/trace.png`` anew: a trace of the demo on the page of a real backend.

The demo's counter runs on the local cluster, Zipkin receives the spans, a headless Chromium takes
the picture (``apt-get install chromium``). Nothing else needs a browser, and no test runs this.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import click

from backends.zipkin import read_trace
from localcluster.cluster import LocalCluster
from localcluster.pod_times import watching
from localcluster.trace_backend import trace_backend
from schemas.snapshot import Snapshot

DOCS: Final = Path(__file__).resolve().parent
PICTURE: Final = DOCS / "images" / "trace.png"
SIZE: Final = "1400,1060"
_TRACE_LIMIT_S: Final = 30.0
_BROWSER_LIMIT_S: Final = 120
# Of the page's own clock: its scripts fetch the trace and draw it.
_DRAWN_AFTER_MS: Final = 15000


def main() -> int:
    """Run the demo and take the picture; 1 if there is no browser or no trace."""
    chromium = shutil.which("chromium")
    if chromium is None:
        click.echo("no chromium: apt-get install chromium", err=True)
        return 1
    cluster = LocalCluster(progress=click.echo)
    cluster.up()
    listen = str(cluster.network.gateway)
    with (
        tempfile.TemporaryDirectory() as directory,
        trace_backend(Path(directory), listen=listen, progress=click.echo) as backend,
    ):
        os.environ.update(backend.environment, PODSNAP_TRACE_BACKEND=backend.url)
        cluster.up()  # again, so that its programs send there
        demo = runpy.run_path(str(DOCS.parent / "examples" / "demo.py"))
        snapshot = _lived(demo["Demo"](cluster), cluster, demo["NAMESPACE"])
        deadline_s = time.monotonic() + _TRACE_LIMIT_S
        while [s.name for s in read_trace(backend.url, snapshot.trace_id)].count("pod ready") < 2:  # noqa: PLR2004 - both replicas
            if time.monotonic() > deadline_s:
                click.echo("the trace did not become whole", err=True)
                return 1
            time.sleep(0.5)
        photograph(chromium, f"{backend.url}/zipkin/traces/{snapshot.trace_id}", PICTURE)
    click.echo(f"{PICTURE}: {PICTURE.stat().st_size >> 10} KiB")
    return 0


def photograph(chromium: str, address: str, target: Path) -> None:
    """Have a headless browser draw a page into a file."""
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--no-proxy-server", f"--user-data-dir={profile}", f"--window-size={SIZE}"),
                *(f"--virtual-time-budget={_DRAWN_AFTER_MS}", f"--screenshot={target}", address),
            ],
            check=True,
            capture_output=True,
            timeout=_BROWSER_LIMIT_S,
        )


def _lived(demo: Any, cluster: LocalCluster, namespace: str) -> Snapshot:  # noqa: ANN401 - of a script
    """Have a policy come from Git, a Pod be saved and two be restored; returns the snapshot."""
    demo.load_images()
    demo.start_over()
    demo.sync_policies("counter")
    with watching(cluster.kubeconfig, namespace) as times:
        demo.count(times)
        demo.kubectl("scale", "deployment/counter", "--replicas=3")
        times.wait_ready("counter", 3, limit_s=_TRACE_LIMIT_S)
    (found,) = json.loads(demo.kubectl("get", "ps", "-o", "json"))["items"]
    return Snapshot.parse(found)


if __name__ == "__main__":
    sys.exit(main())
