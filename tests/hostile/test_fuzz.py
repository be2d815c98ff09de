"""Faults in every file that a cloned repository may hold: each verb says what is wrong, without a traceback."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from sizes import size

from dvkf_prefect import cli

_SPEC = importlib.util.spec_from_file_location("mutations", Path(__file__).with_name("mutations.py"))
assert _SPEC is not None and _SPEC.loader is not None
mutations = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(mutations)

SEEDS = int(size("DVKF_FUZZ_SEEDS", "12", "40"))
FIRST = int(os.environ.get("DVKF_FUZZ_FIRST", "0"))
VERBS = [
    "status", "status -c", "diff HEAD", "list . -R", "list . -R --show-hash --size", "repro --dry", "checkout",
    "data status",
    "gc -w --dry -f", "metrics show", "metrics diff", "params diff HEAD", "plots show --json", "plots diff --json HEAD",
    "dag", "dag --outs", "stage list --all", "push", "fetch", "du .", "model list", "check-ignore x", "remote list",
    "config -l", "update --no-download i.dvc", "verify", "freeze s", "remove x.dvc", "move x.dvc y.dvc",
    "commit -f x.dvc",
    "unprotect x", "cache dir", "cache migrate --dry", "version", "add new", "pull --allow-missing",
]  # fmt: skip


class Repository:
    """A repository whose files can be put back."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._git("init", "-q")
        assert cli.main(["init", "-q"]) == 0
        self.restore()
        (self.root / "new").unlink()
        (self.root / ".gitignore").write_text("/x\n/o\n/new\n")
        store = self.root / ".dvc/cache/files/md5" / mutations.MD5[:2]
        store.mkdir(parents=True)
        (store / mutations.MD5[2:]).write_text("1\n")
        self._git("add", "-A")
        self._git("add", "-f", ".dvc/config.local")
        self._git("commit", "-qm", "1")
        self._git("tag", "-a", "clf@v1.0.0", "-m", "m")

    def _git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.root, check=True)

    def restore(self) -> None:
        """Put all files back, but for the git history."""
        for entry in self.root.iterdir():
            if entry.name not in (".git", ".dvc", ".gitignore"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for name, data in mutations.originals().items():
            if name != "i.dvc":  # where it comes from is not there
                self.write(name, data)
        (self.root / "new").write_text("new")
        (self.root / "x").write_text("1\n")
        (self.root / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Write one file; the manifest goes where its digest is, and a `.dvc` file names it."""
        if name == "manifest":
            digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
            file = self.root / ".dvc/cache/files/md5" / digest[:2] / f"{digest[2:]}.dir"
            text = f"outs:\n- md5: {digest}.dir\n  size: 5\n  nfiles: 2\n  hash: md5\n  path: tree\n"
            (self.root / "tree.dvc").write_text(text)
        else:
            file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists():
            file.chmod(0o644)
        file.write_bytes(data)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("fuzz") / "r"
        root.mkdir()
        patch.chdir(root)
        return Repository(root)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_a_fault_in_a_file_is_an_error_and_not_a_fault_of_ours(
    repository: Repository, seed: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One file is wrong; the verbs that come by it, each third of them for one seed, say so or go on."""
    monkeypatch.chdir(repository.root)
    name, data = mutations.mutation(seed)
    for number, verb in enumerate(VERBS):
        if (number + seed) % 3:
            continue
        repository.restore()
        repository.write(name, data)
        try:
            code = cli.main(verb.split())
        except SystemExit as ended:
            code = ended.code
        out, err = capfd.readouterr()
        assert "unexpected error" not in err, f"{verb}: {name}: {data[:2000]!r}: {err}"
        assert "Traceback" not in err, f"{verb}: {name}: {data[:2000]!r}: {err}"
        silent = code == 1 and verb.startswith("check-ignore")
        assert code == 0 or err or out or silent, f"{verb}: {name}: {data[:2000]!r}: failed without a word"
