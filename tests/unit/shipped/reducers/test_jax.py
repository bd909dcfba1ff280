"""Arrays of jax, compared with what their own pickles keep."""

from __future__ import annotations

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridgehead import Bridge
from bridgehead._shipped.wire import pickling

pytestmark = pytest.mark.objects
ARRAYS = {
    "integers": lambda: jnp.arange(6000).reshape(20, 300),
    "transposed": lambda: jnp.arange(6000.0).reshape(20, 300).T,
    "bfloat16": lambda: jnp.arange(6000, dtype="bfloat16"),
    "bools": lambda: jnp.arange(6000) > 5,
    "complex": lambda: jnp.arange(6000) * 1j,
    "8 bits": lambda: jnp.arange(6000, dtype="uint8"),
    "weak": lambda: jnp.asarray(2.0) * 1,
    "a number": lambda: jnp.float32(3),
    "no items": lambda: jnp.ones((3, 0)),
}


def crossed(value: Any) -> tuple[Any, list[memoryview]]:
    frames, _ = pickling.encode(value)
    return pickling.decode([bytearray(frame) for frame in frames]), frames


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_keeps_what_its_own_pickle_keeps(name: str) -> None:
    array = ARRAYS[name]()
    (back,), frames = crossed([array])
    own = pickle.loads(pickle.dumps(array, 5))
    assert (type(back), back.aval, back.weak_type) == (type(own), own.aval, own.weak_type)
    assert (back.devices(), back.committed) == (own.devices(), own.committed)
    np.testing.assert_array_equal(np.asarray(back), np.asarray(array))
    assert len(frames) == 1 + (array.nbytes > 5000)
    assert not np.asarray(back).flags.writeable
    np.testing.assert_array_equal(np.asarray(back + 1), np.asarray(array + 1))


def test_an_array_from_read_only_frames_arrives() -> None:
    frames, _ = pickling.encode(ARRAYS["integers"]())
    back = pickling.decode([bytes(frame) for frame in frames])
    assert int(back.sum()) == 6000 * 5999 // 2


def test_keys_are_left_to_jax() -> None:
    key = jax.random.key(3)
    back, own = crossed(key)[0], pickle.loads(pickle.dumps(key))
    assert (type(back), back.dtype) == (type(own), own.dtype)
    assert jax.random.bits(back) == jax.random.bits(key)


async def test_arrays_cross_both_ways(kernel: Bridge) -> None:
    await kernel.push(array=ARRAYS["integers"]())
    back = await kernel.pull("array + 1")
    assert int(back[0, 0]) == 1
    assert isinstance(back, jax.Array)
