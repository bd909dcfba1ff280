"""Data of Pillow: images, as the bytes that Pillow packs them into.

Rule: no decoder but the one of raw bytes is used, and it gets as many bytes as the size asks for.
"""

from __future__ import annotations

from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.registry import (
        BUFFER,
        CONTAINER_COST,
        NONE,
        DataReader,
        DataWriter,
        constructor,
        library,
        library_reducers,
        need,
        untrusted,
    )

# The bits of a packed pixel, by mode.
_PACKED = {
    "1": 1,
    "L": 8,
    "P": 8,
    "LA": 16,
    "PA": 16,
    "I;16": 16,
    "RGB": 24,
    "YCbCr": 24,
    "HSV": 24,
    **dict.fromkeys(("RGBA", "RGBX", "CMYK", "I", "F"), 32),
}
_LONGEST_SIDE = 1 << 28  # of more, Pillow says that there is no memory


@constructor(str, int, int, BUFFER, dict, (bytes, NONE), cost=CONTAINER_COST)
def make_picture(
    reader: DataReader, mode: str, width: int, height: int, raw: Any, info: Any, palette: Any
) -> Any:
    need(mode in _PACKED, "invalid mode of an image")
    need(all(0 <= side < _LONGEST_SIDE for side in (width, height)), "invalid size of an image")
    reader.claim(0 if width and height else 4 * max(width, height))
    need({str}.issuperset(map(type, info)), "a key of an image that is not a string")
    packed = (width * _PACKED[mode] + 7 >> 3) * height
    need(memoryview(raw).nbytes == packed, "bytes that do not fit the size of the image")
    if palette is not None:
        fine = mode in ("L", "LA", "P", "PA") and len(palette) <= 768 and len(palette) % 3 == 0
        need(fine, "invalid palette")
    raw = reader.own(raw)
    # Pillow has a pixel of several bands in four bytes, and a pointer for each line.
    reader.charge((1 if mode in ("1", "L", "P") else 4) * width * height + 8 * height)
    module = library("PIL.Image")
    if width and height:
        image = module.frombytes(mode, (width, height), bytes(raw))
    else:
        image = module.new(mode, (width, height))
    if palette is not None:
        image.putpalette(palette)
    image.info = dict(info)
    return image


def _reduce_picture(writer: DataWriter, image: Any) -> Any:
    raw = image.tobytes()
    if image.mode not in _PACKED or (image.mode in ("L", "LA") and image.getpalette()):
        raise untrusted("a PIL.Image of mode %s" % image.mode)
    palette = image.getpalette()
    return make_picture, (
        *(image.mode, *image.size, writer.buffer(raw) if raw else raw, dict(image.info)),
        None if palette is None else bytes(palette),
    )


@library_reducers("PIL")
def pillow_reducers(pillow: Any) -> Any:
    return {library("PIL.Image").Image: _reduce_picture}
