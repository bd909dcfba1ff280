"""Jupyter messages to one kernel and back.

Rule: this floor knows messages, connections and the state of the kernel. It knows nothing of
objects or lanes. Each way to a kernel is a ``Transport`` in a file of its own, with its helpers
beside it. ``base`` composes what all of them share; its parts do not import ``base``.
"""
