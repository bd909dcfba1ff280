"""What a stream may cost the receiver: bytes, visits, nesting and time.

Rule: each stream has one budget, in proportion to the bytes that crossed, and everything that its
sender chooses is paid from it. A constructor has no limit of its own where this file has one.

- *Bytes* (``charge``): what constructors are given or copy. The memo lets a few bytes of a stream
  pass the same megabyte a thousand times.
- *Claims* (``claim``): what an object would take if it were made dense. A range of rows or a
  sparse array is short, however long it says that it is.
- *Text* (``check_printed``): how long a repr is, to which a text or a long integer adds once for
  each path to it.
- *Visits* (``weigh``): how many values a recursive function meets, such as a hash, a comparison or
  a repr. A value that is shared is met once for each path to it: 60 pairs of pairs are 2**60.
- *Nesting*: how deep such a function recurses. In C it would overflow the stack.
  What a constructor copies out of a container is met there, because containers only grow: no key is
  set twice, and no item is dropped.
- *Comparisons* (``compare``): of keys that have one hash, each with each.
- *Time* (``insert``, ``try_out``): the processor time of insertions into dicts, sets and the hash
  tables of pandas. A sender can choose keys that collide, and no count of them shows it: they
  collide in the table, not in their hash.
"""

from __future__ import annotations

import collections
import operator
from itertools import accumulate, chain, islice
from time import thread_time
from typing import Any, Dict, Iterable, List, Tuple

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.data.registry import FUNCTION, NONE, need
    from bridgehead._shipped.wire.errors import WireError

# The deepest nesting: each container is one level. A Counter and a frozenset are two, because of
# the frames that copy.deepcopy takes, and an array of objects five or more, because of numpy's
# repr. A repr of 200 levels stays below Python's limit of 1000 frames, and pickle, json and
# copy.deepcopy do, too.
NESTING = 200
TOO_DEEP = "a chain of values that are nested more than %d levels deep" % NESTING
FREE_BYTES = 50_000
FREE_CLAIMS = 1 << 26  # bytes; a sparse column of eight million numbers
FREE_VISITS = 1_000_000  # a hash of as many values takes 20 ms, a repr 100 ms
FREE_SECONDS = 0.5
BYTES_FOR_EACH = 16  # of the bytes that crossed
VISITS_FOR_EACH = 16
CONTAINER = 16  # bytes that are claimed for a list
# A key is at least 2 bytes in the pickle or 8 in a frame, and its insertion takes 0.05 to 0.3 µs.
SECONDS_FOR_EACH = 1e-6
BULK = 6  # a visit of long text, bytes or an array costs 1 for each 2**6 bytes
LONG = 9  # and that of a long integer 1 for each 2**9 bits
DIGITS = 2  # but as text, about a digit for each 2**2 bits
LONG_SQUARED = 14  # to compare an integer of n bits with a Decimal takes n**2: 24 ms for 2**16 bits
# Counters compare their values twice, the one way and the other; a repr compares them to sort them.
COUNTER_VISITS = 3
# Bytes of all arguments: what has fewer, and no parts, is a scalar, which costs one visit. Of a few
# bytes in the memo, a repr makes not much more than the texts that are counted.
HEAVY = 64
SAME_HASH = 1000  # keys with one hash in one container; n of them cost n² comparisons
FEW_KEYS = 256  # colliding keys of so few cannot take long

SMALL = frozenset((float, bool, NONE))
TEXTS = frozenset((str, bytes, bytearray))
_FLAT = SMALL | TEXTS | {int}
_ITEMS = (list, tuple, set, frozenset, collections.deque)
MAPS = (dict, collections.OrderedDict, collections.Counter, collections.defaultdict)
# Their hash has a secret of the process, or they are few: such keys cannot be made to collide.
_CHEAP_KEYS = frozenset((str, bytes, bool, NONE))
_MODULUS = (1 << 61) - 1  # of the hash of numbers; smaller integers are their own hash


class Budget:
    """The budget of one stream, and the parts of the objects that constructors have made."""

    def __init__(self, pickle_size: int, frames_size: int) -> None:
        total = pickle_size + frames_size
        self.bytes = FREE_BYTES + BYTES_FOR_EACH * total
        self.claims = FREE_CLAIMS
        self.visits = FREE_VISITS + VISITS_FOR_EACH * total
        self.seconds = FREE_SECONDS + SECONDS_FOR_EACH * (pickle_size + (frames_size >> 2))
        self.extra = 0  # visits that the constructor that runs has announced
        self.shown = 0  # and those of a repr or a copy
        # What constructors made: itself, its levels, its extra visits, its parts, those of a repr.
        self.made: Dict[int, List[Any]] = {}
        self.linked_objects: List[Any] = []
        self.open = 0  # constructors and buffers on the stack that no call has used yet
        self.owned: Dict[int, Any] = {}  # the buffers that a constructor has taken
        self.hashes: Dict[int, Dict[int, Any]] = {}  # of containers: their keys by hash
        # Whether long integers count squared: a Decimal that is compared with one converts it.
        self.squared = False
        self.bulk = BULK
        self.printed = FREE_CLAIMS + BYTES_FOR_EACH * total

    # ------------------------------------------------------------ what constructors pay

    def charge(self, size: int) -> None:
        """Refuse the stream if it costs more bytes than its length allows."""
        self.bytes -= size
        if self.bytes < 0:
            raise WireError("protocol", "the stream costs more than its length allows")

    def claim(self, size: int, *, visited: bool = True) -> None:
        """Count bytes that an object would take if it were made dense, and their visits."""
        free = min(size, self.claims)
        self.claims -= free
        self.extra += size >> BULK if visited else 0
        self.charge(size - free)

    def visit(self, count: int) -> None:
        """Count what a hash, a repr or a conversion of the object that is made costs."""
        self.extra += count
        self.visits -= count
        self._check_walk(0, 0)

    def claim_lists(self, shape: Any, count: int = 0) -> None:
        """Claim the lists that ``tolist`` makes of an array, and ``count`` containers in them.

        A list takes 72 bytes, as an integer takes 32: both are claimed for a fifth.
        """
        for length in accumulate(shape[:-1], operator.mul):
            count += length
        self.claim(CONTAINER * count)

    def show(self, count: int) -> None:
        """Count what a repr or a copy of the object that is made costs, wherever it is met."""
        self.shown += count

    def linked(self, made: Any) -> Any:
        """Record an object whose deallocation recurses into objects of its kind inside it."""
        self.linked_objects.append(made)
        return made

    def own(self, raw: Any) -> Any:
        """Return a buffer for one object, with memory that no other value writes.

        Through it the values of the object could become invalid. A bytearray is copied, because the
        value of the stream may have it, too.
        """
        if type(raw) is bytearray:
            self.charge(len(raw))
            return bytearray(raw)
        if type(raw) is memoryview:
            need(id(raw) not in self.owned, "a buffer is used more than once")
            self.owned[id(raw)] = raw
            self.open -= 1
        return raw

    # ------------------------------------------------------------ visits and nesting

    def weigh(self, *values: Any) -> int:
        """Charge the visits of values before a function that may visit them; return them."""
        weight: Any = _weight_of(values, self.squared, self.bulk)
        if weight is None:
            weight = self.walk(values, {})
        self.visits -= weight
        self._check_walk(0, 0)
        return int(weight)

    def note(self, made: Any, levels: int, args: Tuple[Any, ...]) -> None:
        """Note what a constructor made, and of what."""
        entry = self.made.setdefault(id(made), [made, levels, 0, [], 0])
        entry[2] += self.extra
        entry[4] += self.shown
        entry[3].extend(args)

    def contain(self, made: Any, levels: int, part: Any) -> None:
        """Note a part that is put into an object after it was made."""
        self.made.setdefault(id(made), [made, levels, 0, [], 0])[3].append(part)

    def check_end(self, value: Any) -> None:
        """Check the value of the stream, and everything that must be freed with it."""
        known: Dict[int, Tuple[int, int]] = {}
        for entry in self.made.values():  # no constructor prints or copies its arguments
            entry[2] += entry[4]
        try:
            total = self.walk((value,), known)
        except WireError as error:
            if str(error) == TOO_DEEP:
                error.details["path"] = self._path_to_deep(value)
            raise
        if total << BULK > self.printed:  # it may be: only now is it worth the time to count
            self.check_printed(value)
        # The deallocation of a chain of linked objects recurses, whether they are in the value or
        # only in the memo.
        for each in self.linked_objects:
            self.walk((each,), known)

    def _path_to_deep(self, value: Any) -> str:
        """Return the path to the first item that is nested too deeply, or ""."""
        items = value.items() if type(value) is dict else enumerate(value)
        for key, part in items if type(value) in (dict, tuple) else ():
            try:
                self.walk(((part,),), {})
            except WireError:
                return "[%r]" % key if type(key) in (int, str) else ""
        return ""

    def check_printed(self, value: Any) -> None:
        """Refuse a value whose repr would be too long; each character of a text is a visit here."""
        visits, self.visits, self.bulk = self.visits, self.printed, 0
        self.walk((value,), {})
        self.visits, self.bulk = visits, BULK

    def walk(self, values: Iterable[Any], known: Dict[int, Tuple[int, int]]) -> int:
        """Return the visits of values; refuse them if they are too many, or nested too deeply.

        ``known`` has the visits and the height of each value whose visit depends on nothing above
        it, by id. A value inside itself ends the recursion, as it does in a repr.
        """
        # Of each value that is being visited: its id, its levels, and the visits before it.
        above: List[Tuple[int, int, int]] = [(0, 0, 0)]
        rest = [iter(values)]
        heights, lowest = [0], [0]  # lowest: how far up a value inside itself was met again
        path: Dict[int, int] = {}
        depth = total = 0
        while rest:
            for part in rest[-1]:
                total += 1
                opened = self.parts_of(part)
                if type(opened) is int:
                    total += opened
                    continue
                key = id(part)
                if key in known:
                    weight, height = known[key]
                    total += weight
                    self._check_walk(total, depth + height)
                    heights[-1] = max(heights[-1], above[-1][1] + height)
                elif key in path:
                    lowest[-1] = min(lowest[-1], path[key])
                else:
                    levels, extra, parts = opened
                    depth += levels
                    self._check_walk(total, depth)
                    above.append((key, levels, total))
                    total += extra
                    rest.append(iter(parts))
                    heights.append(levels)
                    path[key] = len(path) + 1
                    lowest.append(path[key])
                    break
            else:
                self._check_walk(total, depth)
                rest.pop()
                key, levels, before = above.pop()
                height, low = heights.pop(), lowest.pop()
                depth -= levels
                place = path.pop(key, 0)
                if above:
                    heights[-1] = max(heights[-1], above[-1][1] + height)
                    if low >= place:
                        known[key] = (total - before, height)
                    else:
                        lowest[-1] = min(lowest[-1], low)
        return total

    def parts_of(self, value: Any) -> Any:
        """Return the visits inside a value without nested parts; else its levels and parts."""
        kind = type(value)
        if kind in SMALL:
            return 0
        if kind is int:
            return _weight_of_int(value, self.squared, self.bulk)
        if kind in TEXTS:
            return len(value) >> self.bulk
        if kind in _ITEMS:
            weight = _weight_of(value, self.squared, self.bulk)
            return (1 + (kind is frozenset), 0, value) if weight is None else weight
        if kind in MAPS:
            weight = _weight_of(value, self.squared, self.bulk)
            below = _weight_of(value.values(), self.squared, self.bulk)
            if weight is not None and below is not None:
                return weight + below
            keys = value if weight is None else ()
            if kind is collections.Counter:
                return 2, weight or 0, chain(keys, *[value.values()] * COUNTER_VISITS)
            return 1, weight or 0, chain(keys, value.values())
        if kind is memoryview:
            raise WireError("protocol", "a buffer instead of a value")
        if kind is FUNCTION:
            raise WireError("protocol", "a constructor instead of a value")
        entry = self.made.get(id(value))
        return 0 if entry is None else entry[1:4]

    def _check_walk(self, total: int, depth: int) -> None:
        need(depth <= NESTING, TOO_DEEP)
        need(total <= self.visits, "the values take more visits than the stream's length allows")

    # ------------------------------------------------------------ keys

    def insert(self, target: Any, keys: Any, values: Any = None) -> None:
        """Insert keys with their values into a dict, or without values into a set."""
        put = target.update
        if values is not None and type(target) is not dict:

            def put(pairs: Any) -> None:
                for key, value in pairs:
                    target[key] = value

        collide = self.check_keys(target, keys)
        length = len(target) + len(keys)
        pairs = iter(keys) if values is None else zip(keys, values)
        if _CHEAP_KEYS.issuperset(map(type, keys)) or (length <= FEW_KEYS and not collide):
            put(pairs)
        else:
            for _ in range(0, len(keys), FEW_KEYS):
                began = thread_time()
                put(islice(pairs, FEW_KEYS))
                self.seconds -= thread_time() - began
                need(self.seconds >= 0, "the keys of a dict or a set collide")
        # An allowed class may do with its keys what it likes.
        need(len(target) == length or type(target) not in MAPS, "a key is set twice")

    def try_out(self, function: Any) -> None:
        """Run a function on a quarter of some values; refuse them if all would take too long.

        pandas hashes numbers in a way that is known, and in one call that nothing can end.
        """
        began = thread_time()
        function()
        taken = thread_time() - began
        self.seconds -= taken
        # If the values collide, four times as many take sixteen times as long.
        need(self.seconds >= 16 * taken, "the labels of an index collide")

    def check_keys(self, target: Any, keys: Any) -> bool:
        """Charge the hashes of keys, and the comparisons of those with one hash; refuse too many.

        Return whether any had the hash of another one.
        """
        kinds = set(map(type, keys))
        if kinds <= _CHEAP_KEYS or (
            kinds == {int} and min(keys) > -_MODULUS and max(keys) < _MODULUS
        ):
            return False
        known = self.hashes.setdefault(id(target), {})
        collide = False
        for key in keys:
            kind = type(key)
            if kind in _CHEAP_KEYS or kind is float:
                continue
            if kind is int and -_MODULUS < key < _MODULUS:
                continue
            self.weigh(key)
            value = hash(key)
            if value not in known:
                known[value] = key
            else:
                collide = True
                self.compare(known, value, key)
        return collide

    def compare(self, known: Dict[int, Any], value: int, key: Any) -> None:
        """Charge the comparisons of a key with all others of its hash."""
        others = known[value]
        if type(others) is not list:  # which is no key
            known[value] = others = [1, self.weigh_comparison(others)]
        count, before = others
        weight = self.weigh_comparison(key)
        self.visits -= before + count * weight
        self._check_walk(0, 0)
        known[value] = [count + 1, before + weight]
        need(count < SAME_HASH, "too many keys with one hash")

    def weigh_comparison(self, key: Any) -> int:
        """Charge a comparison of a key, maybe with a Decimal or of Decimals; return its visits."""
        squared, self.squared = self.squared, True
        weight = self.weigh(key)
        self.squared = squared
        return weight

    def collect(self, keys: Any) -> Any:
        """Return a set of keys."""
        made: Any = set()
        self.insert(made, keys)
        self.hashes.pop(id(made), None)  # another set may get its id
        return made

    # ------------------------------------------------------------ the end

    def tear_down(self) -> None:
        """Empty all linked objects while this budget holds them, so that none frees another."""
        for each in self.linked_objects:
            if hasattr(each, "clear"):
                each.clear()
            else:
                each.fill(None)


def _weight_of_int(value: int, squared: bool, bulk: int) -> int:
    bits = value.bit_length()
    if not bulk:
        return bits >> DIGITS
    return bits * bits >> LONG_SQUARED if squared else bits >> LONG


def _weight_of(items: Any, squared: bool, bulk: int) -> Any:
    """Return the visits of items without nested parts, at C speed; None if one has such parts."""
    kinds = set(map(type, items))
    if kinds <= SMALL:
        return len(items)
    if not kinds <= _FLAT:
        return None
    weight = len(items)
    if int in kinds and squared:
        weight += sum([_weight_of_int(item, True, bulk) for item in items if type(item) is int])
    elif int in kinds:
        bits = sum([item.bit_length() for item in items if type(item) is int])
        weight += bits >> (LONG if bulk else DIGITS)
    if not kinds.isdisjoint(TEXTS):
        weight += sum([len(item) for item in items if type(item) in TEXTS]) >> bulk
    return weight
