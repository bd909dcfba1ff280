"""Images as data: what arrives, and what is refused before Pillow sees it."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from bridgehead import Bridge
from bridgehead._shipped.data import encode_data
from bridgehead._shipped.data import pillow as _pillow
from bridgehead._shipped.wire.errors import WireError
from support.data import codec_call, data, pickled, refused, sent
from unit.shipped.reducers.test_pillow import image

pytestmark = pytest.mark.objects


@pytest.mark.parametrize("size", [(0, 0), (0, 3), (3, 2), (33, 17), (400, 300)], ids=str)
@pytest.mark.parametrize("mode", _pillow._PACKED)
def test_an_image_arrives(mode: str, size: tuple[int, int]) -> None:
    picture = image(mode, size)
    back = sent({"picture": picture})["picture"]
    assert (type(back), back.mode, back.size) == (Image.Image, mode, size)
    assert back == picture
    assert (back.info, back.getpalette()) == (picture.info, picture.getpalette())


def test_a_file_is_refused_by_the_sender() -> None:
    class Named(Image.Image):
        pass

    for value in (
        image("LAB", (3, 2)) if "LAB" in Image.MODES else Image.new("LAB", (3, 2)),
        Named(),
    ):
        with pytest.raises(WireError) as caught:
            encode_data(value)
        assert caught.value.kind == "untrusted"


def call(
    mode: Any = "RGB",
    size: Any = (2, 1),
    raw: Any = bytearray(6),
    info: Any = b"}",
    palette: Any = None,
) -> bytes:
    return codec_call("make_picture", mode, *size, data(raw), info, palette)


HOSTILE = {
    "another mode": call("BGR;24"),
    "a decoder": call("jpeg"),
    "too few bytes": call(raw=bytearray(5)),
    "too many bytes": call(raw=bytearray(7)),
    "a negative size": call(size=(-2, -1)),
    "a huge size of nothing": call(size=(0, 1 << 40), raw=bytearray()),
    "a line as wide as may be, of no height": call(size=((1 << 28) - 1, 0), raw=bytearray()),
    "a line that Pillow has no memory for": call(size=((1 << 29), 0), raw=bytearray()),
    "many lines of no width": call(size=(0, (1 << 30) - 1), raw=bytearray()),
    "a size beyond integers": call(size=(1 << 31, 1 << 31)),
    "a key that is no text": call(info=data({1: 2})),
    "a palette of a mode without": call(palette=data(b"abc")),
    "a long palette": call("P", (6, 1), palette=data(b"a" * 771)),
    "a palette of a part": call("P", (6, 1), palette=data(b"ab")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_is_refused(name: str) -> None:
    assert refused(pickled(HOSTILE[name]))[0] in ("protocol", "untrusted")


def test_the_honest_call_of_these_tests_is_not_refused() -> None:
    from bridgehead._shipped.data import decode_data

    assert decode_data([pickled(call())]).size == (2, 1)


async def test_images_cross_as_data(kernel: Bridge) -> None:
    picture = image("RGB", (400, 300))
    await kernel.push(picture=picture, trust="data")
    assert await kernel.pull("picture", trust="data") == picture
