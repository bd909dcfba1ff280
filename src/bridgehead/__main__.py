"""The command line as ``python -m bridgehead``.

Rule: nothing but the call; the command line itself is ``_tools.cli``.
"""

from bridgehead._tools.cli import main

main()
