"""Source bundles: the same bytes for the same files, what is not committed is told, nothing escapes."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile

import pytest

from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.errors import (
    ConfigError,
    CorruptObjectError,
    GitError,
    MissingObjectError,
    StageError,
    UnsafePathError,
)
from dvkf_prefect.kubeflow.exchange.bundle import bundle_key, make_bundle, uncommitted, unpack_bundle
from dvkf_prefect.repo import Repo


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path / "store"))


class Work:
    def __init__(self, top, subdir=""):
        self.top = top
        self.root = top / subdir
        self.root.mkdir(parents=True)
        self.git("init", "-q")
        Repo.init(self.root, subdir=bool(subdir))
        (top / "top.py").write_text("")
        self.write("src/a.py", "a = 1\n")
        self.write("run.sh", "#!/bin/sh\n")
        (self.root / "run.sh").chmod(0o755)
        (self.root / "link").symlink_to("src/a.py")
        self.write("dvc.lock", "schema: '2.0'\n")
        self.write("dvc.yaml", "stages: {}\n")
        self.commit()

    @property
    def repo(self):
        return Repo.open(self.root)

    def git(self, *args, **options):
        subprocess.run(["git", *args], cwd=self.top, check=True, capture_output=True, **options)

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def commit(self):
        self.git("add", ".")
        self.git("commit", "-qm", "Change")


@pytest.fixture
def work(tmp_path):
    return Work(tmp_path / "repo")


def files(folder):
    return {
        path.relative_to(folder).as_posix(): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize("subdir", ["", "nlp/task"])
def test_there_and_back(tmp_path, storage, subdir):
    work = Work(tmp_path / "repo", subdir)
    bundle = make_bundle(work.repo, storage)
    assert bundle.dirty == () and storage.size(bundle.key)
    dest = tmp_path / "out"
    unpack_bundle(storage, bundle.digest, dest)
    assert files(dest) == {
        **({} if subdir else {"top.py": b""}),
        ".dvcignore": (work.root / ".dvcignore").read_bytes(),
        "src/a.py": b"a = 1\n",
        "run.sh": b"#!/bin/sh\n",
        "link": "src/a.py",
        "dvc.yaml": b"stages: {}\n",
    }
    assert os.access(dest / "run.sh", os.X_OK) and not os.access(dest / "dvc.yaml", os.X_OK)


def test_the_same_files_are_the_same_bytes(work, storage, tmp_path):
    first = make_bundle(work.repo, storage)
    clone = tmp_path / "elsewhere"
    subprocess.run(["git", "clone", "-q", str(work.root), str(clone)], check=True, umask=0o077)
    (clone / "src/a.py").touch()
    again = make_bundle(Repo.open(clone), storage)
    assert again.digest == first.digest
    # The commit is another, the sources are not.
    work.write("dvc.lock", "schema: '2.0'\nstages: {}\n")
    work.commit()
    later = make_bundle(work.repo, storage)
    assert later.digest == first.digest and later.commit != first.commit
    assert sum(1 for _ in storage.keys("dvkf/bundles")) == 1


def test_what_is_not_committed(work, storage, tmp_path):
    work.write("model.json", "{}")
    work.commit()
    clean = make_bundle(work.repo, storage)
    # Results of adding and running are no sources.
    work.write("dvc.lock", "changed")
    work.write(".gitignore", "/out\n")
    work.write("model.json", "[1]")
    work.write("note.txt", "untracked, and nobody's business\n")
    assert make_bundle(work.repo, storage, written={"model.json"}).digest == clean.digest
    work.write("src/a.py", "a = 2\n")
    (work.root / "run.sh").unlink()
    assert uncommitted(work.repo, written={"model.json"}) == ("run.sh", "src/a.py")
    with pytest.raises(StageError, match=r"2 file\(s\) are not committed.*'run\.sh', 'src/a\.py'"):
        make_bundle(work.repo, storage, written={"model.json"})
    bundle = make_bundle(work.repo, storage, written={"model.json"}, allow_dirty=True)
    assert bundle.dirty == ("note.txt", "run.sh", "src/a.py")
    unpack_bundle(storage, bundle.digest, tmp_path / "out")
    found = files(tmp_path / "out")
    assert found["src/a.py"] == b"a = 2\n" and "run.sh" not in found and "note.txt" in found
    assert found["model.json"] == b"{}"


def test_files_are_as_a_checkout_writes_them(work, storage, tmp_path):
    """A digest in dvc.lock is of the file on disk, with its line ends, not of git's blob."""
    work.write(".gitattributes", "*.bat text eol=crlf\nsecret export-ignore\n")
    (work.root / "a.bat").write_bytes(b"echo\r\n")
    work.write("secret", "kept, whatever `git archive` would do\n")
    work.write("ä ö\nü", "odd name\n")
    work.commit()
    bundle = make_bundle(work.repo, storage)
    unpack_bundle(storage, bundle.digest, tmp_path / "out")
    found = files(tmp_path / "out")
    assert found["a.bat"] == b"echo\r\n" and "secret" in found and found["ä ö\nü"] == b"odd name\n"


def test_without_a_commit(tmp_path, storage):
    root = tmp_path / "new"
    root.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    with pytest.raises(GitError, match="no commit yet"):
        make_bundle(Repo.init(root), storage)
    plain = tmp_path / "plain"
    plain.mkdir()
    with pytest.raises(ConfigError, match="not in git"):
        make_bundle(Repo.init(plain, no_scm=True), storage)


def put(storage, members):
    """Store a bundle that nobody here would make."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, kind, value in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if kind == tarfile.REGTYPE:
                info.size = len(value)
                archive.addfile(info, io.BytesIO(value))
            else:
                info.linkname = value
                archive.addfile(info)
    digest = hashlib.sha256(raw.getvalue()).hexdigest()
    storage.write(bundle_key(digest), gzip.compress(raw.getvalue()))
    return digest


FILE, LINK, HARD, DEVICE = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", FILE, b"x")],
        [("/tmp/dvkf-evil", FILE, b"x")],
        [("a/../../evil", FILE, b"x")],
        [("a", LINK, "/etc")],
        [("a", LINK, "..")],
        [("d/a", LINK, "../../evil")],
        [("a", LINK, "d"), ("a/b", LINK, "..")],
        [("a", LINK, "b/c"), ("b", LINK, "d/e"), ("d/e/f", FILE, b""), ("x", LINK, "b/../../..")],
        [("a", HARD, "/etc/passwd")],
        [("a", DEVICE, "")],
    ],
)
def test_nothing_escapes(storage, tmp_path, members):
    digest = put(storage, members)
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(UnsafePathError):
        unpack_bundle(storage, digest, folder / "out")
    assert not list(folder.iterdir())


def test_damaged_and_missing(work, storage, tmp_path):
    bundle = make_bundle(work.repo, storage)
    with pytest.raises(MissingObjectError, match="Start the run again"):
        unpack_bundle(storage, "0" * 64, tmp_path / "out")
    data = storage.read(bundle.key)
    for bad in (gzip.compress(b"other"), data[:-20], b"no gzip", b""):
        storage.write(bundle.key, bad)
        with pytest.raises(CorruptObjectError, match=bundle.digest):
            unpack_bundle(storage, bundle.digest, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UnsafePathError):
        bundle_key("../x")
