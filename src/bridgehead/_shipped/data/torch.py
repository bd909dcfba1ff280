"""Data of torch: dense tensors on the CPU, and parameters.

Rule: a tensor crosses as its bytes, its sizes and the order of its axes. torch's own pickles, which
name classes and storages, are not used.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.registry import (
        BUFFER,
        DataReader,
        DataWriter,
        constructor,
        library,
        library_reducers,
        need,
        untrusted,
    )

# The bytes of a number, by the name of its dtype.
_TORCH_NUMBERS = {
    **dict.fromkeys(("bool", "uint8", "int8"), 1),
    **dict.fromkeys(("int16", "float16", "bfloat16"), 2),
    **dict.fromkeys(("int32", "float32"), 4),
    **dict.fromkeys(("int64", "float64", "complex64"), 8),
    "complex128": 16,
}
_TORCH_AXES = 32
_TORCH_ALIGNED = 16  # bytes; an index of complex numbers that lie elsewhere crashes (torch 2.13)
# Visits of a repr: of a tensor, 20 to 140 µs, and of each number, 4 to 15 µs. A number counts for
# less, as in numpy's file, because a program may have a tensor at many places.
_TENSOR = 500
_TORCH_NUMBER = 10
_TORCH_LARGEST = 1 << 60  # items; torch multiplies sizes without a check


@constructor(str, tuple, tuple, BUFFER, bool, bool, None)
def make_dense_tensor(
    reader: DataReader,
    name: str,
    sizes: Any,
    axes: Any,
    raw: Any,
    requires_grad: bool,
    is_parameter: bool,
    grad: Any,
) -> Any:
    """Make a tensor over the buffer itself; ``axes`` is their order in memory."""
    need(name in _TORCH_NUMBERS, "invalid dtype of a tensor")
    fine = len(sizes) <= _TORCH_AXES and all(type(n) is int and n >= 0 for n in sizes)
    need(fine and math.prod(filter(None, sizes)) < _TORCH_LARGEST, "invalid sizes")
    ordered = all(type(n) is int for n in axes) and sorted(axes) == list(range(len(sizes)))
    need(ordered, "invalid order of axes")
    count = math.prod(sizes)
    need(memoryview(raw).nbytes == count * _TORCH_NUMBERS[name], "bytes that do not fit the sizes")
    reader.claim_lists((*sizes[: sizes.index(0)], 0) if 0 in sizes else sizes)
    printed = count if count <= 1000 else math.prod([min(n, 6) for n in sizes])
    reader.show(_TENSOR + min(_TORCH_NUMBER * printed, 8 * memoryview(raw).nbytes))
    torch = library("torch")
    dtype = getattr(torch, name)
    number = dtype.is_floating_point or dtype.is_complex
    need(number or not requires_grad, "a gradient of numbers that have none")
    raw = reader.own(raw)
    if memoryview(raw).readonly:  # torch has no read-only memory
        reader.charge(memoryview(raw).nbytes)
        raw = bytearray(raw)
    flat = torch.frombuffer(raw, dtype=torch.uint8) if count else torch.empty(0, dtype=torch.uint8)
    need(name != "bool" or not count or int(flat.max()) <= 1, "bool that is neither 0 nor 1")
    if flat.data_ptr() % _TORCH_ALIGNED:
        reader.charge(flat.nbytes)
        flat = flat.clone()
    tensor = flat.view(dtype)
    tensor = tensor.reshape([sizes[axis] for axis in axes])
    tensor = tensor.permute([axes.index(axis) for axis in range(len(axes))])
    if is_parameter:
        tensor = torch.nn.Parameter(tensor, requires_grad)
    else:
        tensor.requires_grad_(requires_grad)
    if grad is not None:
        plain = type(grad) is torch.Tensor and not grad.requires_grad
        fits = plain and grad.dtype == dtype and grad.shape == tensor.shape
        need(fits and requires_grad, "invalid gradient")
        tensor.grad = grad
    return tensor


def _reduce_dense_tensor(writer: DataWriter, tensor: Any) -> Any:
    torch = library("torch")
    name = str(tensor.dtype).partition(".")[2]
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not plain or name not in _TORCH_NUMBERS or tensor._backward_hooks or vars(tensor):
        raise untrusted("a torch.Tensor that is not dense, not on the CPU, or has attributes")
    axes = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
    part = tensor.detach().resolve_conj().resolve_neg().permute(axes).contiguous()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grad = tensor.grad if tensor.is_leaf else None
    if grad is not None and (type(grad) is not torch.Tensor or grad.requires_grad):
        raise untrusted("a torch.Tensor whose gradient has one, or is of a class of its own")
    library("numpy")
    raw = part.reshape(-1).view(torch.uint8).numpy() if part.numel() else b""
    is_parameter = type(tensor) is not torch.Tensor
    arguments = (tensor.requires_grad, is_parameter, grad)
    return make_dense_tensor, (
        *(name, tuple(tensor.shape), tuple(axes), writer.buffer(raw) if len(raw) else raw),
        *arguments,
    )


@library_reducers("torch")
def torch_reducers(torch: Any) -> Any:
    return dict.fromkeys((torch.Tensor, torch.nn.Parameter), _reduce_dense_tensor)
