"""Pickles of other libraries' types.

Rule: use the standard library only, run on Python 3.8 and later, the same files at both ends. A
file imports no library when it is loaded: it looks for one that the process has. It is needed only
where a library's own pickle loses something, or sends more than the object, or copies it.

Law: what a type's own pickle keeps, ours keeps. An object that a reducer here does not know in all
its parts, such as one of a subclass with a pickle of its own, is left to its library.

- ``numpy``, ``pandas``, ``pyarrow``, ``polars``, ``pillow``, ``torch``, ``jax``: their types.
- ``standard``: memory of the standard library.
- ``arrow_memory``: Arrow's C data interface, which ``pyarrow`` and ``polars`` use.
"""

# Each of them fills the tables of ``wire.libraries``.
from bridgehead._shipped.reducers import (
    jax,
    numpy,
    pandas,
    pillow,
    polars,
    pyarrow,
    standard,
    torch,
)

__all__ = ["jax", "numpy", "pandas", "pillow", "polars", "pyarrow", "standard", "torch"]
