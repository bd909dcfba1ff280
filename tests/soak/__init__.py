"""The soak: operations and faults for as long as you like; ``python -m tests.soak --help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for ``support``, as pytest does
