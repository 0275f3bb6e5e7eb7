# SPDX-License-Identifier: Apache-2.0
"""YAML that people wrote, with the place of everything in it.

kubectl reads a dialect of its own: YAML 1.1 booleans and octals, but no base-60 numbers and no
dates. A reader that differs there corrupts silently (``defaultMode: 0644`` would become 644), so
libyaml only takes the text apart, and what a scalar means is decided here, tested against a table
of what kubectl makes of it.

Strangers write these files. What a document may cost is bounded: its depth, and what its aliases
unfold to. An error ends its document, not the ones after it in the file.
"""

import json
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import yaml

from schemas.findings import Finding, Severity
from schemas.plain_scalars import scalar

DEPTH_LIMIT: Final = 60
ALIASED_LIMIT: Final = 100_000
# A file with more is no manifest with mistakes, it is something else.
ERRORS_LIMIT: Final = 20

Path = tuple[str | int, ...]

_MERGE: Final = "<<"
_LFS_POINTER: Final = "version https://git-lfs."
# How JSON writes a character above U+FFFF; YAML knows no such pairs.
_SURROGATES: Final = re.compile(
    r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
)
# What libyaml refuses, found before it reads: it would lose the documents that it read ahead.
_UNPRINTABLE: Final = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufeff\uff00-\ufffd\U00010000-\U0010ffff]"
)
_TAG: Final = "tag:yaml.org,2002:"
_TAGGED_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    f"{_TAG}bool": (bool,),
    f"{_TAG}int": (int,),
    f"{_TAG}float": (int, float),
    f"{_TAG}null": (type(None),),
}


class _Mark(Protocol):
    line: int
    column: int


class _Event(Protocol):
    start_mark: _Mark
    anchor: str | None
    tag: str | None
    value: str
    implicit: tuple[bool, bool]


class DocumentError(Exception):
    """A document that cannot be used; the text begins with ``file:line:column``."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = finding


# Line and column, from 1, of a value or of its key; and the same of what is in it.
@dataclass(frozen=True, slots=True)
class _Place:
    line: int
    column: int
    children: "dict[str | int, _Place] | None" = None


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document: the object as JSON values, and where it stands. Lines count from 1.

    ``tree`` is to be read only: what an alias repeats is in it once.
    """

    file: str
    line: int
    tree: dict[str, Any]
    _places: _Place = field(repr=False, compare=False)

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

    def position(self, path: Path = ()) -> tuple[int, int]:
        """Return line and column of a field, or of the nearest part that has a place."""
        found = self._places
        for step in path:
            child = (found.children or {}).get(step)
            if child is None:
                break
            found = child
        return found.line, found.column

    def place(self, path: Path = ()) -> str:
        """Return ``file:line:column`` of a field, or of the nearest part that has a place."""
        line, column = self.position(path)
        return f"{self.file}:{line}:{column}"

    def finding(
        self, path: Path, rule: str, message: str, hint: str = "", severity: Severity | None = None
    ) -> Finding:
        """Say something of a field; an error if no severity is given."""
        line, column = self.position(path)
        return Finding(self.file, line, column, severity or Severity.ERROR, rule, message, hint)

    def to_object(self) -> dict[str, Any]:
        """Return the tree anew, to be changed at will."""
        copy: dict[str, Any] = _copied(self.tree)
        return copy


def read_documents(file: str, text: bytes) -> Iterator[Document]:
    """Yield the documents of one file, as ``read_all``.

    Raises:
        DocumentError: the first that cannot be used.
    """
    for found in read_all(file, text):
        if isinstance(found, DocumentError):
            raise found
        yield found


def read_all(file: str, text: bytes) -> Iterator[Document | DocumentError]:
    """Yield the documents of one file, and in place of each that cannot be used its error.

    Empty documents are left out, and a List stands for its items, as for kubectl.
    """
    try:
        decoded = text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield _error(file, 1, 1, "no-yaml", f"the file is no YAML: {error}")
        return
    unprintable = _UNPRINTABLE.search(decoded)
    if unprintable:
        before = decoded[: unprintable.start()]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"the file is no YAML: it has the character {unprintable[0]!r}"
        yield _error(file, line, column, "no-yaml", message)
        return
    if decoded.startswith(_LFS_POINTER):
        message = "the file is a Git LFS pointer, not its content; keep manifests out of LFS"
        yield _error(file, 1, 1, "no-yaml", message)
        return
    decoded = _without_surrogates(decoded)
    errors = skipped = 0
    while errors < ERRORS_LIMIT:
        reader = _Reader(file, decoded, skipped)
        for found in reader:
            errors += isinstance(found, DocumentError)
            yield found
            if errors == ERRORS_LIMIT:
                return
        if reader.broken_at is None:
            return
        # What follows means nothing up to the next document.
        start = _next_document(decoded, reader.broken_at - skipped)
        if start is None:
            return
        skipped += decoded.count("\n", 0, start)
        decoded = decoded[start:]


def _without_surrogates(text: str) -> str:
    """Write the pairs of a JSON text as YAML does; columns behind one are two less."""
    if not _SURROGATES.search(text):
        return text
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return text

    def combined(pair: re.Match[str]) -> str:
        units = bytes.fromhex(pair[2] + pair[3]).decode("utf-16-be")
        return f"{pair[1]}\\U{ord(units):08x}"

    return _SURROGATES.sub(combined, text)


def _next_document(text: str, line: int) -> int | None:
    """Return the offset of the first ``---`` at or below a line (from 1), but not at the start."""
    offset = 0
    for _ in range(max(1, line - 1)):
        offset = text.find("\n", offset) + 1
        if offset == 0:
            return None
    if text.startswith("---", offset):
        return offset
    found = text.find("\n---", offset)
    return None if found < 0 else found + 1


class _Reader:
    """The documents from a place in a file on; ``skipped`` lines stand before it."""

    def __init__(self, file: str, text: str, skipped: int) -> None:
        self._file = file
        self._skipped = skipped
        self._parser: Any = yaml.CSafeLoader(text)
        self._anchors: dict[str, tuple[_Value, int]] = {}
        self._made = 0
        self._aliased = 0
        self.broken_at: int | None = None

    def __iter__(self) -> Iterator[Document | DocumentError]:
        started = 0
        try:
            while not self._parser.check_event(yaml.StreamEndEvent):
                event = self._parser.get_event()
                if isinstance(event, yaml.DocumentStartEvent) and event.start_mark:
                    started, _ = self._at(event.start_mark)
                    yield from self._document()
        except yaml.MarkedYAMLError as error:
            problem = " ".join((error.problem or "cannot be read").split())
            mark = error.problem_mark or error.context_mark
            caught = self._error_at(mark, "syntax", f"syntax error: {problem}")
        except DocumentError as error:
            caught = error
        else:
            return
        self.broken_at = max(caught.finding.line, started + 1)
        yield caught

    def _document(self) -> Iterator[Document | DocumentError]:
        self._anchors.clear()
        self._made = self._aliased = 0
        line, column = self._at(self._parser.peek_event().start_mark)
        found = self._value(0)
        if found.value is not None:
            yield from self._objects(found.value, _Place(line, column, found.children))

    def _objects(self, value: object, place: _Place) -> Iterator[Document | DocumentError]:
        if not isinstance(value, dict):
            message = "a document is no object; write kind: and so on"
            yield _error(self._file, place.line, place.column, "no-object", message)
        elif str(value.get("kind")).endswith("List") and isinstance(value.get("items"), list):
            items = (place.children or {})["items"].children or {}
            for index, item in enumerate(value["items"]):
                yield from self._objects(item, items[index])
        else:
            yield Document(self._file, place.line, value, place)

    def _value(self, depth: int) -> "_Value":
        """Read the next node with all that is in it."""
        event: _Event = self._parser.get_event()
        kind: type[object] = type(event)
        if kind is yaml.AliasEvent:
            return self._alias(event, depth)
        if depth > DEPTH_LIMIT:
            message = f"it is nested deeper than {DEPTH_LIMIT} levels; make it flatter"
            raise self._error_at(event.start_mark, "too-deep", message)
        before = self._made
        self._made += 1
        if kind is yaml.ScalarEvent:
            found = _Value(self._scalar(event), None, 0)
        elif kind is yaml.SequenceStartEvent:
            found = self._sequence(depth)
        else:
            found = self._mapping(depth)
        if event.anchor:
            self._anchors[event.anchor] = (found, self._made - before)
        return found

    def _alias(self, event: _Event, depth: int) -> "_Value":
        anchored = self._anchors.get(event.anchor or "")
        if anchored is None:
            message = f"syntax error: no anchor &{event.anchor} ends before this alias"
            raise self._error_at(event.start_mark, "syntax", message)
        found, size = anchored
        self._made += size
        self._aliased += size
        if self._aliased > ALIASED_LIMIT or depth + found.height > DEPTH_LIMIT:
            message = (
                f"its aliases unfold to more than {ALIASED_LIMIT} values or {DEPTH_LIMIT} levels; "
                "write out what is meant"
            )
            raise self._error_at(event.start_mark, "too-large", message)
        return found

    def _sequence(self, depth: int) -> "_Value":
        values: list[Any] = []
        places: dict[str | int, _Place] = {}
        height = 0
        while not self._parser.check_event(yaml.SequenceEndEvent):
            line, column = self._at(self._parser.peek_event().start_mark)
            item = self._value(depth + 1)
            places[len(values)] = _Place(line, column, item.children)
            values.append(item.value)
            height = max(height, item.height)
        self._parser.get_event()
        return _Value(values, places, height + 1)

    def _mapping(self, depth: int) -> "_Value":
        values: dict[str, Any] = {}
        places: dict[str | int, _Place] = {}
        written: set[str] = set()
        height = 0
        while not self._parser.check_event(yaml.MappingEndEvent):
            event: _Event = self._parser.peek_event()
            mark = event.start_mark
            kind: type[object] = type(event)
            is_merge = (
                kind is yaml.ScalarEvent
                and event.value == _MERGE
                and (event.implicit[0] or event.tag == f"{_TAG}merge")
            )
            key = self._key(depth, is_merge=is_merge)
            item = self._value(depth + 1)
            height = max(height, item.height)
            if is_merge:
                self._merge(item, values, places, mark)
                continue
            if key in written:
                raise self._error_at(mark, "duplicate-key", f"duplicate key: {key}")
            written.add(key)
            values[key] = item.value
            places[key] = _Place(*self._at(mark), item.children)
        self._parser.get_event()
        return _Value(values, places, height + 1)

    def _key(self, depth: int, *, is_merge: bool) -> str:
        mark = self._parser.peek_event().start_mark
        key = self._value(depth + 1).value
        if is_merge or isinstance(key, str):
            return str(key)
        if key is None or isinstance(key, dict | list):
            raise self._error_at(mark, "no-key", "a key is no text; quote it")
        return str(key).lower() if isinstance(key, bool) else str(key)

    def _merge(
        self,
        item: "_Value",
        values: dict[str, Any],
        places: dict[str | int, _Place],
        mark: _Mark,
    ) -> None:
        """Bring in what ``<<`` names. As for kubectl, what is written later wins."""
        sources: list[tuple[Any, dict[str | int, _Place] | None]] = [(item.value, item.children)]
        if isinstance(item.value, list):
            # Of several the first wins.
            within = item.children or {}
            sources = [(v, within[i].children) for i, v in enumerate(item.value)][::-1]
        for value, children in sources:
            if not isinstance(value, dict):
                message = "<< takes an object, or a list of objects; name an anchor of one"
                raise self._error_at(mark, "syntax", message)
            values.update(value)
            places.update(children or {})

    def _scalar(self, event: _Event) -> Any:  # noqa: ANN401 - any JSON scalar
        text: str = event.value
        if event.implicit[0] and event.tag is None and text != _MERGE:
            try:
                return scalar(text)
            except ValueError as error:
                raise self._error_at(event.start_mark, "no-json", str(error)) from None
        if event.tag == f"{_TAG}binary":
            try:
                return b64decode("".join(text.split()), validate=True).decode("utf-8")
            except ValueError:
                message = "!!binary is read as base64 of UTF-8, and this is none; quote the text"
                raise self._error_at(event.start_mark, "no-json", message) from None
        tag = event.tag or ""
        types = _TAGGED_TYPES.get(tag)
        if types is None:
            return text
        value = scalar(text)
        if type(value) not in types:
            message = f"{text!r} is no {tag.removeprefix(_TAG)}, as its tag says; remove it"
            raise self._error_at(event.start_mark, "no-json", message)
        return value

    def _at(self, mark: _Mark) -> tuple[int, int]:
        return mark.line + 1 + self._skipped, mark.column + 1

    def _error_at(self, mark: _Mark | None, rule: str, message: str) -> DocumentError:
        line, column = self._at(mark) if mark else (1 + self._skipped, 1)
        return _error(self._file, line, column, rule, message)


@dataclass(frozen=True, slots=True)
class _Value:
    """A value, the places of what is in it, and how many levels it has below it."""

    value: Any
    children: dict[str | int, _Place] | None
    height: int


def _error(file: str, line: int, column: int, rule: str, message: str) -> DocumentError:
    message, _, hint = message.partition("; ")
    return DocumentError(Finding(file, line, column, Severity.ERROR, rule, message, hint))


def _copied(value: Any) -> Any:  # noqa: ANN401 - a JSON tree
    if isinstance(value, dict):
        return {key: _copied(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_copied(child) for child in value]
    return value
