"""The headers of requests and responses: their fields, the fields' types, and their check.

Rule: use the standard library only, run on Python 3.8 and later, the same file at both ends. This
file says what a header may contain, and has the names that both ends know. What a request does is
in ``remote``. A header is written where it is made, and never changed: code that needs another one
makes a new one from it.

The annotations are the table that ``fits`` checks a header against. So this file does not import
``annotations`` from ``__future__``, which would turn them into strings.
"""

import sys
from typing import Any, Dict, ForwardRef, List, Optional, Tuple, TypedDict, Union

if __package__:  # in the kernel, all shipped files are one module
    from bridgehead._shipped.wire.errors import WireError
    from bridgehead._shipped.wire.frames import digest

PROTOCOL = 2
PYTHON = list(sys.version_info[:2])
MIME = "application/vnd.bridgehead.answer+json"
DATA_MESSAGE = "bridgehead_data"  # msg_type of a response's frames on the buffers lane
EVENT_MESSAGE = "bridgehead_event"  # msg_type of an event of a remote resource, sent to its owner
OUTPUTS_END = "bridgehead_outputs_end"  # msg_type on iopub, behind the last output of a task
ENTRY = "bridgehead"  # in user_expressions: the expression that brings a request
PROBE = b"bridgehead probe"
MAX_NAMES = 100_000  # in a response; their table takes a second
KEPT = "_bridgehead_kept_"  # how the names of kept objects in expressions begin; their ids follow
# Calls of one callback: at most so many are on their way, and in one event. Bursts of 2,000 small
# messages that the client had not read lost none (measured).
CALLS_AHEAD, CALLS_TOGETHER = 1000, 100
# The ends of the msg_types of requests on the control channel, and of their replies; they begin
# with the name of the remote module, so that those of two versions do not meet.
CONTROL_REQUEST, CONTROL_REPLY = ".request", ".control_reply"
EVENTS_REQUEST = ".events_request"  # answered when there are events; see ``remote.event_queue``
# The end of a field in a cell's message: how many bytes its exception may have in the reply, 0 for
# none; and of the source of the payload that has it, and the traceback that a reply itself lacks.
CELL_ERROR = ".cell_error"


class SubshellOwner(TypedDict):
    """The subshell that serves a request. ``_connection.subshell`` writes it."""

    id: str
    host: str  # host and pid of the client: when that process has ended, the subshell is an orphan
    pid: int


class DirectOffer(TypedDict):
    """Where the remote part proves whose process it is. ``_lanes.socket`` writes it."""

    path: str  # of the socket that the client listens on
    secret: str  # the first half is shown to the client, the second half comes back; in hex
    lane: bool  # a direct lane begins on this socket; else it is closed after the secret
    name: str  # of the lane; see ``via``
    share: float  # of the free memory, the most that a pool of segments takes
    files: int  # descriptors that the client may have open
    common: Dict[str, Any]  # the fields that are the same in all headers, and not sent


class RequestHeader(TypedDict, total=False):
    """The header of a request; for each message of it, a lane makes one of its own."""

    # _protocol.request writes these in every request; the lanes write another op for a message
    # that is not the whole request: chunk, next_chunk, forget, unmapped.
    protocol: int  # PROTOCOL
    op: str  # the operation
    id: str  # no request runs twice; a chunk and a kept response are found by it
    epoch: str  # of the remote part it is for; a broadcast has several, with spaces between
    python: List[int]  # major and minor version of the client's Python
    sizes: List[int]  # bytes of each frame
    digest: str  # "algorithm:hex digits" of the frames; a lane takes the part for its message
    # The lanes write these.
    at: int  # the offset of the message's bytes in all frames
    chunk: int  # the most bytes of frames that the reply may bring
    resumable: bool  # the connection may break: keep the response until it is in ``acks``
    ahead: bool  # chunks of a long response may arrive in messages ahead of the reply
    acks: List[str]  # ids of the requests whose responses have arrived
    via: str  # the direct lane over which the client fetches the response's frames
    segment: int  # for unmapped: the number of the segment that has the response
    direct: DirectOffer  # for hello
    requests: List["RequestHeader"]  # for batch: their frames are the frames of the batch, in order
    server: str  # for interrupt: the direct lane whose thread is interrupted
    cell: str  # for interrupt_cell: the id of the cell's message
    request: str  # for cancel: the id of the request, or of the cell's message
    # _connection writes these, for any operation.
    now: bool  # the request does not wait for the running cell
    subshell: SubshellOwner  # which serves it, in place of the main thread
    refs: bool  # the payload has refs, which the kernel replaces by its objects
    code: bool  # the payload carries code, so cloudpickle is needed
    opens: str  # "data": the kernel opens the payload as data
    trust: str  # "data": the kernel sends only data
    allow: List[str]  # further classes that count as data, by ``module.qualname``
    max_bytes: int  # the most bytes of a response
    reader: List[int]  # as ``python``, of another kernel that will unpickle the response
    # _bridge and _connection write these, for one operation.
    names: List[str]  # for bind, stage and drop, also of kept objects; for fetch: keys of a dict
    expressions: List[str]  # for fetch, watch, start, iterate and map
    keep: str  # for call and start: the name that the result gets in the kernel
    kept: str  # for both: the id of the result, which stays in the kernel under no name
    namespace: bool  # for call, start, map: the function's global names are the user's namespace
    outputs: bool  # for start: ``OUTPUTS_END`` follows the task's last output
    name: str  # for has and detail
    pattern: str  # for names and watch_names
    types: List[str]  # for names: the names of the types that are listed
    modules: bool  # for names: modules are listed, too
    preview: bool  # for names and watch_names: with a short text of each value
    max_output: int  # for stage: the most characters that the cell may print
    # _connection.resources writes these.
    owner: str  # the bridge that a remote resource belongs to
    resource: str  # its id
    lane: str  # "inline" if its events have to bring their frames as base64
    seen: Dict[str, int]  # for renew: by resource, the number of the last event that arrived
    resources: List[str]  # for close
    # _connection.iteration writes these, for advance and take, and the first one for finish.
    iteration: str  # the id of an iteration
    batch: int  # the number of a batch of its items
    have: int  # how many items of it have arrived
    most: int  # the most items of a batch; the ``maxsize`` of a callback, in its pickle
    # _connection.callbacks writes these: the first one in a pickle, the others for report.
    waits: bool  # a call waits in the kernel until fewer than ``most`` calls wait
    number: int  # of the last event that arrived as a whole
    begun: int  # how many calls the client has begun or dropped
    again: bool  # events after ``number`` may be lost
    # _connection.mapping writes this one, for map.
    goes_on: bool  # after an item that raised, the next one is begun
    # The remote part adds this one itself.
    cells_begun: Optional[int]  # how many cells had begun when a socket thread received it


class ErrorDescription(TypedDict, total=False):
    """The error in a response. ``remote.namespace`` writes it, ``_protocol.raising`` reads it."""

    kind: str  # of a ``WireError``, or "remote" for what the user's code raised
    message: str
    names: List[str]  # name: those that are not defined
    close: List[str]  # name: similar names that are
    module: str  # missing: what cannot be imported
    where: str  # missing: the executable that cannot import it
    bytes: int  # large: the size of the response
    type: str  # untrusted: the class that is not data
    path: str  # untrusted: where in the value it is
    ename: str  # remote: as in Jupyter's messages; the frames are the pickled exception
    evalue: str
    traceback: List[str]
    code_of: Optional[List[int]]  # remote: the Python whose code the exception carries, if any


class FailedItem(TypedDict):
    """An item of a map that failed. ``remote.mapping`` writes it."""

    at: int  # which of the items that the request brought
    error: Any  # an ``ErrorDescription``
    parts: int  # how many frames are its exception


class NameDescription(TypedDict):
    """A name in the kernel and its value. ``remote.description`` writes it."""

    name: str
    type: str
    shape: Optional[List[int]]
    len: Optional[int]
    bytes: Optional[int]
    preview: Optional[str]


class ValueDetail(TypedDict):
    """A closer look at a value. ``remote.detail`` writes it; the frame beside it is a picture."""

    facts: List[List[str]]  # pairs: a label, and what there is to say
    columns: List[str]  # of a table's head
    rows: List[List[str]]
    text: str  # the beginning of a text


class ResponseHeader(TypedDict, total=False):
    """The header of a response, written by the remote part."""

    # remote.replay writes these; on the direct lane no digest stands for "none:".
    sizes: List[int]  # bytes of each frame
    digest: str  # of the frames in this message, by the algorithm of the request
    # Of a chunk that is sent ahead of the reply, and of a piece of a call back: its offset in all
    # frames, whose sizes the header has.
    at: int
    ahead: int  # bytes of the frames that were sent ahead; the client fetches the rest
    sums: bool  # the kernel has numpy loaded, and so knows the digest of that name
    busy: bool  # a cell runs: the request is stored, and waits for a message to the main thread
    # Other files of remote write these.
    error: ErrorDescription
    unmapped: bool  # the kernel could not map the request's segment; nothing was done
    data: str  # on the inline lane: the frames as base64
    responses: List["ResponseHeader"]  # to batch
    parts: int  # in a batch: how many frames of the batch are this response's
    retry: bool  # in a batch: the request did not run, send it again
    code: bool  # to fetch: the payload carries code
    names: List[NameDescription]  # to names and watch_names
    detail: ValueDetail  # to detail
    has: bool  # to has; to report: the kernel knows the callback
    is_async: bool  # to iterate: an async iterator
    # To advance and take.
    number: int  # of the batch
    first: int  # the index in the batch of the first item that came
    # Of each pickle: how many items or calls it has, and how many frames. To an event, too.
    groups: List[List[int]]
    dropped: int  # in an event of a callback: calls that were dropped in the kernel so far
    ended: bool  # to advance: there are no more items
    # To advance: what ended the items; its frames come last. To finish: what closing raised.
    failure: ErrorDescription
    closing: str  # to finish: "waits", "begun" or "done"
    idle: Optional[bool]  # to finish: no other code runs in the thread of the cells, if known
    # To map, which has groups, too.
    failures: List[FailedItem]  # the items that raised; their frames come last
    seconds: float  # that the items took
    gone: List[str]  # to renew: the resources that are not in the kernel
    delivered: bool  # to interrupt_cell: the cell runs
    # The response to hello.
    epoch: str  # made when the remote part was installed
    python: List[int]  # three numbers
    executable: str
    pickle: int  # the highest pickle protocol; for debugging
    versions: Dict[str, str]  # of the packages that matter to pickles
    pid: int
    kernel_info: Any  # what the kernel says of itself; null if that is to be asked
    process: str  # names the process; a pid may be used again
    on_machine: Any  # what identifies the process on its machine; see wire.process
    uid: Optional[int]  # for debugging
    cwd: str
    orphans: List[str]  # ids of idle subshells whose client has ended
    direct: Optional[str]  # why there is no direct lane; "" if there is one, null without an offer
    files: int  # descriptors that the process may have open
    memory: str  # the kind of memory that it can share; see wire.slabs
    in_main_thread: Optional[bool]  # whether cells run in the main thread, which a signal reaches
    guards_cells: Optional[bool]  # whether it can interrupt one cell and no other
    serves_control: Optional[bool]  # whether it serves requests on the control channel
    buffers: bool  # the message's buffers arrived, and buffers can be sent
    # _connection.resources adds this one to an event.
    event: str  # its id, by which the rest of its frames is fetched


HeaderAndFrames = Tuple[ResponseHeader, List[memoryview]]  # what an operation returns

REQUIRED = ("op", "id", "digest", "sizes", "at", "chunk")  # in every request; not null
OPERATION_FIELDS = {  # required by one operation; not null
    "bind": ("names",),
    "fetch": ("expressions",),
    "watch": ("expressions", "resource", "owner"),
    "watch_names": ("pattern", "resource", "owner"),
    "start": ("resource", "owner"),
    "stage": ("resource", "owner"),
    "iterate": ("resource", "owner"),
    "advance": ("owner", "iteration", "batch", "most"),
    "take": ("iteration", "batch"),
    "finish": ("iteration",),
    "map": ("expressions",),
    "cancel": ("request",),
    "withdraw": ("request",),
    "renew": ("owner", "seen"),
    "close": ("resources",),
    "report": ("owner", "resource", "number", "begun"),
    "drop": ("names",),
    "names": ("pattern",),
    "has": ("name",),
    "detail": ("name",),
    "batch": ("requests",),
    "interrupt_cell": ("cell",),
}
# The operations that a thread beside the cells serves, even while a cell runs.
BESIDE_CELLS = (
    "interrupt_cell", "cancel", "withdraw", "wake", "close", "take", "finish", "report",
)  # fmt: skip
BATCHABLE = ("bind", "fetch", "drop", "names", "has")  # the operations that may be in a batch


def kinds(fields: Any) -> Dict[str, Any]:
    """Return the fields of a ``TypedDict``, each with its kind; see ``fits``."""
    return {field: _kind(hint) for field, hint in fields.__annotations__.items()}


def _kind(hint: Any) -> Any:
    origin = getattr(hint, "__origin__", None)
    inner = [_kind(part) for part in getattr(hint, "__args__", ())]
    if origin is Union:
        return tuple(inner)
    if origin is list:
        return inner
    if origin is dict:
        return {str: inner[1]}
    if isinstance(hint, ForwardRef):  # a header in a header: who takes it out checks its fields
        return dict
    return kinds(hint) if hasattr(hint, "__total__") else hint


def fits(value: Any, kind: Any) -> bool:
    """Return whether a JSON value is of a kind.

    A kind is a type, or a tuple of kinds of which one must fit. ``[kind]`` stands for a list whose
    items are of that kind, ``{str: kind}`` for an object whose values are. Any other dict stands
    for an object with these fields, each of its kind.
    """
    if type(kind) is tuple:
        return any(fits(value, one) for one in kind)
    if type(kind) is list:
        if type(value) is not list:
            return False
        for item in value:  # noqa: SIM110 - with all(), the check of a request took 1 µs more
            if type(item) is not kind[0] and not fits(item, kind[0]):
                return False
        return True
    if type(kind) is not dict:
        return type(value) is kind or kind is Any
    if type(value) is not dict:
        return False
    if str in kind:
        return all(fits(item, kind[str]) for item in value.values())
    return all(fits(value.get(field), one) for field, one in kind.items())


_REQUEST = kinds(RequestHeader)
_REQUIRED = {operation: REQUIRED + fields for operation, fields in OPERATION_FIELDS.items()}


def check(fields: Any, common: Any = None) -> RequestHeader:
    """Return the header of a request; raise ``WireError`` if the remote part could misread it.

    ``common`` are fields that were checked before, and that ``fields`` may replace.
    """
    if type(fields) is not dict:
        raise WireError("protocol", "the header is not a JSON object")
    header: Any = {**common, **fields} if common else fields
    if header.get("protocol") != PROTOCOL:
        raise WireError("protocol", "unsupported protocol; the remote part speaks %d" % PROTOCOL)
    for field, value in fields.items():
        kind = _REQUEST.get(field, Any)
        if type(value) is not kind and value is not None and not fits(value, kind):
            # Name the type alone: the value may be long or deeply nested.
            found, wanted = type(value), kind if type(kind) is type else type(kind)
            why = "not " + wanted.__name__ if found is not wanted else "with other items"
            raise WireError("protocol", "the header's %r is %s, %s" % (field, found.__name__, why))
    for field in _REQUIRED.get(header.get("op", ""), REQUIRED):
        if header.get(field) is None:
            raise WireError("protocol", "the header has no %r" % field)
    if header["chunk"] < 0:
        raise WireError("protocol", "the header's chunk size is %d bytes" % header["chunk"])
    if "digest" in fields:
        digest(header["digest"].partition(":")[0], ())  # raises for an unknown algorithm
    checked: RequestHeader = header
    return checked
