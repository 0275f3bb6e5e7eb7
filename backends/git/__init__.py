# SPDX-License-Identifier: Apache-2.0
"""Git repositories, read without a work tree."""
