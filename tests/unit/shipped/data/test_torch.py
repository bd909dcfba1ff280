"""Tensors as data: what arrives, and what is refused before torch sees it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bridgehead import Bridge
from bridgehead._shipped.data import encode_data
from bridgehead._shipped.data import torch as _torch
from bridgehead._shipped.wire.errors import WireError
from support.data import codec_call, data, pickled, refused, sent

pytestmark = pytest.mark.objects
LAYOUTS = {
    "C": lambda flat: flat.reshape(20, 300),
    "transposed": lambda flat: flat.reshape(20, 300).T,
    "channels last": lambda flat: flat.reshape(2, 10, 30, 10).to(memory_format=torch.channels_last),
    "every second": lambda flat: flat[::2],
    "expanded": lambda flat: flat[:30].expand(20, 30),
    "a number": lambda flat: flat[5].clone(),
    "no items": lambda flat: flat[:0].reshape(3, 0),
    "few": lambda flat: flat[:3],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", _torch._TORCH_NUMBERS)
def test_a_dense_tensor_arrives(dtype: str, layout: str) -> None:
    tensor = LAYOUTS[layout]((torch.arange(6000) % 3).to(getattr(torch, dtype)))
    back = sent({"tensor": [tensor]})["tensor"][0]
    assert (type(back), back.dtype, back.shape) == (torch.Tensor, tensor.dtype, tensor.shape)
    assert torch.equal(back, tensor)
    assert layout in ("every second", "expanded") or back.stride() == tensor.stride()
    back.zero_()  # it is writable


def test_parameters_and_gradients_arrive() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    (parameter * 2).sum().backward()
    back, leaf = sent([parameter, torch.ones(2, requires_grad=True)])
    assert type(back) is torch.nn.Parameter
    assert torch.equal(back.grad, parameter.grad)
    assert leaf.requires_grad
    state = torch.nn.Linear(300, 20).state_dict()
    assert all(torch.equal(sent(dict(state))[name], state[name]) for name in state)


def test_a_large_tensor_is_a_view_of_its_frame() -> None:
    frames = [bytearray(frame) for frame in encode_data(torch.zeros(6000))]
    back = _decoded(frames)
    back[0] = 1.0
    assert frames[1][:4] == b"\0\0\x80\x3f"
    assert _decoded([bytes(frame) for frame in frames])[0] == 1


def _decoded(frames: Any) -> Any:
    from bridgehead._shipped.data import decode_data

    return decode_data(frames)


class Named(torch.Tensor):
    pass


KINDS = ["sparse", "meta", "quantized", "subclass", "attributes", "gradient", "hooks"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_dense_tensor_is_refused_by_the_sender(kind: str) -> None:
    tensor = torch.ones(3, 3)
    if kind == "sparse":
        tensor = tensor.to_sparse()
    elif kind == "meta":
        tensor = tensor.to("meta")
    elif kind == "quantized":
        tensor = torch.quantize_per_tensor(tensor, 0.1, 0, torch.quint8)
    elif kind == "subclass":
        tensor = tensor.as_subclass(Named)
    elif kind == "attributes":
        tensor.tag = 1
    elif kind == "gradient":  # of which there is a gradient again
        tensor.requires_grad_().grad = torch.ones(3, 3, requires_grad=True)
    else:
        tensor = tensor.requires_grad_()
        tensor.register_hook(lambda grad: None)
    with pytest.raises(WireError) as caught:
        encode_data(tensor)
    assert caught.value.kind == "untrusted"


def call(
    name: Any = "float32",
    sizes: Any = (2,),
    axes: Any = (0,),
    raw: Any = bytearray(8),
    flags: Any = (False, False),
    grad: Any = None,
) -> bytes:
    return codec_call("make_dense_tensor", name, sizes, axes, data(raw), *flags, grad)


HOSTILE = {
    "a dtype by name": call("Tensor"),
    "an attribute of torch": call("load"),
    "a quantized dtype": call("quint8", raw=bytearray(2)),
    "too few bytes": call(raw=bytearray(7)),
    "too many bytes": call(raw=bytearray(9)),
    "a negative size": call(sizes=(-2,), raw=bytearray(8)),
    "two negative sizes": call(sizes=(-1, -2), axes=(0, 1)),
    "sizes that overflow": call(sizes=(1 << 62, 4, 0), axes=(0, 1, 2), raw=bytearray()),
    "a product of 2**64": call(sizes=(1 << 32, 1 << 32, 1), axes=(0, 1, 2), raw=bytearray(4)),
    "lists of a small tensor": call(sizes=(1 << 40, 0), axes=(0, 1), raw=bytearray()),
    "a size that is a bool": call(sizes=(True,), raw=bytearray(4)),
    "a size that is a float": call(sizes=(2.0,)),
    "many axes": call(sizes=(1,) * 33, axes=tuple(range(33)), raw=bytearray(4)),
    "an axis twice": call(sizes=(1, 2), axes=(0, 0)),
    "an axis too many": call(axes=(0, 1)),
    "a negative axis": call(axes=(-1,)),
    "a bool of 2": call("bool", (2,), raw=bytearray(b"\1\2")),
    "a gradient of integers": call("int32", flags=(True, False)),
    "a gradient that is no tensor": call(flags=(True, False), grad=1.5),
    "a gradient of another size": call(
        flags=(True, False), grad=call(sizes=(1,), raw=bytearray(4))
    ),
    "a gradient of what wants none": call(grad=call()),
    "a gradient that wants one": call(flags=(True, False), grad=call(flags=(True, False))),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tensor_is_refused(name: str) -> None:
    assert refused(pickled(HOSTILE[name]))[0] in ("protocol", "untrusted")


def test_a_tensor_shares_its_memory_with_no_other_value() -> None:
    """torch keeps no export of a buffer: a bytearray that is resized would leave freed memory."""
    for name, size in (("uint8", 8000), ("bool", 8000)):
        shared = data(bytearray(8000)) + b"\x94"
        made = codec_call("make_dense_tensor", name, (size,), (0,), b"h\0", False, False, None)
        raw, tensor = _decoded([pickled(b"](", shared, made, b"e")])
        raw[:] = b"\xff" * 100_000
        assert not tensor.any()


@pytest.mark.parametrize("shift", [1, 2, 4, 8])
def test_a_tensor_is_aligned_wherever_its_frame_is(shift: int) -> None:
    """An index of complex numbers that are not aligned ends the process (torch 2.13)."""
    whole = memoryview(bytearray(16_064))[shift : shift + 16_000]
    made = call("complex128", (1000,), raw=bytearray(), flags=(False, False))
    tensor = _decoded([pickled(made.replace(data(bytearray()), b"\x97")), whole])
    assert not tensor[torch.arange(999, -1, -1)].any()


@pytest.mark.parametrize("shape", [(), (1000,), (2,) * 12, (0,)])
@pytest.mark.parametrize("dtype", ["uint8", "complex64"])
def test_what_takes_long_to_print_is_not_shared_without_end(dtype: str, shape: Any) -> None:
    """M2. Each reference to a tensor is two bytes, and its repr up to 15 µs for each number."""
    tensor = torch.ones(shape, dtype=getattr(torch, dtype))
    with pytest.raises(WireError, match="visits"):
        sent([tensor] * 40_000)
    assert len(sent([tensor] * 20)) == 20
    assert len(sent([tensor.clone() for _ in range(300)])) == 300


def test_a_chain_of_gradients_is_bounded() -> None:
    chain: Any = None
    for depth in range(300):
        chain = call(flags=(True, False), grad=chain) if depth else call()
    assert refused(pickled(chain))[0] == "protocol"


async def test_tensors_cross_as_data(kernel: Bridge) -> None:
    tensor = torch.arange(6000.0).reshape(20, 300)
    await kernel.push(tensor=tensor, trust="data")
    assert torch.equal(await kernel.pull("tensor * 2", trust="data"), tensor * 2)
