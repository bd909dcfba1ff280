"""The receiver: it reads a stream of data without running any of its code.

Rule: ``Machine`` does not unpickle. It interprets the few opcodes that such a stream consists of,
and it can call nothing but the constructors of the table.

The length of a stream limits its cost (see ``budget``). The arguments of a constructor and the keys
of a dict are weighed before any code visits them, and the value before it is returned.
"""

from __future__ import annotations

import collections
import pickle
import re
from struct import Struct
from typing import Any, Mapping, Sequence

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.budget import (
        BULK,
        HEAVY,
        MAPS,
        NESTING,
        SMALL,
        TEXTS,
        TOO_DEEP,
        Budget,
    )
    from bridgehead._shipped.data.instances import fill_instance
    from bridgehead._shipped.data.registry import (
        CONSTRUCTORS,
        CONTAINER_COST,
        FUNCTION,
        HOME,
        need,
        untrusted,
    )
    from bridgehead._shipped.wire.collector import PausedCollector
    from bridgehead._shipped.wire.digest import Buffer
    from bridgehead._shipped.wire.errors import WireError

_unpickle = pickle.loads  # kept here, because a user may replace pickle.loads
EMPTY = 32  # the charge for an empty list, dict or set, which crosses as two bytes
MARKS = 5 * NESTING  # open at once; the pickle of one level opens fewer than five


def _run_pattern() -> Any:
    """Compile a pattern for runs of opcodes that push numbers, None, booleans and short strings.

    These opcodes do not touch the stack below, so the C unpickler may read a whole run of them.
    The strings of a run are memoized.
    """

    def sized(code: bytes, longest: int, tail: bytes) -> bytes:
        """Return a pattern for an opcode, one byte of length and that many bytes."""
        each = (re.escape(bytes([n])) + b".{%d}" % n for n in range(longest + 1))
        return re.escape(code) + b"(?:" + b"|".join(each) + b")" + tail

    scalars = [b"K.", b"M.{2}", b"J.{4}", b"G.{8}", b"N", b"\x88", b"\x89"]
    scalars += [sized(pickle.LONG1, 16, b""), sized(pickle.SHORT_BINUNICODE, 255, b"\x94")]
    # At most 1024, because the expression remembers where each part began.
    return re.compile(b"(?:" + b"|".join(scalars) + b"){1,1024}", re.DOTALL)


_run = _run_pattern().match
_WIDTHS = dict(zip(b"KMJGN\x88\x89", (1, 2, 4, 8, 0, 0, 0)))
_RUN_STARTS = frozenset((*_WIDTHS, *pickle.LONG1, *pickle.SHORT_BINUNICODE))


class Machine(Budget):
    """A stack machine for one pickle, which can name and call nothing but a constructor."""

    def __init__(self, frames: Sequence[Buffer], allow: Any) -> None:
        self.data = bytes(frames[0])
        super().__init__(len(self.data), sum(memoryview(frame).nbytes for frame in frames[1:]))
        self.buffers = iter(frames[1:])
        self.allow = dict(allow)
        self.at, self.done = 0, False
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below the marks
        self.memo: list[Any] = []
        self.instances: dict[int, Any] = {}

    def run(self) -> Any:
        data, memo, handlers = self.data, self.memo, _HANDLERS
        while not self.done:
            at = self.at
            code = data[at]
            # The three most frequent cases are handled inline: a call would double their cost.
            if code == 0x94:  # MEMOIZE
                value = self.stack[-1]
                need(type(value) is not memoryview, "a buffer is used more than once")
                memo.append(value)
                self.at = at + 1
            elif code == 0x68:  # BINGET
                self.push_from_memo(data[at + 1])
                self.at = at + 2
            elif code in _RUN_STARTS and self.runs_on(at, code):
                self.push_run()
            elif code in handlers:
                self.at = at + 1
                handlers[code](self)
            else:
                raise WireError("protocol", "opcode %#04x is not allowed" % code)
        return self.stack[0]

    def runs_on(self, at: int, code: int) -> bool:
        """Return whether another opcode of a run follows; for one alone, C takes longer."""
        width = _WIDTHS.get(code)
        if width is None:  # a length, and for a string an opcode after it
            width = 1 + self.data[at + 1] + (code == 0x8C)
        return self.data[at + 1 + width] in _RUN_STARTS

    def push_run(self) -> None:
        found = _run(self.data, self.at)
        if found is None:
            handler = _HANDLERS[self.data[self.at]]
            self.at += 1
            handler(self)
            return
        self.at = found.end()
        values = _unpickle(b"\x80\x05(" + found.group() + b"l.")
        self.stack += values
        self.memo += [value for value in values if type(value) is str]

    # -- arguments of opcodes

    def take(self, count: int) -> bytes:
        start = self.at
        if count > len(self.data) - start:
            raise WireError("protocol", "%d bytes announced, but fewer are left" % count)
        self.at = start + count
        return self.data[start : self.at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.at)
        need(end >= 0, "line without an end")
        text = self.take(end - self.at).decode("utf-8")
        self.at = end + 1
        return text

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    # -- opcodes

    def proto(self) -> None:
        need(self.at == 1 and self.number(1) <= 5, "pickle of another protocol")

    def frame(self) -> None:
        need(self.number(8) <= len(self.data) - self.at, "frame longer than the pickle")

    def push_unsigned(self, width: int) -> None:
        self.stack.append(self.number(width))

    def push_signed(self) -> None:
        self.stack.append(int.from_bytes(self.take(4), "little", signed=True))

    def push_float(self) -> None:
        self.stack.append(Struct(">d").unpack(self.take(8))[0])

    def push_long(self, width: int) -> None:
        self.stack.append(int.from_bytes(self.take(self.number(width)), "little", signed=True))

    def push_text(self, width: int) -> None:
        self.stack.append(str(self.take(self.number(width)), "utf-8", "surrogatepass"))

    def push_bytes(self, width: int) -> None:
        self.stack.append(self.take(self.number(width)))

    def push_bytearray(self) -> None:
        self.stack.append(bytearray(self.take(self.number(8))))

    def mark(self) -> None:
        need(len(self.below) < MARKS, TOO_DEEP)
        self.below.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            del self.stack[-1]
        else:
            self.pop_mark()

    def push_tuple(self) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def short_tuple(self, length: int) -> None:
        need(len(self.stack) >= length, "the stack is empty")
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def append(self) -> None:
        item = self.stack.pop()
        self.extend(self.stack[-1], [item])

    def appends(self) -> None:
        items = self.pop_mark()
        self.extend(self.stack[-1], items)

    def extend(self, target: Any, items: list[Any]) -> None:
        need(type(target) in (list, collections.deque), "append to an object that is not a list")
        if type(target) is collections.deque and target.maxlen is not None:
            need(len(target) + len(items) <= target.maxlen, "more items than a deque may have")
        target.extend(items)

    def setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update(self.stack[-1], [key], [value])

    def setitems(self) -> None:
        items = self.pop_mark()
        need(len(items) % 2 == 0, "key without a value")
        self.update(self.stack[-1], items[::2], items[1::2])

    def update(self, target: Any, keys: list[Any], values: list[Any]) -> None:
        if type(target) in MAPS:
            self.insert(target, keys, values)
            return
        need(self.instances.get(id(target)) is target, "set items of an object that has none")
        for kind, part in zip(keys, values):
            fill_instance(self, target, kind, part)

    def additems(self) -> None:
        items = self.pop_mark()
        target = self.stack[-1]
        need(type(target) is set, "add to an object that is not a set")
        self.insert(target, items)

    def push_frozenset(self) -> None:
        items = self.pop_mark()
        self.stack.append(frozenset(self.collect(items)))

    def get(self) -> None:
        self.push_from_memo(self.number(4))

    def push_from_memo(self, index: int) -> None:
        if index >= len(self.memo):
            raise WireError("protocol", "the memo has no entry %d" % index)
        value = self.memo[index]
        self.open += type(value) is FUNCTION
        self.stack.append(value)

    def global_by_lines(self) -> None:
        module, name = self.line(), self.line()
        self.push_constructor(module, name)

    def global_by_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_constructor(module, name)

    def push_constructor(self, module: Any, name: Any) -> None:
        need(type(module) is str and type(name) is str, "a global's name is not a string")
        if not HOME.fullmatch(module) or name not in CONSTRUCTORS:
            raise untrusted(("%s.%s" % (module[:100], name[:100])))
        self.open += 1
        self.stack.append(CONSTRUCTORS[name][0])

    def reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        need(type(function) is FUNCTION and type(args) is tuple, "REDUCE calls no constructor")
        make, kinds, cost, levels = CONSTRUCTORS[function.__name__]
        need(make is function, "REDUCE calls no constructor")
        if kinds[-1:] == (...,):  # any number of arguments of the kind before it
            kinds = kinds[:-2] + kinds[-2:-1] * (len(args) - len(kinds) + 2)
        need(
            len(args) == len(kinds),
            "%s takes %d arguments, not %d" % (function.__name__, len(kinds), len(args)),
        )
        self.open -= 1
        self.extra, self.shown, nested, plain, fixed = 0, cost, False, args, cost
        for arg, allowed in zip(args, kinds):
            kind = type(arg)
            if allowed is not None and kind not in allowed:
                message = "%s does not take %s" % (function.__name__, kind.__name__)
                raise WireError("protocol", message)
            if kind is int:
                cost += arg.bit_length() >> 3
            elif kind in TEXTS:
                cost += len(arg)
            elif kind is memoryview and allowed is not None:
                self.extra += arg.nbytes >> BULK
                plain = ()
            elif kind not in SMALL:
                nested = True
                cost += 8 * len(arg) if kind in _MEASURED else 0
        self.charge(cost)
        if nested:
            plain = plain or tuple([arg for arg in args if type(arg) is not memoryview])
            self.weigh(*plain)
        made = function(self, *args)
        if nested or cost - fixed > HEAVY or self.extra or self.shown >= CONTAINER_COST:
            self.note(made, levels, plain)
        self.stack.append(made)

    def next_buffer(self) -> None:
        buffer = next(self.buffers, None)
        need(buffer is not None, "a buffer is missing")
        self.open += 1
        self.stack.append(memoryview(buffer).cast("B"))  # type: ignore[arg-type]

    def readonly_buffer(self) -> None:
        need(type(self.stack[-1]) is memoryview, "READONLY_BUFFER without a buffer")
        self.stack[-1] = self.stack[-1].toreadonly()

    def stop(self) -> None:
        need(len(self.stack) == 1 and not self.below, "the stack is not empty at the end")
        need(self.at == len(self.data), "bytes after the end of the pickle")
        need(next(self.buffers, None) is None, "a buffer is not used")
        need(self.open == 0, "a constructor or a buffer instead of a value")
        self.check_end(self.stack[0])
        self.done = True


_MEASURED = frozenset((list, tuple, dict))  # their lengths are charged


def _handlers() -> dict[int, Any]:
    """Return the handler of each opcode; an opcode without one is refused."""

    def with_number(method: Any, number: int) -> Any:
        return lambda machine: method(machine, number)

    def push(value: Any) -> Any:
        return lambda machine: machine.stack.append(value)

    def push_new(make: Any) -> Any:
        def handle(machine: Machine) -> None:
            machine.charge(EMPTY)
            machine.stack.append(make())

        return handle

    found = {
        pickle.PROTO: Machine.proto,
        pickle.FRAME: Machine.frame,
        pickle.STOP: Machine.stop,
        pickle.NONE: push(None),
        pickle.NEWTRUE: push(True),
        pickle.NEWFALSE: push(False),
        pickle.BININT1: with_number(Machine.push_unsigned, 1),
        pickle.BININT2: with_number(Machine.push_unsigned, 2),
        pickle.BININT: Machine.push_signed,
        pickle.LONG1: with_number(Machine.push_long, 1),
        pickle.LONG4: with_number(Machine.push_long, 4),
        pickle.BINFLOAT: Machine.push_float,
        pickle.SHORT_BINUNICODE: with_number(Machine.push_text, 1),
        pickle.BINUNICODE: with_number(Machine.push_text, 4),
        pickle.BINUNICODE8: with_number(Machine.push_text, 8),
        pickle.SHORT_BINBYTES: with_number(Machine.push_bytes, 1),
        pickle.BINBYTES: with_number(Machine.push_bytes, 4),
        pickle.BINBYTES8: with_number(Machine.push_bytes, 8),
        pickle.BYTEARRAY8: Machine.push_bytearray,
        pickle.EMPTY_LIST: push_new(list),
        pickle.EMPTY_TUPLE: push(()),
        pickle.EMPTY_DICT: push_new(dict),
        pickle.EMPTY_SET: push_new(set),
        pickle.MARK: Machine.mark,
        pickle.POP: Machine.pop,
        pickle.POP_MARK: Machine.pop_mark,
        pickle.TUPLE: Machine.push_tuple,
        pickle.TUPLE1: with_number(Machine.short_tuple, 1),
        pickle.TUPLE2: with_number(Machine.short_tuple, 2),
        pickle.TUPLE3: with_number(Machine.short_tuple, 3),
        pickle.APPEND: Machine.append,
        pickle.APPENDS: Machine.appends,
        pickle.SETITEM: Machine.setitem,
        pickle.SETITEMS: Machine.setitems,
        pickle.ADDITEMS: Machine.additems,
        pickle.FROZENSET: Machine.push_frozenset,
        pickle.LONG_BINGET: Machine.get,
        pickle.GLOBAL: Machine.global_by_lines,
        pickle.STACK_GLOBAL: Machine.global_by_stack,
        pickle.REDUCE: Machine.reduce,
        pickle.NEXT_BUFFER: Machine.next_buffer,
        pickle.READONLY_BUFFER: Machine.readonly_buffer,
    }
    return {code[0]: handler for code, handler in found.items()}


_HANDLERS = _handlers()


def decode_data(frames: Sequence[Buffer], allow: Mapping[str, Any] | None = None) -> Any:
    """Return the value of frames from an untrusted sender.

    ``allow`` maps the names of further classes, as ``encode_data`` takes them, to the classes.

    Raises:
        WireError: the frames are anything but a stream of data, whatever they contain.
        MemoryError: this process has no memory for the value.
    """
    machine = None
    try:
        machine = Machine(frames, allow or {})
        with PausedCollector(memoryview(frames[0]).nbytes):
            return machine.run()
    except WireError as error:
        refused = WireError(error.kind, str(error), **error.details)
    except MemoryError:  # this process lacks it, which is no fault of the stream
        if machine is not None:
            machine.tear_down()
        raise
    except Exception as error:
        # The messages of other exceptions may be very long, so they are left out or cut.
        plain = isinstance(error, (ValueError, TypeError, OverflowError))
        text = ": %s" % str(error)[:200] if plain else ""
        refused = WireError("protocol", "damaged pickle: %s%s" % (type(error).__name__, text))
    except BaseException:  # an interrupt: it is raised again, after the same teardown
        if machine is not None:
            machine.tear_down()
        raise
    if machine is not None:
        machine.tear_down()
    # Raised outside the handlers, so that the error does not keep the machine as its context.
    raise refused
