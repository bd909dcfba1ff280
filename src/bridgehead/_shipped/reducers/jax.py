"""Arrays of jax: their memory crosses as that of a numpy array.

Rule: as ``reducers`` says. jax pickles what numpy pickles without buffers, a copy in the pickle.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.libraries import builder, finder


@finder
def jax_reducer(kind: Any, shared: Any) -> Any:
    """Return the function that reduces arrays of jax, or None; keys and tracers are left alone."""
    if "jax" not in sys.modules or kind.__name__ != "ArrayImpl":
        return None
    base = getattr(sys.modules["jax"], "Array", None)
    return reduce_jax_array if base is not None and issubclass(kind, base) else None


def reduce_jax_array(array: Any) -> Any:
    """Return how to pickle an array; on the CPU it is not copied."""
    weak = getattr(getattr(array, "aval", None), "weak_type", None)
    if weak is None or not array.is_fully_addressable:
        return array.__reduce_ex__(5)
    numpy: Any = importlib.import_module("numpy")
    value = numpy.asarray(array).view()
    value.flags.writeable = False
    return make_jax_array, (value, weak)


@builder
def make_jax_array(value: Any, weak: bool) -> Any:
    """Return a jax array on the default device, which on the CPU has the memory of this one."""
    jax: Any = importlib.import_module("jax")
    made = None
    if jax.default_backend() == "cpu" and jax.config.jax_enable_x64 | (value.itemsize < 8):
        try:
            made = jax.dlpack.from_dlpack(value)
        except Exception:  # a dtype that dlpack does not know
            pass
    made = jax.device_put(value) if made is None else made
    if weak:
        made.aval = made.aval.update(weak_type=weak)
    return made
