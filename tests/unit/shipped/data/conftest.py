"""The libraries of these files are only in the environment of ``pytest -m objects``."""

from __future__ import annotations

from support import objects

LIBRARIES = ["test_pillow.py", "test_polars.py", "test_scipy.py", "test_torch.py", "test_xarray.py"]
collect_ignore = [] if objects.is_inside() else LIBRARIES
