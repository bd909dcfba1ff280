"""The benchmark: bridges beside what they are compared with, on the machine it runs on.

Rule: it measures, it doesn't print. Everything that is compared is a ``Peer``; all of them take
turns, repetition by repetition, so that the machine's noise falls on all alike. What the rule
of no pickle above the protocol is for does not hold here: raw pickle is what is compared with.
"""
