# SPDX-License-Identifier: Apache-2.0
"""all-MiniLM-L6-v2 in numpy: six BERT layers, the mean over the tokens, unit length.

The concept: a text becomes a vector of 384 numbers, and the dot product of two vectors says how
close the texts are in meaning. The trap: texts of one batch are padded to the longest of them, and
padding must count neither in the attention nor in the mean; texts are therefore batched by length,
so that little is computed for nothing, and masked where padding remains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Array = NDArray[np.float32]

LAYERS = 6
HEADS = 12
WIDTH = 384
HEAD_WIDTH = WIDTH // HEADS
MAX_TOKENS = 256
BATCH_TEXTS = 32
EPSILON = np.float32(1e-12)
MASKED = np.float32(-1e9)


@dataclass(frozen=True, slots=True)
class Linear:
    """``x @ weight + bias``; the weight is stored the way that the product wants it."""

    weight: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        """Apply to the last axis."""
        return np.asarray(x @ self.weight + self.bias, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer normalisation over the last axis."""

    weight: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        """Centre, scale, and apply weight and bias."""
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.square(centred).mean(axis=-1, keepdims=True)
        return np.asarray(
            centred / np.sqrt(variance + EPSILON) * self.weight + self.bias, dtype=np.float32
        )


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer; query, key and value are one product instead of three."""

    qkv: Linear
    attention: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm

    def __call__(self, x: Array, mask: Array) -> Array:
        """Return the next hidden state; ``mask`` is added to the attention scores."""
        texts, tokens, _ = x.shape
        q, k, v = np.moveaxis(
            self.qkv(x).reshape(texts, tokens, 3, HEADS, HEAD_WIDTH), (2, 3), (0, 2)
        )
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(np.float32(HEAD_WIDTH)) + mask
        seen = (softmax(scores) @ v).swapaxes(1, 2).reshape(texts, tokens, WIDTH)
        x = self.attention_norm(x + self.attention(seen))
        return self.output_norm(x + self.down(gelu(self.up(x))))


class MiniLM:
    """The model with its tokenizer."""

    def __init__(self, tensors: Mapping[str, Array], tokenizer: Tokenizer) -> None:
        self._words = tensors["embeddings.word_embeddings.weight"]
        # Every token is of type 0 here: its embedding belongs to every position.
        self._positions = (
            tensors["embeddings.position_embeddings.weight"]
            + tensors["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = norm(tensors, "embeddings.LayerNorm")
        self._layers = [layer(tensors, f"encoder.layer.{number}") for number in range(LAYERS)]
        tokenizer.enable_truncation(MAX_TOKENS)
        tokenizer.no_padding()
        self._tokenizer = tokenizer

    def embed(self, texts: Sequence[str]) -> Array:
        """Return one row of unit length for each text, in the order of the texts."""
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        by_length = sorted(range(len(tokens)), key=lambda number: len(tokens[number]))
        vectors = np.empty((len(tokens), WIDTH), dtype=np.float32)
        for start in range(0, len(by_length), BATCH_TEXTS):
            batch = by_length[start : start + BATCH_TEXTS]
            vectors[batch] = self._embed_batch([tokens[number] for number in batch])
        return vectors

    def _embed_batch(self, tokens: Sequence[Sequence[int]]) -> Array:
        longest = max(map(len, tokens))
        ids = np.zeros((len(tokens), longest), dtype=np.int64)
        real = np.zeros((len(tokens), longest), dtype=np.float32)
        for row, one in enumerate(tokens):
            ids[row, : len(one)] = one
            real[row, : len(one)] = 1
        x = self._norm(self._words[ids] + self._positions[:longest])
        mask = (np.float32(1) - real)[:, None, None, :] * MASKED
        for one_layer in self._layers:
            x = one_layer(x, mask)
        mean = (x * real[:, :, None]).sum(axis=1) / real.sum(axis=1, keepdims=True)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), dtype=np.float32)


def layer(tensors: Mapping[str, Array], prefix: str) -> Layer:
    """Take one layer out of the file's tensors."""
    parts = [
        linear(tensors, f"{prefix}.attention.self.{name}") for name in ("query", "key", "value")
    ]
    return Layer(
        qkv=Linear(
            np.concatenate([part.weight for part in parts], axis=1),
            np.concatenate([part.bias for part in parts]),
        ),
        attention=linear(tensors, f"{prefix}.attention.output.dense"),
        attention_norm=norm(tensors, f"{prefix}.attention.output.LayerNorm"),
        up=linear(tensors, f"{prefix}.intermediate.dense"),
        down=linear(tensors, f"{prefix}.output.dense"),
        output_norm=norm(tensors, f"{prefix}.output.LayerNorm"),
    )


def linear(tensors: Mapping[str, Array], prefix: str) -> Linear:
    """Take one linear map; the file has its weight transposed."""
    weight = np.ascontiguousarray(tensors[f"{prefix}.weight"].T)
    return Linear(weight, tensors[f"{prefix}.bias"])


def norm(tensors: Mapping[str, Array], prefix: str) -> Norm:
    """Take one normalisation."""
    return Norm(tensors[f"{prefix}.weight"], tensors[f"{prefix}.bias"])


def softmax(x: Array) -> Array:
    """Return shares that add up to 1 over the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float32)


def gelu(x: Array) -> Array:
    """Return x times the share of a normal distribution below x.

    numpy has no error function: this is formula 7.1.26 of Abramowitz and Stegun, wrong by at most
    1.5e-7, which is the resolution of the weights.
    """
    size = np.abs(x) * np.float32(np.sqrt(0.5))
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911) * size)
    series = np.full_like(t, 1.061405429)
    for term in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        series = series * t + np.float32(term)
    erf = np.copysign(np.float32(1) - series * t * np.exp(-size * size), x)
    return np.asarray(np.float32(0.5) * x * (np.float32(1) + erf), dtype=np.float32)
