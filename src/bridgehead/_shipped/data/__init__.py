"""The data-only codec: values that are data, and a receiver that runs nobody's code.

Rule: standard library only, Python 3.8 and later; shipped to a kernel into the loader's module
when it is first needed. numpy, pandas and pyarrow are imported by a constructor that needs
them, never by the names in a stream.
"""

# Imported for what they enter into the registry's tables, too.
from bridgehead._shipped.data import numpy, pandas, pyarrow, standard
from bridgehead._shipped.data.reader import decode_data
from bridgehead._shipped.data.writer import encode_data

FILES = ("registry", "standard", "numpy", "pandas", "pyarrow", "instances", "writer", "reader")

__all__ = ["FILES", "decode_data", "encode_data", "numpy", "pandas", "pyarrow", "standard"]
