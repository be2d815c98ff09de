"""The data verbs on a repository of files, a folder as its remote, and what bad input does to them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvkf_prefect.errors import (
    ConfigError,
    CorruptObjectError,
    DiskFullError,
    LockedError,
    NotARepositoryError,
    OutputChangedError,
    OutputError,
    OutputInGitError,
    OutputNotFoundError,
    OutputOverlapError,
    ParseError,
    RemoteNotFoundError,
    RemoteUnreachableError,
    TransferError,
    UnsafePathError,
)
from dvkf_prefect.repo import Repo


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}


FILES = {"a.txt": "a", "sub/b.txt": "b", "sub/deep/ü.txt": "same", "z": "same", "empty": ""}


@pytest.fixture
def tracked(repo: Repo) -> Repo:
    write(repo.root / "data", FILES)
    repo.add(["data"])
    return repo


# -- the way there and back ------------------------------------------------------------------------------------------


def test_the_dot_dvc_file_and_manifest_are_dvcs_own(tracked: Repo) -> None:
    assert (tracked.root / "data.dvc").read_text() == (
        "outs:\n- md5: 39b3a2f3b9a7dc0a57c9bd7c63af7d48.dir\n  size: 10\n  nfiles: 5\n  hash: md5\n  path: data\n"
    ).replace("39b3a2f3b9a7dc0a57c9bd7c63af7d48", tracked.version("data").digest[:32])
    manifest = tracked.cache.path(tracked.version("data").digest).read_bytes()
    assert manifest.startswith(b'[{"md5": "0cc175b9c0f1b6a831c399e269772661", "relpath": "a.txt"}, ')
    assert b'"relpath": "sub/deep/\\u00fc.txt"' in manifest
    assert (tracked.root / ".gitignore").read_text() == "/data\n"


def test_push_then_pull_elsewhere_gives_the_same_files(tracked: Repo, tmp_path: Path) -> None:
    sent = tracked.push()
    assert (sent.files, sent.size > 0) == (5, True)  # four different contents and the manifest
    assert tracked.push().files == 0
    other = tmp_path / "other"
    shutil.copytree(tracked.root, other, ignore=shutil.ignore_patterns("data", "cache", "tmp"))
    clone = Repo.open(other)
    pulled = clone.pull()
    assert (pulled.transfer.files, pulled.checkout.added) == (5, ("data/",))
    assert contents(other / "data") == FILES
    assert not clone.status()


def test_status_names_what_changed(tracked: Repo) -> None:
    assert not tracked.status()
    write(tracked.root / "data", {"a.txt": "A"})
    assert [(c.path, c.state) for c in tracked.status().changes] == [("data", "modified")]
    shutil.rmtree(tracked.root / "data")
    assert [c.state for c in tracked.status().changes] == ["deleted"]
    shutil.rmtree(tracked.cache.root)
    assert [c.state for c in tracked.status().changes] == ["not in cache"]


def test_checkout_restores_and_removes_just_what_differs(tracked: Repo) -> None:
    before = (tracked.root / "data/z").stat().st_ino
    write(tracked.root / "data", {"sub/b.txt": "same"})  # content that the cache has: nothing can be lost
    os.remove(tracked.root / "data/a.txt")
    assert tracked.checkout().modified == ("data/",)
    assert contents(tracked.root / "data") == FILES
    assert (tracked.root / "data/z").stat().st_ino == before
    assert not tracked.checkout()


def test_checkout_follows_git(tracked: Repo) -> None:
    git = tracked.git
    assert git
    first = git.commit(["data.dvc", ".gitignore", ".dvc", ".dvcignore"], "one")
    write(tracked.root / "data", {"new": "new"})
    tracked.add(["data"])
    git.commit(["data.dvc"], "two")
    git.run("checkout", "-q", str(first))
    tracked.checkout()
    assert contents(tracked.root / "data") == FILES
    assert tracked.version("data", rev="main").nfiles == 6


def test_checkout_removes_what_is_tracked_no_longer_unless_it_changed(tracked: Repo) -> None:
    tracked.checkout()
    write(tracked.root, {"kept": "x"})
    tracked.add(["kept"])
    tracked.checkout()
    (tracked.root / "data.dvc").unlink()
    (tracked.root / "kept.dvc").unlink()
    write(tracked.root, {"kept": "changed"})
    assert tracked.checkout().deleted == ("data/",)
    assert not (tracked.root / "data").exists()
    assert (tracked.root / "kept").read_text() == "changed"


def test_commit_records_the_workspace(tracked: Repo) -> None:
    write(tracked.root / "data", {"a.txt": "A"})
    (version,) = tracked.commit().versions
    assert version.path == "data"
    assert not tracked.status()
    assert not tracked.commit()


def test_an_executable_file_stays_one(repo: Repo) -> None:
    write(repo.root, {"tool": "#!/bin/sh\n"})
    os.chmod(repo.root / "tool", 0o755)
    repo.add(["tool"])
    os.remove(repo.root / "tool")
    repo.checkout()
    assert os.access(repo.root / "tool", os.X_OK)


def test_a_rewritten_dvc_file_keeps_comments_and_own_keys(tracked: Repo) -> None:
    file = tracked.root / "data.dvc"
    file.write_text(
        "# who made it\n" + file.read_text() + "  desc: pictures  # of cats\nmeta:\n  owner: us\n"
    )
    write(tracked.root / "data", {"more": "more"})
    tracked.add(["data"])
    text = file.read_text()
    assert text.startswith("# who made it\nouts:\n- md5: ")
    assert "nfiles: 6" in text
    assert text.endswith("  path: data\n  desc: pictures  # of cats\nmeta:\n  owner: us\n")


def test_diff_names_added_deleted_modified_and_renamed(tracked: Repo) -> None:
    assert tracked.git
    tracked.git.commit([".dvc", ".gitignore", ".dvcignore", "data.dvc"], "one")
    data = tracked.root / "data"
    write(data, {"a.txt": "changed", "new": "new"})
    os.rename(data / "sub/b.txt", data / "b.txt")
    os.remove(data / "z")
    found = tracked.diff()
    assert [e.path for e in found.added] == ["data/new"]
    assert [e.path for e in found.deleted] == ["data/z"]
    assert [(e.path, e.new_size) for e in found.modified] == [("data/", None), ("data/a.txt", None)]
    assert [(e.old_path, e.path) for e in found.renamed] == [("data/sub/b.txt", "data/b.txt")]
    tracked.add(["data"])
    assert [e.new_size for e in tracked.diff().modified] == [None, 7]


def test_a_file_changed_within_the_clocks_tick_is_seen(repo: Repo) -> None:
    """A file written again with the same size, right after it was hashed, must not look unchanged."""
    for round_ in range(30):
        write(repo.root, {"f": f"{round_:04}"})
        repo.add(["f"])
        info = (repo.root / "f").stat()
        write(repo.root, {"f": f"{round_:03}x"})
        os.utime(repo.root / "f", ns=(info.st_atime_ns, info.st_mtime_ns))
        assert repo.status(), f"round {round_}"


def test_an_unchanged_file_is_not_read_again(tracked: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(tracked.root / "data/a.txt", (1, 1))
    for path in (tracked.root / "data").rglob("*"):
        os.utime(path, (1, 1))
    tracked.status()
    read: list[str] = []
    monkeypatch.setattr(
        "dvkf_prefect.data.cache._copier._digest_one", lambda path: read.append(str(path)) or "0" * 32
    )
    assert not tracked.status()
    assert read == []
    os.utime(tracked.root / "data/z", (2, 2))
    assert tracked.status()
    assert read == [str(tracked.root / "data/z")]


def test_objects_are_hashed_again_only_when_they_were_touched(repo: Repo) -> None:
    """Objects of 64 KiB and more are remembered by size, times and inode; a change time cannot be set back."""
    path = repo.root / "large"
    path.write_bytes(b"a" * 100_000)
    repo.add(["large"])
    cached = repo.cache.path(repo.outputs(["large"])[0].digest or "")
    seen = cached.stat()
    path.unlink()
    Repo(repo.root).checkout(["large"])

    cached.chmod(0o644)
    cached.write_bytes(b"b" * 100_000)
    os.utime(cached, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    path.unlink()
    with pytest.raises(TransferError, match="hashes to"):
        Repo(repo.root).checkout(["large"])


@pytest.mark.parametrize("refused", [0, errno.EXDEV, errno.ENOSPC])
def test_large_files_are_hashed_while_they_are_copied(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    """In pieces; between file systems that the kernel does not copy ranges between, too."""
    data = os.urandom(1 << 20) * 17 + b"end"
    if refused:

        def refuse(*args: object) -> int:
            raise OSError(refused, os.strerror(refused))

        monkeypatch.setattr(os, "copy_file_range", refuse)
    (repo.root / "large").write_bytes(data)
    if refused == errno.ENOSPC:
        with pytest.raises(DiskFullError):
            repo.add(["large"])
        assert not list(repo.cache.root.rglob("*-copy-*"))
        return
    repo.add(["large"])
    digest = hashlib.md5(data).hexdigest()
    assert repo.outputs(["large"])[0].digest == digest
    assert repo.cache.path(digest).read_bytes() == data


# -- bad input -------------------------------------------------------------------------------------------------------


def test_outside_a_repository(tmp_path: Path) -> None:
    with pytest.raises(NotARepositoryError, match="dvkf init"):
        Repo.open(tmp_path)


def test_init_needs_git_or_to_be_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--no-scm"):
        Repo.init(tmp_path)
    assert Repo.init(tmp_path, no_scm=True).git is None
    with pytest.raises(ConfigError, match="--force"):
        Repo.init(tmp_path, no_scm=True)


def test_unknown_remote(tracked: Repo) -> None:
    with pytest.raises(RemoteNotFoundError, match=r"'nope' doesn't exist \(known: store\)"):
        tracked.push(remote="nope")


def test_add_what_is_not_there(repo: Repo) -> None:
    with pytest.raises(OutputNotFoundError, match="'nothing' does not exist"):
        repo.add(["nothing"])


def test_add_outside_the_repository(repo: Repo, tmp_path: Path) -> None:
    with pytest.raises(UnsafePathError, match="lies outside"):
        repo.add([tmp_path / "elsewhere"])


def test_add_what_git_tracks(repo: Repo) -> None:
    write(repo.root / "src", {"a.py": ""})
    assert repo.git
    repo.git.run("add", "src")
    with pytest.raises(OutputInGitError, match="git rm -r --cached 'src'"):
        repo.add(["src"])
    assert not (repo.root / "src.dvc").exists()


@pytest.mark.parametrize("target", [".", "data/../.."])
def test_what_holds_an_output_cannot_be_one(tracked: Repo, target: str) -> None:
    with pytest.raises((OutputOverlapError, OutputError)):
        tracked.add([target])
    assert [o.path for o in tracked.outputs()] == ["data"]


def test_a_folder_around_an_output_cannot_be_one(repo: Repo) -> None:
    write(repo.root / "all", {"data/a": "a", "more": "m"})
    repo.add(["all/data"])
    with pytest.raises(OutputOverlapError, match=r"'all' overlaps the output 'all/data' \(all/data\.dvc\)"):
        repo.add(["all"])


def test_two_dvc_files_that_claim_one_path(tracked: Repo) -> None:
    shutil.copy(tracked.root / "data.dvc", tracked.root / "again.dvc")
    assert not tracked.status()  # as dvc, verbs that only look take both
    (tracked.root / "more").write_text("1\n")
    with pytest.raises(OutputOverlapError, match=r"again\.dvc.*data\.dvc"):
        tracked.add(["more"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outs: [\n", r"data\.dvc, line 2: not valid YAML"),
        ("outs:\n- path: data\n  what: 1\n", r"data\.dvc, line 3: unknown key 'what'"),
        ("outs:\n- md5: xyz\n  path: data\n", r"data\.dvc, line 2: `md5` is 32 hexadecimal digits"),
        (
            "outs:\n- md5: 00000000000000000000000000000000\n",
            r"data\.dvc, line 2: an output is a mapping with `path`",
        ),
        ("surprise: 1\n", r"data\.dvc, line 1: unknown key 'surprise'"),
        ("- a\n", r"data\.dvc, line 1: a \.dvc file is a mapping"),
    ],
)
def test_a_dvc_file_that_does_not_parse(tracked: Repo, text: str, message: str) -> None:
    (tracked.root / "data.dvc").write_text(text)
    with pytest.raises(ParseError, match=message):
        tracked.status()


@pytest.mark.parametrize("path", ["../escape", "/etc/passwd", ".."])
def test_an_output_outside_the_repository_is_refused(tracked: Repo, path: str) -> None:
    (tracked.root / "evil.dvc").write_text(f"outs:\n- md5: '{'0' * 32}'\n  hash: md5\n  path: {path}\n")
    with pytest.raises(UnsafePathError, match="outside the repository"):
        tracked.checkout(force=True)


@pytest.mark.parametrize("relpath", ["../../evil", "/evil", "a/../../evil", "a//b", ""])
def test_a_manifest_that_would_escape_writes_nothing(tracked: Repo, relpath: str) -> None:
    good = tracked.cache.add_bytes(b"x")
    digest = tracked.cache.add_bytes(f'[{{"md5": "{good}", "relpath": "{relpath}"}}]'.encode(), tree=True)
    (tracked.root / "evil.dvc").write_text(f"outs:\n- md5: {digest}\n  hash: md5\n  path: evil\n")
    with pytest.raises(UnsafePathError, match="would leave its directory"):
        tracked.checkout(["evil"])
    assert not (tracked.root / "evil").exists()
    assert not (tracked.root.parent / "evil").exists()


def test_checkout_refuses_to_lose_what_is_nowhere_else(tracked: Repo) -> None:
    write(tracked.root / "data", {"a.txt": "precious", "mine": "also precious", "z": "same"})
    with pytest.raises(OutputChangedError) as caught:
        tracked.checkout()
    assert caught.value.paths == ("data/a.txt", "data/mine")
    assert (tracked.root / "data/a.txt").read_text() == "precious"
    tracked.checkout(force=True)
    assert contents(tracked.root / "data") == FILES


def test_a_missing_object_never_costs_the_good_files(tracked: Repo) -> None:
    tracked.push()
    lost = tracked.cache.path("0cc175b9c0f1b6a831c399e269772661")  # a.txt
    store = tracked.root.parent / "store" / "files/md5/0c" / lost.name
    store.unlink()
    shutil.rmtree(tracked.cache.root)
    shutil.rmtree(tracked.root / "data")
    with pytest.raises(TransferError) as caught:
        tracked.pull()
    assert set(caught.value.failures) == {"data/a.txt"}
    assert "remote 'store'" in caught.value.place
    assert contents(tracked.root / "data") == {k: v for k, v in FILES.items() if k != "a.txt"}


def test_a_damaged_object_on_the_remote_never_enters_the_cache(tracked: Repo) -> None:
    tracked.push()
    key = "0c/c175b9c0f1b6a831c399e269772661"
    bad = tracked.root.parent / "store" / "files/md5" / key
    bad.chmod(0o644)
    bad.write_text("not a")
    shutil.rmtree(tracked.cache.root)
    with pytest.raises(TransferError, match=r"data/a\.txt: .* is damaged on the remote"):
        tracked.fetch()
    assert not (tracked.cache.root / "files/md5" / key).exists()
    assert len(list((tracked.cache.root / "files").rglob("*.dir"))) == 1


def test_a_damaged_object_in_the_cache_is_neither_used_nor_sent(tracked: Repo) -> None:
    digest = "0cc175b9c0f1b6a831c399e269772661"
    bad = tracked.cache.path(digest)
    bad.chmod(0o644)
    bad.write_text("b")
    with pytest.raises(TransferError, match="hashes to"):
        tracked.push()
    assert not (tracked.root.parent / "store/files/md5/0c/c175b9c0f1b6a831c399e269772661").exists()
    assert not list((tracked.root.parent / "store").rglob("*.dir")), "a manifest arrived before its files"
    write(tracked.root, {"copy": "x"})
    bad.write_text("b") if bad.exists() else None
    with pytest.raises((TransferError, CorruptObjectError)):
        shutil.rmtree(tracked.root / "data")
        tracked.checkout()


def away(repo: Repo) -> None:
    """Take a remote that is no folder as the default one."""
    with repo.config.edit() as sections:
        sections["remote"]["away"] = {"url": f"memory://{repo.root.parent.name}"}
        sections["core"]["remote"] = "away"


def test_an_interrupted_download_goes_on_where_it_stopped(repo: Repo) -> None:
    away(repo)
    blob = os.urandom(3_000_000)
    (repo.root / "big").write_bytes(blob)
    (version,) = repo.add(["big"])
    repo.push()
    repo.cache.path(version.digest).unlink()
    # What a process that no longer lives left behind.
    left = repo.cache.root / "tmp-dvkf" / "0123456789abcdef"
    left.mkdir(exist_ok=True)
    part = left / f"1-part-{version.digest}"
    part.write_bytes(blob[:1_234_567])
    asked: list[int] = []
    remote = repo.using(jobs=1).remote()
    stream = remote.storage.stream

    def counting(key: str, *, start: int = 0, **kwargs: object) -> object:
        asked.append(start)
        return stream(key, start=start, **kwargs)  # type: ignore[arg-type]

    remote.storage.stream = counting  # type: ignore[method-assign,assignment]
    from dvkf_prefect.data.transfer import transfer

    transfer.fetch(repo.outputs(), repo.cache, remote)
    assert asked == [1_234_567]
    assert repo.cache.path(version.digest).read_bytes() == blob


def test_a_download_that_broke_off_is_begun_anew_by_the_same_process(
    repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt wrote behind what the first one had left, and took the file in."""
    away(repo)
    blob = os.urandom(3_000_000)
    (repo.root / "big").write_bytes(blob)
    (version,) = repo.add(["big"])
    repo.push()
    repo.cache.path(version.digest).unlink()
    remote = repo.remote()
    stream = remote.storage.stream
    from dvkf_prefect.data.transfer import transfer

    def broken(key: str, *, start: int = 0, limit: int | None = None) -> Iterator[bytes]:
        yield next(iter(stream(key, start=start, limit=limit)))[:1000]
        raise RemoteUnreachableError("the line is cut")

    with monkeypatch.context() as patch:
        patch.setattr(remote.storage, "stream", broken)
        with pytest.raises(RemoteUnreachableError):
            transfer.fetch(repo.outputs(), repo.cache, remote)
    transfer.fetch(repo.outputs(), repo.cache, remote)
    assert repo.cache.path(version.digest).read_bytes() == blob


def test_a_wrong_beginning_is_thrown_away(repo: Repo) -> None:
    away(repo)
    (repo.root / "big").write_bytes(b"good" * 1000)
    (version,) = repo.add(["big"])
    repo.push()
    repo.cache.path(version.digest).unlink()
    left = repo.cache.root / "tmp-dvkf" / "0123456789abcdef"
    left.mkdir()
    (left / f"1-part-{version.digest}").write_bytes(b"bad" * 100)
    assert repo.fetch().files == 1
    assert repo.cache.path(version.digest).read_bytes() == b"good" * 1000


def test_a_full_disk_loses_nothing(tracked: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (tracked.root / "data.dvc").read_text()
    write(tracked.root / "data", {"new": "n" * 100})
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if bytes(data[:1]) == b"n":
            raise OSError(28, "No space left on device")
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(DiskFullError, match="No space left"):
            tracked.add(["data"])
    assert (tracked.root / "data.dvc").read_text() == before
    assert not list((tracked.cache.root / "tmp-dvkf").rglob("*-*"))
    tracked.add(["data"])
    assert not tracked.status()


def test_links_and_names_that_cannot_be_tracked_are_named(repo: Repo) -> None:
    data = repo.root / "data"
    write(data, {"ok": "ok"})
    (data / "gone").symlink_to("nowhere")
    with pytest.raises(OutputError, match="gone: a broken link"):
        repo.add(["data"])
    (data / "gone").unlink()
    (data / "dir").symlink_to(repo.root)
    with pytest.raises(OutputError, match="dir: a link to a directory"):
        repo.add(["data"])
    (data / "dir").unlink()
    (data / os.fsdecode(b"\xff")).write_text("x")
    with pytest.raises(OutputError, match="not UTF-8"):
        repo.add(["data"])
    assert not (repo.root / "data.dvc").exists()


def test_what_dvcignore_names_is_left_out(repo: Repo) -> None:
    (repo.root / ".dvcignore").write_text("*.log\ndata/cache/\n!keep.log\n")
    repo = Repo.open(repo.root)
    write(repo.root / "data", {"a": "a", "x.log": "", "keep.log": "", "cache/y": "", ".hidden": ""})
    (version,) = repo.add(["data"])
    assert repo.cache.read_tree(version.digest).relpaths == [".hidden", "a", "keep.log"]
    with pytest.raises(OutputError, match="excluded by"):
        repo.add(["data/x.log"])


def test_a_held_lock_is_waited_for_then_named(tracked: Repo) -> None:
    script = textwrap.dedent("""
        import sys
        from dvkf_prefect.repo import Repo
        with Repo.open(sys.argv[1]).lock():
            print("held", flush=True)
            sys.stdin.read()
    """)
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tracked.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout and holder.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"locked by process {holder.pid} "), tracked.lock(timeout=0.2):
        pass
    holder.communicate()
    with tracked.lock(timeout=0.2), tracked.lock(timeout=0.2):
        pass


def test_a_killed_add_is_finished_by_the_next(repo: Repo, tmp_path: Path) -> None:
    data = repo.root / "data"
    data.mkdir()
    for i in range(3000):
        (data / str(i)).write_text(f"file {i}")
    script = "import sys; from dvkf_prefect.repo import Repo; Repo.open('.').add(['data'])"
    for _ in range(3):
        adding = subprocess.Popen([sys.executable, "-c", script])
        while adding.poll() is None and not list((repo.cache.root / "files").glob("md5/*/*")):
            pass
        adding.send_signal(signal.SIGKILL)
        adding.wait()
    (version,) = repo.add(["data"])
    assert version.nfiles == 3000
    repo.push()
    assert not list((repo.cache.root / "tmp-dvkf").rglob("*-*"))
    for path in (repo.cache.root / "files").rglob("*"):
        if path.is_file() and not path.name.endswith(".dir"):
            repo.cache.read_bytes(path.parent.name + path.name)


def test_outputs_of_dvc_2_stay_as_they_are_until_they_change(tracked: Repo) -> None:
    """They were moved to today's layout by an add that changed nothing, and a part was mixed in with wrong digests."""
    tree = tracked.cache.read_tree(tracked.version("data").digest)
    for digest in (*tree.digests, tree.digest):
        target = tracked.cache.path(digest, "md5-dos2unix")
        target.parent.mkdir(parents=True, exist_ok=True)
        tracked.cache.path(digest).rename(target) if tracked.cache.path(digest).exists() else None
    file = tracked.root / "data.dvc"
    old = file.read_text().replace("  hash: md5\n", "")
    file.write_text(old)
    tracked.commit()
    tracked.add(["data"])
    assert file.read_text() == old
    write(tracked.root / "data", {"more": "more"})
    with pytest.raises(OutputError, match="dvkf add data"):
        tracked.add(["data/more"])
    assert file.read_text() == old
    tracked.add(["data"])
    assert "hash: md5" in file.read_text()
    assert not tracked.status()
