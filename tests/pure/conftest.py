# SPDX-License-Identifier: Apache-2.0
"""Makes ``api_objects`` and ``stepped_clock`` importable: tests are no package."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# The machine is shared: a slow example is no finding, and the same examples run everywhere.
settings.register_profile("podsnap", deadline=None, derandomize=True, database=None)
settings.load_profile("podsnap")
