# SPDX-License-Identifier: Apache-2.0
"""Every touch of the outside: Kubernetes, objects, Git, telemetry, the clock."""
