# SPDX-License-Identifier: Apache-2.0
"""Users' YAML is read as kubectl reads it, and what is wrong is shown with its place."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yaml_scalars import MERGES, SCALARS

from schemas.documents import (
    DEPTH_LIMIT,
    ERRORS_LIMIT,
    Document,
    DocumentError,
    read_all,
    read_documents,
)


def value_of(text: str) -> Any:  # noqa: ANN401 - any JSON value
    """Return what stands under ``value:``."""
    (document,) = read_documents("f.yaml", f"value: {text}\n".encode())
    return document.to_object()["value"]


@pytest.mark.parametrize("written", SCALARS)
def test_a_scalar_means_what_kubectl_makes_of_it(written: str) -> None:
    """An octal file mode read as decimal would corrupt a Pod without a word."""
    found = value_of(written)
    assert found == SCALARS[written]
    assert type(found) is type(SCALARS[written])


@pytest.mark.parametrize("written", ["yes", "0644", "1e3"])
def test_a_block_scalar_is_a_string(written: str) -> None:
    """Only plain scalars are resolved."""
    (document,) = read_documents("f.yaml", f"value: |-\n  {written}\n".encode())
    assert document.to_object() == {"value": written}


def test_a_boolean_key_is_spelled_as_json_has_it() -> None:
    """``on:`` is the key "true" for kubectl, whose JSON has only string keys."""
    (document,) = read_documents("f.yaml", b"on: 1\n2: two\n")
    assert document.to_object() == {"true": 1, "2": "two"}


@pytest.mark.parametrize("what", MERGES)
def test_a_merge_key_means_what_kubectl_makes_of_it(what: str) -> None:
    """The order in the file counts, unlike in YAML's own words."""
    written, expected = MERGES[what]
    text = f"base: &base {{a: 1, b: 2}}\nnew: {written}\n".encode()
    (document,) = read_documents("f.yaml", text)
    assert document.to_object()["new"] == expected


def test_what_is_changed_in_a_copy_is_changed_there_only() -> None:
    """An alias repeats a value in the tree, and a copy has it twice."""
    (document,) = read_documents("f.yaml", b"a: &a {b: {c: 1}}\nd: *a\n")
    copy = document.to_object()
    copy["a"]["b"]["c"] = 2
    assert (copy["d"]["b"]["c"], document.tree["a"]["b"]["c"]) == (1, 1)


@given(st.integers(min_value=-(2**63), max_value=2**63 - 1))
def test_an_integer_survives(number: int) -> None:
    """Every integer that the API can hold reads as itself."""
    assert value_of(str(number)) == number


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "Zs")), max_size=40))
def test_a_quoted_string_survives(text: str) -> None:
    """Quotes make a string, whatever is between them."""
    quoted = "'" + text.replace("'", "''") + "'"
    assert value_of(quoted) == text


ERRORS = {
    "a duplicate key": (b"a: 1\nb:\n  c: 1\n  c: 2\n", "f.yaml:4:3: duplicate key"),
    "a syntax error": (b"a: 1\nb: [1, 2\n", "f.yaml:3:1: syntax error"),
    "a tab as indentation": (b"a:\n\tb: 1\n", "f.yaml:2:1: syntax error"),
    "a document that is a list": (b"- 1\n", "f.yaml:1:1: a document is no object"),
    "bytes that are no UTF-8": (b"a: \xff\n", "f.yaml:1:1: the file is no YAML"),
    "an alias that nothing anchors": (b"a: *b\n", "f.yaml:1:4: syntax error"),
    "an anchor that holds itself": (b"a: &a [*a]\n", "f.yaml:1:8: syntax error"),
    "a merge of a scalar": (b"a: 1\n<<: 2\n", "f.yaml:2:1: << takes an object"),
    "a number that JSON has not": (b"a: 1\nb: -.INF\n", "f.yaml:2:4: -.INF is no number"),
    "another": (b"a: .nan\n", "f.yaml:1:4: .nan is no number"),
    "a tag that is not true": (b"a: !!int abc\n", "f.yaml:1:4: 'abc' is no int"),
    "base64 that is none": (b"a: !!binary '*'\n", "f.yaml:1:4: !!binary is read as base64"),
    "a key that is null": (b"a: 1\n~: 2\n", "f.yaml:2:1: a key is no text"),
    "a key that is a list": (b"? [a]\n: 1\n", "f.yaml:1:3: a key is no text"),
    "a key in two spellings": (b"1: a\n'1': b\n", "f.yaml:2:1: duplicate key"),
    "a binary file": (b"\x7fELF\x02\x01\x01\x00", "f.yaml:1:1: the file is no YAML"),
    "a character of control": (b"a: 1\nb: \x00\n", "f.yaml:2:4: the file is no YAML"),
    "UTF-16": ("a: 1".encode("utf-16"), "f.yaml:1:1: the file is no YAML"),
    "a pointer of Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "f.yaml:1:1: the file is a Git LFS pointer",
    ),
}


@pytest.mark.parametrize("sentence", ERRORS)
def test_an_error_names_file_line_and_column(sentence: str) -> None:
    """A person finds the place without counting."""
    text, expected = ERRORS[sentence]
    with pytest.raises(DocumentError) as caught:
        list(read_documents("f.yaml", text))
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


BOMBS = {
    "brackets": b"a: " + b"[" * 200_000,
    "braces": b"{a: " * 200_000,
    "indentation": b"\n".join(b" " * n + b"a:" for n in range(2 * DEPTH_LIMIT)),
    "aliases": b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    + b"".join(
        b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 9)
    ),
    "aliases in depth": b"a0: &a0 [x]\n"
    + b"".join(b"a%d: &a%d [*a%d]\n" % (n, n, n - 1) for n in range(1, DEPTH_LIMIT + 2)),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("what", BOMBS)
def test_a_bomb_is_refused_and_what_follows_is_read(what: str) -> None:
    """Neither stack nor memory nor patience is exhausted by a few bytes."""
    error, after = read_all("f.yaml", BOMBS[what] + b"\n---\nkind: After\n")
    assert isinstance(error, DocumentError)
    assert error.finding.rule in {"too-deep", "too-large"}
    assert isinstance(after, Document)
    assert after.kind == "After"


def test_an_error_hides_no_other_document() -> None:
    """Each wrong document is told by its place, each sound one is read."""
    text = (
        b"kind: A\n---\nb: 1\nb: 2\n---\nc: [1\n---\nkind: D\n--- {e: 1, e: 2}\n---\n"
        b"f: 'open\n---\nkind: G\n"
    )
    found = [
        f"{f.kind} {f.line}" if isinstance(f, Document) else f"{f.finding.rule} {f.finding.line}"
        for f in read_all("f.yaml", text)
    ]
    assert found == [
        "A 1",
        "duplicate-key 4",
        "syntax 7",
        "D 8",
        "duplicate-key 9",
        "syntax 12",
        "G 13",
    ]


def test_a_file_of_nothing_but_errors_is_given_up() -> None:
    """A wrong file costs no more than a right one of its size."""
    found = list(read_all("f.yaml", b"a: [\n---\n" * 100_000))
    assert len(found) == ERRORS_LIMIT


def test_a_list_stands_for_its_items() -> None:
    """As for kubectl, whatever kind of list it is; each item has its own place."""
    text = b"kind: List\nitems:\n- kind: A\n- kind: BList\n  items: [{kind: B}, 1]\n"
    first, second, third = read_all("f.yaml", text)
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert (first.kind, first.place()) == ("A", "f.yaml:3:3")
    assert (second.kind, second.place(("kind",))) == ("B", "f.yaml:5:12")
    assert str(third).startswith("f.yaml:5:22: a document is no object")


@pytest.mark.parametrize("text", [b"\xef\xbb\xbfkind: A\nb: [1]\n", b"kind: A\r\nb:\r\n- 1\r\n"])
def test_windows_files_are_read(text: bytes) -> None:
    """A byte order mark and its ends of lines are no part of any value."""
    (document,) = read_documents("f.yaml", text)
    assert document.to_object() == {"kind": "A", "b": [1]}


def test_the_pairs_of_json_are_one_character() -> None:
    """As many programs write JSON; what only looks like a pair stays."""
    text = rb'{"a": "\ud83d\ude00\ud83d\ude00", "b": "\\ud83d\\ude00"}'
    (document,) = read_documents("f.json", text)
    assert document.tree == {"a": "\U0001f600" * 2, "b": r"\ud83d\ude00"}


def test_documents_know_where_they_stand() -> None:
    """Lines count from 1 over the whole file, and empty documents are skipped."""
    text = b"---\nkind: A\n---\n---\nkind: B\nspec:\n  list:\n  - x: 1\n"
    first, second = read_documents("dir/f.yaml", text)
    assert (first.kind, first.line) == ("A", 2)
    assert (second.kind, second.line) == ("B", 5)
    assert second.place(("spec", "list", 0, "x")) == "dir/f.yaml:8:5"
    assert second.place(("spec", "list", 0, "y")) == "dir/f.yaml:8:5"
    assert second.place(("spec", "missing")) == "dir/f.yaml:6:1"


def test_group_and_kind_are_read_from_the_document() -> None:
    """The core group is empty; a group is what stands before the slash."""
    first, second = read_documents(
        "f", b"apiVersion: v1\nkind: Pod\n---\napiVersion: podsnapshot.gke.io/v1\n"
    )
    assert (first.group, first.kind) == ("", "Pod")
    assert (second.group, second.kind) == ("podsnapshot.gke.io", "")
