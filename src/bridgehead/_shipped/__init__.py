"""The code that travels into the kernel.

Rule: use the standard library only, run on Python 3.8 and later, and import nothing from outside
this folder. In the kernel, the shipped files become one module, in a process that has no
bridgehead: no two files may define the same top-level name. ``_protocol.bootstrap`` lists and
ships the files; ``ruff.toml`` holds them to Python 3.8.

- ``wire``: the format of frames, digests, pickles, shared memory. Both ends use it.
- ``reducers``: how objects of other libraries are pickled fast. Both ends use it.
- ``data``: the codec for values that are only data. Both ends use it; the client ships it when it
  is first needed.
- ``remote``: the kernel's end.
"""
