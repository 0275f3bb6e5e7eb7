# SPDX-License-Identifier: Apache-2.0
"""Sealed answers: for one reader, one request and once."""

import pytest

from backends.token_sealing import OneTimeKey, SealError, seal

SECRET = b"ya29.secret"
REQUEST = "uid-1"


def test_the_reader_opens_what_was_sealed_to_its_key() -> None:
    """And nothing of it stands in the sealed bytes, which are others each time."""
    key = OneTimeKey()
    sealed = [seal(SECRET, key.public, context=REQUEST) for _ in range(2)]
    assert sealed[0] != sealed[1]
    assert all(SECRET not in one for one in sealed)
    assert key.open(sealed[0], context=REQUEST) == SECRET


def test_a_key_opens_once() -> None:
    """A second answer to the same request is not believed."""
    key = OneTimeKey()
    sealed = seal(SECRET, key.public, context=REQUEST)
    key.open(sealed, context=REQUEST)
    with pytest.raises(SealError, match="used before"):
        key.open(sealed, context=REQUEST)


def test_no_two_keys_are_equal() -> None:
    """Each request has its own."""
    assert len({OneTimeKey().public for _ in range(20)}) == 20


@pytest.mark.parametrize(
    ("to_other", "context", "spoil"),
    [
        pytest.param(True, REQUEST, False, id="sealed to another key"),
        pytest.param(False, "uid-2", False, id="sealed for another request"),
        pytest.param(False, REQUEST, True, id="a bit is another"),
    ],
)
def test_what_was_not_sealed_for_it_is_not_opened(
    *, to_other: bool, context: str, spoil: bool
) -> None:
    """The error tells nothing of the bytes."""
    key = OneTimeKey()
    to = OneTimeKey().public if to_other else key.public
    sealed = bytearray(seal(SECRET, to, context=context))
    sealed[-1] ^= spoil
    with pytest.raises(SealError, match="not sealed to this key"):
        key.open(bytes(sealed), context=REQUEST)


@pytest.mark.parametrize("sealed", [b"", b"short", b"\0" * 48], ids=["none", "short", "zeros"])
def test_rubbish_is_not_opened(sealed: bytes) -> None:
    """Whoever writes into the object breaks nothing but this one request."""
    with pytest.raises(SealError):
        OneTimeKey().open(sealed, context=REQUEST)


@pytest.mark.parametrize("key", [b"", b"k" * 31, b"\0" * 32], ids=["none", "short", "of low order"])
def test_nothing_is_sealed_to_what_is_no_key(key: bytes) -> None:
    """The message names the field."""
    with pytest.raises(SealError, match=r"spec\.publicKey"):
        seal(SECRET, key, context=REQUEST)
