"""The rooms of the package: small modules, described, and reached by imports that the linter sees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import dvkf_prefect

PACKAGE = Path(dvkf_prefect.__file__).parent
LINES = 600
# The facade: a page of documentation a verb.
FACADE = "data/repo.py"
# Lazy exports, verbs of the command line, packages of others and of their versions: each names what it imports.
BY_NAME = {
    "__init__.py",
    "cli/__init__.py",
    "data/remotes/protocols.py",
    "formats/dvcignore.py",
    "formats/patterns.py",
    "pipeline/report/plots.py",
}


def modules() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), path.read_text()


def test_no_module_is_too_long() -> None:
    lines = {name: text.count("\n") for name, text in modules()}
    assert not {name: count for name, count in lines.items() if count > LINES and name != FACADE}


def test_every_package_says_what_it_holds_and_may_import() -> None:
    for name, text in modules():
        if name.endswith("__init__.py") and name.count("/") in (1, 2) and name.split("/")[0] != "cli":
            described = ast.get_docstring(ast.parse(text)) or ""
            assert len(described.splitlines()[0]) > 20, name


def test_no_import_by_name_hides_from_the_linter() -> None:
    found = {name for name, text in modules() if "import_module(" in text or "__import__(" in text}
    assert found == BY_NAME
