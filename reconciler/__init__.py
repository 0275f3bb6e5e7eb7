# SPDX-License-Identifier: Apache-2.0
"""The engine: work queue, controllers, Git sync, the command line."""
