"""The data-only codec: it carries values and never runs code.

Rule: standard library only, Python 3.8 and later. A kernel gets these files in the remote module
when it first needs them. A constructor imports the library that it needs, one of those named below;
a name in a stream never causes an import.

Threat model: the sender chooses every byte, and it knows this code and the libraries. It wants to
run code, to crash or hang the receiver, to fill its memory, or to have a value do so later, when
the caller hashes, compares, prints or converts it. It cannot change the frames while they are read.

- Code: ``reader`` calls constructors and nothing else. A constructor checks its arguments, and
  builds from plain values and from buffers whose bytes are checked where a library trusts them.
- Costs: everything is paid from one budget, in proportion to the bytes that crossed (``budget``).
- Sharing: a buffer has one owner, so no value changes what another one has checked. What a library
  trusts without a check of its own, such as codes and places, crosses as a buffer.

What a constructor costs, and what pays for it:

- date, time, datetime, timedelta, complex, UUID, range, slice, scalars of numpy and pandas: a fixed
  time, 16 bytes of the budget. A range is never expanded.
- empty lists, dicts and sets: 72 to 216 bytes, of which 32 are charged: they cross as two.
- time zones: a file for each of a few hundred names, which are cached.
- Decimal: the digits squared for ``int()``, as visits; from then on, and where keys of one hash are
  compared, long integers count squared, too. Fraction: bounded numbers, for their gcd.
- arrays of numpy: no copy; checks of bools and text, linear in the bytes. A claim of the lists that
  ``tolist`` would make, and visits of the numbers that a repr prints, at most half of what their
  bytes pay. Dtypes: 16 bytes for each part, 16 parts deep.
- object arrays, strings: linear in the items, which are charged at each call.
- columns and indexes of pandas: 500 bytes, as many visits for each copy and repr, and the bytes of
  what pandas copies or hashes. Labels that are objects are put into a set before. Its
  hashes and checks visit the items, which are weighed before. Sparse arrays and ranges of rows: a
  claim of their dense size. Frequencies: the time of three checks, of two rows each.
- arrays of Arrow: no copy; 500 bytes for each, and Arrow's full check, linear in the bytes. Nulls,
  items of no size, rows of structures and of lists, and the texts of dictionaries: a claim. What
  pandas adds to a schema: its bytes; its names of types are known ones.
- an ``array.array``: a copy, which is charged. A repr, which prints all numbers: visits.
- tensors of torch: no copy, unless their frame is not aligned; a check of bools, visits for a repr.
  Sizes and the order of axes are checked against the bytes. Empty tensors: a claim, as for arrays.
- sparse matrices of scipy: no copy; checks of all places. A claim of a line each way, which every
  conversion makes. Their dense form is not counted: ``toarray`` makes it, ``==`` does, which warns
  of it, and ``todia`` makes a line for each diagonal.
- columns of polars: those of Arrow, and a copy, which is charged. Dates and times beyond what
  polars prints are refused.
- images of Pillow: four bytes for each pixel, whatever its mode. Only raw bytes are decoded.
- variables of xarray: four times their bytes. Indexes: those of pandas, whose labels are tried out
  and converted once, which is claimed.
- instances of allowed classes: what the class does with its arguments, which are weighed before. A
  constructor that it inherits from a builtin class gets only what takes no more than crossed.

The files:

- ``writer``: the sender, which pickles data and refuses everything else by name.
- ``reader``: the receiver, which reads a stream of data and runs none of its code.
- ``budget``: what a stream may cost its receiver.
- ``registry``: the tables of constructors and reducers, which the next files fill.
- ``standard``, ``numpy``, ``pandas``, ``pyarrow``, ``torch``, ``polars``, ``scipy``, ``pillow``,
  ``xarray``: the data of each library.
- ``pandas_metadata``: what pandas adds to the schema of an Arrow table.
- ``instances``: instances of the classes that ``allow=`` names.
"""

# These imports also fill the registry's tables.
from bridgehead._shipped.data import (
    budget,
    numpy,
    pandas,
    pillow,
    polars,
    pyarrow,
    scipy,
    standard,
    torch,
    xarray,
)
from bridgehead._shipped.data.reader import decode_data
from bridgehead._shipped.data.writer import encode_data

FILES = (
    "registry",
    "budget",
    "standard",
    "numpy",
    "pandas",
    "pandas_metadata",
    "pyarrow",
    "torch",
    "polars",
    "scipy",
    "pillow",
    "xarray",
    "instances",
    "writer",
    "reader",
)

__all__ = [
    "FILES",
    "budget",
    "decode_data",
    "encode_data",
    "numpy",
    "pandas",
    "pillow",
    "polars",
    "pyarrow",
    "scipy",
    "standard",
    "torch",
    "xarray",
]
