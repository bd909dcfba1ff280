"""Tensors keep their gradients, and views share memory where their base crosses too."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from bridgehead import Bridge
from bridgehead._shipped.wire import pickling

pytestmark = pytest.mark.objects
BASE = torch.arange(1_000_000.0)


def crossed(value: Any) -> tuple[Any, int]:
    """Return an object as a bridge sends it, and the number of its bytes."""
    frames, _ = pickling.encode(value)
    copies = [bytes(one) if one.readonly else bytearray(one) for one in frames]
    return pickling.decode(copies), sum(frame.nbytes for frame in frames)


TENSORS = {
    "large": BASE,
    "empty": torch.zeros(0),
    "a number": torch.tensor(3.0),
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "every third": torch.arange(10)[1:9:3],
    "expanded": torch.arange(3.0).expand(1000, 3),
    "bfloat16": torch.ones(3, dtype=torch.bfloat16),
    "booleans": torch.tensor([True, False]),
    "conjugate": torch.ones(3, dtype=torch.complex64).conj(),
    "sparse": torch.eye(3).to_sparse(),
    "wants a gradient": torch.ones(3, requires_grad=True),
    "no leaf": torch.ones(3, requires_grad=True) * 2,
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_crosses(name: str) -> None:
    tensor = TENSORS[name]
    back, nbytes = crossed(tensor)
    assert (back.dtype, back.shape, back.layout) == (tensor.dtype, tensor.shape, tensor.layout)
    assert back.requires_grad == tensor.requires_grad
    assert torch.equal(back.to_dense(), tensor.to_dense())
    assert nbytes < tensor.numel() * tensor.element_size() + 1000
    if name != "sparse":
        assert back.stride() == tensor.stride()


@pytest.mark.parametrize("kind", ["tensor", "parameter", "module", "with attributes"])
def test_the_gradient_crosses(kind: str) -> None:
    value: Any = torch.ones(3, requires_grad=True)
    if kind == "parameter":
        value = torch.nn.Parameter(torch.ones(3))
    if kind == "module":
        value = torch.nn.Linear(3, 2)
    (value(torch.ones(3)) if kind == "module" else value * 2).sum().backward()
    if kind == "with attributes":
        value.tag = "mine"
    back, _ = crossed(value)
    assert type(back) is type(value)
    pairs = zip(value.parameters(), back.parameters()) if kind == "module" else [(value, back)]
    for tensor, copy in pairs:
        assert torch.equal(copy, tensor)
        assert torch.equal(copy.grad, tensor.grad)
        assert copy.is_leaf
        assert vars(copy) == vars(tensor)


def test_a_view_sends_its_own_bytes() -> None:
    back, nbytes = crossed([BASE[500:503], BASE[900:902]])
    assert nbytes < 500
    assert [part.tolist() for part in back] == [[500, 501, 502], [900, 901]]


@pytest.mark.parametrize("shape", ["column", "every hundredth", "columns of a part"])
def test_a_view_with_gaps_sends_its_items_alone(shape: str) -> None:
    matrix = BASE.view(1000, 1000)
    view = {
        "column": matrix[:, 3],
        "every hundredth": BASE[7::100],
        "columns of a part": matrix[5:15, 100:102].T,
    }[shape]
    (back, small), nbytes = crossed([view, matrix[0, :3]])
    assert nbytes < view.numel() * 4 + 500
    assert torch.equal(back, view)
    assert small.tolist() == [0, 1, 2]
    back, whole = crossed([view, BASE])[0]
    whole[:] = -1.0
    assert back.unique().tolist() == [-1]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_crosses() -> None:
    back, _ = crossed(torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)]))
    assert [part.tolist() for part in back.unbind()] == [[1, 1], [0, 0, 0]]


@pytest.mark.parametrize("order", [1, -1])
def test_views_share_memory_with_a_base_that_crosses_too(order: int) -> None:
    parts = [BASE, BASE[:], BASE.view(2, -1), BASE[5:8], BASE.view(torch.int32)][::order]
    back, nbytes = crossed({"parts": parts, "alone": torch.zeros(1000)})
    assert nbytes < BASE.numel() * 4 + 10_000
    base, all_of_it, rows, few, bits = back["parts"][::order]
    base[6] = -1.0
    assert (all_of_it[6], rows[0, 6], few[1]) == (-1, -1, -1)
    bits[7] = 0
    assert few[2] == 0
    assert torch.equal(base[8:], BASE[8:])


def test_views_that_overlap_share_memory_without_their_base() -> None:
    (left, right, apart), nbytes = crossed([BASE[100:103], BASE[102:105], BASE[103_000:103_003]])
    assert nbytes < 1000
    right[0] = -1.0
    assert left.tolist() == [100, 101, -1]
    assert apart.tolist() == [103_000, 103_001, 103_002]


def test_a_parameter_and_its_data_share_memory() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    (back, data, again), _ = crossed((parameter, parameter.data, parameter))
    assert back is again
    data[0] = 5
    assert back[0] == 5


# ---------------------------------------------------------------- compared with torch's own pickle


class Named(torch.Tensor):
    """A subclass of tensors."""


PLAIN = {
    name: getattr(torch, name)
    for name in (
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool"),
        *("uint8", "int8", "int16", "int32", "int64", "float8_e4m3fn", "uint16", "uint64"),
    )
}
LAYOUTS = {
    "C": lambda flat: flat.reshape(20, 300),
    "transposed": lambda flat: flat.reshape(20, 300).T,
    "channels last": lambda flat: flat.reshape(2, 10, 30, 10).to(memory_format=torch.channels_last),
    "every second": lambda flat: flat[::2],
    "expanded": lambda flat: flat[:300].expand(20, 300),
    "a number": lambda flat: flat[5].clone(),
    "no items": lambda flat: flat[:0].reshape(3, 0),
    "in the middle": lambda flat: flat[1001:2002],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", PLAIN)
def test_a_tensor_keeps_what_its_own_pickle_keeps(dtype: str, layout: str) -> None:
    tensor = LAYOUTS[layout]((torch.arange(6000) % 100).to(PLAIN[dtype]))
    (back,), nbytes = crossed([tensor])
    # torch cannot load its own pickles of these: its storages of them have no dtype.
    lost = dtype in ("float8_e4m3fn", "uint16", "uint64")
    own = tensor if lost else pickle.loads(pickle.dumps(tensor, 5))
    assert same_attributes(back) == same_attributes(own)
    assert torch.equal(back.to(torch.complex128), tensor.to(torch.complex128))
    assert nbytes < tensor.untyped_storage().nbytes() + 1000


def same_attributes(tensor: Any) -> Any:
    return (
        *(type(tensor), tensor.dtype, tensor.shape, tensor.layout, tensor.device),
        *(tensor.requires_grad, tensor.is_leaf, tensor.is_quantized, tensor.is_conj()),
        tensor.stride() if tensor.layout is torch.strided else None,
        vars(tensor),
    )


def special() -> dict[str, Any]:
    numbers = torch.arange(6000.0).reshape(20, 300)
    named = torch.ones(3).as_subclass(Named)
    named.tag = "mine"
    return {
        "sparse": numbers.to_sparse(),
        "sparse rows": numbers.to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(numbers, 0.1, 10, torch.quint8),
        "meta": torch.empty(3, 4, device="meta"),
        "subclass": named,
        "conjugate": torch.ones(3, dtype=torch.complex64).conj(),
        "negative": torch.ones(3, dtype=torch.complex64).conj().imag,
        "parameter": torch.nn.Parameter(numbers),
        "frozen parameter": torch.nn.Parameter(numbers, requires_grad=False),
        "buffer": torch.nn.Buffer(numbers),
        "a size": torch.Size([3, 4]),
        "a dtype": torch.float16,
        "a device": torch.device("cpu"),
        "a generator's state": torch.Generator().manual_seed(3).get_state(),
    }


SPECIAL = (
    *("sparse", "sparse rows", "quantized", "meta", "subclass", "conjugate", "negative"),
    *("parameter", "frozen parameter", "buffer", "a size", "a dtype", "a device"),
    "a generator's state",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SPECIAL)
def test_what_is_no_plain_tensor_is_left_to_torch(name: str) -> None:
    value = special()[name]
    (back,), _ = crossed([value])
    own = pickle.loads(pickle.dumps(value, 5))
    assert type(back) is type(own)
    if not isinstance(value, torch.Tensor):
        assert back == own
        return
    assert same_attributes(back) == same_attributes(own)
    if name != "meta":
        dense, wanted = (
            one.dequantize() if one.is_quantized else one.detach().to_dense() for one in (back, own)
        )
        assert torch.equal(dense, wanted)


def test_a_module_and_its_state_cross_out_of_band() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(300, 300), torch.nn.BatchNorm1d(300))
    module.tied = module[0].weight
    module.eval()
    (back, state), nbytes = crossed([module, module.state_dict()])
    assert not back.training
    assert back.tied is back[0].weight
    assert list(state) == list(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name])
        assert torch.equal(tensor, back.state_dict()[name])
    state["0.weight"][0, 0] = 7.0  # they share memory, as in the module that was sent
    assert back[0].weight[0, 0] == 7
    assert nbytes < 300 * 300 * 4 + 20_000
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(2, 300)).sum().backward()
    optimizer.step()
    (back, adam), _ = crossed([module, optimizer])
    assert adam.param_groups[0]["params"][0] is back[0].weight
    assert torch.equal(back[0].weight.grad, module[0].weight.grad)


async def test_tensors_cross_both_ways(kernel: Bridge) -> None:
    """L5."""
    parameter = torch.nn.Parameter(torch.ones(3))
    (parameter * 2).sum().backward()
    transfer = await kernel.push(few=BASE[5:8], parameter=parameter)
    assert transfer.bytes < 2000
    await kernel.push(parts=[BASE, BASE[5:8]])
    await kernel.run("parts[0][6] = -1.0")
    back, parts = await kernel.pull("parameter", "parts")
    assert torch.equal(back.grad, parameter.grad)
    assert parts[1].tolist() == [5, -1, 7]
    assert BASE[6] == 6
    parts[0][5] = -2.0
    assert parts[1].tolist() == [-2, -1, 7]
