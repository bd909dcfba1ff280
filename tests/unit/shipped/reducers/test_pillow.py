"""Images of Pillow, compared with what their own pickles keep."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
from PIL import Image

from bridgehead import Bridge
from bridgehead._shipped.wire import pickling

pytestmark = pytest.mark.objects
MODES = ("1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "LA", "La", "PA", "CMYK", "YCbCr", "HSV")
SIZES = [(0, 0), (3, 2), (400, 300)]


def crossed(value: Any) -> tuple[Any, list[memoryview]]:
    frames, _ = pickling.encode(value)
    return pickling.decode([bytearray(frame) for frame in frames]), frames


def image(mode: str, size: tuple[int, int]) -> Image.Image:
    noise = Image.effect_noise(size, 50) if all(size) else Image.new("L", size)
    through = {"RGBa": "RGBA", "La": "LA", "HSV": "RGB", "PA": "RGBA", "I;16": "I"}
    made = noise.convert(through[mode]).convert(mode) if mode in through else noise.convert(mode)
    made.info["dpi"] = (72, 72)
    return made


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("mode", [*MODES, "I", "F", "I;16"])
def test_an_image_keeps_what_its_own_pickle_keeps(mode: str, size: tuple[int, int]) -> None:
    picture = image(mode, size)
    (back,), frames = crossed([picture])
    own = pickle.loads(pickle.dumps(picture, 5))
    assert (type(back), back.mode, back.size) == (type(own), own.mode, own.size)
    assert (back.info, back.getpalette(), back.readonly) == (own.info, own.getpalette(), 0)
    assert back == own == picture
    assert vars(back).keys() == vars(own).keys()
    assert len(frames) == 1 + (size[0] == 400 and mode != "1")
    if size[0]:
        pixels = back.load()
        pixels[1, 1] = picture.getpixel((2, 1))
        assert back.getpixel((1, 1)) == picture.getpixel((2, 1))
        back.paste(back.copy(), (1, 1))
        back.rotate(90)


def test_an_image_in_several_blocks_crosses() -> None:
    picture = image("RGB", (3000, 3000))
    assert crossed(picture)[0] == picture


def test_an_image_from_read_only_frames_is_copied_before_it_changes() -> None:
    picture = image("RGB", (400, 300))
    frames, _ = pickling.encode(picture)
    copies = [bytes(frame) for frame in frames]
    back = pickling.decode(copies)
    back.putpixel((0, 0), (1, 2, 3))
    assert back.getpixel((0, 0)) == (1, 2, 3)
    assert pickling.decode(copies) == picture


def test_a_file_and_its_class_are_left_to_pillow() -> None:
    file = io.BytesIO()
    image("P", (400, 300)).save(file, "PNG")
    opened = Image.open(file)
    back, _ = crossed(opened)
    assert type(back) is type(pickle.loads(pickle.dumps(opened)))
    assert back == opened


async def test_images_cross_both_ways(kernel: Bridge) -> None:
    await kernel.push(picture=image("RGB", (400, 300)))
    back = await kernel.pull("picture")
    assert back == image("RGB", (400, 300)) or back.size == (400, 300)
    back.putpixel((0, 0), (1, 2, 3))
    assert (await kernel.pull("picture")).tobytes()[3:] == back.tobytes()[3:]
