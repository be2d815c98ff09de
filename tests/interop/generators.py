"""Repositories that nobody would think of: names, contents, trees and edits for hypothesis to choose from.

A project is a few outputs to lay out on disk; an edit is what a person does to the files between two versions. Edits
name files by number, counted over what lies there when they are made, so that they mean the same in two copies.
"""

from __future__ import annotations

import os
import random
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st
from pathspec import GitIgnoreSpec

from dvkf_prefect.paths import is_reserved

_MIB = 1 << 20

# -- contents ----------------------------------------------------------------------------------------------------------

_NOTHING = b""
_ONE_BYTE = b"x"
_UNIX = b"one\ntwo\nthree\n"
_DOS = b"one\r\ntwo\r\nthree\r\n"
_BINARY = bytes(range(256))
# DVC 2.x took a file for text by its first 512 bytes.
_TEXT_THEN_BINARY = b"a\r\n" * 200 + b"\0\1\2\r\n"
_BINARY_THEN_TEXT = b"\0" + b"a\r\n" * 200
_LIKE_A_MANIFEST = b'[{"md5": "d41d8cd98f00b204e9800998ecf8427e", "relpath": "a"}]'

SMALL = [
    _NOTHING, _ONE_BYTE, _UNIX, _DOS, _BINARY, _TEXT_THEN_BINARY, _BINARY_THEN_TEXT, _LIKE_A_MANIFEST, b"[]", b"\n",
    b"\r\n", b"\r", "ü\n".encode(), b"\xff\xfe\x00", b"outs: []\n",
]  # fmt: skip


class Content(NamedTuple):
    """What a file holds: one of the small ones, or so many bytes made from a seed."""

    kind: int
    seed: int = 0

    def data(self) -> bytes:
        """Return the bytes."""
        if self.kind < len(SMALL):
            return SMALL[self.kind]
        if self.kind == len(SMALL):
            return b"version %d\n" % self.seed
        return random.Random(self.seed).randbytes(_MIB + self.kind - len(SMALL) - 2)


# About one in ten is as large as a chunk, a byte more or less; of few seeds, so that contents come twice.
contents = st.one_of(
    *[st.builds(Content, st.integers(0, len(SMALL) - 1), st.just(0))] * 4,
    *[st.builds(Content, st.just(len(SMALL)), st.integers(0, 9))] * 5,
    st.builds(Content, st.integers(len(SMALL) + 1, len(SMALL) + 3), st.integers(0, 1)),
)

# -- names -------------------------------------------------------------------------------------------------------------

_WORDS = ["plain.txt", "a", "b", "a-b", "a.txt", "a b", "A", "data.bin", "model.pkl", "README", "x.tar.gz"]
# A program that reads or writes these as YAML 1.1, or without quotes, changes them.
_YAML = [
    "yes", "no", "on", "off", "null", "~", "true", "False", "1e3", "0x1f", "0o17", "1_000", "12", "1.5", ".5", ".inf",
    ".nan", "2024-01-01", "12:30:45", "a: b", "key:", ": x", "- x", "-", "--", "? x", "[x]", "{y}", "&anchor", "*alias",
    "!tag", "|", ">", "%directive", "@at", "`tick`", "a #b", "#b", "'", '"', "''", '"a"', "it's", "a\\b", "a, b", "=",
    "<<", "...", "---",
]  # fmt: skip
# A program that uses these as patterns, urls, options or in a shell means something else.
_SPECIAL = [
    "*", "?", "[a]", "[!a]", "a*b", "**", "!bang", "#hash", "\\", " lead", "two  spaces", "$HOME",
    "${x}", "a;b", "a|b", "a&b", "<a>", "(a)", "50%", "%41", "%2F", "a+b", "a=b", "^a", "-f", "--force", "~root",
    "a@b", "a:b", "..a", "a..", "...a", ".hidden", ".gitkeep", ".a.dvkf", "tmp", "files", "md5", "a.dir", ".x",
]  # fmt: skip
_UNICODE = [
    unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"), "ü", "ß", "日本語", "😀", "עברית", "a\u200bb",
    "\ufeffbom", "a\u2028b", "a\u2029b", "a\xa0b", "\u3000", "ﬁ", "İ", "\U0010ffff", "a\xadb", "\ue000",
]  # fmt: skip
# Git takes these for something else in a `.gitignore`, or DVC does in a command line.
_INSIDE_ONLY = ["a\nb", "a\rb", "\t", "a\x1bb", "a\x7fb", "a\x85b", "s3:", "trail ", "a\\ "]
_LONG = ["n" * 200, "ü" * 100, "日" * 66, "long name " * 19 + "end", "😀" * 50]
# The rules below leave them out.
IGNORED = ["junk.tmp", "scratch", "keep.tmp"]

_TAKEN = frozenset({".", "..", ".git", ".dvc", ".hg", ".dvcignore", ".gitignore", "dvc.yaml", "dvc.lock"})


def _is_free(name: str) -> bool:
    # Of a line of `.gitignore` that DVC writes for a name with a space at its end, git takes the space away.
    # Nor does dvkf keep what a file system may take for a folder of git or DVC.
    return (
        name not in _TAKEN
        and not name.endswith((".dvc", " "))
        and not is_reserved(name)
        and len(name.encode()) <= 200
    )


_any_text = st.text(
    st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="/"), min_size=1, max_size=8
)
names = st.one_of(
    st.sampled_from(_WORDS),
    st.sampled_from(_YAML),
    st.sampled_from(_SPECIAL),
    st.sampled_from(_UNICODE),
    _any_text,
    st.sampled_from(_LONG),
).filter(_is_free)

# -- projects ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    """A file; with ``link`` what lies in a directory is a link to such a file, elsewhere or in the same directory."""

    content: Content
    isexec: bool = False
    link: str = ""


@dataclass(frozen=True)
class Folder:
    """A directory: its files by path, and its empty folders."""

    files: dict[str, File]
    empty: tuple[str, ...] = ()


@dataclass(frozen=True)
class Project:
    """Outputs by path, and how the repository is set up.

    Attributes:
        outputs: What is tracked.
        link_type: ``cache.type``.
        autostage: ``core.autostage``.
        ignore: Lines of the `.dvcignore` at the root.
        gitignore: Lines of the `.gitignore` at the root, from before anything is added.
        stage: Whether a pipeline of one stage copies the first output.
    """

    outputs: dict[str, File | Folder]
    link_type: str = "copy"
    autostage: bool = False
    ignore: tuple[str, ...] = ()
    gitignore: tuple[str, ...] = ()
    stage: bool = False


def _fit_together(paths: Sequence[str]) -> bool:
    return not any(a != b and b.startswith((a + "/", a + ".dvc/")) for a in paths for b in paths)


_inner_names = st.one_of(names, names, names, st.sampled_from(IGNORED), st.sampled_from(_INSIDE_ONLY))
_inner_paths = st.lists(_inner_names, min_size=1, max_size=3).map("/".join)
_inner_files = st.builds(
    File, contents, st.booleans(), st.sampled_from(["", "", "", "", "", "outside", "inside"])
)


@st.composite
def _folders(draw: st.DrawFn) -> Folder:
    files = draw(
        st.dictionaries(_inner_paths, _inner_files, max_size=7).filter(
            lambda found: _fit_together(list(found))
        )
    )
    empty = draw(st.lists(_inner_paths, max_size=1))
    return Folder(files, tuple(path for path in empty if _fit_together([*files, path]) and path not in files))


# `dvc diff` takes what stands behind these for a part of a url, and says that such an output was added or renamed.
_paths = st.one_of(names, st.lists(names, min_size=1, max_size=3).map("/".join)).filter(
    lambda path: "?" not in path and not path.endswith("#")
)
_outputs = st.one_of(st.builds(File, contents, st.booleans()), _folders(), _folders())
_RULES = [
    "*.tmp", "scratch", "scratch/", "/scratch", "!keep.tmp", "# a comment", "", "nothing-like-this/**", "**/junk.tmp",
]  # fmt: skip


# To a file whose last line is not ended, and ends in a character of several bytes, DVC cannot add.
_GIT_RULES = [
    "*.bin", "/*.pkl", "README", "!data.bin", "# ü\n", "", "plain.tx?", "a b", "yes", "/no-newline-at-the-end",
]  # fmt: skip


def _is_apart(outputs: dict[str, File | Folder]) -> bool:
    return _fit_together(list(outputs)) and _fit_together([path + ".dvc" for path in outputs])


def projects(*, min_size: int = 3, max_size: int = 8) -> st.SearchStrategy[Project]:
    """Return the strategy of projects of so many outputs."""
    return st.builds(
        Project,
        st.dictionaries(_paths, _outputs, min_size=min_size, max_size=max_size).filter(_is_apart),
        st.sampled_from(["copy", "copy", "hardlink", "symlink", "reflink,copy"]),
        st.booleans(),
        st.one_of(
            st.just(()), st.lists(st.sampled_from(_RULES), min_size=1, max_size=3, unique=True).map(tuple)
        ),
        st.one_of(st.just(()), st.lists(st.sampled_from(_GIT_RULES), max_size=4, unique=True).map(tuple)),
        st.booleans(),
    ).filter(_git_sees_the_dvc_files)


def _git_sees_the_dvc_files(project: Project) -> bool:
    rules = GitIgnoreSpec.from_lines(project.gitignore)
    return not any(rules.match_file(f"{path}.dvc") for path in project.outputs)


def lay(root: Path, path: str, what: File | Folder) -> None:
    """Write an output's files."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(what, File):
        _write(target, what)
        return
    target.mkdir()
    for name, file in what.files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if not file.link:
            _write(target / name, file)
    plain = sorted(name for name, file in what.files.items() if not file.link)
    for n, (name, file) in enumerate(what.files.items()):
        if file.link == "inside" and plain:
            os.symlink(os.path.relpath(target / plain[n % len(plain)], (target / name).parent), target / name)
        elif file.link:
            elsewhere = root.parent / "elsewhere"
            elsewhere.mkdir(exist_ok=True)
            place = elsewhere / f"{file.content.kind}-{file.content.seed}"
            place.write_bytes(file.content.data())
            os.symlink(place, target / name)
    for name in what.empty:
        (target / name).mkdir(parents=True, exist_ok=True)


def _write(path: Path, file: File) -> None:
    """Write a file as an editor does, which makes a new one: the old may be a link into the cache."""
    path.unlink(missing_ok=True)
    path.write_bytes(file.content.data())
    path.chmod(0o755 if file.isexec else 0o644)


def seen(root: Path, path: str) -> dict[str, tuple[bytes, bool | None]]:
    """Return all that DVC records of an output: contents by path, and of a single file whether it may be executed."""
    target = root / path
    if not target.is_dir():
        return {"": (target.read_bytes(), bool(target.stat().st_mode & 0o100))} if target.exists() else {}
    return {
        os.path.relpath(os.path.join(folder, name), target): (Path(folder, name).read_bytes(), None)
        for folder, _, files in os.walk(target)
        for name in files
    }


# -- edits -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """One thing done to one output.

    Attributes:
        what: A function below.
        output: Which one, by number.
        file: Which file of a directory, by number.
        name: A new name, for what needs one.
        content: New content, for what needs some.
    """

    what: str
    output: int
    file: int
    name: str
    content: Content = field(default=Content(0))


WHAT = [
    "change", "change", "add", "add", "delete", "rename", "rename", "swap", "swap output", "move", "touch", "rewrite",
    "mode", "empty", "copy", "delete output",
]  # fmt: skip
edits = st.builds(Edit, st.sampled_from(WHAT), st.integers(0, 30), st.integers(0, 30), _inner_names, contents)


def _unlink_all(target: Path) -> None:
    """Replace links to files that are no links into the cache by what they lead to, so that none breaks."""
    for path in [target, *target.rglob("*")]:
        if path.is_symlink() and ".dvc/cache" not in os.readlink(path):
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)


def make(root: Path, paths: Sequence[str], edit: Edit) -> bool:
    """Make an edit; return whether there was something to make it on.

    Args:
        root: The repository.
        paths: Its outputs.
        edit: What to do.
    """
    path = sorted(paths)[edit.output % len(paths)]
    target = root / path
    if not target.exists():
        lay(root, path, File(edit.content))
        return True
    _unlink_all(target)
    if edit.what == "delete output":
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink()
        return True
    if edit.what == "swap output":
        if target.is_dir():
            shutil.rmtree(target)
            lay(root, path, File(edit.content))
        else:
            target.unlink()
            lay(root, path, Folder({edit.name: File(edit.content)}))
        return True
    if target.is_dir():
        return _edit_folder(root, paths, target, edit)
    if edit.what == "mode":
        content, isexec = target.read_bytes(), bool(target.stat().st_mode & 0o100)
        target.unlink()
        target.write_bytes(content)
        target.chmod(0o644 if isexec else 0o755)
    elif edit.what in ("touch", "rewrite"):
        _again(target)
    else:
        _write(target, File(edit.content, bool(target.stat().st_mode & 0o100)))
    return True


def _again(path: Path) -> None:
    """Write a file anew with what it holds."""
    content, mode = path.read_bytes(), path.stat().st_mode & 0o755 | 0o200
    path.unlink()
    path.write_bytes(content)
    path.chmod(mode)


def _edit_folder(root: Path, paths: Sequence[str], target: Path, edit: Edit) -> bool:
    new = target / edit.name
    files = sorted(path for path in target.rglob("*") if path.is_file())
    if edit.what == "add" or not files:
        if os.path.lexists(new):
            return False
        _write(new, File(edit.content))
        return True
    file = files[edit.file % len(files)]
    if edit.what == "empty":
        for entry in target.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    elif edit.what == "delete":
        file.unlink()
    elif edit.what in ("rename", "copy"):
        if os.path.lexists(new):
            return False
        if edit.what == "copy":
            shutil.copyfile(file, new)
        else:
            file.rename(new)
    elif edit.what == "swap":
        file.unlink()
        (file / edit.name).parent.mkdir(parents=True)
        _write(file / edit.name, File(edit.content))
    elif edit.what == "move":
        other = root / sorted(paths)[edit.file % len(paths)]
        if not other.is_dir() or os.path.lexists(other / file.name):
            return False
        content = file.read_bytes()
        file.unlink()
        (other / file.name).write_bytes(content)
    elif edit.what in ("touch", "rewrite", "mode"):
        _again(file)
    else:
        _write(file, File(edit.content))
    return True
