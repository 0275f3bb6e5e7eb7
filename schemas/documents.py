# SPDX-License-Identifier: Apache-2.0
"""YAML that people wrote, with the place of everything in it.

kubectl reads a dialect of its own: YAML 1.1 booleans and octals, but no base-60 numbers and no
dates. A reader that differs there corrupts silently (``defaultMode: 0644`` would become 644), so
the scalar rules are given here, and tested against a table of what kubectl makes of them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

DEPTH_LIMIT: Final = 60
_PLAIN: Final = "tag:podsnap.dev,2026:plain"


class DocumentError(Exception):
    """A file that cannot be used; the text begins with ``file:line:column``."""


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: the object, and where it stands. Lines and columns count from 1."""

    file: str
    line: int
    tree: CommentedMap

    @property
    def api_version(self) -> str:
        """The object's ``apiVersion``."""
        return str(self.tree.get("apiVersion") or "")

    @property
    def group(self) -> str:
        """The API group, empty for core."""
        group, slash, _ = self.api_version.partition("/")
        return group if slash else ""

    @property
    def kind(self) -> str:
        """The object's ``kind``."""
        return str(self.tree.get("kind") or "")

    def place(self, path: "tuple[str | int, ...]" = ()) -> str:
        """Return ``file:line:column`` of a field, or of the nearest part that has a place."""
        node: Any = self.tree
        line, column = self.line - 1, 0
        for step in path:
            try:
                position = node.lc.item(step) if isinstance(step, int) else node.lc.key(step)
                line, column = position[0], position[1]
                node = node[step]
            except (AttributeError, KeyError, IndexError, TypeError):
                break
        return f"{self.file}:{line + 1}:{column + 1}"

    def to_object(self) -> dict[str, Any]:
        """Return the tree as plain JSON values."""
        plain = _plain(self.tree)
        if not isinstance(plain, dict):
            raise DocumentError(f"{self.place()}: the document is no object")
        return plain


def read_documents(file: str, text: bytes) -> Iterator[Document]:
    """Yield the documents of one file.

    Raises:
        DocumentError: a syntax error, a duplicate key, or a document that is no object.
    """
    yaml = YAML()
    yaml.Constructor = _Constructor
    yaml.Resolver = _Resolver
    yaml.max_depth = DEPTH_LIMIT
    try:
        for tree in yaml.load_all(text.decode("utf-8")):
            if tree is None:
                continue
            if not isinstance(tree, CommentedMap):
                raise DocumentError(f"{file}:1:1: a document is no object; write kind: and so on")
            yield Document(file=file, line=tree.lc.line + 1, tree=tree)
    except DuplicateKeyError as error:
        raise DocumentError(_marked(file, error, "duplicate key")) from error
    except MarkedYAMLError as error:
        raise DocumentError(_marked(file, error, "syntax error")) from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise DocumentError(f"{file}:1:1: the file is no YAML: {error}") from error


class _Resolver(VersionedResolver):
    """Leaves unquoted, untagged scalars to ``scalar``; YAML 1.2's own rules are not kubectl's."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:  # noqa: ANN401 - as the base's
        if kind is ScalarNode and implicit[0] and value != "<<":
            return Tag(suffix=_PLAIN)
        return super().resolve(kind, value, implicit)


class _Constructor(RoundTripConstructor):
    """Scalars as kubectl reads them."""


_TRUE = frozenset({"y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"})
_FALSE = frozenset({"n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"})


def _plain_scalar(_: RoundTripConstructor, node: ScalarNode) -> Any:  # noqa: ANN401 - any scalar
    return scalar(node.value)


def scalar(text: str) -> "str | int | float | bool | None":
    """Read an unquoted scalar as kubectl does (sigs.k8s.io/yaml over go-yaml v2)."""
    if text in {"", "~", "null", "Null", "NULL"}:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    return _number(text)


_BASES: Final = {"0x": 16, "0o": 8, "0b": 2}


def _number(text: str) -> "str | int | float":
    unsigned = text[1:] if text[:1] in {"+", "-"} else text
    if unsigned[:1] not in set("0123456789.") or not text.isascii():
        return text
    body = unsigned.replace("_", "").lower()
    sign = -1 if text[0] == "-" else 1
    try:
        base = _BASES.get(body[:2])
        if base and body.isalnum():
            return sign * int(body[2:], base)
        if body.isdigit():
            is_octal = body.startswith("0") and not set(body) & {"8", "9"}
            return sign * int(body, 8 if is_octal else 10)
        number = sign * float(body)
    except ValueError:
        return text
    if math.isinf(number):
        return text
    return int(number) if number.is_integer() and "e" in body else number


def _marked(file: str, error: MarkedYAMLError, what: str) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else f"{file}:1:1"
    problem = " ".join((error.problem or "cannot be read").split())
    return f"{place}: {what}: {problem}"


def _plain(value: Any) -> Any:  # noqa: ANN401 - a JSON tree
    if isinstance(value, (CommentedMap, Mapping)):
        return {_key(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (CommentedSeq, list)):
        return [_plain(v) for v in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    return str(value)


def _key(key: Any) -> str:  # noqa: ANN401 - any scalar
    return str(key).lower() if isinstance(key, bool) else str(key)


for _tag in ("bool", "int", "float", "null", "timestamp"):
    _Constructor.add_constructor(f"tag:yaml.org,2002:{_tag}", _plain_scalar)
_Constructor.add_constructor(_PLAIN, _plain_scalar)
