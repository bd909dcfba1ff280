"""The table of fields: every field is checked, at both ends, against its annotation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridgehead import ProtocolError
from bridgehead._protocol import request as _request
from bridgehead._protocol import response as _response
from bridgehead._protocol.payload import empty
from bridgehead._shipped.wire.errors import WireError
from bridgehead._shipped.wire.header import (
    OPERATION_FIELDS,
    REQUIRED,
    RequestHeader,
    ResponseHeader,
    check,
    fits,
    kinds,
)

REQUEST, RESPONSE = kinds(RequestHeader), kinds(ResponseHeader)
OFFER = {"path": "p", "secret": "s", "name": "n", "share": 0.5, "files": 9, "lane": True}
SHELL = {"id": "s", "host": "h", "pid": 1}
# For each kind in the tables: a value that fits, and some that do not.
VALUES: list[tuple[Any, list[Any]]] = [
    ("s", [1, ["s"], {}, True]),
    (1, ["1", 1.5, True, [1]]),
    (True, [1, "true", []]),
    ([1], ["1", ["1"], [1.5], [None], [[1]], {}]),
    (["s"], ["s", [1], [None], [["s"]], {"s": "s"}]),
    ([{"op": "fetch"}], [{}, [1], ["s"], [[]]]),
    ({"s": 1}, [[], 1, {"s": "1"}, {"s": None}]),
    (SHELL, [{}, [], "s", {**SHELL, "pid": "1"}, {**SHELL, "id": None}]),
    (
        {**OFFER, "common": {"at": 0}},
        [{}, [], 1, {**OFFER, "common": []}, {**OFFER, "common": {}, "files": None}],
    ),
]


def header(operation: str = "bind") -> dict[str, Any]:
    texts = dict.fromkeys(
        ("name", "pattern", "owner", "resource", "cell", "request", "iteration"), "a"
    )
    lists = {
        "names": ["a"],
        "expressions": ["a"],
        "requests": [],
        "resources": ["a"],
        "seen": {},
        "batch": 1,
        "number": 1,
        "begun": 1,
        "most": 1,
    }
    return {**_request.header(operation, empty("crc32"), epoch="e", **texts, **lists)}


@pytest.mark.parametrize("field", sorted(REQUEST))
def test_each_field_of_a_request_is_checked(field: str) -> None:
    found = [(good, bad) for good, bad in VALUES if fits(good, REQUEST[field])]
    assert len(found) == 1
    good, bad = found[0]
    if field not in ("protocol", "digest"):
        whole = {**header(), field: good}
        assert check(whole) is whole
    for value in bad:
        with pytest.raises(WireError) as caught:
            check(json.loads(json.dumps({**header(), field: value})))
        assert caught.value.kind == "protocol"
        assert field in str(caught.value)


@pytest.mark.parametrize("operation", ["call", *OPERATION_FIELDS])
def test_a_required_field_may_be_neither_missing_nor_null(operation: str) -> None:
    whole = header(operation)
    check(whole)
    for field in (*REQUIRED, *OPERATION_FIELDS.get(operation, ())):
        for damaged in ({**whole, field: None}, {k: v for k, v in whole.items() if k != field}):
            with pytest.raises(WireError, match=f"has no '{field}'"):
                check(damaged)


def test_other_fields_may_be_null_or_unknown() -> None:
    optional = set(REQUEST) - {"protocol", *REQUIRED, *OPERATION_FIELDS["bind"]}
    check({**header("bind"), **dict.fromkeys(optional), "unknown": [1, {}]})


def test_the_error_says_what_was_found() -> None:
    with pytest.raises(WireError, match="^the header's 'at' is str, not int$"):
        check({**header(), "at": "5"})
    with pytest.raises(WireError, match="^the header's 'names' is dict, not list$"):
        check({**header(), "names": {}})
    with pytest.raises(WireError, match="^the header's 'names' is list, with other items$"):
        check({**header(), "names": ["a", 1]})


NAME = {"name": "a", "type": "x", "shape": [1], "len": None, "bytes": 5}


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("names", [NAME, {**NAME, "shape": None, "len": 3}], True),
        ("names", [{**NAME, "shape": [1.5]}], False),
        ("names", [{**NAME, "len": True}], False),
        ("names", [{"name": "a"}], False),
        ("names", None, False),
        ("has", True, True),
        ("has", 1, False),
        ("direct", None, True),
        ("direct", "", True),
        ("direct", 5, False),
        ("versions", {"numpy": "2"}, True),
        ("versions", {"numpy": 2}, False),
    ],
)
def test_the_client_checks_a_field_of_a_response(field: str, value: Any, valid: bool) -> None:
    response = _response.parse_header(json.dumps({field: value}))
    if valid:
        _response.check_fields(response, "it", field)
    else:
        with pytest.raises(ProtocolError, match="the response to it"):
            _response.check_fields(response, "it", field)
