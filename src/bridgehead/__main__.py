"""``python -m bridgehead``: the command line, without its script.

Rule: nothing but the call; the command line is ``_tools.cli``.
"""

from bridgehead._tools.cli import main

main()
