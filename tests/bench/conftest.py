# SPDX-License-Identifier: Apache-2.0
"""The benchmark is a folder of scripts: its modules are found as they are when it runs."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent.parent / "bench"))
