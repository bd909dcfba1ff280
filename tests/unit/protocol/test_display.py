"""What of an untrusted kernel's outputs is shown: inert types alone."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from bridgehead import Bridge, SyncBridge
from bridgehead._protocol.display import shown, shown_output, shown_text

PNG = base64.encodebytes(b"\x89PNG").decode()
EVIL = "\x1b]0;own\x07\x1b[2J\x1b[31mred\x1b[0m\x9b31m\x08\u202e"


def test_only_inert_types_are_shown_and_the_others_named() -> None:
    data = {
        "text/plain": "one\n\ttwo",
        "image/png": PNG,
        "text/html": "<script>alert(1)</script>",
        "application/javascript": "alert(1)",
        "image/svg+xml": "<svg onload='alert(1)'/>",
        "application/vnd.jupyter.widget-view+json": {"model_id": "1"},
        "text/\x1b[2J<b>": "x",
    }
    kept, metadata = shown(data, {"text/html": {"isolated": False}}, "data")
    assert set(kept) == {"text/plain", "image/png"}
    assert (kept["image/png"], metadata) == (PNG, {})
    text = kept["text/plain"]
    assert text.startswith("one\n\ttwo\n[not shown, because only data of this kernel is trusted: ")
    for kind in ("text/html", "application/javascript", "image/svg+xml", "widget-view+json"):
        assert kind in text
    assert "\x1b" not in text
    assert shown(data, {"text/html": {}}, "pickle") == (data, {"text/html": {}})


@pytest.mark.parametrize(
    "image", ['" onerror="alert(1)', "data:text/html,<b>", b"raw", 5, None, ["a"], "<svg/>"]
)
def test_an_image_that_is_none_is_not_shown(image: Any) -> None:
    kept, _ = shown({"image/png": image}, {}, "data")
    assert set(kept) == {"text/plain"}
    assert "image/png" in kept["text/plain"]


@pytest.mark.parametrize("text", [5, None, {"a": 1}, ["a", 1], b"x"])
def test_a_text_that_is_none_is_not_shown(text: Any) -> None:
    assert "text/plain" in shown({"text/plain": text}, {}, "data")[0]["text/plain"]
    assert shown({"text/plain": ["a", "b"]}, {}, "data")[0] == {"text/plain": "ab"}


def test_of_metadata_only_the_size_of_an_image_is_kept() -> None:
    sizes = {"image/png": {"width": 5, "height": "1 onerror=x", "needs_background": "light"}}
    assert shown({"image/png": PNG}, sizes, "data")[1] == {"image/png": {"width": 5}}
    assert shown({"image/png": PNG}, {"image/png": []}, "data")[1] == {}


def test_text_controls_no_terminal() -> None:
    text = shown_text(f"a{EVIL}b\r\nc\rd\n\t\u00e9 \U0001f600\u200d", "data")
    assert text == "ared\ufffd31m\ufffd\ufffdb\nc\nd\n\t\u00e9 \U0001f600\u200d"
    assert shown_text(EVIL, "pickle") == EVIL


@pytest.mark.parametrize(
    "evil", ["\x1b\x1b[31m[2J", "\x1b[\x1b[2J2J", "\x1b", "\x1bP1\x1b\\", "\x90"]
)
def test_no_sequence_is_made_by_removing_another(evil: str) -> None:
    assert "\x1b" not in shown_text(evil, "data")
    assert "\x90" not in shown_text(evil, "data")


def test_outputs_are_written_as_they_are_shown() -> None:
    outputs = [
        {"output_type": "stream", "name": EVIL, "text": ["a", EVIL], "more": "x"},
        {"output_type": "error", "ename": EVIL, "evalue": EVIL, "traceback": [EVIL, 5]},
        {"output_type": "error", "traceback": 5},
        {"output_type": "display_data", "data": {"text/html": "<b>"}, "metadata": {"x": 1}},
        {"output_type": "execute_result", "data": 5, "metadata": 5, "execution_count": "1"},
    ]
    made = [shown_output(output, "data") for output in outputs]
    assert "\x1b" not in repr(made).replace("\\x1b", "\x1b")
    assert made[0]["name"] == "stdout"
    assert "text/html" in made[3]["data"]["text/plain"]
    assert made[4] == {
        "output_type": "execute_result",
        "data": {},
        "metadata": {},
        "execution_count": None,
    }
    assert [shown_output(output, "pickle") for output in outputs] == outputs


async def test_results_and_messages_remember_the_trust_of_the_bridge() -> None:
    for trust in ("data", "pickle"):
        seen = []
        async with Bridge.loopback(trust=trust) as bridge:
            messages = bridge.messages()
            result = await bridge.run("print('x')\n6 * 7", on_output=seen.append)
            assert (result.trust, await bridge.pull("1")) == (trust, 1)
            assert {message.trust for message in seen} == {trust}
            assert (await anext(messages)).trust == trust


def test_a_blocking_bridge_remembers_it_as_well() -> None:
    with SyncBridge.loopback(trust="data") as bridge:
        assert bridge.run("1").trust == "data"
