"""Data of the standard library: dates, decimals, UUIDs, containers.

Rule: each type has a constructor, which checks its arguments, and a reducer to a call of that
constructor.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import functools
import re
import sys
import uuid
from typing import Any

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.budget import FREE_VISITS, VISITS_FOR_EACH
    from bridgehead._shipped.data.registry import (
        BUFFER,
        NONE,
        REDUCERS,
        DataReader,
        DataWriter,
        constructor,
        is_scalar,
        library,
        library_reducers,
        need,
        untrusted,
    )
    from bridgehead._shipped.wire.errors import WireError

FRACTION_BITS = 1 << 14  # the greatest common divisor of longer numbers takes long


@constructor()
def make_ellipsis(reader: DataReader) -> Any:
    return ...


@constructor(float, float)
def make_complex(reader: DataReader, real: float, imag: float) -> Any:
    return complex(real, imag)


@constructor(int, int, int)
def make_range(reader: DataReader, start: int, stop: int, step: int) -> Any:
    return range(start, stop, step)


@constructor(None, None, None)
def make_slice(reader: DataReader, start: Any, stop: Any, step: Any) -> Any:
    # No part may contain other objects: the deallocation of slices in slices is recursive.
    for part in (start, stop, step):
        need(is_scalar(part), "invalid slice of %s" % type(part).__name__)
    return slice(start, stop, step)


@constructor()
def make_ordered(reader: DataReader) -> Any:
    return collections.OrderedDict()


@constructor()
def make_counter(reader: DataReader) -> Any:
    return collections.Counter()


@constructor((int, NONE))
def make_deque(reader: DataReader, maxlen: Any) -> Any:
    return reader.linked(collections.deque(maxlen=maxlen))


_FACTORIES = {kind.__name__: kind for kind in (list, dict, set, int, float, str, tuple)}


@constructor((str, NONE))
def make_default(reader: DataReader, factory: Any) -> Any:
    need(factory is None or factory in _FACTORIES, "invalid default factory")
    return reader.linked(collections.defaultdict(factory and _FACTORIES[factory]))


@constructor(int, int, int)
def make_date(reader: DataReader, year: int, month: int, day: int) -> Any:
    return datetime.date(year, month, day)


@constructor(int, int, int, int, None, int)
def make_time(reader: DataReader, *fields: Any) -> Any:
    check_zone(fields[4])
    return datetime.time(*fields[:5], fold=fields[5])


@constructor(int, int, int, int, int, int, int, None, int)
def make_datetime(reader: DataReader, *fields: Any) -> Any:
    check_zone(fields[7])
    return datetime.datetime(*fields[:8], fold=fields[8])


def check_zone(zone: Any) -> None:
    """Refuse time zones of other classes than the two of the standard library."""
    known = zone is None or type(zone) in (datetime.timezone, _zone_info())
    need(known, "%s is not a time zone" % type(zone).__name__)


def _zone_info() -> Any:
    return getattr(sys.modules.get("zoneinfo"), "ZoneInfo", None)


@constructor(int, int, int)
def make_timedelta(reader: DataReader, days: int, seconds: int, microseconds: int) -> Any:
    return datetime.timedelta(days, seconds, microseconds)


@constructor(datetime.timedelta, (str, NONE))
def make_timezone(reader: DataReader, offset: Any, name: Any) -> Any:
    return datetime.timezone(offset) if name is None else datetime.timezone(offset, name)


@functools.lru_cache(1024)  # more than there are; ZoneInfo itself keeps eight, and reads a file
def _load_zone(key: str) -> Any:
    return library("zoneinfo").ZoneInfo(key)


# Names that begin so would make pandas use another library, which reads other files.
ZONE_KEY = re.compile(r"(?!dateutil|tzlocal)[A-Za-z0-9_+-]{1,40}(/[A-Za-z0-9_+-]{1,40}){0,3}")
ZONE_NAME = re.compile(
    ZONE_KEY.pattern + r"|[+-]([01]\d|2[0-3]):[0-5]\d"
)  # Arrow names offsets, too


@constructor(str)
def make_zone(reader: DataReader, key: str) -> Any:
    need(ZONE_KEY.fullmatch(key), "invalid name of a time zone")
    try:
        return _load_zone(key)
    except (KeyError, OSError):  # the name of a folder of zones raises IsADirectoryError
        message = "time zone %s is not available here" % key
        raise WireError("missing", message, module="tzdata") from None


@constructor(str)
def make_decimal(reader: DataReader, text: str) -> Any:
    reader.squared = True
    made = decimal.Decimal(text)
    reader.visit(_visits_of(made, text))
    return made


def _visits_of(value: Any, text: str) -> int:
    exponent = value.as_tuple().exponent
    digits = max(len(text), abs(exponent) if type(exponent) is int else 0)
    return digits * digits >> 10  # int() of it takes 27 s for a million digits


def _reduce_decimal(writer: DataWriter, value: Any) -> Any:
    text = str(value)
    # A reader counts them when it makes the value and when it has the whole.
    if 2 * _visits_of(value, text) > FREE_VISITS + VISITS_FOR_EACH * len(text):
        raise untrusted("a decimal.Decimal of so many digits")
    return make_decimal, (text,)


@constructor(int, int)
def make_fraction(reader: DataReader, numerator: int, denominator: int) -> Any:
    for part in (numerator, denominator):
        need(part.bit_length() <= FRACTION_BITS, "a fraction of more than %d bits" % FRACTION_BITS)
    return library("fractions").Fraction(numerator, denominator)


@constructor(bytes)
def make_uuid(reader: DataReader, raw: bytes) -> Any:
    return uuid.UUID(bytes=raw)


_NUMBER_SIZES = {
    **dict.fromkeys("bB", (1,)),
    **dict.fromkeys("hH", (2,)),
    **dict.fromkeys("iIf", (4,)),
    **dict.fromkeys("lL", (4, 8)),
    **dict.fromkeys("qQd", (8,)),
}


@constructor(str, int, bool, BUFFER)
def make_flat_numbers(reader: DataReader, code: str, size: int, little: bool, raw: Any) -> Any:
    """Make an ``array.array``; ``size`` is that of a number, and ``little`` its byte order."""
    need(size in _NUMBER_SIZES.get(code, ()), "invalid kind of numbers")
    need(memoryview(raw).nbytes % size == 0, "bytes that are no whole numbers")
    array = library("array")
    if array.array(code).itemsize != size:  # a long of another system
        code = ("q" if size == 8 else "i") if code == "l" else ("Q" if size == 8 else "I")
    raw = reader.own(raw)
    reader.charge(memoryview(raw).nbytes)
    # A repr prints all of them; of a float it takes 0.6 µs, of an integer a tenth.
    reader.show(memoryview(raw).nbytes // size * (10 if code in "fd" else 2))
    made = array.array(code)
    made.frombytes(raw)
    if little != (sys.byteorder == "little"):
        made.byteswap()
    return made


def _reduce_flat_numbers(writer: DataWriter, numbers: Any) -> Any:
    if numbers.typecode not in _NUMBER_SIZES:
        raise untrusted("an array.array of characters")
    raw = writer.buffer(numbers) if len(numbers) else b""
    little = sys.byteorder == "little"
    return make_flat_numbers, (numbers.typecode, numbers.itemsize, little, raw)


@library_reducers("array")
def number_reducers(array: Any) -> Any:
    return {array.array: _reduce_flat_numbers}


def reduce_zone(writer: DataWriter, zone: Any) -> Any:
    if zone.key is None:
        raise untrusted("a zoneinfo.ZoneInfo without a key")
    return make_zone, (zone.key,)


@library_reducers("zoneinfo")
def zone_reducers(zoneinfo: Any) -> Any:
    return {zoneinfo.ZoneInfo: reduce_zone}


def _reduce_default(writer: DataWriter, value: Any) -> Any:
    factory = value.default_factory
    name = None if factory is None else str(getattr(factory, "__name__", ""))
    if name is not None and _FACTORIES.get(name) is not factory:
        raise untrusted("a collections.defaultdict of %r" % (factory,))
    return make_default, (name,), None, None, iter(value.items())


def _reduce_fraction(writer: DataWriter, value: Any) -> Any:
    parts = (value.numerator, value.denominator)
    if max(part.bit_length() for part in parts) > FRACTION_BITS:
        raise untrusted("a fractions.Fraction of more than %d bits" % FRACTION_BITS)
    return make_fraction, parts


# Not imported here: a kernel that has given up its user's rights may be unable to read the module.
@library_reducers("fractions")
def fraction_reducers(fractions: Any) -> Any:
    return {fractions.Fraction: _reduce_fraction}


REDUCERS.update(
    {
        type(...): lambda _, v: (make_ellipsis, ()),
        complex: lambda _, v: (make_complex, (v.real, v.imag)),
        range: lambda _, v: (make_range, (v.start, v.stop, v.step)),
        slice: lambda _, v: (make_slice, (v.start, v.stop, v.step)),
        collections.OrderedDict: lambda _, v: (make_ordered, (), None, None, iter(v.items())),
        collections.Counter: lambda _, v: (make_counter, (), None, None, iter(v.items())),
        collections.deque: lambda _, v: (make_deque, (v.maxlen,), None, iter(v)),
        collections.defaultdict: _reduce_default,
        datetime.date: lambda _, v: (make_date, (v.year, v.month, v.day)),
        datetime.time: lambda _, v: (
            make_time,
            (v.hour, v.minute, v.second, v.microsecond, v.tzinfo, v.fold),
        ),
        datetime.datetime: lambda _, v: (
            make_datetime,
            (
                *(v.year, v.month, v.day, v.hour, v.minute, v.second),
                *(v.microsecond, v.tzinfo, v.fold),
            ),
        ),
        datetime.timedelta: lambda _, v: (make_timedelta, (v.days, v.seconds, v.microseconds)),
        datetime.timezone: lambda _, v: (make_timezone, (*v.__getinitargs__(), None)[:2]),
        decimal.Decimal: _reduce_decimal,
        uuid.UUID: lambda _, v: (make_uuid, (v.bytes,)),
    }
)
