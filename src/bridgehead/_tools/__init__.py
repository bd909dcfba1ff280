"""Programs on top of the public names.

Rule: what a user starts or loads, and nothing that another floor needs. A program moves objects and
runs cells by the public names, and sends no request of its own. It uses private names for what
these do not offer: to find kernels and their files, to open a bridge by options, to interrupt one
cell, to wait for several calls at once, and to show values and outputs. Only the benchmark opens
sockets and makes pickles itself, because it compares bridges with them.

- ``cli``: the command line.
- ``magics``: ``%bridge`` and ``%%bridge``, for IPython and notebooks.
- ``panel``: ``bridgehead.panel``, a widget for notebooks.
- ``bench``: the benchmark, which ``cli.bench`` runs.
- ``demo``: the demonstration, which ``cli.demo`` shows. Its table is in ``data/``.
"""
