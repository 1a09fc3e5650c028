"""Is a history of list appends strictly serializable? The way of Elle (see tests.simulation.history).

From the reads of a key follows the order of its versions: each read must be a prefix of the longest one. From the
orders follows who depended on whom:

    ww   appended the element right before the other's
    wr   appended the last element that the other read
    rw   read the list up to right before the other's element
    rt   was over before the other began ("real time")

A history is strictly serializable if and only if there is an order of its transactions that all of this agrees with:
if the graph has no cycle. What is reported, from the worst on:

    INTERNAL             a transaction did not see its own appends, or read a key twice with different results
    PHANTOM_ELEMENT      an element that nobody appended
    DUPLICATE_ELEMENT    one append, several elements
    INCOMPATIBLE_ORDER   two reads of a key of which neither continues the other
    LOST_ELEMENT         acknowledged, and in none of the reads that began afterwards
    G1A                  aborted read: an element of a transaction that was aborted
    G1B                  intermediate read: some of what another transaction appended, and not yet the rest
    G0                   dirty write: a cycle of ww alone
    G1C                  circular information flow: a cycle of ww and wr
    G_SINGLE             a cycle with a single rw, such as a lost update or a torn read
    G2                   a cycle with several rw, such as write skew
    REAL_TIME            serializable, but a cycle with rt: somebody saw the past

An append of an unknown outcome happened if somebody saw something of its transaction. What happened and was never
read comes after everything that was read. `rt` takes a chain of *moments*, nodes between the transactions, so that the
graph has a few edges a transaction and not a square of them: T → moment when T is over, moment → T when T begins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import inf
from typing import Final, NamedTuple

import networkx as nx

from tests.simulation.history import Append, Key, Outcome, Transaction

INTERNAL: Final = "internal inconsistency"
PHANTOM_ELEMENT: Final = "phantom element"
DUPLICATE_ELEMENT: Final = "duplicate element"
INCOMPATIBLE_ORDER: Final = "incompatible order"
LOST_ELEMENT: Final = "lost element"
G1A: Final = "G1a, aborted read"
G1B: Final = "G1b, intermediate read"
G0: Final = "G0, dirty write"
G1C: Final = "G1c, circular information flow"
G_SINGLE: Final = "G-single"
G2: Final = "G2"
REAL_TIME: Final = "real-time violation"

WW, WR, RW, RT = "ww", "wr", "rw", "rt"
CYCLES_TRIED = 200  # edges of one tangle, for which the shortest cycle through them is looked for
UNREAD_EDGES = 4096  # of one key, between its last readers and appends that nobody read

Node = int  # a transaction's number; moments are negative
Version = tuple[int, ...]
Edges = dict[tuple[Node, Node], dict[str, str]]  # of each edge its kinds, and why

_KINDS = (WW, WR, RW, RT)  # from the worst on
_CYCLES: Final[tuple[tuple[str, str, set[str], set[str]], ...]] = (
    # anomaly, what closes the cycle, what its path is made of, what a path of makes it a worse one
    (G0, WW, {WW}, set()),
    (G1C, WR, {WW, WR}, set()),
    (G_SINGLE, RW, {WW, WR}, set()),
    (G2, RW, {WW, WR, RW}, {WW, WR}),
    (REAL_TIME, RT, {WW, WR, RW, RT}, set()),
)


class Anomaly(NamedTuple):
    """`transactions`: the numbers of those that it takes to see it."""

    kind: str
    transactions: tuple[int, ...]
    explanation: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.explanation}"


def check(history: Iterable[Transaction]) -> list[Anomaly]:
    """Every kind of anomaly in it, with an example of each that are independent of each other; empty: there is none.

    Raises ValueError when it is no history: a number, or a value of a key, that occurs twice.
    """
    return _Check(list(history)).anomalies()


class _Check:
    def __init__(self, history: list[Transaction]) -> None:
        self._transactions: dict[int, Transaction] = {}
        self._writer: dict[tuple[Key, int], int] = {}
        self._appends: dict[Key, list[tuple[int, int]]] = defaultdict(list)  # value, writer
        self._appended: dict[tuple[int, Key], list[int]] = defaultdict(list)
        self._found: list[Anomaly] = []
        self._first_reads: dict[Key, list[tuple[int, Version]]] = defaultdict(list)  # without the reader's own
        self._versions: dict[Key, dict[Version, int]] = defaultdict(dict)  # each one read, and by whom first
        self._elements: dict[Key, set[int]] = defaultdict(set)  # that anybody but the writer itself read
        self._edges: Edges = defaultdict(dict)
        for transaction in history:
            if transaction.number in self._transactions or transaction.number < 0:
                raise ValueError(f"{transaction.number} can't be the number of one more transaction")
            self._transactions[transaction.number] = transaction
            for operation in transaction.operations:
                if isinstance(operation, Append):
                    if (operation.key, operation.value) in self._writer:
                        raise ValueError(f"{operation.value} is appended to {operation.key} twice")
                    self._writer[operation.key, operation.value] = transaction.number
                    self._appends[operation.key].append((operation.value, transaction.number))
                    self._appended[transaction.number, operation.key].append(operation.value)

    def anomalies(self) -> list[Anomaly]:
        for transaction in self._transactions.values():
            self._look_inside(transaction)
        for key, reads in self._first_reads.items():
            self._elements[key].update(*{version for _, version in reads})
        happened = self._happened()
        orders: dict[Key, Version] = {}
        for key, versions in self._versions.items():
            orders[key] = self._order(key, versions)
        for key, reads in self._first_reads.items():
            wrong = self._elements_that_never_were(key)
            for reader, version in reads:
                for value in wrong.intersection(version) if wrong else ():
                    self._judge_element(key, reader, value)
                self._judge_end(key, reader, version)
        lost = self._look_for_lost()
        for key, order in orders.items():
            self._depend(key, order, happened, lost)
        self._relate_in_time(happened)
        self._look_for_cycles()
        return self._found

    def _report(self, kind: str, transactions: Iterable[int], explanation: str) -> None:
        self._found.append(Anomaly(kind, tuple(transactions), explanation))

    # ── single transactions and single reads ───────────────────────────────────────────────────────────────────────

    def _look_inside(self, transaction: Transaction) -> None:
        """Gathers what it read of others, and checks it against what it did itself."""
        number = transaction.number
        own: dict[Key, Version] = {}
        due: dict[Key, Version] = {}
        for operation in transaction.operations:
            key = operation.key
            if isinstance(operation, Append):
                own[key] = (*own.get(key, ()), operation.value)
                if key in due:
                    due[key] = (*due[key], operation.value)
                continue
            values = operation.values
            if values is None:
                continue
            mine = own.get(key, ())
            if key in due:
                if values != due[key]:
                    text = f"T{number} read {key} as {list(values)} where its own view was {list(due[key])}"
                    self._report(INTERNAL, [number], text)
                continue
            due[key] = values
            others = values
            if mine:
                if values[-len(mine) :] != mine:
                    text = f"T{number} appended {list(mine)} to {key} and then read {list(values)}"
                    self._report(INTERNAL, [number], text)
                others = tuple(value for value in values if value not in mine)
            self._first_reads[key].append((number, others))
            self._versions[key].setdefault(values if transaction.outcome is Outcome.OK else others, number)

    def _happened(self) -> set[int]:
        """Those that took effect, as far as anybody can tell."""
        happened = {number for number, transaction in self._transactions.items() if transaction.outcome is Outcome.OK}
        for key, elements in self._elements.items():
            for value in elements:
                writer = self._writer.get((key, value))
                if writer is not None and self._transactions[writer].outcome is Outcome.UNKNOWN:
                    happened.add(writer)
        return happened

    def _order(self, key: Key, versions: dict[Version, int]) -> Version:
        """The order of the key's elements: the longest version, of which all others must be a beginning."""
        longest = max(versions, key=len)
        for version, reader in versions.items():
            if len(set(version)) != len(version):
                twice = sorted({value for value in version if version.count(value) > 1})
                text = f"T{reader} read {key} as {list(version)}, where {twice} stand more than once"
                self._report(DUPLICATE_ELEMENT, [reader], text)
            elif longest[: len(version)] != version:
                other = versions[longest]
                text = f"T{reader} read {key} as {list(version)}, but T{other} read {list(longest)}"
                self._report(INCOMPATIBLE_ORDER, [reader, other], text)
        return tuple(dict.fromkeys(longest))

    def _elements_that_never_were(self, key: Key) -> set[int]:
        """Of those that were read: nobody appended them, or somebody who was aborted."""
        return {
            value
            for value in self._elements[key]
            if (writer := self._writer.get((key, value))) is None
            or self._transactions[writer].outcome is Outcome.ABORTED
        }

    def _judge_element(self, key: Key, reader: int, value: int) -> None:
        writer = self._writer.get((key, value))
        if writer is None:
            self._report(PHANTOM_ELEMENT, [reader], f"T{reader} read {value} in {key}; nobody appended it")
        else:
            text = f"T{reader} read {value} in {key}, which T{writer} appended, and that was aborted"
            self._report(G1A, [reader, writer], text)

    def _judge_end(self, key: Key, reader: int, version: Version) -> None:
        """Where a read ends, nobody's appends may be cut in two."""
        if version and (writer := self._writer.get((key, version[-1]))) is not None:
            theirs = self._appended[writer, key]
            if version[-1] != theirs[-1] and writer != reader:
                text = f"T{reader} read {key} up to {version[-1]}, where T{writer} appended {theirs}"
                self._report(G1B, [reader, writer], text)

    def _look_for_lost(self) -> set[tuple[Key, int]]:
        """Acknowledged appends that no read has, although one began later. Their keys and values."""
        last_reads: dict[Key, tuple[float, int]] = {}
        for key, reads in self._first_reads.items():
            last_reads[key] = max((self._transactions[reader].invoked_s, reader) for reader, _ in reads)
        lost: set[tuple[Key, int]] = set()
        for (key, value), writer in self._writer.items():
            transaction = self._transactions[writer]
            if transaction.outcome is not Outcome.OK or key not in last_reads or value in self._elements[key]:
                continue
            invoked_s, reader = last_reads[key]
            if transaction.completed_s < invoked_s:
                lost.add((key, value))
                text = f"T{writer} appended {value} to {key}, and T{reader}, which began later, did not see it"
                self._report(LOST_ELEMENT, [writer, reader], f"{text}; nobody did")
        return lost

    # ── dependencies ───────────────────────────────────────────────────────────────────────────────────────────────

    def _edge(self, source: Node, target: Node, kind: str, why: str) -> None:
        if source != target:
            self._edges[source, target].setdefault(kind, why)

    def _depend(self, key: Key, order: Version, happened: set[int], lost: set[tuple[Key, int]]) -> None:
        writers = [self._writer.get((key, value)) for value in order]
        for position in range(1, len(order)):
            before, after = writers[position - 1], writers[position]
            if before is not None and after is not None:
                why = f"T{before} appended {order[position - 1]} to {key} right before T{after} appended"
                self._edge(before, after, WW, f"{why} {order[position]}")
        read_once = set(order)
        unread = [
            (value, writer)
            for value, writer in self._appends[key]
            if value not in read_once and writer in happened and (key, value) not in lost
        ]
        last = next((writer for writer in reversed(writers) if writer is not None), None)
        if last is not None:
            for value, writer in unread:
                why = f"T{last} appended to {key} what was read of it last, and T{writer} appended {value}"
                self._edge(last, writer, WW, why)
        edges = 0
        for reader, version in self._first_reads[key]:
            read = len(version)
            if order[:read] != version:
                continue
            if read and (before := writers[read - 1]) is not None:
                self._edge(before, reader, WR, f"T{reader} read T{before}'s {order[read - 1]} in {key}")
            while read < len(order) and writers[read] == reader:
                read += 1
            if read < len(order):
                if (after := writers[read]) is not None:
                    self._edge(reader, after, RW, f"T{reader} read {key} without T{after}'s {order[read]}")
                continue
            for value, writer in unread[: max(0, UNREAD_EDGES - edges)]:
                edges += 1
                self._edge(reader, writer, RW, f"T{reader} read {key} without T{writer}'s {value}")

    def _relate_in_time(self, happened: set[int]) -> None:
        events: list[tuple[float, bool, int]] = []
        for number, transaction in self._transactions.items():
            tells = any(not isinstance(read, Append) and read.values is not None for read in transaction.operations)
            if number in happened or tells:
                events.append((transaction.invoked_s, False, number))
                if transaction.outcome is not Outcome.UNKNOWN and transaction.completed_s < inf:
                    events.append((transaction.completed_s, True, number))
        moment, is_used = -1, False  # used: somebody began after it
        for _, is_over, number in sorted(events):
            if is_over:
                if is_used:
                    self._edge(moment, moment - 1, RT, "")
                    moment, is_used = moment - 1, False
                self._edge(number, moment, RT, "")
            else:
                is_used = True
                self._edge(moment, number, RT, "")

    # ── cycles ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _look_for_cycles(self) -> None:
        """One of each kind for each tangle: a strongly connected component of the graph."""
        for tangle in _tangles(nx.DiGraph(self._edges.keys())):
            inside = {edge: kinds for edge, kinds in self._edges.items() if edge[0] in tangle and edge[1] in tangle}
            is_explained = False
            for kind, closed_by, path_kinds, worse_kinds in _CYCLES:
                if kind != REAL_TIME or not is_explained:
                    is_explained |= self._look_for(kind, inside, closed_by, path_kinds, worse_kinds)

    def _look_for(self, kind: str, inside: Edges, closed_by: str, path_kinds: set[str], worse_kinds: set[str]) -> bool:
        """Reports the shortest cycle, in each tangle, of an edge of one kind that a path of some kinds closes.

        The edge is of none of the kinds before, nor is there a path of `worse_kinds`: that would be a worse anomaly.
        """
        before = set(_KINDS[: _KINDS.index(closed_by)])
        closing = [edge for edge, kinds in inside.items() if closed_by in kinds and before.isdisjoint(kinds)]
        graph = _graph(inside, path_kinds)
        worse = _graph(inside, worse_kinds)
        whole = nx.DiGraph(graph)
        whole.add_edges_from(closing)
        is_found = False
        for tangle in _tangles(whole):
            shortest: list[Node] = []
            best = inf
            for source, target in [edge for edge in closing if tangle.issuperset(edge)][:CYCLES_TRIED]:
                path = _path(graph, target, source)
                steps = sum(node >= 0 for node in path)
                if 0 < steps < best and not _path(worse, target, source):
                    shortest, best = path, steps
                if best == 2:
                    break
            if shortest:
                is_found = True
                self._report_cycle(kind, [shortest[-1], *shortest], inside, {*path_kinds, closed_by})
        return is_found

    def _report_cycle(self, kind: str, cycle: list[Node], inside: Edges, allowed: set[str]) -> None:
        """`cycle` begins and ends with the same node."""
        while cycle[0] < 0:  # a moment is no one to begin with
            cycle = [*cycle[1:], cycle[1]]
        reasons: list[str] = []
        last = cycle[0]
        for source, target in pairwise(cycle):
            if target < 0:
                continue
            if source < 0:
                over, began = self._transactions[last], self._transactions[target]
                times = f"at {over.completed_s:.6f} s, before T{target} began at {began.invoked_s:.6f} s"
                reasons.append(f"T{last} was over {times} [rt]")
            else:
                kinds = inside[source, target]
                worst = next(name for name in _KINDS if name in kinds and name in allowed)
                reasons.append(f"{kinds[worst]} [{worst}]")
            last = target
        members = list(dict.fromkeys(node for node in cycle if node >= 0))
        told = " → ".join(f"T{number}" for number in [*members, members[0]])
        self._report(kind, members, f"{told}: {'; '.join(reasons)}")


def _graph(edges: Edges, of_kinds: set[str]) -> nx.DiGraph[Node]:
    """Edges away from moments weigh nothing: a path is as long as it has steps from transaction to transaction."""
    graph: nx.DiGraph[Node] = nx.DiGraph()
    for (source, target), kinds in edges.items():
        if not of_kinds.isdisjoint(kinds):
            graph.add_edge(source, target, weight=int(source >= 0))
    return graph


def _tangles(graph: nx.DiGraph[Node]) -> Iterator[set[Node]]:
    return (component for component in nx.strongly_connected_components(graph) if len(component) > 1)


def _path(graph: nx.DiGraph[Node], source: Node, target: Node) -> list[Node]:
    """The shortest one; empty where there is none."""
    if source not in graph or target not in graph:
        return []
    try:
        return list(nx.dijkstra_path(graph, source, target))
    except nx.NetworkXNoPath:
        return []
