"""Programs on top of the public names.

Rule: what a user starts or loads, and nothing that another floor needs. A program uses the names
that ``bridgehead`` exports, and private ones where no public name will do, as to find kernels and
to format values. Only the benchmark opens sockets and makes pickles of its own: it compares.

- ``cli``: the command line. ``options`` and ``target`` say which kernel; one file a command.
- ``magics``: ``%bridge`` and ``%%bridge``, for IPython and notebooks.
- ``bench``: the benchmark, which ``cli.bench`` runs.
- ``demo``: the demonstration, which ``cli.demo`` shows, with its table in ``data/``.
"""
