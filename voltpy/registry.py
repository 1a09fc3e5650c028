"""The procedures that are loaded, and how a file becomes them.

A procedure file is compiled under its own path, so that tracebacks and debuggers show the user's lines, and executed as
a module with a private name, so that a user's `procedures.py` or `voltpy.py` collides with nothing. Which tables its
procedures use is read from its source, before they ever run.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import itertools
import linecache
import os
import sys
import tokenize
import traceback
import types
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from voltpy.argument_types import refused
from voltpy.errors import SchemaError
from voltpy.messages import PrepareLoad, ProcedureInfo
from voltpy.procedure import TRANSACTION_NAMES, Procedure, declaration_of, declaring
from voltpy.schema import Schema

_module_numbers = itertools.count(1)
_user_modules: set[str] = set()  # modules that procedure files imported from beside themselves


class Registry:
    """The procedures of one file: `procedures` by name, in the order of their names. Immutable once built."""

    __slots__ = ("__weakref__", "_directories", "_files", "catalog_version", "path", "procedures", "source")

    def __init__(
        self, procedures: Iterable[Procedure], catalog_version: int, path: str = "", source: str = "", root: str = ""
    ) -> None:
        """`root` is the directory whose modules count as the user's code besides the procedures' own files."""
        listed = sorted(procedures, key=lambda procedure: procedure.name)
        for first, second in itertools.pairwise(listed):
            if first.name == second.name:
                raise refused(second.body, f"the name is taken by {_place(first.body)}; give each procedure its own")
        self.procedures: dict[str, Procedure] = {procedure.name: procedure for procedure in listed}
        self.catalog_version = catalog_version
        self.path = path
        self.source = source
        self._files = {inspect.unwrap(procedure.body).__code__.co_filename for procedure in listed} | {path}
        self._directories = (os.path.join(root, ""),) if root else ()

    def infos(self) -> list[ProcedureInfo]:
        """What clients and people need to know, by name."""
        return [procedure.info for procedure in self.procedures.values()]

    def is_user_code(self, code: types.CodeType) -> bool:
        """Whether a frame of this code belongs to the procedures: their file, or a module of theirs beside it."""
        return code.co_filename in self._files or _is_beside(code.co_filename, self._directories)


def load(source: str, path: str, schema: Schema | None, catalog_version: int) -> Registry:
    """Compiles and executes a procedure file and returns what it declares.

    `schema` lets a table that does not exist be named here rather than at the first call. The file's directory is
    appended to `sys.path`, behind everything that is there. Modules that an earlier load imported from it are imported
    afresh. Raises SchemaError, with the user's lines, for whatever is wrong.
    """
    path = os.path.abspath(path)
    root = os.path.dirname(path)
    module = types.ModuleType(f"voltpy_procedures_{next(_module_numbers)}")
    module.__file__ = path
    if root not in sys.path:
        sys.path.append(root)
    for name in _user_modules:
        sys.modules.pop(name, None)
    _user_modules.clear()
    importlib.invalidate_caches()

    shown_before = linecache.cache.get(path)
    _show_in_tracebacks(source, path)
    imported_before = set(sys.modules)
    # Dataclasses and type hints look their module up by name, at its execution and later.
    sys.modules[module.__name__] = module
    try:
        with declaring() as declared:
            _execute(source, path, module)
        registry = _registry_of(module, declared, source, path, schema, catalog_version)
    except BaseException:
        del sys.modules[module.__name__]
        if shown_before is None:
            linecache.cache.pop(path, None)
        else:
            linecache.cache[path] = shown_before
        raise
    finally:
        _definitions.cache_clear()  # a syntax tree is large, and a partition's memory is its user's
        _user_modules.update(
            name
            for name in set(sys.modules) - imported_before
            if _is_beside(getattr(sys.modules[name], "__file__", None) or "", (os.path.join(root, ""),))
        )
    _user_modules.discard(module.__name__)
    weakref.finalize(registry, sys.modules.pop, module.__name__, None)
    return registry


def imported_from_beside(source: str, path: str) -> list[str]:
    """The modules in the file's own directory that it imports by name: a cluster doesn't store them. No code is run."""
    root, names = os.path.dirname(os.path.abspath(path)), set[str]()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []  # loading it will say what is wrong
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.partition(".")[0])
    names -= {"voltpy", *sys.stdlib_module_names}
    return sorted(
        n for n in names if os.path.isfile(os.path.join(root, f"{n}.py")) or os.path.isdir(os.path.join(root, n))
    )


def load_beside(message: PrepareLoad, schema: Schema) -> Registry:
    """The procedures that are to take the place of those in use. Where a new schema comes, they are the same, or none.

    Raises SchemaError as `load` does, and for procedures that the new schema does not do for.
    """
    if not message.schema:
        return load(message.source, message.path, schema, message.catalog_version)
    if not message.source:
        return Registry([], message.catalog_version)
    try:
        return load(message.source, message.path, schema, message.catalog_version)
    except SchemaError as error:
        raise SchemaError(f"the procedures that are loaded do not fit the new schema: {error}") from None


def load_path(path: str | Path, schema: Schema | None = None, catalog_version: int = 1) -> Registry:
    """`load` of a file on disk. Raises SchemaError also when it can't be read."""
    try:
        with tokenize.open(path) as file:  # honours the encoding that a Python file declares
            source = file.read()
    except OSError as error:
        raise SchemaError(f"the procedure file {path} can't be read: {error.strerror or error}") from None
    except (SyntaxError, UnicodeDecodeError) as error:
        raise SchemaError(f"the procedure file {path} can't be read: {error}") from None
    return load(source, str(path), schema, catalog_version)


def from_functions(
    functions: Iterable[Callable[..., Any]], catalog_version: int = 1, schema: Schema | None = None
) -> Registry:
    """A registry of procedures that are in memory already, as in a test. Raises SchemaError."""
    copies = _tables_of_copies(schema)
    procedures = []
    for function in functions:
        if declaration_of(function) is None:
            raise SchemaError(f"{_place(function)}: {function!r} is no procedure; decorate it with @procedure")
        procedures.append(_procedure_of(function, copies))
    if not procedures:
        raise SchemaError("there is no procedure; decorate one with @procedure")
    return Registry(procedures, catalog_version)


def _execute(source: str, path: str, module: types.ModuleType) -> None:
    try:
        code = compile(source, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        text = "".join(traceback.format_exception_only(error)).rstrip()
        raise SchemaError(f"the procedure file {path} is not valid Python:\n{text}") from None
    try:
        exec(code, module.__dict__)
    except (SchemaError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 the procedure boundary: executing the file is user code
        lines = _users_lines(error, path)
        if isinstance(error, ModuleNotFoundError):
            # In the last line, which is all that a supervisor has of a partition that can't start.
            lines += (
                ". A module beside a procedure file is not stored with it: it was looked for in "
                f"{os.path.dirname(path)}. Where the file has moved, start with --procedures FILE"
            )
        raise SchemaError(f"the procedure file {path} failed when it was loaded:\n{lines}") from None


def _registry_of(
    module: types.ModuleType,
    declared: list[Callable[..., Any]],
    source: str,
    path: str,
    schema: Schema | None,
    catalog_version: int,
) -> Registry:
    functions = procedures_of(module, declared)
    if not functions:
        advice = "decorate one with @procedure"
        if declared:  # in a module that it imports
            advice = f"import those of {declared[0].__module__} by name: from {declared[0].__module__} import …"
        raise SchemaError(f"the procedure file {path} declares no procedure; {advice}")
    if schema is not None:
        _check_tables(functions, source, path, schema)
    copies = _tables_of_copies(schema)
    procedures = [_procedure_of(function, copies) for function in functions]
    return Registry(procedures, catalog_version, path, source, os.path.dirname(path))


def procedures_of(module: types.ModuleType, declared: Sequence[Callable[..., Any]] = ()) -> list[Callable[..., Any]]:
    """The procedures that a file declares, also those whose name was taken again, and those that it imports.

    `declared`: all that @procedure has seen meanwhile; without, those that a name still stands for are found.
    """
    own = [function for function in declared if function.__module__ == module.__name__]
    found = {id(value): value for value in (*vars(module).values(), *own) if _is_declared(value)}
    for value in list(found.values()):  # a decorator above @procedure wraps it: the outermost is the procedure
        inner = getattr(value, "__wrapped__", None)
        while inner is not None:
            found.pop(id(inner), None)
            inner = getattr(inner, "__wrapped__", None)
    return list(found.values())


def _is_declared(value: Any) -> bool:
    return isinstance(value, types.FunctionType) and declaration_of(value) is not None


def _check_tables(functions: list[Callable[..., Any]], source: str, path: str, schema: Schema) -> None:
    """Raises SchemaError where a procedure says `tx.name` and there is neither such a table nor such a method."""
    tables = {table.name for table in schema.live}
    definitions = _definitions(source)
    for function in functions:
        code = inspect.unwrap(function).__code__
        definition = definitions.get(code.co_firstlineno)
        if definition is None or code.co_filename != path:
            continue
        names = list(ast.walk(definition))
        if any(isinstance(n, ast.Name) and n.id == "tx" and isinstance(n.ctx, ast.Store) for n in names):
            continue  # `tx` is made to mean something else
        for use in names:
            if not (isinstance(use, ast.Attribute) and isinstance(use.value, ast.Name) and use.value.id == "tx"):
                continue
            if use.attr in tables or use.attr in TRANSACTION_NAMES or use.attr.startswith("_"):
                continue
            close = difflib.get_close_matches(use.attr, tables | TRANSACTION_NAMES, 1)
            hint = f"did you mean {close[0]}?" if close else f"the tables are {', '.join(sorted(tables)) or 'none'}"
            raise SchemaError(
                f"{path}:{use.lineno}: procedure {function.__name__}: there is no table {use.attr}; {hint}"
            )


@lru_cache(maxsize=8)  # a file has many procedures, and in tests each engine asks for those of the test's file again
def _definitions(source: str) -> dict[int, ast.FunctionDef]:
    """The functions of a source text, by their first line: a decorator's, where there is one."""
    return {
        min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]): node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    }


def _tables_of_copies(schema: Schema | None) -> frozenset[str]:
    """The tables that every partition has a copy of, and that procedures can write."""
    tables = () if schema is None else schema.live
    return frozenset(table.name for table in tables if table.partition_column is None and table.view is None)


def _procedure_of(function: Callable[..., Any], copies: frozenset[str]) -> Procedure:
    declaration = declaration_of(function)
    joint = (
        declaration is not None
        and declaration.everywhere
        and not declaration.read_only
        and _may_touch(function, copies)
    )
    return Procedure(function, inspect.unwrap(function).__globals__, joint=joint)


def _may_touch(function: Callable[..., Any], tables: frozenset[str]) -> bool:
    """Whether a procedure may touch one of these tables: it says tx.<table>, or does with `tx` what hides the table."""
    if not tables:
        return False
    code = inspect.unwrap(function).__code__
    if hasattr(function, "__wrapped__"):
        return True  # the decorator has `tx` too
    try:
        definition = _definitions("".join(linecache.getlines(code.co_filename))).get(code.co_firstlineno)
    except SyntaxError:
        definition = None
    if definition is None:
        return True
    name = code.co_varnames[0]
    seen = list(ast.walk(definition))
    plain = {id(use.value) for use in seen if isinstance(use, ast.Attribute)}
    if any(isinstance(use, ast.Name) and use.id == name and id(use) not in plain for use in seen):
        return True  # passed on, kept, or made to mean something else
    uses = {
        use.attr
        for use in seen
        if isinstance(use, ast.Attribute) and isinstance(use.value, ast.Name) and use.value.id == name
    }
    return not uses.isdisjoint(tables) or any(use == "execute" or use.startswith("_") for use in uses)


def _show_in_tracebacks(source: str, path: str) -> None:
    # A modification time of None keeps linecache from looking at the disk, where the file may have changed since.
    linecache.cache[path] = (len(source), None, source.splitlines(keepends=True), path)


def _users_lines(error: BaseException, path: str) -> str:
    """The traceback from the user's file on: what is above it is ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != path:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace)).rstrip()


def _place(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(function)


_PACKAGES = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_OURS = tuple(os.path.join(_PACKAGES, name, "") for name in ("voltpy", "partitions", "coordinator"))
_STANDARD_LIBRARY = os.path.join(os.path.dirname(os.__file__), "")


def _is_beside(filename: str, directories: tuple[str, ...]) -> bool:
    """Whether a file lies in one of the directories and is neither ours, nor installed, nor the standard library's."""
    for directory in directories:
        if filename.startswith(directory) and not filename.startswith((*_OURS, _STANDARD_LIBRARY)):
            below = filename[len(directory) :].split(os.sep)
            return "site-packages" not in below and "dist-packages" not in below
    return False
