"""Tensors of torch: their gradients, and views that share memory where their base crosses too.

Rule: as ``reducers`` says. torch pickles the whole storage of a tensor, once for each tensor, and
leaves out ``grad``. Here a tensor sends the part of its storage that it covers, or its items alone
where the gaps between them are larger, as in a column of a matrix. Tensors whose parts overlap
share them again where they arrive, so a view of a tensor that crosses, too, is its view.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from bisect import bisect_right
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.libraries import builder, finder

_ALIGNED = 16  # bytes; a tensor of any type may begin there
GAPS = 4096  # bytes between the items of a tensor that cross with it in any case


@finder
def tensor_reducer(kind: Any, shared: Any) -> Any:
    """Return the function that reduces tensors of a type, or None."""
    base = getattr(sys.modules.get("torch"), "Tensor", None)
    if base is None or not issubclass(kind, base):
        return None
    return shared.setdefault("torch", Tensors()).reduce


class Tensors:
    """The tensors in one pickle.

    Which of them overlap is known only when all of them were met. If some do, the object is pickled
    again, with the ``segments`` that were found.
    """

    def __init__(self) -> None:
        # Start and end of what several tensors share, by address and size of the storage.
        self.segments: dict[Any, list[tuple[int, int]]] = {}
        self.met: dict[Any, list[tuple[int, int]]] = {}  # start and end of each tensor
        self.memories: dict[Any, TensorMemory] = {}

    def pickles_again(self) -> bool:
        """Return whether the object must be pickled once more, because tensors overlap."""
        again = not self.segments
        self.segments = self.segments or self._overlapping()
        return again and bool(self.segments)

    def reduce(self, tensor: Any) -> Any:
        """Return how to pickle a tensor."""
        torch: Any = sys.modules["torch"]
        # The gradient of a tensor that is no leaf of the graph is not kept; asking for it warns.
        gradient = tensor.grad if tensor.is_leaf else None
        plain = (
            type(tensor) in (torch.Tensor, torch.nn.Parameter)
            and tensor.layout is torch.strided
            and tensor.device.type == "cpu"
            and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
            and not getattr(tensor, "is_nested", False)
            and not tensor._backward_hooks
            and hasattr(tensor, "untyped_storage")  # from torch 2.0 on
            and "numpy" in sys.modules
        )
        if not plain:
            reduced = tensor.__reduce_ex__(5)
            if gradient is None or len(reduced) != 2:
                return reduced
            return (*reduced, ({}, gradient), None, None, set_tensor_state)
        memory, offset, stride = self._memory(tensor)
        parts = tuple(tensor.size()), stride, tensor.requires_grad
        is_parameter = type(tensor) is not torch.Tensor
        arguments = (memory, tensor.dtype, offset, *parts, is_parameter)
        if gradient is None and not vars(tensor):
            return make_tensor, arguments
        return make_tensor, arguments, (vars(tensor), gradient), None, None, set_tensor_state

    def _memory(self, tensor: Any) -> tuple[Any, int, Any]:
        """Return the memory that a tensor is sent with, the byte where it begins, its stride."""
        storage, width, stride = tensor.untyped_storage(), tensor.element_size(), tensor.stride()
        start = tensor.storage_offset() * width
        last = sum((n - 1) * step for n, step in zip(tensor.size(), stride))
        end = start + (last + 1) * width if tensor.numel() else start
        key = storage.data_ptr(), storage.nbytes()
        self.met.setdefault(key, []).append((start, end))
        segments = self.segments.get(key, [])
        at = bisect_right(segments, (start, storage.nbytes())) - 1
        if at >= 0 and end <= segments[at][1]:
            low, high = segments[at]
            if (key, low) not in self.memories:
                self.memories[key, low] = TensorMemory(storage, low, high)
            return self.memories[key, low], start - low, stride
        if end - start > 2 * tensor.numel() * width + GAPS:
            items = tensor.detach().clone()  # with the axes in the same order
            own = items.untyped_storage()
            return TensorMemory(own, 0, own.nbytes()), 0, items.stride()
        low = start // _ALIGNED * _ALIGNED
        return TensorMemory(storage, low, end), start - low, stride

    def _overlapping(self) -> dict[Any, list[tuple[int, int]]]:
        """Return what must be sent together, by storage; nothing if no two tensors overlap."""
        found: dict[Any, list[tuple[int, int]]] = {}
        for key, parts in self.met.items():
            joined: list[tuple[int, int]] = []
            shared: set[int] = set()  # where those begin that several tensors are in
            for start, end in sorted(parts):
                if joined and start < joined[-1][1] and end > start:
                    joined[-1] = joined[-1][0], max(joined[-1][1], end)
                    shared.add(joined[-1][0])
                else:
                    joined.append((start // _ALIGNED * _ALIGNED, end))
            if shared:
                found[key] = [part for part in joined if part[0] in shared]
        return found


class TensorMemory:
    """A part of a storage; several tensors in one pickle may be in it."""

    def __init__(self, storage: Any, start: int, end: int) -> None:
        self.storage, self.start, self.end = storage, start, end

    def __reduce__(self) -> Any:
        torch: Any = sys.modules["torch"]
        part = torch.empty(0, dtype=torch.uint8)
        part.set_(self.storage, self.start, (self.end - self.start,), (1,))
        return make_tensor_memory, (pickle.PickleBuffer(part.numpy()),)


@builder
def make_tensor_memory(data: Any) -> Any:
    """Return a tensor of these bytes, without a copy if they may be written."""
    torch: Any = importlib.import_module("torch")
    view = memoryview(data)
    if not view.nbytes:
        return torch.empty(0, dtype=torch.uint8)
    return torch.frombuffer(bytearray(view) if view.readonly else data, dtype=torch.uint8)


@builder
def make_tensor(
    memory: Any,
    dtype: Any,
    offset: int,
    size: Any,
    stride: Any,
    requires_grad: bool,
    is_parameter: bool,
) -> Any:
    """Return a tensor in this memory."""
    torch: Any = sys.modules["torch"]
    tensor = torch.empty(0, dtype=dtype)
    tensor.set_(memory.untyped_storage(), offset // tensor.element_size(), size, stride)
    if is_parameter:
        return torch.nn.Parameter(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)


@builder
def set_tensor_state(tensor: Any, state: Any) -> None:
    """Give a tensor its attributes and its gradient."""
    attributes, gradient = state
    vars(tensor).update(attributes)
    tensor.grad = gradient
