"""The beginning and the end of texts that come in pieces, against plain slices."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bridgehead._shipped.wire.excerpt import Excerpt, mark

PIECES = st.lists(st.tuples(st.sampled_from("oe"), st.text("abc\n", max_size=9)), max_size=40)


@given(PIECES, st.integers(0, 30))
def test_beginning_and_end_are_kept_and_the_rest_is_counted(
    pieces: list[tuple[str, str]], limit: int
) -> None:
    excerpt = Excerpt(limit)
    head = "".join(excerpt.take(key, text) for key, text in pieces)
    end = "".join(text or "" for _, text in excerpt.end())
    whole = "".join(text for _, text in pieces)
    first = limit - limit // 2
    assert head == whole[:first]
    rest = whole[first:]
    assert end == rest[max(0, len(rest) - limit // 2) :]
    assert excerpt.dropped == len(whole) - len(head) - len(end)


@given(PIECES, st.integers(0, 30))
def test_each_part_of_the_end_keeps_its_key(pieces: list[tuple[str, str]], limit: int) -> None:
    excerpt = Excerpt(limit)
    kept: list[Any] = [(key, excerpt.take(key, text)) for key, text in pieces]
    kept += excerpt.end()
    for one in "oe":
        of_one = "".join(text for key, text in pieces if key == one)
        found = "".join(text for key, text in kept if key == one)
        assert found == of_one or excerpt.dropped
        assert of_one.startswith(found[: limit // 2]) or len(found) < len(of_one)


def test_a_whole_piece_is_kept_or_dropped_as_a_whole() -> None:
    excerpt = Excerpt(10)
    assert excerpt.take_whole("first", 4)
    assert not excerpt.take_whole("large", 100)
    assert excerpt.take("text", "abc") == ""  # behind what is held
    assert not excerpt.take_whole("last", 2)
    assert excerpt.end() == [("text", "abc"), ("last", None)]
    assert excerpt.dropped == 100


def test_a_piece_of_more_than_half_fits_if_nothing_else_needs_the_room() -> None:
    excerpt = Excerpt(10)
    assert excerpt.take("text", "ab") == "ab"
    assert not excerpt.take_whole("large", 8)
    assert not excerpt.take_whole("too large", 9)
    assert excerpt.end() == [("large", None)]
    assert excerpt.dropped == 9


@given(st.lists(st.one_of(st.text("abc", max_size=9), st.integers(0, 40)), max_size=30))
def test_what_fits_is_whole_and_all_is_in_order(pieces: list[str | int]) -> None:
    """An integer is the size of a piece that cannot be cut."""
    sizes = [len(one) if isinstance(one, str) else one for one in pieces]
    for limit in (20, sum(sizes)):
        excerpt = Excerpt(limit)
        kept: list[Any] = []
        for number, one in enumerate(pieces):
            if isinstance(one, str):
                kept += [(number, text) for text in [excerpt.take(number, one)] if text]
            elif excerpt.take_whole(number, one):
                kept.append((number, None))
            assert excerpt._held <= 2 * limit
        kept += excerpt.end()
        numbers = [number for number, _ in kept]
        assert numbers == sorted(numbers)
        assert {n for n, one in enumerate(pieces) if one == 0} <= {*numbers}  # never dropped
        total = sum(sizes[n] if text is None else len(text) for n, text in kept)
        assert total <= limit
        assert excerpt.dropped == sum(sizes) - total
        assert not (sum(sizes) <= limit and excerpt.dropped)


def test_it_holds_at_most_twice_what_it_keeps() -> None:
    excerpt = Excerpt(1000)
    for number in range(10_000):
        excerpt.take("o", f"{number}\n")
        assert excerpt._held <= 1000
        assert sum(len(parts) for _, parts, _ in excerpt._end) <= 1001
    assert excerpt.take("o", "x" * 10**6) == ""
    assert excerpt._held <= 1000
    assert [text for _, text in excerpt.end()] == ["x" * 500]


def test_the_line_for_what_was_dropped_has_the_number() -> None:
    assert mark(1234) == "\n[1,234 characters dropped]\n"


@given(PIECES, PIECES, st.integers(0, 30))
def test_what_is_passed_on_leaves_less_room_for_the_end(
    first: list[tuple[str, str]], second: list[tuple[str, str]], limit: int
) -> None:
    excerpt = Excerpt(limit)
    kept = "".join(excerpt.take(key, text) for key, text in first)
    kept += "".join(text or "" for _, text in excerpt.pass_on())
    of_first = Excerpt(limit)
    alone = "".join(of_first.take(key, text) for key, text in first)
    assert kept == alone + "".join(text or "" for _, text in of_first.end())
    kept += "".join(excerpt.take(key, text) for key, text in second)
    kept += "".join(text or "" for _, text in excerpt.end())
    whole = "".join(text for _, text in [*first, *second])
    assert len(kept) == min(limit, len(whole)) or excerpt.dropped
    assert len(kept) <= limit
    assert excerpt.dropped == len(whole) - len(kept)
