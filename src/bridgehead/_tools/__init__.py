"""Programs on top of the public names.

Rule: what a user starts or loads, and nothing that another floor needs. A program uses the names
that ``bridgehead`` exports. It uses private names only where there is no public one: to find
kernels and to format values. Only the benchmark opens sockets and makes pickles itself, because
it compares bridges with them.

- ``cli``: the command line. ``options`` and ``target`` choose the kernel; each command has a file.
- ``magics``: ``%bridge`` and ``%%bridge``, for IPython and notebooks.
- ``panel``: ``bridgehead.panel``, a widget for notebooks.
- ``bench``: the benchmark, which ``cli.bench`` runs.
- ``demo``: the demonstration, which ``cli.demo`` shows. Its table is in ``data/``.
"""
