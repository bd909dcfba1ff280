"""Helpers that tests of several folders share.

Rule: no test and no fixture. A helper that only one file uses stays in that file.
"""

from __future__ import annotations

import pkgutil

import pytest

# A failed assert in a helper shows both operands, as in a test.
parts = [f"{__name__}.{part.name}" for part in pkgutil.iter_modules(__path__)]
pytest.register_assert_rewrite(*parts)
