# SPDX-License-Identifier: Apache-2.0
"""What a person asks: one module per question, and how answers and errors are given."""
