# SPDX-License-Identifier: Apache-2.0
"""``podsnap local`` where there is no cluster: each command says what to do."""

import json

import pytest
from click.testing import CliRunner

from localcluster.commands import local

ABSENT = "--name=never-brought-up"


def test_status_of_an_absent_cluster_fails_and_says_how_to_start_it() -> None:
    """Scripts see the exit code, people see the command."""
    result = CliRunner().invoke(local, ["status", ABSENT])
    assert result.exit_code == 1
    assert "podsnap local up --name never-brought-up" in result.output


def test_status_as_json_is_json_also_when_nothing_runs() -> None:
    """A program that reads it needs no second form."""
    result = CliRunner().invoke(local, ["status", ABSENT, "-o", "json"])
    assert json.loads(result.output) == {"name": "never-brought-up", "components": []}


@pytest.mark.parametrize("command", [["kubeconfig"], ["logs", "kubelet"], ["restart", "kubelet"]])
def test_a_command_that_needs_the_cluster_says_so_in_one_line(command: list[str]) -> None:
    """No stack trace for what the user can mend."""
    result = CliRunner().invoke(local, [*command, ABSENT])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "podsnap local" in result.output


def test_a_name_that_cannot_be_part_of_a_path_is_refused() -> None:
    """The name becomes directories and control groups."""
    result = CliRunner().invoke(local, ["status", "--name=../etc"])
    assert result.exit_code == 1
    assert "a-z, 0-9" in result.output
