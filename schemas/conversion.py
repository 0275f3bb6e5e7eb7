# SPDX-License-Identifier: Apache-2.0
"""Old spellings mended in the text itself, so that every other character stays.

Two readers have to find a word in the same place (libyaml the key, ruamel key and value); only its
characters are replaced. The trap: YAML has more ways to write a thing than anybody remembers
(anchors, block scalars, flow in flow). So the result is read again, and counts only if it says
exactly what was meant.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from schemas.documents import Document, read_all
from schemas.findings import Finding
from schemas.old_spellings import modernised, old_spellings

_BOM: Final = "\ufeff"
# An anchor or a tag before a value.
_PROPERTIES: Final = re.compile(r"(?:[&!]\S*\s+)*")
_COLON: Final = re.compile(r"\s*:\s*")
_REST_OF_LINE: Final = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\r?\n|\Z)")
_COMMA_AFTER: Final = re.compile(r"\s*,[ \t]*")
# Every old spelling is in an object that names one of these groups.
_GROUPS: Final = (b"podsnapshot", b"snapshot.gke.io")


class ConversionError(Exception):
    """A file that is left as it is; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """The new text, equal to the old one if there was nothing to mend, and what was mended."""

    text: bytes
    changes: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class _Edit:
    start: int
    end: int
    text: str


def converted(file: str, text: bytes) -> Conversion:
    """Mend the old spellings of a file.

    Raises:
        ConversionError: the file cannot be read, or not be mended without a change beside.
    """
    if not any(group in text for group in _GROUPS):
        return Conversion(text)  # a chart's template, or settings in a dialect of JSON
    documents = _read(file, text)
    changes = [f for document in documents for f in modernised(document)[1]]
    if not changes:
        return Conversion(text)
    whole = text.decode("utf-8")
    bom, body = (_BOM, whole[1:]) if whole.startswith(_BOM) else ("", whole)
    try:
        pairs = dict(_pairs(body))
    except YAMLError as error:
        raise ConversionError(_by_hand(changes[0])) from error
    edits: dict[int, _Edit] = {}
    for document in documents:
        for old in old_spellings(document):
            place = document.position(old.path)
            edit = _edit(body, pairs.get(place), old.value)
            if edit is None:
                raise ConversionError(_by_hand(document.finding(old.path, old.rule, old.message)))
            edits[edit.start] = edit
    for start in sorted(edits, reverse=True):
        body = body[:start] + edits[start].text + body[edits[start].end :]
    result = (bom + body).encode()
    if not _says_the_same(file, result, documents) or (_is_json(whole) and not _is_json(body)):
        raise ConversionError(_by_hand(changes[0]))
    return Conversion(result, tuple(replace(change, hint="") for change in changes))


def _says_the_same(file: str, result: bytes, documents: list[Document]) -> bool:
    try:
        found = _read(file, result)
    except ConversionError:
        return False  # such as an alias of what was removed
    if any(old_spellings(document) for document in found):
        return False
    return [modernised(d)[0] for d in found] == [modernised(d)[0] for d in documents]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _read(file: str, text: bytes) -> list[Document]:
    documents = []
    for found in read_all(file, text):
        if isinstance(found, Document):
            documents.append(found)
        elif found.finding.rule != "no-object":
            raise ConversionError(f"{found}; nothing of the file is changed") from found
    return documents


def _pairs(text: str) -> Iterator[tuple[tuple[int, int], tuple[Node, Node]]]:
    """Yield the place of every key, as documents tell it, with the nodes of key and value."""
    seen: set[int] = set()
    waiting: list[Any] = list(YAML().compose_all(text))
    while waiting:
        node = waiting.pop()
        if id(node) in seen or node is None:
            continue
        seen.add(id(node))
        if isinstance(node, MappingNode):
            for key, value in node.value:
                yield (key.start_mark.line + 1, key.start_mark.column + 1), (key, value)
                waiting.append(value)
        elif isinstance(node, SequenceNode):
            waiting += node.value


def _edit(text: str, pair: tuple[Any, Any] | None, value: str | None) -> _Edit | None:
    if pair is None or not isinstance(pair[1], ScalarNode):
        return None
    key, node = pair
    start, end = node.start_mark.index, node.end_mark.index
    start = _PROPERTIES.match(text, start, end).end()  # type: ignore[union-attr] # it fits nothing too
    written = text[start:end]
    if value is not None:
        quote = written[:1] if written[:1] in {"'", '"'} else ""
        return None if written[:1] in {"|", ">"} else _Edit(start, end, f"{quote}{value}{quote}")
    between = _COLON.fullmatch(text, key.end_mark.index, node.start_mark.index)
    return _removal(text, key.start_mark.index, end) if between else None


def _removal(text: str, start: int, end: int) -> _Edit:
    """Remove a field: its line if it has one, else its part of a flow mapping."""
    line = text.rfind("\n", 0, start) + 1
    rest = _REST_OF_LINE.match(text, end)
    if rest and not text[line:start].strip():
        if "#" in rest[0]:
            return _Edit(start, text.index("#", end), "")  # the comment stays
        before = text[:line].rstrip()
        if before.endswith(",") and text[rest.end() :].lstrip().startswith("}"):
            return _Edit(len(before) - 1, end, "")  # JSON has no comma at the end
        return _Edit(line, rest.end(), "")
    after = _COMMA_AFTER.match(text, end)
    if after:
        return _Edit(start, after.end(), "")
    before = text[:start].rstrip()
    return _Edit(len(before) - before.endswith(","), end, "")


def _by_hand(finding: Finding) -> str:
    return f"{finding.place}: {finding.message}; mend it by hand, it is not written as usual"
