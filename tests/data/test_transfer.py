"""Transfers: how few requests they take, what they move and name, and what is left when some of it fails."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.git.command import revisions_of
from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.remotes.base import Storage
from dvkf_prefect.data.remotes.folder import FolderStorage
from dvkf_prefect.data.repository.selection import Choice, select
from dvkf_prefect.data.transfer.plan import plan_fetch, plan_push
from dvkf_prefect.data.transfer.transfer import Remote, cloud_status, execute, fetch, push
from dvkf_prefect.errors import OutputNotFoundError, RemoteError, RemoteUnreachableError, TransferError
from dvkf_prefect.formats.objects import LEGACY, MD5, Content, object_key
from dvkf_prefect.formats.outputs import Output
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.repo import Repo


def md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


class Service(Storage):
    """A folder's storage seen as a service that cannot say where its blobs lie; counts what it is asked."""

    def __init__(self, inner: Storage, *, lists: bool = True) -> None:
        self.name, self.url, self.jobs = inner.name, inner.url, 4
        self._place = inner._place
        self._inner = inner
        self._lists = lists
        self.counts: Counter[str] = Counter()
        self.broken: RemoteError | None = None

    def _ask(self, what: str) -> Storage:
        self.counts[what] += 1
        if self.broken:
            raise self.broken
        return self._inner

    def size(self, key: str) -> int | None:
        return self._ask("size").size(key)

    def _stream(self, key: str, start: int) -> Iterator[bytes]:
        return self._ask("get").stream(key, start=start)

    def write(self, key: str, data: bytes) -> None:
        self._ask("put").write(key, data)

    def upload(self, key: str, source: Path) -> None:
        self._ask("put").upload(key, source)

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        inner = self._ask("list")
        if not self._lists:
            raise RemoteError("this kind of server cannot list files")
        return inner.list(prefix)

    def delete(self, keys: Iterable[str]) -> None:
        self._ask("delete").delete(keys)


@pytest.fixture
def service(tmp_path: Path) -> Service:
    (tmp_path / "service").mkdir()
    return Service(open_storage(str(tmp_path / "service")))


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(root: Path) -> dict[str, str]:
    return {p.relative_to(root).as_posix(): p.read_text() for p in sorted(root.rglob("*")) if p.is_file()}


def objects(place: Path) -> set[str]:
    base = place / "files" / "md5"
    return {p.relative_to(base).as_posix().replace("/", "") for p in base.rglob("*") if p.is_file()}


FILES = {"train/a": "1", "train/b": "22", "test/a": "333", "top": "4444"}


@pytest.fixture
def tracked(repo: Repo) -> Repo:
    write(repo.root / "data", FILES)
    write(repo.root, {"one": "one", "other/two": "two"})
    repo.add(["data", "one", "other/two"])
    return repo


def commit(repo: Repo, message: str) -> str:
    assert repo.git
    repo.git.run("add", "-A")
    repo.git.run("commit", "-q", "-m", message)
    return str(repo.git.head())


def other_clone(repo: Repo) -> Repo:
    """A copy of the repository without data."""
    root = repo.root.with_name("clone")
    shutil.copytree(repo.root, root, ignore=shutil.ignore_patterns("cache", "tmp"))
    clone = Repo.open(root)
    for output in clone.outputs():
        target = root / output.path
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
    return clone


# -- requests --------------------------------------------------------------------------------------------------------


def test_a_push_of_what_is_there_asks_once_for_each_output(tracked: Repo, service: Service) -> None:
    remote = Remote("store", service)
    assert push(tracked.outputs(), tracked.cache, remote).files == 7
    service.counts.clear()
    done = push(tracked.outputs(), tracked.cache, remote)
    assert (done.files, done.present) == (0, 3)
    assert service.counts == {"size": 3}


def test_a_fetch_gets_each_object_once_and_asks_nothing_else(tracked: Repo, service: Service) -> None:
    remote = Remote("store", service)
    push(tracked.outputs(), tracked.cache, remote)
    service.counts.clear()
    elsewhere = Cache(tracked.root / ".dvc/elsewhere")
    assert fetch(tracked.outputs(), elsewhere, remote).files == 7
    assert service.counts == {"get": 7}
    assert fetch(tracked.outputs(), elsewhere, remote).files == 0
    assert service.counts == {"get": 7}


def test_one_new_file_of_a_thousand_takes_few_requests(repo: Repo) -> None:
    """A memory store is an object store: its listing comes by pages."""
    write(repo.root / "data", {f"{i}": f"{i}" for i in range(1500)})
    repo.add(["data"])
    storage = open_storage("memory://one-new-file")
    remote = Remote("store", storage)
    push(repo.outputs(), repo.cache, remote)
    write(repo.root / "data", {"new": "new"})
    repo.add(["data"])
    with pytest.MonkeyPatch.context() as patch:
        asked = Counter[str]()
        for name in ("size", "keys", "write", "upload"):
            method = getattr(storage, name)
            patch.setattr(
                storage, name, lambda *a, _m=method, _n=name, **o: (asked.update([_n]), _m(*a, **o))[1]
            )
        assert push(repo.outputs(), repo.cache, remote).files == 2
    assert asked == {"size": 1, "keys": 1, "write": 2}


class Vast(Storage):
    """As many blobs as there are numbers, made up as they are listed; of those wanted every other is there."""

    name, url, jobs = "vast", "vast://", 4

    def __init__(self, total: int) -> None:
        self._each = total // 256
        self.counts: Counter[str] = Counter()

    def size(self, key: str) -> int | None:
        self.counts["size"] += 1
        return 1 if int(key[-1], 16) % 2 else None

    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        assert prefix != "files/md5", "listed as a whole"
        for number in range(self._each):
            self.counts["listed"] += 1
            yield f"{prefix}/{number:030x}", 1

    def _stream(self, key: str, start: int) -> Iterator[bytes]:
        raise AssertionError("nothing is moved where only the listing is looked at")

    def write(self, key: str, data: bytes) -> None:
        raise AssertionError("nothing is moved where only the listing is looked at")

    def upload(self, key: str, source: Path) -> None:
        raise AssertionError("nothing is moved where only the listing is looked at")

    def delete(self, keys: Iterable[str]) -> None:
        raise AssertionError("nothing is moved where only the listing is looked at")


@pytest.mark.parametrize("wanted", [100, 1000, 3000])
def test_a_remote_of_millions_is_not_listed_for_a_few(wanted: int) -> None:
    storage = Vast(20_000_000)
    digests = [md5(str(number)) for number in range(wanted)]
    missing = Remote("vast", storage).missing(digests)
    assert missing == {digest for digest in digests if int(digest[-1], 16) % 2 == 0}
    assert storage.counts["size"] == wanted
    assert storage.counts["listed"] <= 5 * wanted  # no more than about what asking costs


def test_a_few_pages_are_listed_rather_than_a_thousand_objects_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = open_storage("memory://few-pages")
    there = [md5(str(number)) for number in range(3500)]
    for digest in there:
        storage.write(object_key(digest), b"")
    asked: list[str] = []
    monkeypatch.setattr(storage, "size", asked.append)
    wanted = [*there[:1000], *(md5(f"not {number}") for number in range(500))]
    assert Remote("store", storage).missing(wanted) == set(wanted[1000:])
    assert asked == []


def test_an_object_store_is_left_after_a_page_when_asking_is_cheaper(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = open_storage("memory://many-pages")
    for number in range(40_000):
        storage.write(object_key(md5(str(number))), b"")
    size, keys = storage.size, storage.keys
    counts: Counter[str] = Counter()

    def taken(prefix: str = "") -> Iterator[str]:
        for key in keys(prefix):
            counts["keys"] += 1
            yield key

    monkeypatch.setattr(storage, "keys", taken)
    monkeypatch.setattr(storage, "size", lambda key: (counts.update(["size"]), size(key))[1])
    wanted = [md5(str(number)) for number in range(39_950, 40_050)]
    assert Remote("store", storage).missing(wanted) == set(wanted[50:])
    assert counts == {"keys": 1000, "size": 100}


@pytest.mark.parametrize("hash_name", [MD5, LEGACY])
@pytest.mark.parametrize("url", ["folder", "memory", "fsspec", "listless"])
@pytest.mark.parametrize(("there", "wanted"), [(0, 100), (30, 40), (500, 700), (1300, 1200)])
def test_every_way_to_look_finds_the_same(
    tmp_path: Path, url: str, there: int, wanted: int, hash_name: str
) -> None:
    folder = tmp_path / "remote"
    folder.mkdir()
    unique = f"memory://{url}-{hash_name}-{there}-{wanted}"
    storage = {
        "folder": lambda: open_storage(str(folder)),
        "memory": lambda: open_storage(unique),
        "fsspec": lambda: open_storage(f"{unique}-fsspec", backend="fsspec"),
        "listless": lambda: Service(open_storage(str(folder)), lists=False),
    }[url]()
    present = [md5(str(number)) for number in range(there)]
    for digest in present:
        storage.write(object_key(digest, hash_name), b"x" * (ord(digest[0]) % 7))
    storage.write("files/md5/aa/not-a-digest", b"")
    storage.write("runs/aa/something", b"")
    asked = [md5(str(number)) for number in range(there - wanted // 2, there + wanted // 2)]
    remote = Remote("store", storage)
    assert remote.missing(asked, hash_name) == set(asked).difference(present)
    sizes = {digest: ord(digest[0]) % 7 for digest in set(asked).intersection(present)}
    assert remote.sizes(asked, hash_name) == sizes
    assert remote.sizes(asked, hash_name, expected=True) == sizes


def test_a_push_with_nothing_to_send_lists_no_folder(
    tracked: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks up what a manifest on the remote stands for, and finds an object of another size."""
    for number in range(100):
        (tracked.root / f"data/{number}").write_text(f"{number}\n" * 2)
    tracked.add(["data"])
    tracked.push()

    def refused(self: FolderStorage, prefix: str = "") -> Iterator[tuple[str, int]]:
        raise AssertionError(prefix)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStorage, "list", refused)
        assert tracked.push().files == 0
    short = tmp_path / "store" / object_key(md5("7\n7\n"))
    short.chmod(0o644)
    short.write_text("7")
    assert tracked.push().files == 1
    assert short.read_text() == "7\n7\n"


def test_a_remote_that_does_not_answer_is_not_asked_again_for_each(service: Service) -> None:
    service.broken = RemoteUnreachableError("did not answer")
    with pytest.raises(RemoteUnreachableError):
        Remote("store", service).missing(md5(str(number)) for number in range(3000))
    assert service.counts["size"] == 0


# -- what is moved ---------------------------------------------------------------------------------------------------


def test_deep_looks_behind_manifests_and_repairs(tracked: Repo, tmp_path: Path) -> None:
    tracked.push()
    gone = md5("22")
    (tmp_path / "store" / object_key(gone)).unlink()
    assert tracked.push().files == 0
    assert tracked.cloud_status() == {}
    assert tracked.cloud_status(deep=True) == {"data/train/b": "new"}
    assert "train" not in str(tracked.plan_push())
    assert tracked.plan_push(deep=True).files == 1
    assert tracked.push(deep=True).files == 1
    assert tracked.cloud_status(deep=True) == {}


def test_deep_reads_a_manifest_that_only_the_remote_has(tracked: Repo, tmp_path: Path) -> None:
    tracked.push()
    tracked.cache.path(tracked.version("data").digest).unlink()
    (tmp_path / "store" / object_key(md5("1"))).unlink()
    assert tracked.push(deep=True).files == 1
    assert objects(tmp_path / "store") >= {md5("1")}


def test_cloud_status_tells_the_four_cases_apart(tracked: Repo, tmp_path: Path) -> None:
    tracked.push(["one", "other/two"])
    tracked.cache.path(md5("two")).unlink()
    tracked.cache.path(md5("333")).unlink()
    assert tracked.cloud_status() == {
        "data": "new",
        "data/test/a": "missing",
        "data/top": "new",
        "data/train/a": "new",
        "data/train/b": "new",
        "other/two": "deleted",
    }


def test_a_part_is_pushed_without_the_manifest_until_all_of_it_is_there(
    tracked: Repo, tmp_path: Path
) -> None:
    """DVC sends the manifest with the part, and from then on takes the rest for pushed."""
    manifest = tracked.version("data").digest
    assert tracked.push(["data/train"]).files == 2
    assert objects(tmp_path / "store") == {md5("1"), md5("22")}
    assert tracked.push(["data/train/a"]).files == 0
    assert tracked.push(["data/test/a", "data/top"]).files == 3
    assert manifest in objects(tmp_path / "store")
    with pytest.raises(OutputNotFoundError, match="'data/nope'"):
        tracked.push(["data/nope"])


def test_a_part_is_fetched_and_put_in_place_alone(tracked: Repo) -> None:
    tracked.push()
    clone = other_clone(tracked)
    pulled = clone.pull(["data/train"])
    assert pulled.transfer.files == 3
    assert pulled.checkout.added == ("data/train/",)
    assert objects(clone.cache.root) == {md5("1"), md5("22"), clone.version("data").digest}
    assert contents(clone.root / "data") == {"train/a": "1", "train/b": "22"}
    assert clone.pull(["data/top"]).checkout.added == ("data/top",)
    write(clone.root / "data", {"train/a": "changed", "mine": "untracked"})
    (clone.root / "data/top").unlink()
    assert clone.checkout(["data/top"]).added == ("data/top",)
    assert contents(clone.root / "data") == {
        "mine": "untracked",
        "top": "4444",
        "train/a": "changed",
        "train/b": "22",
    }
    with pytest.raises(OutputNotFoundError, match="'data/tra'"):
        clone.pull(["data/tra"])
    # Nothing is left in the cache that was only made to check a part out.
    assert len(objects(clone.cache.root)) == 4


def test_parts_overwrite_only_what_can_be_had_again(tracked: Repo) -> None:
    from dvkf_prefect.errors import OutputChangedError

    write(tracked.root / "data", {"train/a": "changed", "test/a": "changed too"})
    with pytest.raises(OutputChangedError) as told:
        tracked.checkout(["data/train"])
    assert told.value.paths == ("data/train/a",)
    assert tracked.checkout(["data/train"], force=True).modified == ("data/train/",)
    assert contents(tracked.root / "data") == {**FILES, "test/a": "changed too"}
    os.chmod(tracked.root / "data/top", 0o755)
    assert not tracked.checkout(["data/top"])


def test_a_lost_object_costs_no_other_file(tracked: Repo, tmp_path: Path) -> None:
    tracked.push()
    (tmp_path / "store" / object_key(md5("22"))).unlink()
    (tmp_path / "store" / object_key(md5("two"))).unlink()
    clone = other_clone(tracked)
    with pytest.raises(TransferError) as told:
        clone.pull()
    assert set(told.value.failures) == {"data/train/b", "other/two"}
    assert "store" in str(told.value) and "dvkf push" in str(told.value)
    assert contents(clone.root / "data") == {p: t for p, t in FILES.items() if p != "train/b"}
    assert (clone.root / "one").read_text() == "one"
    assert clone.pull(allow_missing=True).transfer.files == 0


def test_allow_missing_does_not_allow_damaged(tracked: Repo, tmp_path: Path) -> None:
    tracked.push()
    damaged = tmp_path / "store" / object_key(md5("22"))
    damaged.chmod(0o644)
    damaged.write_text("broken")
    (tmp_path / "store" / object_key(md5("two"))).unlink()
    with pytest.raises(TransferError) as told:
        other_clone(tracked).pull(allow_missing=True)
    assert set(told.value.failures) == {"data/train/b"}


def test_a_push_without_a_file_sends_the_others_but_no_manifest(tracked: Repo, tmp_path: Path) -> None:
    tracked.cache.path(md5("22")).unlink()
    with pytest.raises(TransferError) as told:
        tracked.push()
    assert set(told.value.failures) == {"data/train/b"}
    assert "neither in the cache nor on the remote 'store'" in str(told.value)
    assert objects(tmp_path / "store") == {md5(t) for t in ("1", "333", "4444", "one", "two")}


def test_both_kinds_of_digests_are_tried_before_anything_is_said(tracked: Repo, service: Service) -> None:
    tracked.cache.path(md5("22")).unlink()
    old = tracked.cache.path(md5("old"), LEGACY)
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_text("old")
    outputs = [*tracked.outputs(), Output("old", Content(md5("old"), hash_name=LEGACY))]
    with pytest.raises(TransferError) as told:
        push(outputs, tracked.cache, Remote("store", service))
    assert set(told.value.failures) == {"data/train/b"}
    assert service.size(object_key(md5("old"), LEGACY)) == 3


def test_an_unusable_remote_stops_a_transfer_but_not_the_other_remotes(tracked: Repo, tmp_path: Path) -> None:
    with tracked.config.edit() as sections:
        sections["remote"]["gone"] = {"url": str(tmp_path / "no" / "such" / "disk")}
    text = (tracked.root / "data.dvc").read_text()
    (tracked.root / "data.dvc").write_text(text.rstrip("\n") + "\n  remote: gone\n")
    with pytest.raises(RemoteUnreachableError, match="gone"):
        tracked.push()
    assert objects(tmp_path / "store") == {md5("one"), md5("two")}


def test_outputs_go_only_where_they_may(tracked: Repo, tmp_path: Path) -> None:
    with tracked.config.edit() as sections:
        sections["remote"]["second"] = {"url": str(tmp_path / "second")}
    for name, line in (("data.dvc", "remote: second"), ("one.dvc", "push: false")):
        text = (tracked.root / name).read_text()
        (tracked.root / name).write_text(text.rstrip("\n") + f"\n  {line}\n")
    tracked.push()
    assert objects(tmp_path / "store") == {md5("two")}
    assert len(objects(tmp_path / "second")) == 5
    shutil.rmtree(tmp_path / "second")
    tracked.push(remote="store")
    assert not (tmp_path / "second").exists()
    tracked.push(["data"], remote="second")
    assert len(objects(tmp_path / "second")) == 5


# -- what is meant ---------------------------------------------------------------------------------------------------


@pytest.fixture
def history(tracked: Repo) -> Repo:
    """Three commits, of which a branch and a tag each know one that nothing else does."""
    assert tracked.git
    git = tracked.git
    commit(tracked, "first")
    for name in ("branch", "tag", "lost"):
        git.run("checkout", "-q", "-b", name, "main")
        write(tracked.root, {"one": f"of {name}"})
        tracked.add(["one"])
        commit(tracked, name)
        if name == "tag":
            git.run("tag", "-a", "v1", "-m", "v1")
            write(tracked.root, {"one": "after the tag"})
            tracked.add(["one"])
            commit(tracked, "after")
        git.run("checkout", "-q", "main")
    git.run("checkout", "-q", "--detach", "lost")
    git.run("branch", "-q", "-D", "tag", "lost")
    tracked.checkout(force=True)
    write(tracked.root, {"one": "of main"})
    git.run("checkout", "-q", "main")
    tracked.checkout(force=True)
    return tracked


def test_revisions_are_the_commits_of_branches_tags_or_all(history: Repo) -> None:
    git = history.git
    assert git
    main, branch, tag = (git.resolve(name) for name in ("main", "branch", "v1"))
    assert set(revisions_of(git, all_branches=True)) == {main, branch}
    assert revisions_of(git, all_tags=True) == [tag]
    assert set(revisions_of(git, all_branches=True, all_tags=True)) == {main, branch, tag}
    assert set(revisions_of(git, all_commits=True)) == {main, branch, tag}
    assert revisions_of(git) == []
    git.run("checkout", "-q", "--detach")
    git.run("commit", "-q", "--allow-empty", "-m", "detached")
    assert git.head() in revisions_of(git, all_commits=True)


def test_a_repository_without_commits_has_no_revisions(repo: Repo) -> None:
    assert repo.git
    assert revisions_of(repo.git, all_branches=True, all_tags=True) == []
    assert revisions_of(repo.git, all_commits=True) == []


@pytest.mark.parametrize(
    ("choice", "texts"),
    [
        (Choice(), {"one"}),
        (Choice(all_branches=True), {"one", "of branch"}),
        (Choice(all_tags=True), {"one", "of tag"}),
        (Choice(all_commits=True), {"one", "of branch", "of tag"}),
    ],
)
def test_other_commits_are_pushed_too(history: Repo, tmp_path: Path, choice: Choice, texts: set[str]) -> None:
    history.push(["one"], choice=choice)
    assert objects(tmp_path / "store") == {md5(text) for text in texts}


def test_a_commit_that_cannot_be_read_is_passed_over(
    history: Repo, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(history.root, {"one.dvc": "outs: 3\n"})
    commit(history, "broken")
    assert history.git
    history.git.run("reset", "-q", "--hard", "HEAD~1")
    history.git.run("branch", "broken", "HEAD@{1}")
    history.push(["one"], choice=Choice(all_branches=True))
    assert objects(tmp_path / "store") == {md5("one"), md5("of branch")}
    assert "one.dvc of commit" in caplog.text


def test_a_target_may_be_in_another_commit_only(history: Repo, tmp_path: Path) -> None:
    (history.root / "one.dvc").unlink()
    with pytest.raises(OutputNotFoundError, match="'one'"):
        history.push(["one"])
    history.push(["one"], choice=Choice(all_branches=True))
    assert md5("of branch") in objects(tmp_path / "store")
    with pytest.raises(OutputNotFoundError, match="in any searched commit"):
        history.push(["nowhere"], choice=Choice(all_branches=True))


PIPELINE = """\
stages:
  prepare:
    cmd: cp one two
    deps: [one]
    outs: [two]
  train:
    cmd: cp two model
    deps: [two]
    outs: [model]
    metrics: [m.json]
    plots: [plot.csv]
metrics: [other]
"""


@pytest.fixture
def pipeline(tracked: Repo) -> Repo:
    from dvkf_prefect.files import write_atomic

    write_atomic(tracked.root / "dvc.yaml", PIPELINE.encode())
    lines = ["schema: '2.0'", "stages:"]
    for stage, outs in {"prepare": ["two"], "train": ["model", "m.json", "plot.csv"]}.items():
        lines += [f"  {stage}:", "    cmd: x", "    outs:"]
        for out in outs:
            write(tracked.root, {out: out})
            digest = tracked.cache.add_file(tracked.root / out)
            lines += [f"    - path: {out}", "      hash: md5", f"      md5: {digest}", "      size: 3"]
    write(tracked.root, {"dvc.lock": "\n".join(lines) + "\n"})
    return tracked


@pytest.mark.parametrize(
    ("targets", "choice", "paths"),
    [
        (["model"], Choice(), {"model"}),
        (["model"], Choice(with_deps=True), {"model", "two", "one"}),
        (["train"], Choice(), {"model", "m.json", "plot.csv"}),
        (["two"], Choice(with_deps=True), {"two", "one"}),
        (["other"], Choice(recursive=True), {"other/two"}),
        ([""], Choice(recursive=True), {"data", "one", "other/two", "two", "model", "m.json", "plot.csv"}),
        (["o*"], Choice(glob=True), {"one"}),
        (["**/two"], Choice(glob=True), {"other/two", "two"}),
        (["*.dvc"], Choice(glob=True), {"data", "one"}),
        ([], Choice(types=("metrics",)), {"m.json", "other/two"}),
        ([], Choice(types=("plots", "metrics")), {"m.json", "other/two", "plot.csv"}),
        ([], Choice(max_size=4), {"one", "other/two", "two", "model", "m.json", "plot.csv"}),
        (["data"], Choice(max_size=10), set()),
    ],
)
def test_targets_and_options_choose(
    pipeline: Repo, targets: list[str], choice: Choice, paths: set[str]
) -> None:
    assert {output.path for output in select(pipeline, targets, choice).outputs} == paths


def test_patterns_choose_files_inside_outputs(tracked: Repo) -> None:
    selection = select(tracked, ["data/*/a"], Choice(glob=True))
    assert [output.path for output in selection.outputs] == ["data"]
    assert set(selection.parts["data"]) == {"train/a", "test/a"}
    with pytest.raises(OutputNotFoundError, match="matches 'x\\*'"):
        select(tracked, ["x*"], Choice(glob=True))


def test_a_whole_output_takes_in_its_parts(tracked: Repo) -> None:
    assert not select(tracked, ["data/top", "data"]).parts


# -- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_says_what_goes_and_changes_nothing(tracked: Repo, tmp_path: Path) -> None:
    plans = tracked.plan_push()
    assert plans.files == 7
    assert str(plans).splitlines() == [
        f"push to store: 7 object(s), 16 bytes ({tracked.cache.root} → remote 'store' ({tmp_path}/store))",
        "  data: 4 file(s), 10 bytes",
        "  one: 1 file(s), 3 bytes",
        "  other/two: 1 file(s), 3 bytes",
    ]
    assert not (tmp_path / "store").exists()
    tracked.push()
    (tmp_path / "store" / object_key(md5("22"))).unlink()
    clone = other_clone(tracked)
    shown = str(clone.plan_fetch())
    assert "  data: 3 file(s), 8 bytes" in shown
    assert "    data/train/b: " in shown and "is not on the remote 'store'" in shown
    assert not clone.cache.root.exists()
    assert "0 object(s)" in str(tracked.plan_fetch(["one"]))


def test_equal_files_are_counted_once(repo: Repo) -> None:
    write(repo.root / "a", {"x": "same", "y": "same"})
    write(repo.root / "b", {"z": "same", "w": "w"})
    repo.add(["a", "b"])
    (plan,) = repo.plan_push().plans
    assert [(share.path, share.files, share.size) for share in plan.shares()] == [("a", 1, 4), ("b", 1, 1)]


class Watch:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int, int]] = []
        self.done = [0, 0]

    def start(self, label: str, files: int, size: int) -> None:
        self.started.append((label, files, size))

    def expect(self, files: int, size: int) -> None:
        pass

    def advance(self, files: int, size: int) -> None:
        self.done[0] += files
        self.done[1] += size

    def finish(self) -> None:
        self.started.append(("end", 0, 0))


def test_progress_is_told_totals_both_ways(tracked: Repo) -> None:
    watch = Watch()
    tracked.using(progress=watch).push()
    assert watch.started == [("push to store", 7, 16), ("end", 0, 0)]
    assert watch.done[0] == 7
    clone = other_clone(tracked)
    clone.fetch(["data/train"])
    watch = Watch()
    clone.using(progress=watch).fetch()
    ((label, files, size), _) = watch.started
    assert (label, files) == ("fetch from store", 4)
    assert size == 16 * 4 // 6  # two of six files are there already, of unknown size
    assert watch.done[0] == 4


# -- the run cache ---------------------------------------------------------------------------------------------------


@pytest.fixture
def ran(tracked: Repo) -> Repo:
    key, value = "ab" + "0" * 62, "c" * 64
    digest, gone = tracked.cache.add_bytes(b"written by a run"), md5("gone")
    tree = tracked.cache.add_bytes(Tree(["f", "g"], [digest, gone]).to_bytes(), tree=True)
    write(
        tracked.cache.root,
        {
            f"runs/ab/{key}/{value}": "cmd: x\nouts:\n"
            + "".join(f"- path: {d[:2]}\n  hash: md5\n  md5: {d}\n" for d in (digest, gone, tree)),
            f"runs/ab/{key}/half-written.tmp": "nothing",
        },
    )
    return tracked


def test_runs_are_shared_with_what_they_wrote(ran: Repo, tmp_path: Path) -> None:
    assert ran.push().files == 7
    assert not (tmp_path / "store/runs").exists()
    assert "run cache, remote 'store': 1 run(s)" in str(ran.plan_push(run_cache=True))
    assert ran.push(run_cache=True).files == 2
    assert md5("written by a run") in objects(tmp_path / "store")
    assert [p.name for p in (tmp_path / "store/runs").rglob("*") if p.is_file()] == ["c" * 64]
    assert ran.push(run_cache=True).files == 0
    clone = other_clone(ran)
    assert clone.fetch(run_cache=True).files == 8
    mine, theirs = (contents(repo.cache.root / "runs") for repo in (clone, ran))
    assert mine.items() < theirs.items() and len(mine) == 1


def test_what_is_no_run_is_not_taken_in(ran: Repo, tmp_path: Path) -> None:
    ran.push(run_cache=True)
    (entry,) = (p for p in (tmp_path / "store/runs").rglob("*") if p.is_file())
    entry.chmod(0o644)
    entry.write_text("<html>not found</html>")
    clone = other_clone(ran)
    with pytest.raises(TransferError, match="not an entry of the run cache"):
        clone.fetch(run_cache=True)
    assert not (clone.cache.root / "runs").exists()
    assert len(objects(clone.cache.root)) == 7


def test_an_execution_adds_what_failed_to_its_plan(tracked: Repo, service: Service) -> None:
    remote = Remote("store", service)
    plan = plan_push(tracked.outputs(), tracked.cache, remote)
    tracked.cache.path(md5("22")).unlink()
    done = execute(plan)
    assert done.files == 5
    assert set(plan.failures) == plan.missing == {"data/train/b"}
    assert cloud_status(tracked.outputs(["data"]), tracked.cache, remote) == {
        "data": "new",
        "data/train/b": "missing",
    }
    back = plan_fetch(tracked.outputs(), Cache(tracked.root / "x"), remote)
    assert set(back.failures) == {"data"}
