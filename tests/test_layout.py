"""The direction of imports, and that nothing heavy is imported before it is needed; read from the sources."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "faiss", "transformers", "tokenizers", "safetensors", "semchunk", "pyarrow"}


def modules(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return files


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(file: Path, *, at_import: bool = False) -> set[str]:
    """Full names of the modules that a file imports; with `at_import`, only what runs when it is imported."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found: set[str] = set()
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if at_import and isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            stack += node.orelse
            continue
        stack += ast.iter_child_nodes(node)
    return found


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def imported_at_import(start: str) -> set[str]:
    """Everything that importing a module of ours imports, through our own modules."""
    files = {name_of(file): file for package in ("indexer", "search") for file in modules(package)}
    seen: set[str] = set()
    stack = [start]
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in files:
            stack += imports(files[name], at_import=True)
        if "." in name:
            stack.append(name.rpartition(".")[0])
    return seen


@pytest.mark.parametrize("file", modules("indexer"), ids=name_of)
def test_indexer_never_imports_search(file: Path) -> None:
    assert "search" not in roots(imports(file))


@pytest.mark.parametrize("file", modules("indexer/training"), ids=name_of)
def test_training_never_imports_the_store(file: Path) -> None:
    assert not {name for name in imports(file) if name.startswith(("indexer.store", "indexer.api", "indexer.pipeline"))}


@pytest.mark.parametrize(
    "file", [ROOT / "indexer" / "records.py", ROOT / "indexer" / "errors.py", *modules("indexer/filters")], ids=name_of
)
def test_records_errors_and_filters_know_no_model(file: Path) -> None:
    assert not roots(imports(file)) & HEAVY


@pytest.mark.parametrize(
    "module",
    [
        "indexer",
        "indexer.cli",
        "indexer.command",
        "indexer.errors",
        "indexer.fields",
        "indexer.filters",
        "indexer.readers",
        "indexer.records",
        "indexer.training.commands",
        "indexer.training.settings",
        "search",
        "search.cli",
        "search.facet_lines",
        "search.facets",
        "search.hits",
        "search.query",
        "search.render",
    ],
)
def test_importing_brings_nothing_heavy(module: str) -> None:
    assert not roots(imported_at_import(module)) & HEAVY


@pytest.mark.parametrize("module", ["indexer.cli", "search.cli"])
def test_the_command_lines_bring_no_numpy(module: str) -> None:
    assert "numpy" not in roots(imported_at_import(module))


@pytest.mark.parametrize("package", ["indexer", "search"])
def test_the_store_and_the_searcher_bring_no_torch(package: str) -> None:
    start = {"indexer": "indexer.store", "search": "search.searcher"}[package]
    assert not roots(imported_at_import(start)) & {"torch", "transformers", "tokenizers"}


_HELP = """
import contextlib, io, json, sys
from indexer.cli import main as indexer
from search.cli import main as search
texts = []
for name, main in (("indexer", indexer), ("search", search)):
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    texts.append(out.getvalue())
print(json.dumps({"texts": texts, "modules": sorted(name for name in sys.modules if "." not in name)}))
"""


def test_help_imports_nothing_heavy() -> None:
    result = subprocess.run([sys.executable, "-c", _HELP], capture_output=True, text=True, check=True)
    answer = json.loads(result.stdout)
    assert [
        text.startswith(f"Usage: {name} ") for text, name in zip(answer["texts"], ("indexer", "search"), strict=True)
    ]
    assert not set(answer["modules"]) & {*HEAVY, "numpy", "sqlite_utils", "orjson", "tqdm"}


@pytest.mark.parametrize("name", ["indexer", "search"])
def test_a_command_line_that_is_run_as_a_module_is_no_silent_success(name: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", f"{name}.cli", "nonsense"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "No such command 'nonsense'" in result.stderr


def test_what_the_packages_export_is_there() -> None:
    import indexer
    import search

    for package in (indexer, search):
        for name in package.__all__:
            assert getattr(package, name).__name__ == name
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            _ = package.nonsense


def test_every_name_is_offered() -> None:
    import indexer
    import indexer.api
    import search

    assert dir(indexer) == sorted([*indexer.__all__, "__version__"])
    assert dir(search) == sorted(search.__all__)
    functions = {name for name, value in vars(indexer.api).items() if getattr(value, "__module__", "") == "indexer.api"}
    assert {name for name in functions if name.endswith(("_index", "_documents", "_matching"))} <= {*indexer.__all__}


def test_a_misspelt_name_is_an_error_to_mypy(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("from indexer import Document, add_document\nfrom search import Hit, Sercher\n")
    ours = [str(ROOT / package / "__init__.py") for package in ("indexer", "search")]
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=skip", f"--cache-dir={tmp_path}", "program.py", *ours],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    errors = [line for line in result.stdout.splitlines() if line.startswith("program.py")]
    assert [error.partition(";")[0] for error in errors] == [
        'program.py:1: error: Module "indexer" has no attribute "add_document"',
        'program.py:2: error: Module "search" has no attribute "Sercher"',
    ]
