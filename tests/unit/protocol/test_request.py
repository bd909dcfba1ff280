"""Headers of requests, expressions, and the message that carries them."""

from __future__ import annotations

import ast
import json
import re
import sys

import pytest

from bridgehead._protocol import request
from bridgehead._protocol.bootstrap import SHIPPED, expression, remote_source
from bridgehead._protocol.payload import Payload
from bridgehead._protocol.request import KEY, execute_content
from support.answers import header


def test_a_header_has_what_the_kernel_must_check() -> None:
    frames = [memoryview(b"123"), memoryview(b""), memoryview(b"456789")]
    payload = Payload(frames).signed("crc32")
    made = request.header("bind", payload, epoch="abc", names=["x"])
    assert made["sizes"] == [3, 0, 6]
    assert made["digest"] == "crc32:cbf43926"
    assert (made["op"], made["epoch"], made["names"]) == ("bind", "abc", ["x"])
    assert made["python"] == list(sys.version_info[:2])
    assert (made["at"], made["chunk"]) == (0, 0)


def test_every_request_has_its_own_id() -> None:
    assert len({header()["id"] for _ in range(100)}) == 100


def test_the_remote_modules_name_has_a_hash_and_is_no_users_name() -> None:
    name, sources = remote_source()
    assert re.fullmatch("_bridgehead_[0-9a-f]{12}", name)
    assert len(sources) == len(SHIPPED)
    assert {source[:3] for source in sources} == {'"""'}


@pytest.mark.parametrize("install", [False, True])
def test_an_expression_is_one_python_expression_in_ascii(install: bool) -> None:
    text = expression("inline", header(names=["größe", "'\"\\"]), "QUJD", install=install)
    assert "\n" not in text
    assert install or text.isascii()
    assert isinstance(ast.parse(text, mode="eval").body, ast.Call)


@pytest.mark.parametrize("install", [False, True])
def test_an_expression_uses_no_name_that_a_user_could_shadow(install: bool) -> None:
    tree = ast.parse(expression("inline", header(), "", install=install), mode="eval")
    bound = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used <= bound


def test_an_expression_carries_header_and_data_unchanged() -> None:
    sent = header(names=["größe", "a'b\"c\\d\ne"], expressions=["x['k']"])
    tree = ast.parse(expression("inline", sent, "QUJD"), mode="eval")
    lane, text, data = [ast.literal_eval(arg) for arg in tree.body.args[1:]]
    assert (lane, json.loads(text), data) == ("inline", sent, "QUJD")


def test_only_the_first_expression_carries_the_remote_part() -> None:
    sources = remote_source()[1]
    first = expression("inline", header(), install=True)
    assert len(first) > sum(map(len, sources))
    assert len(expression("inline", header())) < 1000


def test_a_request_is_invisible_and_aborts_nothing() -> None:
    content = execute_content("1 + 1")
    assert content["user_expressions"] == {KEY: "1 + 1"}
    assert content["code"] == ""
    assert content["silent"] is True
    for field in ("store_history", "allow_stdin", "stop_on_error"):
        assert content[field] is False
