# SPDX-License-Identifier: Apache-2.0
"""The semantic-search example: its model is the published one, and it serves whatever happens."""

import http.client
import json
import subprocess
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest

CORPUS = [
    ("gnuchess", "Plays a game of chess, either against the user or against itself"),
    ("nginx", "small, powerful, scalable web/proxy server"),
    ("postgresql", "object-relational SQL database"),
    ("gimp", "GNU Image Manipulation Program"),
    ("hello", "example package based on GNU hello"),
    ("mpg123", "MPEG layer 1/2/3 audio player"),
    ("stellarium", "real-time photo-realistic sky generator"),
    ("clamav", "anti-virus utility for Unix"),
]

EMBED = """
import json, sys, tempfile
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import weights
with tempfile.TemporaryDirectory() as scratch:
    loaded = weights.load(Path(sys.argv[1]) / "weights.tar.gz", Path(scratch))
print(json.dumps({
    "vectors": loaded.model.embed(sys.argv[2:]).tolist(),
    "unpacked": loaded.unpacked_bytes, "left": loaded.left_bytes,
}))
"""

# A read-only attribute of the kernel: opening it for writing is refused even to root.
REFUSED = Path("/sys/kernel/uevent_seqnum")


class Image(Protocol):
    """The fixture ``search_image``."""

    root: Path

    def command(self, *arguments: str) -> list[str]:
        """Return the argument list that runs the image's Python."""

    def environment(self) -> dict[str, str]:
        """Return the environment for it."""


class Server(Protocol):
    """What the fixture ``start`` returns."""

    process: subprocess.Popen[bytes]
    log: Path

    def get(self, target: str) -> tuple[int, dict[str, Any]]:
        """Return status and content of one answer."""


@pytest.fixture(scope="module")
def embed(search_image: Image) -> Callable[..., dict[str, Any]]:
    """Return a function that embeds texts with the image's own model."""

    def run(*texts: str) -> dict[str, Any]:
        home = str(search_image.root / "opt/semantic-search")
        done = subprocess.run(
            search_image.command("-c", EMBED, home, *texts),
            env=search_image.environment(),
            capture_output=True,
            timeout=60,
            check=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    return run


@pytest.fixture
def serve(
    search_image: Image,
    start: Callable[..., Server],
    port: int,
    tmp_path: Path,
    eventually: Callable[[Callable[[], bool]], None],
) -> Callable[[Path], Server]:
    """Return a function that starts the server on a small corpus and waits for its snapshot."""

    def run(checkpoint: Path) -> Server:
        corpus, scratch = tmp_path / "corpus.jsonl", tmp_path / "weights"
        scratch.mkdir()
        corpus.write_text("".join(json.dumps({"name": n, "text": t}) + "\n" for n, t in CORPUS))
        server = start(
            search_image,
            str(search_image.root / "opt/semantic-search/server.py"),
            f"--corpus={corpus}",
            f"--scratch={scratch}",
            f"--checkpoint={checkpoint}",
            f"--port={port}",
            port=port,
        )

        def asked() -> bool:
            assert server.process.poll() is None, server.log.read_text()
            try:
                return bool(server.get("/info")[1]["snapshot"] != "not asked")
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError):
                return False

        eventually(asked)
        return server

    return run


def dot(one: list[float], other: list[float]) -> float:
    """Return the cosine of two vectors of unit length."""
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_the_embeddings_are_those_published_for_the_model(
    embed: Callable[..., dict[str, Any]],
) -> None:
    """The three sentences of the Sentence Transformers quickstart have its similarities."""
    weather, sunny, stadium = embed(
        "The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."
    )["vectors"]
    assert dot(weather, weather) == pytest.approx(1, abs=1e-5)
    assert dot(weather, sunny) == pytest.approx(0.6660, abs=1e-4)
    assert dot(weather, stadium) == pytest.approx(0.1046, abs=1e-4)
    assert dot(sunny, stadium) == pytest.approx(0.1411, abs=1e-4)


def test_a_text_has_the_same_embedding_alone_and_beside_longer_ones(
    embed: Callable[..., dict[str, Any]],
) -> None:
    """Padding counts neither in the attention nor in the mean."""
    alone = embed("chess")["vectors"][0]
    beside = embed("a much longer text about something else " * 12, "chess")["vectors"][1]
    assert dot(alone, beside) == pytest.approx(1, abs=1e-5)


def test_nothing_of_the_weights_is_left_once_they_are_loaded(
    embed: Callable[..., dict[str, Any]],
) -> None:
    """The tmpfs is empty again, so a snapshot does not carry the files."""
    answer = embed("any")
    assert answer["unpacked"] > 90_000_000
    assert answer["left"] == 0


def test_it_serves_where_there_is_no_checkpoint_file(
    serve: Callable[[Path], Server], tmp_path: Path
) -> None:
    """Outside gVisor it logs that snapshots are not enabled, and answers by meaning."""
    server = serve(tmp_path / "absent")
    assert server.get("/readyz") == (200, {"ready": True})
    assert server.get("/healthz")[0] == 200
    status, answer = server.get("/search?q=look+at+the+stars+and+planets&k=2")
    assert status == 200
    assert answer["results"][0]["name"] == "stellarium"
    assert len(answer["results"]) == 2
    assert server.get("/search?q=listen+to+music")[1]["results"][0]["name"] == "mpg123"
    info = server.get("/info")[1]
    assert info["nonce"] == answer["nonce"]
    assert (info["indexed"], info["snapshot"]) == (len(CORPUS), "disabled")
    assert (info["pod_ip"], info["weights_bytes_left"]) == ("127.0.0.1", 0)
    log = server.log.read_text()
    assert "snapshots are not enabled for this Pod: [Errno 2]" in log
    assert log.index("ready") < log.index("asking for a snapshot")


def test_it_serves_where_snapshots_are_not_permitted(serve: Callable[[Path], Server]) -> None:
    """The file is there in every gVisor Pod, but only a governed one may write to it."""
    server = serve(REFUSED)
    assert "snapshots are not enabled for this Pod: [Errno 13]" in server.log.read_text()
    assert server.get("/search?q=web+server")[1]["results"][0]["name"] == "nginx"


@pytest.mark.parametrize(
    ("answer", "logged"),
    [("resume", "saved; going on"), ("restore", "restored: was"), ("error", "snapshot failed")],
)
def test_it_serves_after_every_answer_to_its_question(
    serve: Callable[[Path], Server], tmp_path: Path, answer: str, logged: str
) -> None:
    """It writes 1, takes the answer from the same descriptor, and goes on in each case."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.write_text(f"?{answer}\n")
    server = serve(checkpoint)
    assert checkpoint.read_text() == f"1{answer}\n"
    assert server.get("/info")[1]["snapshot"] == answer
    assert logged in server.log.read_text()
    assert server.get("/search?q=database")[1]["results"][0]["name"] == "postgresql"


def test_a_question_that_makes_no_sense_is_refused(
    serve: Callable[[Path], Server], tmp_path: Path
) -> None:
    """The client learns what to send, and the next question is answered."""
    server = serve(tmp_path / "absent")
    for target in ("/search", "/search?q=a&k=0", "/search?q=a&k=x", "/search?q=a&k=99"):
        status, answer = server.get(target)
        assert status == 400
        assert "q must be a text" in answer["error"]
    assert server.get("/nowhere")[0] == 404
    assert server.get("/search?q=a&k=1")[0] == 200
