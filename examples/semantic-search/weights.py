# SPDX-License-Identifier: Apache-2.0
"""The model's weights: unpacked to memory, read, and removed again.

The concept: the image has them compressed; they are unpacked into a tmpfs (``/weights``, an
emptyDir in memory), read into arrays, and then deleted. The trap: a tmpfs belongs to the Pod's
memory, and a snapshot saves all of it. Files that stay there are saved and loaded with every
replica, although nobody will ever read them again.
"""

import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from minilm import MiniLM
from safetensors.numpy import load_file
from tokenizers import Tokenizer

TENSORS = "model.safetensors"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and how many bytes lay in the scratch directory before and after loading."""

    model: MiniLM
    unpacked_bytes: int
    left_bytes: int


def load(archive: Path, scratch: Path) -> Loaded:
    """Unpack ``archive`` below ``scratch``, read the model, and remove what was unpacked.

    Raises:
        OSError: the archive cannot be read, or the scratch directory is full.
        KeyError: the archive lacks the weights or the tokenizer.
    """
    files = [scratch / name for name in (TENSORS, TOKENIZER)]
    with tarfile.open(archive) as packed:
        for path in files:
            content = packed.extractfile(path.name)
            if content is None:
                raise KeyError(f"{path.name} in {archive} is not a file; build the image again")
            with path.open("wb") as out:
                shutil.copyfileobj(content, out)
    unpacked_bytes = size_bytes(scratch)
    tensors = {name: tensor for name, tensor in load_file(files[0]).items() if "pooler" not in name}
    model = MiniLM(tensors, Tokenizer.from_file(str(files[1])))
    for path in files:
        path.unlink()
    return Loaded(model, unpacked_bytes, size_bytes(scratch))


def size_bytes(directory: Path) -> int:
    """Return the bytes of all files below ``directory``."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
