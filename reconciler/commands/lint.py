# SPDX-License-Identifier: Apache-2.0
"""``podsnap lint``: files judged before anybody applies them; no cluster is asked."""

import sys
from typing import Final

import click

from reconciler.commands.exit_codes import CommandError, ExitCode
from schemas.findings import Finding, Severity

_FORMATS: Final = ("text", "json", "sarif", "github")


@click.command()
@click.argument("paths", metavar="PATH|-...", nargs=-1, required=True)
@click.option("-o", "--output", type=click.Choice(_FORMATS), default="text", show_default=True)
@click.option("--strict", is_flag=True, help="Warnings fail too.")
@click.option(
    "-n", "--namespace", default="default", show_default=True, help="Of objects that name none."
)
@click.option("--kubernetes-version", help="Check Pod templates against this one.  [default: 1.36]")
def lint(
    paths: tuple[str, ...],
    output: str,
    *,
    strict: bool,
    namespace: str,
    kubernetes_version: str | None,
) -> None:
    """Check manifests: files, folders, or - for standard input.

    podsnap's kinds against their CRDs, Pod templates against Kubernetes, and both against each
    other. Ends with 1 if there is an error. The rules: docs/lint.md.
    """
    from reconciler.commands import findings_output

    findings, files = _judged(paths, namespace, kubernetes_version)
    render = {
        "text": findings_output.as_text,
        "json": findings_output.as_json,
        "sarif": findings_output.as_sarif,
        "github": findings_output.as_github,
    }[output]
    text = render(findings)
    if text:
        click.echo(text)
    click.echo(findings_output.counted(findings, files), err=True)
    fatal = {Severity.ERROR, Severity.WARNING} if strict else {Severity.ERROR}
    if any(f.severity in fatal for f in findings):
        sys.exit(ExitCode.ERROR)


def _judged(
    paths: tuple[str, ...], namespace: str, kubernetes_version: str | None
) -> tuple[list[Finding], int]:
    """Return the findings in the order of the files, and how many files there were."""
    from dataclasses import replace

    from policies.lint_documents import document_findings
    from reconciler.commands.findings_output import printable
    from reconciler.kubernetes_schemas import (
        DEFAULT_VERSION,
        KubernetesSchemas,
        SchemasMissingError,
    )
    from reconciler.manifest_files import manifest_files
    from schemas.documents import Document, read_all

    found: list[Finding] = []
    documents: list[Document] = []
    files = 0
    try:
        for file in manifest_files(paths):
            if isinstance(file, Finding):
                found.append(file)
                continue
            files += 1
            for read in read_all(file.name, file.text):
                if isinstance(read, Document):
                    documents.append(read)
                elif read.finding.rule == "no-object":
                    # A list of patches, or the values of something: no manifest, and no mistake.
                    found.append(replace(read.finding, severity=Severity.NOTE))
                else:
                    found.append(read.finding)
    except OSError as error:
        raise CommandError(ExitCode.USAGE, printable(str(error))) from error
    found += document_findings(documents, namespace=namespace)
    try:
        schemas = KubernetesSchemas(kubernetes_version or DEFAULT_VERSION)
    except SchemasMissingError as error:
        if kubernetes_version:
            raise CommandError(ExitCode.USAGE, str(error)) from error
        click.echo(f"note: {error}", err=True)
    else:
        refused = [finding for document in documents for finding in schemas.findings(document)]
        # The schema says the same of what holds no Pod, and better.
        told = {f.place for f in refused}
        found = [f for f in found if f.rule != "malformed-template" or f.place not in told]
        found += refused
    return sorted(set(found), key=lambda f: (f.file, f.line, f.column, f.rule, f.message)), files
