"""Every message between processes. Each is one ZeroMQ frame: a MessagePack array that begins with the message's tag.

    message          from → to                          what for
    Hello            client, router, supervisor → door  opens a connection: version, role, client id
    Welcome          door → client                      accepted; at the router it carries the topology
    Calls            client → door, router → partition  groups of calls of single-partition procedures
    EverywhereCall   client → router → partition        one directed call, to run in every partition
    Replies          partition → router → client        results and errors of calls
    Dropped          partition → router                 calls that get no reply
    Refusal          door → client                      a whole frame was refused (garbage, no Hello, account closed)
    Lost             router → client                    calls that it sent on will not be answered
    Closing          door → client                      it stops: what it has not answered never ran
    Topology         supervisor → router → client       partitions, incarnations, addresses, procedures
    Admin            client → router → supervisor       status, stop, load_procedures, change_schema
    AdminReply       supervisor → router → client
    StatusRequest    supervisor → partition, router
    StatusReply      partition, router → supervisor
    PrepareLoad      supervisor → partition             compile new procedures beside the old ones, for a new schema
    LoadPrepared     partition → supervisor             it worked, or why not
    SwitchLoad       supervisor → partition             use them from the next call on
    DiscardLoad      supervisor → partition             forget them
    HoldCheckpoint   supervisor → partition             make a checkpoint, and leave it as it is: a snapshot copies it
    CheckpointHeld   partition → supervisor             it is on disk, or why not
    RenewHold        supervisor → partition             hold it longer
    ReleaseCheckpoint   supervisor → partition          do with it what you like
    CheckpointReleased  partition → supervisor          it was held up to now, or not
    CheckpointBegun  partition → supervisor             its state is fixed; batches and replies may go on
    HoldBatches      supervisor → coordinator           begin no batch until ResumeBatches: a snapshot is being cut
    BatchesHeld      coordinator → supervisor           none is under way, and none is undecided anywhere
    ResumeBatches    supervisor → coordinator           go on
    Attach           coordinator → partition            a session of cross-partition transactions begins
    Attached         partition → coordinator            it has, and these batches are in doubt here
    Orders           coordinator → partition            lend, prepare, decide, read: in this order
    Reports          partition → coordinator            what became of them
    Detach           supervisor → partition             that coordinator is dead: what it borrowed is here again
    PlanRequest      partition → coordinator            how are these statements run?
    PlanReply        coordinator → partition            like this; or they are wrong

A *door* is where client frames come in: the router, and each partition (client affinity). Both speak the same messages
with the same limits. A client id is a random 63-bit number that a client chooses; with the call's own number it is the
call id, which names a call for ever. An *incarnation* is the WAL epoch of a partition process: frames that name another
incarnation than the one they reach are refused, so a call answered `Unavailable` can't run later.

The coordinator is addressed as one more partition, with the number after the last, that owns no hash slots: Calls reach
it, and Replies leave it, as they do any partition. Its incarnation is the epoch of its decision log, and what stands
for an LSN in its Replies is the number of its last batch that is over. Batches are numbered for ever: the epoch above
BATCH_BITS bits, then a count. How it deals with the partitions is told at Attach and below.

Types are checked as the bytes are decoded; sizes are bounded by MAX_FRAME_BYTES at every socket.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from msgspec import Meta, Raw, Struct

PROTOCOL_VERSION = 1
MAX_FRAME_BYTES = 16 << 20
CALLS_A_FRAME = 128
FRAMES_IN_FLIGHT = 8  # unanswered frames that a client allows itself for each destination
CALLS_IN_FLIGHT_A_CLIENT = 9 * 1024  # past it a door answers Overloaded; a client leaves 1024 to the coordinator
CALLS_IN_FLIGHT_A_PARTITION = 65536
CALLS_A_GROUP = GROUPS_A_FRAME = 4096
BATCH_BITS = 40
MAX_LEASE_S = 600.0  # of a checkpoint that is held
LEASE_S = 1.0  # after which a partition takes back what it lent and was not asked to prepare
HOLD_S = 0.25  # after which it lets go of replies that it holds back for a read of rows
MAX_HOLD_S = 10.0  # … for one that runs statements, or the parts of a joint call, at most
NEVER_SENT = -1  # CallGroup.retry_floor of a first attempt

# Bounds that the decoder checks as it reads: 4 ns an element, where min() and max() afterwards take three times that.
ClientId = Annotated[int, Meta(gt=0, le=(1 << 63) - 1)]
CallNumber = Annotated[int, Meta(gt=0, le=(1 << 63) - 1)]
HashSlot = Annotated[int, Meta(ge=0, lt=16384)]
CallNumbers = Annotated[list[CallNumber], Meta(min_length=1, max_length=CALLS_A_GROUP)]
HashSlots = Annotated[list[HashSlot], Meta(min_length=1, max_length=CALLS_A_GROUP)]


class Hello(Struct, array_like=True, tag=1, forbid_unknown_fields=True):
    """`role` is "client", "router", "supervisor" or "coordinator"; all but the first show the cluster's `token`."""

    version: int
    client_id: int
    role: str = "client"
    token: str = ""


class PartitionAddress(Struct, array_like=True):
    """Where a partition is reached. `incarnation` 0: it is down. `lsn`: its last one when this was written."""

    partition: int
    incarnation: int
    ipc_path: str
    tcp_port: int
    lsn: int


class Parameter(Struct, array_like=True):
    """One argument of a procedure, as it was annotated; `type_text` and `default_text` are for people.

    `default_text` is a Python expression, "…" for a default that is none or is long, "" where it is required.
    """

    name: str
    type_text: str
    required: bool
    default_text: str = ""


class ProcedureInfo(Struct, array_like=True):
    """What a client needs to route a call, and a person to make one.

    `key_positions`: which arguments decide where it runs. Where their hash slots belong to one partition, it runs
    there, otherwise in the coordinator; without any, in the coordinator too, unless it is `everywhere` (directed).
    An argument that is a list or tuple of keys stands for all of them. `joint`: a directed procedure that may write
    tables which every partition has a copy of, so that all its parts commit together, through the coordinator.
    """

    name: str
    key_positions: list[int]
    everywhere: bool
    read_only: bool
    parameters: list[Parameter]
    doc: str
    joint: bool = False


class Runaway(Struct, array_like=True):
    """A call that had to be ended together with its partition's process."""

    client_id: int
    call_number: int
    procedure: str


class Topology(Struct, array_like=True, tag=2):
    """The cluster as clients see it. `version` grows with every change. `catalog_version` names the set of procedures.

    `coordinator` has the number of partitions for its own; in a cluster of one partition there is none.

    `cluster_id` is written beside the ipc sockets too: a client that can read the same id there shares the machine.
    `runaways` are the calls that died with their partition: their callers get ProcedureTimeout.
    """

    version: int
    catalog_version: int
    cluster_id: str
    runtime_directory: str
    partitions: list[PartitionAddress]
    procedures: list[ProcedureInfo]
    runaways: list[Runaway]
    coordinator: PartitionAddress | None = None


class Welcome(Struct, array_like=True, tag=3):
    """`incarnation` is 0 at the router. At a partition `topology` is absent."""

    version: int
    incarnation: int
    topology: Topology | None


class CallGroup(Struct, array_like=True, gc=False):
    """Calls of one client, to one procedure, for one partition.

    `numbers[i]`, `slots[i]` (hash slot of the key) and the i-th element of `args` (a MessagePack array of argument
    arrays) belong to one call. `retry_floor` is NEVER_SENT for a first attempt; for a retry it is the partition's last
    LSN that the client had heard of before it sent the first one: if the call ran, it ran after that.
    """

    client_id: ClientId
    procedure: str
    partition: int
    incarnation: int
    numbers: CallNumbers
    slots: HashSlots
    args: Raw
    retry_floor: Annotated[int, Meta(ge=NEVER_SENT, le=(1 << 63) - 1)] = NEVER_SENT


class Calls(Struct, array_like=True, tag=4, gc=False):
    """`catalog_version` is the set of procedures that the sender routed by; another one is answered `stale`."""

    catalog_version: int
    groups: Annotated[list[CallGroup], Meta(max_length=GROUPS_A_FRAME)]


class EverywhereCall(Struct, array_like=True, tag=5):
    """`now_us` and `partition` are stamped by the router: generated values must be equal in all copies."""

    catalog_version: int
    client_id: ClientId
    procedure: str
    number: CallNumber
    args: Raw
    now_us: int = 0


class ReplyGroup(Struct, array_like=True, gc=False):
    """`results`: a MessagePack array with one result a number."""

    client_id: int
    numbers: list[int]
    results: Raw


class CallError(Struct, array_like=True, gc=False):
    """`code` is a class name of voltpy.errors, or STALE: routed by an old catalog, not run, send it again."""

    client_id: int
    number: int
    code: str
    message: str
    type_name: str = ""
    traceback_text: str = ""


STALE = "stale"
ELSEWHERE = "elsewhere"  # CallError.code: undone here, since it needs the coordinator; send it there


class Replies(Struct, array_like=True, tag=6, gc=False):
    """`lsn`: everything that these replies rest on is flushed up to it. From the router itself: partition -1."""

    partition: int
    incarnation: int
    lsn: int
    groups: list[ReplyGroup]
    errors: list[CallError]


class Dropped(Struct, array_like=True, tag=16):
    """How many calls of each client, by client id, get no reply here: a retry overtook them, or was there first.

    The client hears nothing of them, it has the retry's answer; the router must not count them as in flight for ever.
    """

    partition: int
    incarnation: int
    calls: dict[int, int]


class Lost(Struct, array_like=True, tag=33):
    """The router has lost its connection to this partition, which lives.

    Of the client's calls that went there through the router, in this incarnation, nobody knows whether they ran, unless
    they are answered.
    """

    partition: int
    incarnation: int
    reason: str


class Closing(Struct, array_like=True, tag=34):
    """The last word of a process that stops in order.

    Of what the client has sent by this connection, whatever is not answered never ran, and never will.
    """

    reason: str


NO_HELLO = "no_hello"  # Refusal.code: say Hello and go on; no frame since the connection was made has run


class Refusal(Struct, array_like=True, tag=7):
    """The frame, or the connection, was refused; nothing of the frame ran."""

    code: str
    message: str


class Admin(Struct, array_like=True, tag=8):
    """`command`: "status", "stop", "load_procedures", "change_schema", "begin_snapshot", "renew_snapshot",
    "end_snapshot".

    `body` is its MessagePack map of arguments.
    """

    number: int
    command: str
    body: dict[str, Any]


class AdminReply(Struct, array_like=True, tag=9):
    """`error` is empty when it worked, else a class name of voltpy.errors, with the message in `body["message"]`."""

    number: int
    error: str
    body: dict[str, Any]


class StatusRequest(Struct, array_like=True, tag=10):
    number: int


class StatusReply(Struct, array_like=True, tag=11):
    """Counters and gauges by name. A partition that answers one is serving."""

    number: int
    incarnation: int
    lsn: int
    catalog_version: int
    tcp_port: int
    procedures: list[ProcedureInfo]
    metrics: dict[str, Any]


class PrepareLoad(Struct, array_like=True, tag=12):
    """`schema`: voltpy.schema.to_json of the one that comes with the procedures; empty: it stays as it is."""

    catalog_version: int
    source: str
    path: str
    schema: bytes = b""


class LoadPrepared(Struct, array_like=True, tag=13):
    """`error` is empty when the procedures compiled, and the rows fit the schema; `procedures` describes them.

    `code`: of an error, a class name of voltpy.errors.
    """

    catalog_version: int
    error: str
    procedures: list[ProcedureInfo]
    code: str = "SchemaError"


class SwitchLoad(Struct, array_like=True, tag=14):
    catalog_version: int


class DiscardLoad(Struct, array_like=True, tag=15):
    catalog_version: int


class HoldCheckpoint(Struct, array_like=True, tag=17):
    """To be obeyed between two batches: the checkpoint that begins then, or next, is held for the snapshot.

    The hold ends by itself after `lease_s` seconds without a RenewHold: whoever copies may have died.
    """

    snapshot: int
    lease_s: Annotated[float, Meta(gt=0, le=MAX_LEASE_S)]


class CheckpointHeld(Struct, array_like=True, tag=18):
    """`error` is empty when the checkpoint with this number, as of this LSN, is on disk and held."""

    snapshot: int
    error: str
    checkpoint: int
    lsn: int
    epoch: int


class RenewHold(Struct, array_like=True, tag=19):
    """Prolongs a hold that there is; one that has ended stays ended."""

    snapshot: int
    lease_s: Annotated[float, Meta(gt=0, le=MAX_LEASE_S)]


class ReleaseCheckpoint(Struct, array_like=True, tag=20):
    snapshot: int


class CheckpointReleased(Struct, array_like=True, tag=21):
    """`was_held`: without a gap, so that whatever was copied until then is the checkpoint."""

    snapshot: int
    was_held: bool


class CheckpointBegun(Struct, array_like=True, tag=27):
    """From now on what is written comes after the checkpoint that will be held for this snapshot."""

    snapshot: int


class HoldBatches(Struct, array_like=True, tag=28):
    """For a snapshot, or a change of the schema, which has a number as snapshots have.

    Ends by itself after `lease_s` seconds, like the hold of a checkpoint.
    """

    snapshot: int
    lease_s: Annotated[float, Meta(gt=0, le=MAX_LEASE_S)]


class BatchesHeld(Struct, array_like=True, tag=29):
    snapshot: int


class ResumeBatches(Struct, array_like=True, tag=30):
    snapshot: int


# The coordinator and the partitions.


class TableChanges(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """What a batch did to one table: encoded rows that are there now, encoded primary keys that are not."""

    table: int
    images: list[bytes]
    deleted: list[bytes]


class TableKeys(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """Encoded primary keys of one table, by its number in the schema."""

    table: int
    keys: list[bytes]


class UniqueValues(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """Values of the columns of a unique index: each an encoded array of them, none of them NULL."""

    table: int
    index: str
    values: list[bytes]


class Scan(Struct, array_like=True, forbid_unknown_fields=True):
    """A read that is not by key, as a procedure asks for it of `tx.<table>`.

    `kind`: "scan", "count", "where" (`arguments`: a map of columns to values), "range" (an array of low and high).
    """

    table: int
    kind: str
    arguments: Raw = Raw(b"\xc0")


class ScanAnswer(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """Encoded rows; for "count" only their number. `error`: a class name of voltpy.errors, and its message."""

    images: list[bytes]
    count: int
    error: str = ""
    message: str = ""


class Borrow(Struct, array_like=True, tag="borrow", forbid_unknown_fields=True):
    """The batch takes these keys, present or absent, and the tables of these scans whole. Answered by Lent.

    Keys and scans of replicated tables are read and not taken: nobody but the coordinator changes those. The partition
    takes back by itself what it has lent for longer than LEASE_S and was not asked to prepare: then its vote is no.

    `locks` are keys that the batch has changed without having borrowed them: of replicated tables, and of new rows with
    hidden keys. They are taken, and nothing is answered for them.

    `entries` are values that rows of the batch are to have in unique indexes: as long as they are lent nobody else gets
    them, and a row that has one is lent with it. Those of replicated tables are read and not taken, like their keys.
    """

    batch: int
    keys: list[TableKeys]
    scans: list[Scan]
    locks: list[TableKeys] = []
    entries: list[UniqueValues] = []


class Lent(Struct, array_like=True, tag="lent", forbid_unknown_fields=True):
    """An image, or None for an absent key, for each key that was asked for; an answer for each scan.

    `refused`: the partition does not take the order: a class name of voltpy.errors, ": ", and why. "Unavailable" when
    the batch has lost what it borrowed before, or somebody else has it; others will say the same the next time.
    `entries`: for each value that was asked for the image of the row that has it, or None.
    """

    batch: int
    images: list[list[bytes | None]]
    scans: list[ScanAnswer]
    refused: str = ""
    entries: list[list[bytes | None]] = []


class Prepare(Struct, array_like=True, tag="prepare", forbid_unknown_fields=True):
    """Can all that was borrowed still be relied on, and these changes be made? Answered by Vote.

    Whatever is not changed is given back at once: every participant holds all that the batch has read or changes, from
    before the first of them was asked. Where there is only one, it may change what was not borrowed: keys of replicated
    tables, and hidden keys of new rows, which are lent from now on.
    """

    batch: int
    changes: list[TableChanges]


class Commit(Struct, array_like=True, tag="commit", forbid_unknown_fields=True):
    """As Prepare, and it is the decision too: nobody else changes anything. `outcomes`: a MessagePack array of
    ReplyGroups, for the partition to remember in its WAL. Answered by Vote."""

    batch: int
    changes: list[TableChanges]
    outcomes: Raw


class RunDirected(Struct, array_like=True, tag="run_directed", forbid_unknown_fields=True):
    """Runs this partition's part of a joint directed call, and prepares what it changes. Answered by Ran.

    It may be set aside for pages from disk; the orders behind it wait. What it reads it does not borrow: from when it
    has run until Release the partition holds back replies, as for a Read whose round has the batch's number.
    """

    batch: int
    client_id: ClientId
    number: CallNumber
    procedure: str
    args: Raw
    now_us: int
    hold_s: Annotated[float, Meta(gt=0, le=MAX_HOLD_S)] = HOLD_S


class Ran(Struct, array_like=True, tag="ran", forbid_unknown_fields=True):
    """The part's encoded result, and what it changes in tables that every partition has a copy of, which must be the
    same everywhere. It is prepared, on disk. With an `error` nothing is."""

    batch: int
    result: Raw
    copies: list[TableChanges]
    error: CallError | None = None


class Vote(Struct, array_like=True, tag="vote", forbid_unknown_fields=True):
    """`error` is empty for yes, which is on disk then; else a class name of voltpy.errors: "ReadOnly" for want of room,
    "Unavailable" when the partition does not hold the batch (any more)."""

    batch: int
    error: str
    message: str = ""


class Decide(Struct, array_like=True, tag="decide", forbid_unknown_fields=True):
    """The batch's changes count, or never happened; all its keys are here again. Answered by Decided.

    May come for a batch that was never prepared, or is known no more: then there is nothing to do but to answer.
    """

    batch: int
    commits: bool


class Decided(Struct, array_like=True, tag="decided", forbid_unknown_fields=True):
    """It is on disk: the decision will not be asked for again."""

    batch: int


class Fragment(Struct, array_like=True, forbid_unknown_fields=True):
    """One partition's part of a SELECT, by its text; `parameters` are its parameters' MessagePack array.

    `sends_copies`: of tables that all partitions have a copy of, this one sends the rows. `call` is where values like
    now() come from: client id, call number, and the time.
    """

    text: str
    parameters: Raw
    sends_copies: bool
    call: tuple[int, int, datetime] | None = None


class FragmentAnswer(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """`streams`: lists of rows, as voltpy.sql.plan has them. `error`: a class name of voltpy.errors, and its text."""

    streams: Raw
    error: str = ""
    message: str = ""


class Read(Struct, array_like=True, tag="read", forbid_unknown_fields=True):
    """Reads these without borrowing, at once. Until Release the partition holds back the replies of what runs after.

    Answered by ReadAnswer. The partition lets the replies go by itself after `hold_s`.
    """

    round: int
    keys: list[TableKeys]
    scans: list[Scan]
    fragments: list[Fragment] = []
    hold_s: Annotated[float, Meta(gt=0, le=MAX_HOLD_S)] = HOLD_S


class ReadAnswer(Struct, array_like=True, tag="read_answer", forbid_unknown_fields=True):
    """As Lent. `is_here` False: some of it is lent or in doubt, nothing was read, and nothing is held back."""

    round: int
    images: list[list[bytes | None]]
    scans: list[ScanAnswer]
    is_here: bool = True
    fragments: list[FragmentAnswer] = []


class Release(Struct, array_like=True, tag="release", forbid_unknown_fields=True):
    """The replies may go. Not answered. `round` may be a joint call's batch."""

    round: int


class Recall(Struct, array_like=True, tag="recall", forbid_unknown_fields=True):
    """What is remembered of calls that an earlier coordinator may have committed here alone? Answered by Recalled."""

    client_id: ClientId
    numbers: CallNumbers


class Recalled(Struct, array_like=True, tag="recalled", forbid_unknown_fields=True):
    """Encoded results, by call number, of those that are remembered.

    `reaches`: every batch above this one that was committed here alone is remembered.
    """

    client_id: int
    results: dict[int, bytes]
    reaches: int


Order = Borrow | RunDirected | Prepare | Commit | Decide | Read | Release | Recall
Report = Lent | Ran | Vote | Decided | ReadAnswer | Recalled


class Attach(Struct, array_like=True, tag=22, forbid_unknown_fields=True):
    """Everything lent to an earlier session, and not prepared, is here again; its rounds are released.

    `epoch` is that of the coordinator's decision log, `session` counts its attempts to reach this partition. Orders of
    any other session than the one that was attached last are dropped; so are sessions of an earlier epoch.
    """

    epoch: int
    session: int


class Attached(Struct, array_like=True, tag=23, forbid_unknown_fields=True):
    """`in_doubt`: batches that are prepared here and not decided. They stay so until Decide."""

    epoch: int
    session: int
    incarnation: int
    in_doubt: list[int]


class Orders(Struct, array_like=True, tag=24, forbid_unknown_fields=True):
    """`number` counts the session's frames from 1. After a gap the session is over: the partition answers nothing."""

    epoch: int
    session: int
    number: int
    orders: list[Order]


class Reports(Struct, array_like=True, tag=25, forbid_unknown_fields=True):
    """Leaves when everything that it rests on is flushed. `number` counts the session's frames from 1."""

    epoch: int
    session: int
    number: int
    reports: list[Report]


class Detach(Struct, array_like=True, tag=26, forbid_unknown_fields=True):
    """The coordinator of this epoch is dead."""

    epoch: int


class PlanRequest(Struct, array_like=True, tag=31, forbid_unknown_fields=True):
    """What these statements are planned to do; a PlanReply answers each."""

    texts: list[str]


class PlanReply(Struct, array_like=True, tag=32, forbid_unknown_fields=True):
    """`plan` is a voltpy.sql.plan.Plan: Python that will run. `error`: a class name of voltpy.errors, and its text.

    Under another catalog version than the partition's (0: it does not say) it was made for another schema.
    """

    text: str
    plan: Raw
    error: str = ""
    message: str = ""
    catalog_version: int = 0


Message = (
    Hello | Topology | Welcome | Calls | EverywhereCall | Replies | Dropped | Lost | Closing | Refusal
    | Admin | AdminReply | StatusRequest | StatusReply | PrepareLoad | LoadPrepared | SwitchLoad | DiscardLoad
    | HoldCheckpoint | CheckpointHeld | RenewHold | ReleaseCheckpoint | CheckpointReleased
    | CheckpointBegun | HoldBatches | BatchesHeld | ResumeBatches
    | Attach | Attached | Orders | Reports | Detach | PlanRequest | PlanReply
)  # fmt: skip
