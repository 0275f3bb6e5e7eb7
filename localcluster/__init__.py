# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes cluster on one host, for ``podsnap local``, the demo and the tests."""
