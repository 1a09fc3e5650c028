"""The house: which package may import which, and what the smallest processes must not load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.readme_commands import quick_start
from voltpy.cli import FILES

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("voltpy", "partitions", "coordinator", "procedures")

# Who may import whom. voltpy.testing alone builds an engine in-process.
MAY_IMPORT = {
    "voltpy": {"voltpy"},
    "partitions": {"partitions", "voltpy"},
    "coordinator": {"coordinator", "voltpy"},
    "procedures": {"voltpy"},
}
EXCEPTIONS = {("voltpy/testing.py", "partitions")}

# Inside partitions and voltpy/sql imports point one way: from the left to the right.
LAYERS = {
    "partitions": (
        "copier", "verify", "schema_trial",
        "__main__", "server", "participant", "loans", "in_doubt", "joint_parts",
        "batch_steps", "batch_changes", "row_images", "order_session", "order_queue", "read_rounds",
        "rates", "call_queue", "executor", "set_aside", "first_results", "transaction_kinds",
        "plans", "recovery", "redo", "checkpointer", "checkpoint", "pace", "warm_up",
        "schema_change", "store", "view_reader", "viewed_table", "view_build", "view_source", "table", "ownership",
        "table_redo", "lookups", "buffer_pool", "accessors", "heap",
        "unique_indexes", "index_image", "secondary_index", "packed_tree", "index", "index_key", "posting_list",
        "classic_policies", "tiny_lfu", "eviction", "frequency_sketch", "lru_shadow",
        "warming", "prefetch", "access_log", "heat", "hint_file", "page_file", "page_reader", "page",
        "wal", "flusher", "hold",
    ),
    "voltpy.sql": (
        "ddl_change", "ddl", "view", "planner", "emit", "distribute", "query_function", "access", "aggregate_states",
        "bind", "expression_binder", "type_binder", "parse", "expression_reader", "token_reader", "script",
        "statements", "plan", "expression", "runtime", "row_sets", "arithmetic", "text_functions", "time_functions",
        "observed", "estimates", "search", "catalog_tables",
        "program", "stored_expression", "bound", "catalogue", "values", "functions", "syntax", "tokens",
    ),
}  # fmt: skip


def imports_of(file: Path) -> set[str]:
    """Every module that the file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            is_package = (ROOT / node.module.replace(".", "/")).is_dir()
            found.update(f"{node.module}.{alias.name}" if is_package else node.module for alias in node.names)
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_in_one_direction(package: str) -> None:
    wrong = []
    for file in sources(package):
        name = file.relative_to(ROOT).as_posix()
        for module in imports_of(file):
            top = module.split(".")[0]
            if top in PACKAGES and top not in MAY_IMPORT[package] and (name, top) not in EXCEPTIONS:
                wrong.append(f"{name} imports {module}")
    assert wrong == []


def test_every_relative_link_of_the_documentation_leads_somewhere() -> None:
    wrong, found = [], 0
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target, _, heading = link.partition("#")
            if "://" in link or link.startswith("mailto:"):
                continue
            found += 1
            there = page.parent / target if target else page
            if not there.exists():
                wrong.append(f"{page.name}: {link}")
            elif heading and heading not in headings_of(there):
                wrong.append(f"{page.name}: {link}: there is no such heading")
    assert wrong == []
    assert found > 50


def headings_of(page: Path) -> set[str]:
    """As links name them: in lower case, words with hyphens between."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@pytest.mark.parametrize("package", LAYERS)
def test_layers_of_a_package_import_downwards(package: str) -> None:
    wrong = []
    layers = LAYERS[package]
    for file in sources(package.replace(".", "/")):
        if file.stem == "__init__":
            continue
        below = layers[layers.index(file.stem) + 1 :]
        for module in imports_of(file):
            if module.startswith(f"{package}.") and module.removeprefix(f"{package}.") not in below:
                wrong.append(f"{file.stem} imports {module}")
    assert wrong == []


def test_a_partition_does_not_load_what_it_does_not_execute_with() -> None:
    program = "import sys, partitions.__main__; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    modules = set(loaded.stdout.split())
    assert "partitions.executor" in modules
    assert modules.isdisjoint(
        {"sqlglot", "click", "numpy", "rich", "zmq.asyncio", "prometheus_client", "voltpy.client"}
    )


@pytest.mark.parametrize("module", ["coordinator.__main__", "voltpy.cluster"])
def test_the_processes_beside_the_partitions_load_no_console(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    modules = set(loaded.stdout.split())
    assert "structlog" in modules
    assert modules.isdisjoint({"sqlglot", "click", "numpy", "rich", "pygments"})


@pytest.mark.parametrize("module", ["statements", "plan", "runtime", "catalog_tables"])
def test_what_runs_statements_loads_no_parser(module: str) -> None:
    program = f"import sys, voltpy.sql.{module}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    readers = ("ddl_change", "ddl", "tokens", "token_reader", "expression_reader", "parse")
    files = (*readers, "type_binder", "expression_binder", "bind", "query_function", "emit", "planner")
    parser = {"sqlglot", *(f"voltpy.sql.{name}" for name in files)}
    assert parser.isdisjoint(loaded.stdout.split())


def test_the_client_package_loads_without_zmq() -> None:
    program = "import sys, voltpy; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert {"zmq", "sqlglot", "rich"}.isdisjoint(loaded.stdout.split())


def test_type_checkers_find_the_package_where_it_is_installed(tmp_path: Path) -> None:
    program = "from importlib.machinery import PathFinder; print(PathFinder.find_spec('voltpy').origin)"
    found = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert Path(found.stdout.strip()).with_name("py.typed").exists()  # on the path itself: no import hook finds it


def test_a_module_of_the_user_that_hides_the_engine_is_named(tmp_path: Path) -> None:
    (tmp_path / "partitions.py").write_text("")
    command = [sys.executable, "-c", "import voltpy.testing"]
    hidden = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    last = hidden.stderr.splitlines()[-1]
    assert (
        last
        == f"ImportError: voltpy's package partitions is hidden by {tmp_path}/partitions.py: give that another name"
    )


@pytest.mark.parametrize("command", ["call", "start"])
def test_a_command_loads_nothing_that_only_others_need(command: str) -> None:
    program = f"import sys, voltpy.cli.{command}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    modules = set(loaded.stdout.split())
    others = {f"voltpy.cli.{name}" for name in FILES.values()} - {f"voltpy.cli.{command}"}
    assert modules.isdisjoint({"rich", "sqlglot", "prompt_toolkit", *others})


def test_the_quick_start_has_two_commands() -> None:
    commands = quick_start()
    assert len(commands) == 2
    assert commands[0].endswith("voltpy demo")
    assert commands[1].endswith("pytest")
