"""Jupyter messages to one kernel and back.

Rule: this floor knows messages, connections and the kernel's life, and nothing of objects or
lanes. Each way to a kernel is a ``Transport`` in a file of its own, with its helpers beside it.
What all of them share is composed in ``base``; its parts do not import it.
"""
