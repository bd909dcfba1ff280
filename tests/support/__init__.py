"""Helpers that tests of several folders share.

Rule: no test and no fixture. A helper that only one file uses stays in that file.
"""

from __future__ import annotations

import pkgutil
import sys

if "pytest" in sys.modules:  # a program that a test starts imports a helper without it
    import pytest

    # A failed assert in a helper shows both operands, as in a test.
    parts = [f"{__name__}.{part.name}" for part in pkgutil.iter_modules(__path__)]
    pytest.register_assert_rewrite(*parts)
