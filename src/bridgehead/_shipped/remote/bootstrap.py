"""The first lines of the loader over there, which find the rest of it.

Rule: standard library only, Python 3.8 and later. The one file that always travels inside the
expression, in every handshake: as short as can be. It becomes one module with the others.
"""

from __future__ import annotations

import sys
from hashlib import sha256
from importlib.util import MAGIC_NUMBER
from marshal import loads as unmarshalled
from typing import Any, Sequence


def compiler() -> str:
    """Whose code objects run here: those of another bytecode, or another Python, may crash it."""
    return sys.implementation.name + " " + MAGIC_NUMBER.hex()


def shell_of(scope: Any) -> Any:
    """The IPython shell whose namespace this is, if it is one's."""
    ipython: Any = sys.modules.get("IPython")
    for find in (getattr(ipython, "get_ipython", None), scope.get("get_ipython")):
        try:
            shell = find() if callable(find) else None
        except Exception:
            continue
        if shell is not None and getattr(shell, "user_global_ns", None) is scope:
            return shell
    return None


def is_ipykernel(kernel: Any) -> bool:
    """Whether what a message brings and where it came from is to be found there.

    It is not where the interface is another's: xeus-python has ``get_parent``, too.
    """
    return hasattr(kernel, "_parent_ident")


def buffers_of(shell: Any) -> Sequence[Any]:
    """The buffers of the message that is being answered; none where they don't arrive."""
    kernel: Any = getattr(shell, "kernel", None)
    if not is_ipykernel(kernel):
        return ()
    return kernel.get_parent("shell").get("buffers") or ()


def rest(scope: Any, sources: Sequence[str], digests: Sequence[str], made_by: str) -> Sequence[Any]:
    """What is to run in this module next, as code objects; none if it did not arrive as it was.

    It is ``sources``, or what came beside the expression: Jupyter does not sign that, but the
    expression with the digests.
    """
    if not sources:
        parts = list(buffers_of(shell_of(scope)))[1:]
        if [sha256(part).hexdigest() for part in parts] != digests:
            return ()
        if made_by == compiler():
            code: Sequence[Any] = unmarshalled(parts[0])
            return code
        sources = [str(part, "utf-8") for part in parts[1:]]
    filename = rest.__code__.co_filename
    return [compile(source, filename, "exec") for source in sources]


def install(module: Any, scope: Any, how: Any) -> Any:
    """Fill the module, then register it: an interrupt in between leaves nothing."""
    code = rest(scope, *how)
    if not code:
        raise KeyError(module.__name__)  # as from sys.modules: it is not there
    for part in code:
        exec(part, module.__dict__)
    return sys.modules.setdefault(module.__name__, module)
