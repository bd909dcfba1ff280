"""What tests of several folders share.

Rule: no test and no fixture; a helper that one file alone uses stays in that file.
"""
