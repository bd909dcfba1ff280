"""Pickles of other libraries' types, one file a library.

Rule: use the standard library only, run on Python 3.8 and later, the same files at both ends. A
file imports no library when it is loaded: it looks for one that the process has. It is needed only
where a library's own pickle loses something, or sends more than the object.
"""
