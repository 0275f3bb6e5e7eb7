# SPDX-License-Identifier: Apache-2.0
"""What is judged: facts in, a verdict with reasons out. Pure."""
