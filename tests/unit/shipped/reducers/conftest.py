"""The libraries of these files are only in the environment of ``pytest -m objects``."""

from __future__ import annotations

from support import objects

LIBRARIES = ["test_jax.py", "test_pillow.py", "test_polars.py", "test_torch.py"]
collect_ignore = [] if objects.is_inside() else LIBRARIES
