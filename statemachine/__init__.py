# SPDX-License-Identifier: Apache-2.0
"""What happens next: facts in, state, effects and conditions out. Pure."""
