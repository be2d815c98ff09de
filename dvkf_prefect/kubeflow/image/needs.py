"""Needs of stages in their image: programs, Python modules, and libraries of the remote.

The modules are read from the Python files that a stage depends on or runs; nothing is executed.
"""

from __future__ import annotations

import ast
import posixpath
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.data.upkeep.doctor import SCHEMES
from dvkf_prefect.errors import DvkfError
from dvkf_prefect.formats.dvcyaml import Stage
from dvkf_prefect.kubeflow.compile.images import image_of
from dvkf_prefect.kubeflow.compile.pod_settings import Placement

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_SHELL_WORDS = (
    ". : [ alias break case cd command continue echo eval exec exit export false for if printf pwd read return set "
    "shift source test time trap true type ulimit umask unset until wait while { ( !"
)
_BUILTIN = frozenset(_SHELL_WORDS.split())
_OPTIONAL = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})
_MANY = 2_000  # Python files that are read
_LARGE = 4 << 20  # bytes of a Python file


@dataclass(frozen=True, slots=True)
class Needs:
    """Contents that an image must have.

    Attributes:
        modules: Python modules that the stages import.
        programs: Programs that their commands start with.
        remote: Kind of the remote, such as ``s3``; "" for a folder.
        libraries: Python modules that serve this kind of remote, besides this package's own dependencies.
    """

    modules: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    remote: str = ""
    libraries: tuple[str, ...] = ()


def read_needs(
    repo: Repository, stages: Sequence[Stage], *, imports: Iterable[str] = (), url: str | None = None
) -> Needs:
    """Return the contents that stages need in their image.

    Args:
        repo: The repository.
        stages: Stages that run in one image.
        imports: Further modules.
        url: Url of the remote inside the cluster, if different.
    """
    modules = set(imports)
    programs: set[str] = set()
    for stage in stages:
        words = [list(_words(command)) for command in stage.cmd]
        programs.update(each[0] for each in words if each and each[0] not in _BUILTIN and "/" not in each[0])
        for file in _python_files(repo.root, stage, words):
            modules |= _imports(repo.root, repo.root / stage.wdir, file)
    scheme = remote_scheme(repo, url)
    return Needs(
        tuple(sorted(modules)),
        tuple(sorted(programs)),
        scheme,
        tuple(module for module, _ in SCHEMES.get(scheme, ())),
    )


def remote_scheme(repo: Repository, url: str | None = None) -> str:
    """Return the kind of the default remote, such as ``s3``; "" for a folder or without a remote.

    Args:
        repo: The repository.
        url: Url of the remote inside the cluster, if different.
    """
    with suppress(DvkfError):
        name = repo.config.default_remote()
        if name:
            scheme, mark, _ = (url or repo.config.remote(name)[1]["url"]).partition("://")
            return scheme if mark and scheme != "file" else ""
    return ""


def images_of(stages: Iterable[tuple[Stage, Placement]], default: str) -> dict[str, list[Stage]]:
    """Return the stages of each image; stages without an image are left out.

    Args:
        stages: Stages with the settings of their pods.
        default: Image of stages that name none, or "".
    """
    images: dict[str, list[Stage]] = {}
    for stage, placement in stages:
        if image := image_of(placement, default):
            images.setdefault(image, []).append(stage)
    return images


def _words(command: str) -> Iterator[str]:
    """Yield the words of a command's first program, without assignments of variables before it."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    started = False
    with suppress(ValueError):  # an open quote
        for word in lexer:
            if set(word) <= set(";&|()<>"):
                return
            if started or not _ASSIGNMENT.fullmatch(word):
                started = True
                yield word


def _python_files(root: Path, stage: Stage, commands: Iterable[Sequence[str]]) -> Iterator[Path]:
    """Yield the Python files that a stage depends on, or that its commands name."""
    paths = {dep.path for dep in stage.deps if not dep.external}
    for words in commands:
        for n, word in enumerate(words):
            if word == "-m" and n + 1 < len(words):
                module = words[n + 1].replace(".", "/")
                paths |= {posixpath.join(stage.wdir, f"{module}{end}") for end in (".py", "/__main__.py")}
            elif word.endswith(".py"):
                paths.add(posixpath.normpath(posixpath.join(stage.wdir, word)))
    count = 0
    for path in sorted(paths):
        place = root / path
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            count += 1
            if count > _MANY:
                return
            if file.suffix == ".py" and file.is_file() and file.stat().st_size <= _LARGE:
                yield file


def _imports(root: Path, wdir: Path, file: Path) -> set[str]:
    """Return the modules that a file imports, but neither the standard library's nor the repository's own."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return set()
    own = (file.parent, wdir, root, root / "src")
    return {
        top
        for top in {name.partition(".")[0] for name in _imported(tree.body)}
        if top not in sys.stdlib_module_names
        and top != "dvkf_prefect"
        and not any((folder / f"{top}.py").is_file() or (folder / top).is_dir() for folder in own)
    }


def _imported(body: Iterable[ast.AST]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module and not node.level:
                yield node.module
        elif isinstance(node, ast.Try) and any(_is_optional(handler) for handler in node.handlers):
            for part in (*node.handlers, *node.orelse, *node.finalbody):
                yield from _imported(ast.iter_child_nodes(part))
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _imported(node.orelse)
        else:
            yield from _imported(ast.iter_child_nodes(node))


def _is_optional(handler: ast.ExceptHandler) -> bool:
    """Return True if a handler catches the failure of an import."""
    if handler.type is None:
        return True
    return any(isinstance(node, ast.Name) and node.id in _OPTIONAL for node in ast.walk(handler.type))
