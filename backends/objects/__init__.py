# SPDX-License-Identifier: Apache-2.0
"""Buckets: one interface, several stores."""
