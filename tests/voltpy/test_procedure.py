from __future__ import annotations

import contextlib
import functools
import gc
import linecache
import random
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any, Literal, NewType, Optional

import msgspec
import pytest
from msgspec import Raw

import voltpy.schema
from voltpy.errors import BadArguments, SchemaError
from voltpy.messages import Parameter
from voltpy.procedure import Procedure, procedure
from voltpy.registry import Registry, from_functions, imported_from_beside, load, load_path
from voltpy.schema import Column, Schema, Table

encode = msgspec.msgpack.encode

ACCOUNTS = Table("accounts", (Column("id", "INT", False), Column("balance", "INT", False)), ("id",), False, "id")
BANK = Schema((ACCOUNTS,), ())


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading appends the file's directory to sys.path."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def registered(function: Callable[..., Any]) -> Procedure:
    return from_functions([function]).procedures[function.__name__]


@procedure(partition_by="account")
def deposit(tx: Any, account: int, amount: int) -> int:
    """Adds to the account."""
    return amount


@procedure(partition_by="key")
def put(tx: Any, key: str, value: float = 0.5, note: str | None = None) -> tuple[Any, ...]:
    return key, value, note


@procedure(everywhere=True, read_only=True)
def count(tx: Any) -> int:
    return 0


def test_tx_may_be_annotated(tmp_path: Path) -> None:
    text = """
        from voltpy import Transaction, procedure

        @procedure(partition_by="account")
        def balance(tx: Transaction, account: int) -> int:
            found: int = tx.accounts.get(account).balance
            return found
    """
    procedure = load_text(tmp_path, text).procedures["balance"]
    assert procedure.info.parameters == [Parameter("account", "int", True)]


def load_text(tmp_path: Path, text: str, schema: Schema | None = BANK, version: int = 1) -> Registry:
    path = tmp_path / "bank.py"
    path.write_text(dedent(text))
    return load_path(path, schema, version)


# ---- declaring ----


def test_a_declared_procedure_stays_a_plain_callable() -> None:
    assert deposit(None, 1, 2) == 2
    assert deposit.__name__ == "deposit"


def test_a_procedure_says_how_it_is_routed_and_called() -> None:
    registry = from_functions([put, deposit, count], catalog_version=7)
    assert registry.catalog_version == 7
    assert [info.name for info in registry.infos()] == ["count", "deposit", "put"]
    by_name = registry.procedures
    assert (by_name["deposit"].key_positions, by_name["deposit"].everywhere) == ([0], False)
    assert (by_name["count"].key_positions, by_name["count"].everywhere, by_name["count"].read_only) == ([], True, True)
    info = by_name["put"].info
    assert info.parameters == [
        Parameter("key", "str", True),
        Parameter("value", "float", False, "0.5"),
        Parameter("note", "str | None", False, "None"),
    ]
    assert by_name["deposit"].info.doc == "Adds to the account."


def test_a_default_is_told_where_it_is_short_and_the_same_in_every_process() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise AssertionError("it is not asked")

    defaults: list[tuple[Any, str]] = [
        (7, "7"), ("it's", '"it\'s"'), (None, "None"), ((1, "a"), "(1, 'a')"), (Odd(), "…"), ((Odd(),), "…"),
        ("x" * 100, "…"), (10**5000, "…"),
    ]  # fmt: skip
    for default, text in defaults:

        @procedure(everywhere=True)
        def take(tx: Any, a: Any = default) -> None: ...

        assert registered(take).info.parameters == [Parameter("a", "Any", False, text)]


def test_the_key_need_not_come_first() -> None:
    @procedure(partition_by=("account",))
    def move(tx: Any, amount: int, account: int) -> None: ...

    assert registered(move).key_positions == [1]


AccountNumber = NewType("AccountNumber", int)


@pytest.mark.parametrize("annotation", [int, str, int | str, AccountNumber, Annotated[int, msgspec.Meta(ge=1)]])
def test_a_key_is_an_int_or_a_str(annotation: Any) -> None:
    def look(tx: Any, key: Any) -> None: ...

    look.__annotations__["key"] = annotation
    assert registered(procedure(partition_by="key")(look)).key_positions == [0]


@pytest.mark.parametrize(
    "annotation",
    [
        list[int],
        list[str],
        list[int | str],
        tuple[int, ...],
        list[AccountNumber],
        int | list[int],
        tuple[str | int, ...],
    ],
)
def test_a_key_may_be_a_list_of_keys(annotation: Any) -> None:
    def look(tx: Any, keys: Any) -> None: ...

    look.__annotations__["keys"] = annotation
    assert registered(procedure(partition_by="keys")(look)).key_positions == [0]


NO_KEYS = [
    float, bool, datetime, Optional[int], Literal[1], bytes,  # noqa: UP045 both spellings of a union are read
    list, tuple, list[float], list[int | None], list[list[int]], tuple[int, str], tuple[int], dict[int, str], set[int],
]  # fmt: skip


@pytest.mark.parametrize("annotation", NO_KEYS)
def test_a_key_of_another_type_is_refused(annotation: Any) -> None:
    def look(tx: Any, key: Any) -> None: ...

    look.__annotations__["key"] = annotation
    with pytest.raises(
        SchemaError, match="'key' decides where it runs and must be int or str, or a list of those, not"
    ):
        registered(procedure(partition_by="key")(look))


REFUSED = {
    "partition_by names 'acount'; its arguments are account, amount": """
        @procedure(partition_by="acount")
        def f(tx, account: int, amount: int): ...
    """,
    "partition_by names 'account'; it has no arguments": """
        @procedure(partition_by="account")
        def f(tx): ...
    """,
    "partition_by names 'tx'; its arguments are account": """
        @procedure(partition_by="tx")
        def f(tx, account: int): ...
    """,
    "its first parameter is the transaction; name it tx": """
        @procedure(partition_by="account")
        def f(account: int): ...
    """,
    "'account' decides where it runs: annotate it int or str": """
        @procedure(partition_by="account")
        def f(tx, account): ...
    """,
    "must be int or str, or a list of those, not float": """
        @procedure(partition_by="account")
        def f(tx, account: float): ...
    """,
    "'account' decides where it runs, so every call names it: no default": """
        @procedure(partition_by="account")
        def f(tx, account: int = 0): ...
    """,
    "the default of 'rows' can change from call to call": """
        @procedure(everywhere=True)
        def f(tx, rows: list = []): ...
    """,
    "make '[*]rest' a plain parameter": """
        @procedure(everywhere=True)
        def f(tx, *rest): ...
    """,
    "make '[*][*]rest' a plain parameter": """
        @procedure(everywhere=True)
        def f(tx, **rest): ...
    """,
    "make 'amount: int' a plain parameter": """
        @procedure(everywhere=True)
        def f(tx, *, amount: int): ...
    """,
    "write `def`, not `async def`": """
        @procedure(everywhere=True)
        async def f(tx): ...
    """,
    "return a list instead": """
        @procedure(everywhere=True)
        def f(tx):
            yield 1
    """,
    "leave out partition_by, or everywhere": """
        @procedure(partition_by="account", everywhere=True)
        def f(tx, account: int): ...
    """,
    "values of Socket don't travel": """
        class Socket: ...
        @procedure(everywhere=True)
        def f(tx, sockets: list[Socket]): ...
    """,
    "'which' can't be int [|] list": """
        @procedure(everywhere=True)
        def f(tx, which: int | list[int] | tuple[int, int]): ...
    """,
    "the annotation of 'when', 'datetime', can't be resolved .NameError": """
        @procedure(everywhere=True)
        def f(tx, when: "datetime"): ...
    """,
    "'target' decides where it runs and must be int or str, or a list of those, not float": """
        @procedure(partition_by=("source", "target"))
        def f(tx, source: int, target: float): ...
    """,
    "there is no table acounts; did you mean accounts[?]": """
        @procedure(partition_by="account")
        def f(tx, account: int):
            return tx.acounts.get(account)
    """,
    "there is no table branches; the tables are accounts": """
        @procedure(partition_by="account")
        def f(tx, account: int):
            return [tx.branches.get(account) for _ in range(2)]
    """,
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_procedure_that_can_not_be_served_is_refused_with_its_place(tmp_path: Path, message: str) -> None:
    text = "from voltpy import procedure\n" + dedent(REFUSED[message])
    with pytest.raises(SchemaError, match=message) as raised:
        load_text(tmp_path, text)
    first, *_ = str(raised.value).split(": procedure f: ")
    path, line = first.rsplit(":", 1)
    assert path == str(tmp_path / "bank.py")
    assert text.splitlines()[int(line) - 1].strip()


@pytest.mark.parametrize("what", [3, "deposit", int, len, classmethod(lambda tx: None)])
def test_only_functions_are_procedures(what: Any) -> None:
    with pytest.raises(SchemaError, match="@procedure declares a function, not"):
        procedure(partition_by="account")(what)


def test_a_lambda_has_no_name_to_call_it_by() -> None:
    with pytest.raises(SchemaError, match="has none; write it as a `def`"):
        procedure(everywhere=True)(lambda tx: None)


def test_procedures_may_cross_partitions() -> None:
    @procedure
    def richest(tx: Any, n: int) -> None: ...

    @procedure(partition_by=("source", "target"))
    def transfer(tx: Any, amount: int, source: int, target: int) -> None: ...

    infos = {info.name: info for info in from_functions([richest, transfer]).infos()}
    assert (infos["richest"].key_positions, infos["richest"].everywhere) == ([], False)
    assert infos["transfer"].key_positions == [1, 2]


BRANCHES = Table("branches", (Column("code", "STRING", False), Column("name", "STRING", True)), ("code",), False, None)
COPIES = Schema((ACCOUNTS, BRANCHES), ())
NO_COPIES = Schema((ACCOUNTS, Table("branches", BRANCHES.columns, ("code",), False, "code")), ())
JOINT = {
    "says the table's name": "def f(tx): tx.branches.get('a')",
    "says it in a function of its own": """
        def f(tx):
            def close(code):
                tx.branches.delete(code)
            close('a')
    """,
    "passes tx on": "def f(tx): help_with(tx)",
    "keeps tx": "def f(tx): mine = tx; mine.branches.delete('a')",
    "looks tables up": "def f(tx): getattr(tx, 'bran' + 'ches').delete('a')",
    "looks into tx": "def f(tx): tx.__dict__['branches'].delete('a')",
    "runs SQL": "def f(tx): tx.execute('DELETE FROM branches')",
    "calls tx _tx": "def f(_tx): _tx.branches.delete('a')",
    "calls something else tx": "def f(tx): tx = None",
}
NOT_JOINT = {
    "touches partitioned tables": "def f(tx): tx.accounts.update(1, balance=tx.unique_id())",
    "has another branches": "def f(tx, branches: list[str]): return [tx.accounts.count(), branches]",
    "touches none": "def f(tx): return tx.now()",
}


@pytest.mark.parametrize("text", JOINT.values(), ids=JOINT)
def test_a_directed_procedure_that_may_write_copies_is_joint(tmp_path: Path, text: str) -> None:
    text = "from voltpy import procedure\n@procedure(everywhere=True)\n" + dedent(text).strip()
    assert load_text(tmp_path, text, COPIES).procedures["f"].info.joint
    assert not load_text(tmp_path, text, NO_COPIES).procedures["f"].info.joint, "there are no copies"
    read_only = text.replace("everywhere=True", "everywhere=True, read_only=True")
    assert not load_text(tmp_path, read_only, COPIES).procedures["f"].info.joint
    with_key = text.replace("everywhere=True", "")
    assert not load_text(tmp_path, with_key, COPIES).procedures["f"].info.joint


@pytest.mark.parametrize("text", NOT_JOINT.values(), ids=NOT_JOINT)
def test_a_directed_procedure_that_writes_no_copies_is_not_joint(tmp_path: Path, text: str) -> None:
    text = "from voltpy import procedure\n@procedure(everywhere=True)\n" + text
    assert not load_text(tmp_path, text, COPIES).procedures["f"].info.joint


def test_a_directed_procedure_in_a_decorator_that_sees_tx_is_joint() -> None:
    def logged(body: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(body)
        def wrapper(tx: Any) -> Any:
            return body(tx)

        return wrapper

    @logged
    @procedure(everywhere=True)
    def f(tx: Any) -> None: ...

    @procedure(everywhere=True)
    def g(tx: Any) -> None: ...

    infos = {info.name: info for info in from_functions([f, g], schema=COPIES).infos()}
    assert (infos["f"].joint, infos["g"].joint) == (True, False)


def test_a_plain_function_is_no_procedure() -> None:
    def plain(tx: Any) -> None: ...

    with pytest.raises(SchemaError, match="decorate it with @procedure"):
        from_functions([plain])
    with pytest.raises(SchemaError, match="there is no procedure"):
        from_functions([])


# ---- arguments ----


def test_arguments_of_many_calls_are_decoded_in_one_pass() -> None:
    calls = [(number, number * 2) for number in range(300)]
    assert registered(deposit).decode_many(Raw(encode(calls)), 300) == calls
    assert registered(count).decode_many(encode([(), ()])) == [(), ()]
    assert registered(deposit).decode_many(encode([]), 0) == []


def test_left_out_arguments_get_their_defaults() -> None:
    procedure_ = registered(put)
    assert procedure_.decode_many(encode([("a",), ("b",)])) == [("a", 0.5, None), ("b", 0.5, None)]
    assert procedure_.decode_many(encode([("a", 2), ("b", 3.5)])) == [("a", 2.0, None), ("b", 3.5, None)]
    assert procedure_.decode_one(encode(["a", 1, "x"])) == ("a", 1.0, "x")
    assert procedure_.decode_one(encode(["a"])) == ("a", 0.5, None)
    with pytest.raises(msgspec.ValidationError):  # of different lengths: one by one
        procedure_.decode_many(encode([("a",), ("b", 1.5)]))


@pytest.mark.parametrize("calls", [0, 1, 15, 16, 65535, 65536])
def test_as_many_arguments_as_calls_are_expected_before_anything_is_decoded(calls: int) -> None:
    procedure_ = registered(count)
    raw = encode([()] * calls)
    assert len(procedure_.decode_many(raw, calls)) == calls
    for wrong in (calls + 1, calls - 1):
        if wrong >= 0:
            with pytest.raises(msgspec.ValidationError, match=f"expected the arguments of {wrong} calls"):
                procedure_.decode_many(raw, wrong)


@pytest.mark.parametrize("raw", [b"", b"\xdc", b"\xdd\xff", b"\xc0", b"\x81\x01\x02", b"\xc1"])
def test_what_is_no_array_announces_no_calls(raw: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        registered(deposit).decode_many(raw, 1)
    with pytest.raises(msgspec.ValidationError):
        registered(deposit).decode_many(raw)
    with pytest.raises(BadArguments, match="deposit"):
        registered(deposit).decode_one(raw)


WRONG_ARGUMENTS: list[tuple[list[Any], str]] = [
    ([1, "x"], 'deposit() argument "amount" (int): expected int, got str'),
    ([True, 1], 'deposit() argument "account" (int): expected int, got bool'),
    ([1, 1.0], 'deposit() argument "amount" (int): expected int, got float'),
    ([1, None], 'deposit() argument "amount" (int): expected int, got None'),
    ([1, 2**63], 'deposit() argument "amount" (int): expected int <= 9223372036854775807'),
    ([1], "deposit() takes 2 arguments (account: int, amount: int), got 1"),
    ([1, 2, 3], "deposit() takes 2 arguments (account: int, amount: int), got 3"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_ARGUMENTS)
def test_a_wrong_argument_is_named(arguments: list[Any], message: str) -> None:
    procedure_ = registered(deposit)
    with pytest.raises(BadArguments) as raised:
        procedure_.decode_one(encode(arguments))
    assert str(raised.value) == message
    with pytest.raises(BadArguments) as raised:
        procedure_.check_python(tuple(arguments))
    assert str(raised.value) == message
    with pytest.raises(msgspec.ValidationError):
        procedure_.decode_many(encode([[1, 2], arguments]))


def test_counts_are_worded_for_defaults_and_for_none() -> None:
    with pytest.raises(
        BadArguments, match=r"put\(\) takes 1 to 3 arguments \(key: str, value: float, note: str \| None\)"
    ):
        registered(put).decode_one(encode([]))
    with pytest.raises(BadArguments, match=r"count\(\) takes no arguments, got 1"):
        registered(count).decode_one(encode([1]))


class Order(msgspec.Struct, frozen=True):
    item: str
    pieces: int


def kinds(
    tx: Any,
    a: float,
    b: list[int],
    c: dict[str, Any],
    d: datetime,
    e: Literal["x", "y"],
    f: Order,
    g: Any,
    h: tuple[int, ...],
) -> None: ...


def test_every_kind_of_value_arrives_as_annotated() -> None:
    moment = datetime(2024, 5, 1, 12, 30, tzinfo=UTC)
    procedure_ = registered(procedure(everywhere=True)(kinds))
    arguments = (1, [1, 2], {"k": [None]}, moment, "y", Order("nail", 3), b"raw", (1, 2))
    assert procedure_.check_python(arguments) == (
        1.0,
        [1, 2],
        {"k": [None]},
        moment,
        "y",
        Order("nail", 3),
        b"raw",
        (1, 2),
    )
    assert type(procedure_.check_python(arguments)[0]) is float
    for position, wrong, message in [
        (1, [1, "x"], r'"b" \(list\[int\]\): expected int, got str - at \[1\]'),
        (1, [2**63], r'"b" \(list\[int\]\): expected int <= 9223372036854775807 - at \[0\]'),
        (3, "yesterday", r'"d" \(datetime\): invalid RFC3339 encoded datetime'),
        (3, moment.replace(tzinfo=None), r'"d" \(datetime\): expected datetime with a timezone component'),
        (4, "z", r"invalid enum value 'z'"),
        (5, {"item": "nail"}, r'"f" \(Order\): object missing required field pieces'),
        (7, [2**64 - 1], r'"h" \(tuple\[int, ...\]\): expected int <='),
    ]:
        with pytest.raises(BadArguments, match=message):
            procedure_.check_python((*arguments[:position], wrong, *arguments[position + 1 :]))


def test_python_values_that_can_not_travel_are_named() -> None:
    nested: list[Any] = []
    nested.append(nested)
    for value, message in [
        (object(), 'argument "a": encoding objects of type object is unsupported'),
        (2**64, 'argument "a": can\'t serialize ints'),
        ("\ud800", 'argument "a": .utf-8. codec can\'t encode'),
        (nested, 'argument "a": it is nested too deeply'),
    ]:

        @procedure(everywhere=True)
        def take(tx: Any, a: Any) -> None: ...

        with pytest.raises(BadArguments, match=r"take\(\) " + message):
            registered(take).check_python((value,))


def test_an_argument_without_annotation_takes_anything(tmp_path: Path) -> None:
    text = "from voltpy import procedure\n@procedure(partition_by='key')\ndef f(tx, key: str, rest, more=None): ...\n"
    function = load_text(tmp_path, text).procedures["f"]
    assert function.check_python(("k", [1, "x"])) == ("k", [1, "x"], None)
    assert [parameter.type_text for parameter in function.info.parameters] == ["str", "Any", "Any"]


def test_whether_arguments_may_be_used_again_in_a_rerun_is_known() -> None:
    @procedure(everywhere=True)
    def frozen(tx: Any, a: int | None, b: tuple[str, ...], c: Order, d: datetime) -> None: ...

    @procedure(everywhere=True)
    def nested(tx: Any, a: tuple[list[int], int]) -> None: ...

    @procedure(everywhere=True)
    def anything(tx: Any, a: Any) -> None: ...

    assert registered(deposit).arguments_are_immutable
    assert registered(frozen).arguments_are_immutable
    assert not registered(nested).arguments_are_immutable
    assert not registered(anything).arguments_are_immutable


def test_a_datetime_without_a_zone_is_refused_wherever_it_is_given() -> None:
    @procedure(everywhere=True)
    def takes(
        tx: Any, one: datetime | None, many: list[datetime], own: Annotated[datetime, msgspec.Meta(tz=False)]
    ) -> None: ...

    naive, aware = datetime(2024, 5, 1), datetime(2024, 5, 1, tzinfo=UTC)
    procedure_ = registered(takes)
    for one in (None, aware):
        assert procedure_.check_python((one, [aware], naive)) == (one, [aware], naive)
    for wrong in [(naive, [], naive), (None, [aware, naive], naive), (None, [], aware)]:
        with pytest.raises(BadArguments, match="timezone component"):
            procedure_.check_python(wrong)


def test_a_limit_of_the_users_own_is_kept() -> None:
    @procedure(everywhere=True)
    def limited(tx: Any, n: Annotated[int, msgspec.Meta(le=10)], m: Annotated[int, msgspec.Meta(ge=1)]) -> None: ...

    assert registered(limited).check_python((10, 1)) == (10, 1)
    for wrong in [(11, 1), (10, 0), (10, 2**63)]:
        with pytest.raises(BadArguments, match="expected int"):
            registered(limited).check_python(wrong)


HOSTILE = {
    "deep nesting": b"\x91\x91" + b"\x91" * 100_000,
    "a length that is not there": b"\x91\xdd\xff\xff\xff\xff\x91\x01",
    "text that is not UTF-8": b"\x91\x91\xa2\xff\xff",
    "an unhashable map key": b"\x91\x91\x81\x80\x01",
    "an opcode that does not exist": b"\x91\x91\xc1",
    "a timestamp out of range": b"\x91\x91\xc7\x0c\xff\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_are_bad_arguments_and_nothing_else(what: str) -> None:
    @procedure(everywhere=True)
    def take(tx: Any, a: Any) -> None: ...

    procedure_ = registered(take)
    with pytest.raises(msgspec.ValidationError):
        procedure_.decode_many(HOSTILE[what])
    with pytest.raises(BadArguments):
        procedure_.decode_one(HOSTILE[what][1:])


def test_random_bytes_are_decoded_or_refused() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    generator = random.Random(seed)
    procedures = [registered(deposit), registered(put), registered(procedure(everywhere=True)(kinds))]
    valid = encode([(1, 2), ("a", 1.5, None)])
    for _ in range(20_000):
        raw = bytearray(valid if generator.random() < 0.5 else generator.randbytes(generator.randrange(40)))
        for _ in range(generator.randrange(4)):
            if raw:
                raw[generator.randrange(len(raw))] = generator.randrange(256)
        chosen = generator.choice(procedures)
        with contextlib.suppress(msgspec.ValidationError):
            assert all(type(arguments) is tuple for arguments in chosen.decode_many(bytes(raw)))
        with contextlib.suppress(BadArguments):
            assert len(chosen.decode_one(bytes(raw))) == len(chosen.info.parameters)


# ---- loading ----


GOOD = """
    from __future__ import annotations

    from dataclasses import dataclass

    from voltpy import procedure

    @dataclass
    class Line:
        item: str
        pieces: int

    @procedure(partition_by="account")
    def order(tx, account: int, lines: list[Line]) -> int:
        if tx.accounts.get(account) is None:
            raise ValueError("no such account")
        return sum(line.pieces for line in lines)

    @procedure(everywhere=True, read_only=True)
    def count(tx):
        return tx.accounts.count()
"""


def test_string_annotations_name_what_the_file_defines(tmp_path: Path) -> None:
    registry = load_text(tmp_path, GOOD, version=3)
    assert registry.catalog_version == 3
    order = registry.procedures["order"]
    assert order.info.parameters == [Parameter("account", "int", True), Parameter("lines", "list[Line]", True)]
    [line] = order.check_python((1, [{"item": "nail", "pieces": 3}]))[1]
    assert (line.item, line.pieces) == ("nail", 3)
    with pytest.raises(BadArguments, match=r'"lines" \(list\[Line\]\): expected int, got str - at \[0\].pieces'):
        order.check_python((1, [{"item": "nail", "pieces": "x"}]))


def test_a_traceback_shows_the_lines_that_were_loaded(tmp_path: Path) -> None:
    class Transaction:
        class accounts:  # noqa: N801 a table's name
            @staticmethod
            def get(key: int) -> None: ...

    registry = load_text(tmp_path, GOOD)
    (tmp_path / "bank.py").write_text("# rewritten since\n")
    linecache.checkcache()
    with pytest.raises(ValueError, match="no such account") as raised:
        registry.procedures["order"].body(Transaction(), 1, [])
    text = "".join(traceback.format_exception(raised.value))
    assert f'File "{tmp_path / "bank.py"}", line 16, in order' in text
    assert 'raise ValueError("no such account")' in text


def test_a_users_module_names_collide_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "schema.py").write_text("name = 'mine'\n")
    path = tmp_path / "voltpy.py"
    path.write_text(
        "from voltpy import procedure\nimport schema\n@procedure(everywhere=True)\ndef f(tx):\n  return schema.name\n"
    )
    registry = load_path(path)
    assert registry.procedures["f"].body(None) == "mine"
    assert sys.modules["voltpy"].__file__ != str(path)
    assert voltpy.schema.__name__ == "voltpy.schema"
    assert sys.path.index(str(tmp_path)) == len(sys.path) - 1


def test_the_private_module_lives_as_long_as_its_registry(tmp_path: Path) -> None:
    registry = load_text(tmp_path, GOOD)
    name = registry.procedures["order"].body.__module__
    assert name.startswith("voltpy_procedures_")
    assert name in sys.modules
    del registry
    gc.collect()
    assert name not in sys.modules


def test_a_failed_load_leaves_nothing_behind(tmp_path: Path) -> None:
    load_text(tmp_path, GOOD)
    shown = linecache.getlines(str(tmp_path / "bank.py"))
    gc.collect()
    modules = set(sys.modules)
    with pytest.raises(SchemaError):
        load_text(tmp_path, "from voltpy import procedure\n1 / 0\n")
    assert set(sys.modules) == modules
    assert linecache.getlines(str(tmp_path / "bank.py")) == shown


def test_a_syntax_error_is_shown_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(SchemaError) as raised:
        load_text(tmp_path, "from voltpy import procedure\n\ndef f(tx:\n    pass\n")
    assert f"the procedure file {tmp_path / 'bank.py'} is not valid Python:" in str(raised.value)
    assert "line 3" in str(raised.value)
    assert "def f(tx:" in str(raised.value)
    with pytest.raises(SchemaError, match="is not valid Python"):
        load("a = '\0'", str(tmp_path / "bank.py"), BANK, 1)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
        ("def f():\n    return 1 / 0\nf()", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise GeneratorExit(3)", "GeneratorExit: 3"),
    ],
)
def test_an_error_while_loading_is_shown_with_the_users_lines_only(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(SchemaError, match="failed when it was loaded") as raised:
        load_text(tmp_path, text)
    message = str(raised.value)
    assert message.splitlines()[-1].startswith(error)
    assert text.splitlines()[-1] in message
    assert "procedure.py" not in message


def test_modules_that_lie_beside_a_file_are_told_from_what_is_installed(tmp_path: Path) -> None:
    for name in ("rates.py", "json.py", "unused.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "fees").mkdir()
    text = (
        "import json, msgspec, rates as r\ndef f():\n    from fees.of_today import fee\nfrom voltpy import procedure\n"
    )
    assert imported_from_beside(text, str(tmp_path / "bank.py")) == ["fees", "rates"]
    assert imported_from_beside("import", str(tmp_path / "bank.py")) == []


def test_a_file_without_procedures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="declares no procedure; decorate one with @procedure"):
        load_text(tmp_path, "def f(tx): ...")
    (tmp_path / "orders_of_the_shop.py").write_text("from voltpy import procedure\n@procedure\ndef place(tx): ...\n")
    with pytest.raises(
        SchemaError, match="import those of orders_of_the_shop by name: from orders_of_the_shop import …"
    ):
        load_text(tmp_path, "import orders_of_the_shop")
    assert list(load_text(tmp_path, "from orders_of_the_shop import place").procedures) == ["place"]
    with pytest.raises(SchemaError, match=r"missing\.py can't be read"):
        load_path(tmp_path / "missing.py")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SchemaError, match="can't be read"):
        load_path(tmp_path / "binary.py")


def test_two_procedures_of_one_name_are_refused(tmp_path: Path) -> None:
    text = """
        from voltpy import procedure

        @procedure(everywhere=True)
        def f(tx): ...

        @procedure(everywhere=True)
        def f(tx, n: int): ...
    """
    with pytest.raises(SchemaError, match=r"bank\.py:\d: procedure f: the name is taken by .*bank\.py:\d; give each"):
        load_text(tmp_path, text)


def test_an_alias_and_a_decorator_above_are_no_second_procedure(tmp_path: Path) -> None:
    registry = load_text(
        tmp_path,
        """
        import functools

        from voltpy import procedure

        def doubled(function):
            @functools.wraps(function)
            def run(tx, *args):
                return 2 * function(tx, *args)
            return run

        @doubled
        @procedure(everywhere=True)
        def f(tx, n: int) -> int:
            return n

        g = f
        """,
    )
    assert list(registry.procedures) == ["f"]
    assert registry.procedures["f"].body(None, *registry.procedures["f"].check_python((21,))) == 42


def test_procedures_may_be_spread_over_files_and_are_read_afresh(tmp_path: Path) -> None:
    helper = tmp_path / "helper_of_bank.py"
    main = "from voltpy import procedure\nfrom helper_of_bank import fee, shared\n" + dedent("""
        @procedure(everywhere=True)
        def f(tx):
            return fee()
    """)
    text = "from voltpy import procedure\ndef fee():\n    return {}\n@procedure(everywhere=True)\ndef shared(tx): ...\n"
    helper.write_text(text.format(1))
    first = load_text(tmp_path, main)
    helper.write_text(text.format(22))  # of another size: Python's own cache goes by size and second
    second = load_text(tmp_path, main)
    assert list(second.procedures) == ["f", "shared"]
    assert (first.procedures["f"].body(None), second.procedures["f"].body(None)) == (1, 22)


def test_code_is_the_users_when_it_lies_in_or_beside_the_procedure_file(tmp_path: Path) -> None:
    (tmp_path / "beside_bank.py").write_text("def helper(): ...\n")
    installed = tmp_path / "venv" / "site-packages"
    installed.mkdir(parents=True)
    (installed / "vendored_of_bank.py").write_text("def helper(): ...\n")
    sys.path.append(str(installed))
    text = GOOD + "    import beside_bank, vendored_of_bank, json\n"
    registry = load_text(tmp_path, text)
    body = registry.procedures["order"].body
    names = body.__globals__
    assert registry.is_user_code(body.__code__)
    assert registry.is_user_code(names["beside_bank"].helper.__code__)
    assert not registry.is_user_code(names["vendored_of_bank"].helper.__code__)
    assert not registry.is_user_code(names["json"].dumps.__code__)
    assert not registry.is_user_code(load.__code__)
    assert from_functions([deposit]).is_user_code(deposit.__code__)


def test_our_own_code_is_never_the_users_wherever_the_procedures_are() -> None:
    root = Path(voltpy.__file__).parent.parent
    source = "from voltpy import procedure\n@procedure(everywhere=True)\ndef f(tx): ...\n"
    registry = load(source, str(root / "bank.py"), BANK, 1)
    assert registry.is_user_code(registry.procedures["f"].body.__code__)
    assert not registry.is_user_code(load.__code__)


def test_table_names_are_checked_only_where_tx_is_the_transaction(tmp_path: Path) -> None:
    text = """
        from voltpy import procedure

        @procedure(partition_by="account")
        def f(tx, account: int):
            tx.now(), tx.random, tx.uuid(), tx.unique_id(), tx.accounts.get(account)
            return getattr(tx, "whatever")

        @procedure(partition_by="account")
        def g(tx, account: int):
            tx = wrapped(tx)
            return tx.anything

        def wrapped(tx):
            return tx.something
    """
    assert list(load_text(tmp_path, text).procedures) == ["f", "g"]
    wrong = text.replace("tx.accounts", "tx.account")
    assert list(load_text(tmp_path, wrong, schema=None).procedures) == ["f", "g"]
    with pytest.raises(SchemaError, match=r"bank\.py:6: procedure f: there is no table account; did you mean accounts"):
        load_text(tmp_path, wrong)
