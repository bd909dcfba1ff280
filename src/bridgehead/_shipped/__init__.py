"""What travels into the kernel.

Rule: standard library only, Python 3.8 and later, and no import from outside this folder: its
files become one module in a process that has no bridgehead. ``_protocol.bootstrap`` lists and
ships them; ``ruff.toml`` holds them to Python 3.8.

- ``wire``: both ends use it: the format of frames, digests, pickles, shared memory.
- ``data``: both ends use it: the codec for values that are data. It is shipped when it is needed.
- ``remote``: the kernel's end.
"""
