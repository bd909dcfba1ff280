"""What tests of several folders share.

Rule: no test and no fixture; a helper that one file alone uses stays in that file.
"""

from __future__ import annotations

import pkgutil

import pytest

# A helper that asserts tells of both sides, as a test does.
parts = [f"{__name__}.{part.name}" for part in pkgutil.iter_modules(__path__)]
pytest.register_assert_rewrite(*parts)
