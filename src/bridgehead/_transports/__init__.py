"""Jupyter messages to one kernel and back."""
