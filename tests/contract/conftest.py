# SPDX-License-Identifier: Apache-2.0
"""What the conformance tests stand on: the real cluster, or where no Pod is needed the API server.

The cluster's fixtures are in tests/conftest.py; the API server's are those of the component tests.
"""

from tests.component.conftest import (
    admin,
    agent_client,
    api_server,
    bucket_root,
    controller_client,
    manager,
    toolchain,
    world,
)

__all__ = [
    "admin",
    "agent_client",
    "api_server",
    "bucket_root",
    "controller_client",
    "manager",
    "toolchain",
    "world",
]
