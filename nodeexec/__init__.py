# SPDX-License-Identifier: Apache-2.0
"""The node: the agent, saving, restore decisions, the runtime wrapper."""
