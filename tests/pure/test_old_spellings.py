# SPDX-License-Identifier: Apache-2.0
"""Old and article spellings are told with the v1 spelling, and mended where they stand."""

from dataclasses import replace

import pytest
from old_manifests import OLD

from schemas.conversion import ConversionError, converted
from schemas.crd_validation import findings
from schemas.documents import read_documents
from schemas.findings import Severity
from schemas.old_spellings import modernised

STORAGE = "kind: PodSnapshotStorageConfig\nspec: {snapshotStorageConfig: {gcs: {bucket: b}}}\n"


@pytest.mark.parametrize("what", OLD)
def test_an_old_spelling_is_told_with_file_line_and_what_v_1_has(what: str) -> None:
    """A reader is sent to the place, and to the command that mends it."""
    old = OLD[what]
    (document,) = read_documents("dir/f.yaml", old.text.encode())
    body, (finding,) = modernised(document)
    assert (finding.place, finding.rule) == (f"dir/f.yaml:{old.place}", old.rule)
    assert finding.severity is (Severity.ERROR if old.is_refused else Severity.WARNING)
    assert "; v1 " in finding.message
    assert finding.hint == "run: podsnap convert dir/f.yaml"
    assert findings(replace(document, tree=body)) == []


@pytest.mark.parametrize("what", OLD)
def test_a_file_is_mended_and_else_stays_as_it_was(what: str) -> None:
    """Comments, quotes, indentation and empty lines are the author's."""
    old = OLD[what]
    result = converted("f.yaml", old.text.encode())
    assert result.text.decode() == old.modern
    assert [c.place for c in result.changes] == [f"f.yaml:{old.place}"]
    again = converted("f.yaml", result.text)
    assert (again.text, again.changes) == (result.text, ())


def test_several_documents_are_mended_together() -> None:
    """Only the lines that name an old word change, whatever stands around them."""
    parts = [
        OLD["a capital in the trigger"],
        OLD["a namespace at its end"],
        OLD["capitals in quotes"],
    ]
    foreign = "apiVersion: v1\nkind: ConfigMap\ndata: {type:   Workload,   x: 'y'}\n"
    between = f"# --- top\n---\n{foreign}---\r\n"
    old = between.join(p.text for p in parts)
    new = between.join(p.modern for p in parts)
    assert (
        converted("f.yaml", b"\xef\xbb\xbf" + old.encode()).text == b"\xef\xbb\xbf" + new.encode()
    )


# How a word may be written, and the file as v1 has it; ``None`` where a person has to.
AS_WRITTEN = {
    "in JSON": (
        '{"apiVersion": "podsnapshot.gke.io/v1alpha1", "kind": "PodSnapshotManualTrigger",\n'
        ' "metadata": {"name": "a"}}',
        '{"apiVersion": "podsnapshot.gke.io/v1", "kind": "PodSnapshotManualTrigger",\n'
        ' "metadata": {"name": "a"}}',
    ),
    "with an anchor and a tag": (
        "apiVersion: &v !!str podsnapshot.gke.io/v1alpha1\nkind: PodSnapshotManualTrigger\n",
        "apiVersion: &v !!str podsnapshot.gke.io/v1\nkind: PodSnapshotManualTrigger\n",
    ),
    "as an alias": (
        "x: &v podsnapshot.gke.io/v1alpha1\napiVersion: *v\nkind: PodSnapshotManualTrigger\n",
        None,
    ),
    "as a block": (
        "apiVersion: |-\n  podsnapshot.gke.io/v1alpha1\nkind: PodSnapshotManualTrigger\n",
        None,
    ),
    "in a list": (
        "kind: List\nitems:\n- kind: PodSnapshot\n  apiVersion: snapshot.gke.io/v1\n",
        "kind: List\nitems:\n- kind: PodSnapshot\n  apiVersion: podsnapshot.gke.io/v1\n",
    ),
    "through a merge": (
        "---\napiVersion: podsnapshot.gke.io/v1\nmetadata: {<<: &m {namespace: a}, name: b}\n"
        + STORAGE,
        "---\napiVersion: podsnapshot.gke.io/v1\nmetadata: {<<: &m {}, name: b}\n" + STORAGE,
    ),
    "as the last line of JSON": (
        '{"apiVersion": "podsnapshot.gke.io/v1", "kind": "PodSnapshotStorageConfig",\n'
        '"metadata": {\n  "name": "a",\n  "namespace": "b"\n},\n'
        '"spec": {"snapshotStorageConfig": {"gcs": {"bucket": "b"}}}}',
        '{"apiVersion": "podsnapshot.gke.io/v1", "kind": "PodSnapshotStorageConfig",\n'
        '"metadata": {\n  "name": "a"\n},\n'
        '"spec": {"snapshotStorageConfig": {"gcs": {"bucket": "b"}}}}',
    ),
    "as what an alias repeats": (
        "apiVersion: podsnapshot.gke.io/v1\nmetadata: {namespace: &ns b, name: *ns}\n" + STORAGE,
        None,
    ),
    "beside a null": (
        "apiVersion: podsnapshot.gke.io/v1\nmetadata: {namespace: b, name: a, labels: }\n"
        + STORAGE,
        "apiVersion: podsnapshot.gke.io/v1\nmetadata: {name: a, labels: }\n" + STORAGE,
    ),
    "as the only field of a block": (
        "apiVersion: podsnapshot.gke.io/v1\nmetadata:\n  namespace: a\n" + STORAGE,
        None,
    ),
}


@pytest.mark.parametrize("what", AS_WRITTEN)
def test_a_word_is_mended_however_it_is_written_or_the_file_is_left(what: str) -> None:
    """A result is kept only if it says what was meant; else a person is asked."""
    old, new = AS_WRITTEN[what]
    if new is not None:
        assert converted("f.yaml", old.encode()).text.decode() == new
        return
    with pytest.raises(ConversionError, match=r"^f\.yaml:\d+:\d+: .*mend it by hand"):
        converted("f.yaml", old.encode())


def test_a_file_that_cannot_be_read_is_left() -> None:
    """Half a file mended would be a change that nobody could read."""
    text = OLD["a capital in the trigger"].text + "---\na: [\n"
    with pytest.raises(ConversionError, match=r"^f\.yaml:13:1: syntax error"):
        converted("f.yaml", text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "apiVersion: nvidia.example.com/v1alpha1\nkind: PodSnapshot\n",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: a}\ndata: {type: Workload}\n",
        "- apiVersion: snapshot.gke.io/v1\n",
        "a: {{ .Values.b }}\n",
        "{// settings\n}",
        "",
    ],
)
def test_what_is_not_ours_is_left(text: str) -> None:
    """Another project has a kind of the same name."""
    result = converted("f.yaml", text.encode())
    assert (result.text, result.changes) == (text.encode(), ())
