"""The rooms of the package: small modules, described, and reached by imports that the linter sees."""

from __future__ import annotations

import ast
import re
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


DESCRIBED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
OPENERS = re.compile(r"(What|Which|Where|Who|Whom|How|Whether|When)\b")
# Words that a reader has to take apart, with the field's own words beside them.
BANNED = re.compile(
    r"\b(a person|nobody|somebody|whoever|whom|to be had|seen to|as it is|thereof|tells whether|tell whether)\b",
    re.I,
)


def docstrings() -> Iterator[tuple[str, str]]:
    for name, text in modules():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, DESCRIBED) and (described := ast.get_docstring(node)):
                yield f"{name}: {getattr(node, 'name', 'module')}", described


def test_docstrings_open_with_a_noun_or_an_imperative() -> None:
    assert not [place for place, text in docstrings() if OPENERS.match(text)]


def test_docstrings_use_the_words_of_the_field() -> None:
    assert not [(place, found[0]) for place, text in docstrings() if (found := BANNED.search(text))]
