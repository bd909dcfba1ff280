"""The public names: there, sorted, and each says that it is this package's."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import bridgehead


def test_every_public_name_is_there() -> None:
    assert [name for name in bridgehead.__all__ if not hasattr(bridgehead, name)] == []


def test_importing_it_brings_nothing_along_that_few_programs_need() -> None:
    found = (
        "print([name for name in ('IPython', 'anyio', 'numpy', 'pandas') if name in sys.modules])"
    )
    code = f"import sys, jupyter_client; {found}; import bridgehead; {found}"
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, after = told.stdout.splitlines()
    assert after == before


@pytest.mark.parametrize("name", bridgehead.__all__)
def test_a_public_name_says_bridgehead_as_its_module(name: str) -> None:
    public = getattr(bridgehead, name)
    assert (public.__module__, public.__qualname__) == ("bridgehead", name)
    assert pickle.loads(pickle.dumps(public)) is public
