"""The data-only codec: it carries values and never runs code.

Rule: standard library only, Python 3.8 and later. A kernel gets these files in the remote module
when it first needs them. A constructor imports numpy, pandas or pyarrow when it needs one of them;
a name in a stream never causes an import.

- ``writer``: the sender, which pickles data and refuses everything else by name.
- ``reader``: the receiver, which reads a stream of data and runs none of its code.
- ``registry``: the tables of constructors and reducers, which the next four files fill.
- ``standard``, ``numpy``, ``pandas``, ``pyarrow``: the data of each library.
- ``instances``: instances of the classes that ``allow=`` names.
"""

# The imports of numpy, pandas, pyarrow and standard also fill the registry's tables.
from bridgehead._shipped.data import numpy, pandas, pyarrow, standard
from bridgehead._shipped.data.reader import decode_data
from bridgehead._shipped.data.writer import encode_data

FILES = (
    "registry",
    "budget",
    "standard",
    "numpy",
    "pandas",
    "pyarrow",
    "instances",
    "writer",
    "reader",
)

__all__ = ["FILES", "decode_data", "encode_data", "numpy", "pandas", "pyarrow", "standard"]
