# SPDX-License-Identifier: Apache-2.0
"""Users' YAML is read as kubectl reads it, and what is wrong is shown with its place."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yaml_scalars import SCALARS

from schemas.documents import DEPTH_LIMIT, DocumentError, read_documents


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


def test_a_merge_key_brings_what_the_anchor_holds() -> None:
    """Values beside the merge win, as for kubectl."""
    text = b"base: &base\n  a: 1\n  b: 2\nnew:\n  <<: *base\n  b: 0644\n"
    (document,) = read_documents("f.yaml", text)
    assert document.to_object()["new"] == {"a": 1, "b": 420}


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
}


@pytest.mark.parametrize("sentence", ERRORS)
def test_an_error_names_file_line_and_column(sentence: str) -> None:
    """A person finds the place without counting."""
    text, expected = ERRORS[sentence]
    with pytest.raises(DocumentError) as caught:
        list(read_documents("f.yaml", text))
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


def test_a_tree_that_is_too_deep_is_refused() -> None:
    """A file of brackets must not exhaust the stack."""
    deep = b"a: " + b"[" * (DEPTH_LIMIT + 10) + b"]" * (DEPTH_LIMIT + 10)
    with pytest.raises(DocumentError, match=r"^f\.yaml:1:\d+"):
        list(read_documents("f.yaml", deep))


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
