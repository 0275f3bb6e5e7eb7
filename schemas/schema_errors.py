# SPDX-License-Identifier: Apache-2.0
"""What a schema refuses, said to the person who wrote it: where, what, and what to write."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from schemas.documents import Document, Path
from schemas.findings import Finding
from schemas.spelling import nearest

if TYPE_CHECKING:
    import jsonschema

# What a pattern says to a machine, said to a person.
_GRAMMARS: Final[Mapping[str, str]] = {
    "lastAccessTimeout": "write a whole number and y, mo, d, h or min, such as 30d",
    "interval": "write a number and ms, s, m or h, such as 30s, 5m or 1h30m",
    "timeout": "write a number and ms, s, m or h, such as 30s, 5m or 1h30m",
    "bucket": "write the bucket's name alone, without gs://, with a-z, 0-9, ., _ and -",
    "commit": "write the whole commit, 40 digits of 0-9 and a-f",
}
_RULES: Final[Mapping[str, str]] = {
    "additionalProperties": "unknown-field",
    "enum": "unknown-value",
    "required": "missing-field",
    "type": "wrong-type",
    "pattern": "wrong-format",
}


def explained(
    document: Document,
    errors: Iterable["jsonschema.ValidationError"],
    schema: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Return a finding for each thing that is wrong; ``schema`` tells where a field belongs."""
    return [f for error in errors for f in _findings(document, error, schema or {})]


def _findings(
    document: Document, error: "jsonschema.ValidationError", schema: Mapping[str, Any]
) -> Iterator[Finding]:
    path: Path = tuple(error.absolute_path)
    where = f"{'.'.join(map(str, path))}: " if path else ""
    rule = _RULES.get(str(error.validator), "out-of-range")
    if rule != "unknown-field":
        message = error.message.replace(r"\\Z'", "$'")
        yield document.finding(path, rule, where + message, _hint(path, error))
        return
    known = cast("Mapping[str, Any]", error.schema)["properties"]
    for name in sorted(cast("Mapping[str, Any]", error.instance).keys() - known.keys()):
        spelled, place = nearest(name, known), _place_of(name, schema)
        if spelled:
            hint = f"did you mean {spelled}?"
        elif place:
            hint = f"it belongs into {place}"
        else:
            hint = "remove it or mend its spelling"
        message = f"Additional properties are not allowed ({name!r} was unexpected)"
        yield document.finding((*path, name), rule, where + message, hint)


def _hint(path: Path, error: "jsonschema.ValidationError") -> str:
    if error.validator == "enum":
        spelled = nearest(str(error.instance), cast("list[str]", error.validator_value))
        return f"did you mean {spelled}?" if spelled else "use one of these"
    if error.validator == "required":
        return "add it"
    if error.validator == "pattern":
        return _GRAMMARS.get(str(path[-1]), "") if path else ""
    if error.validator == "type" and error.instance is None:
        return "give it a value or remove its key"
    if error.validator == "type" and "string" in cast("list[str]", error.validator_value):
        return "quote it"
    return ""


def _place_of(name: str, schema: Mapping[str, Any], path: str = "") -> str:
    """Return the path of the object that has a field of this name, empty if none has."""
    for field, child in schema.get("properties", {}).items():
        if field == "status":
            continue
        if field == name and path:
            return path
        found = _place_of(name, child, f"{path}.{field}" if path else field)
        if found:
            return found
    return ""
