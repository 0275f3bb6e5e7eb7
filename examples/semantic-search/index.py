# SPDX-License-Identifier: Apache-2.0
"""A corpus in memory that is searched by meaning.

The concept: every text's vector is a row of one matrix; a search is one product of that matrix with
the query's vector. The trap: a row is found by its number alone, so texts and rows must never be
sorted apart.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from minilm import Array, MiniLM

TEXTS_PER_STEP = 256


@dataclass(frozen=True, slots=True)
class Hit:
    """One result; ``score`` is the cosine of the angle between query and text."""

    name: str
    text: str
    score: float


class Index:
    """Names, texts and vectors, row by row."""

    def __init__(self, corpus: Path) -> None:
        with corpus.open(encoding="utf-8") as lines:
            entries = [json.loads(line) for line in lines]
        self._names = [str(entry["name"]) for entry in entries]
        self._texts = [str(entry["text"]) for entry in entries]
        self._vectors: Array = np.empty((0, 0), dtype=np.float32)

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._texts)

    def build(self, model: MiniLM, progress: Callable[[int], None]) -> None:
        """Embed every text; ``progress`` is told how many are done."""
        parts = []
        for start in range(0, len(self._texts), TEXTS_PER_STEP):
            parts.append(model.embed(self._texts[start : start + TEXTS_PER_STEP]))
            progress(min(start + TEXTS_PER_STEP, len(self._texts)))
        self._vectors = np.concatenate(parts)

    def search(self, vector: Array, k: int) -> list[Hit]:
        """Return the ``k`` closest texts, the closest first."""
        scores = self._vectors @ vector
        best = np.argsort(-scores)[:k]
        return [Hit(self._names[row], self._texts[row], float(scores[row])) for row in best]
