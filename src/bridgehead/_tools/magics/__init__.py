"""``%bridge`` and ``%%bridge``: bridges by name, in IPython and in notebooks.

Rule: a magic does what the operation of ``SyncBridge`` does that has its name. What a kernel sends
is shown by IPython's own means. Only these files import IPython's magics and its completion.

- ``bridge_magics``: the commands, and the open bridges by name. Start here.
- ``parsing``: the words, names and expressions of a line.
- ``push_pull``: ``push`` and ``pull``, with a bar for a long transfer.
- ``cell``: a cell that runs in another kernel, shown in this IPython.
- ``several``: one cell in several kernels at once.
- ``widget_text``: the text of widgets whose models live in another kernel.
- ``tables``: tables and sentences, as HTML or as text.
- ``completer``: what Tab offers.
"""
