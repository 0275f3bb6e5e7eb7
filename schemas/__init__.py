# SPDX-License-Identifier: Apache-2.0
"""What is said: the API kinds as typed values, their names, and how they are written."""
