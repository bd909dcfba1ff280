"""Images of Pillow: their pixels cross as they are in memory.

Rule: as ``reducers`` says. Pillow packs an image into bytes, in steps, and unpacks it again. An
image of a mode that Pillow maps is copied once here, and the receiver maps what it got.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.large import new_bytearray
    from bridgehead._shipped.wire.libraries import builder, finder

# The bytes of a pixel in memory, by mode.
_PIXEL = dict.fromkeys(("RGB", "RGBA", "RGBX", "RGBa", "LA", "La", "CMYK", "YCbCr", "HSV"), 4)
_PIXEL.update({"L": 1, "P": 1, "LAB": 4, "PA": 4, "I": 4, "F": 4})
_PALETTES = ("L", "LA", "P", "PA")  # the modes that may have one
_SMALL_IMAGE = 1 << 16  # bytes


@finder
def image_reducer(kind: Any, shared: Any) -> Any:
    """Return the function that reduces images, or None; those of files are left to Pillow."""
    exact = getattr(sys.modules.get("PIL.Image"), "Image", None)
    return reduce_image if exact is not None and kind is exact else None


def reduce_image(image: Any) -> Any:
    """Return how to pickle an image."""
    image.load()
    mode, size = image.mode, image.size
    nbytes = size[0] * size[1] * _PIXEL.get(mode, 0)
    if nbytes < _SMALL_IMAGE or not hasattr(sys.modules["PIL.Image"].core, "map_buffer"):
        return image.__reduce_ex__(5)
    memory = new_bytearray(nbytes)
    _mapped(mode, size, memory).im.paste(image.im, (0, 0, *size))
    return make_image, (pickle.PickleBuffer(memory), image.info, mode, size, image.getpalette())


def _mapped(mode: str, size: Any, memory: Any) -> Any:
    """Return an image whose pixels are in this memory; ``Image.frombuffer`` knows fewer modes."""
    module: Any = importlib.import_module("PIL.Image")
    return module.Image()._new(module.core.map_buffer(memory, size, "raw", 0, (mode, 0, 1)))


@builder
def make_image(memory: Any, info: Any, mode: str, size: Any, palette: Any) -> Any:
    """Return an image of pixels as they were in memory."""
    image = _mapped(mode, size, memory)
    image.info = info
    if palette and mode in _PALETTES:
        image.putpalette(palette)
    # The memory is the image's own, unless its frame is read-only; then a change copies it first.
    image.readonly = int(memoryview(memory).readonly)
    return image
