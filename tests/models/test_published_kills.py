"""Publication and removal killed at each request to S3 and each note in git: no half of a version is published."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import servers

from dvkf_prefect.errors import ModelNotFoundError
from dvkf_prefect.models.facts import read_facts
from dvkf_prefect.models.registry import ModelRegistry
from dvkf_prefect.models.runtimes import download
from dvkf_prefect.repo import Repo

from .conftest import Project

FILES = {"MLmodel": b"m", "a/b": b"b", "a/large": bytes(range(256)) * (11 << 12)}
_PART = 5 << 20
_PLACES = itertools.count()
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    ["s3fs", "dvkf_prefect.models.unpublishing", "dvkf_prefect.models.publishing"]
)


def act(root: str, place: str, verb: str, kill_at: float, counted: Any, pause: Any = None) -> None:
    """Publish or remove in this process; kill it before (2.0) or after (2.5) the second request or note.

    ``pause`` is a pair of events: it sets the first once an upload in parts has begun, and waits for the second.
    """
    import s3fs

    from dvkf_prefect.data.remotes import s3_objects
    from dvkf_prefect.models.publishing import publish_version
    from dvkf_prefect.models.unpublishing import collect_published, unpublish_version

    s3_objects.LARGEST_COPY = s3_objects.PART = _PART
    call, count = s3fs.S3FileSystem._call_s3, itertools.count(1)

    def die(at: float) -> None:
        if at == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    async def killing(self: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
        number = next(count)
        die(number)
        try:
            return await call(self, method, *args, **kwargs)
        finally:
            die(number + 0.5)
            if pause and method == "create_multipart_upload" and not pause[0].is_set():
                pause[0].set()
                pause[1].wait(120)

    s3fs.S3FileSystem._call_s3 = killing

    def noting(note: Any) -> Any:
        def noted(*args: Any) -> Any:
            number = next(count)
            die(number)
            answer = note(*args)
            die(number + 0.5)
            return answer

        return noted

    for name in ("note", "end_note"):
        setattr(ModelRegistry, name, noting(getattr(ModelRegistry, name)))
    registry = ModelRegistry(Repo.open(root))
    if verb == "publish":
        publish_version(registry, registry.show("classifier", "v0.0.1"), place)
    elif verb == "unpublish":
        with suppress(ModelNotFoundError):  # it was removed before the kill
            unpublish_version(registry, "classifier", "v0.0.1", place)
    else:
        collect_published(registry, place, grace=0, dry_run=False)
    counted.value = next(count) - 1


class World:
    """A registered model whose objects are on SeaweedFS, and places for it in the same bucket."""

    def __init__(self, folder: Path, s3: servers.S3Server, bucket: str) -> None:
        self.s3, self.bucket = s3, bucket
        project = Project(folder / "project")
        self.root, self.git = project.root, project.repo.git
        url = s3.make_bucket(bucket)
        rows = {"url": f"{url}/dvc", **s3.options()}
        lines = "".join(f"    {key} = {value}\n" for key, value in rows.items())
        (self.root / ".dvc" / "config").write_text(
            f"[core]\n    remote = store\n['remote \"store\"']\n{lines}"
        )
        (self.root / "dvc.yaml").write_text("artifacts: {classifier: {path: model}}\n")
        for name, data in FILES.items():
            (self.root / "model" / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / "model" / name).write_bytes(data)
        repo = Repo.open(self.root)
        repo.add([self.root / "model"])
        project.commit()
        self.registry = ModelRegistry(repo)
        self.registry.register("classifier")
        repo.push()
        shutil.rmtree(repo.cache.root)

    def run(self, place: str, verb: str, kill_at: float = 0) -> int:
        """Run a verb in a process of its own; return the number of its requests and notes, 0 if it was killed."""
        counted = _processes.Value("i", 0)
        url = f"s3://{self.bucket}/{place}"
        process = _processes.Process(target=act, args=(str(self.root), url, verb, kill_at, counted))
        process.start()
        process.join(120)
        assert process.exitcode == (-9 if kill_at else 0)
        return int(counted.value)

    def register(self) -> None:
        """Take back a withdrawal."""
        self.git.run("tag", "-d", *self.git.run("tag", "--list", "classifier@*!").split())

    def noted(self, place: str) -> bool:
        facts = read_facts(self.git, "classifier@v0.0.1")
        where = f"s3://{self.bucket}/{place}/classifier/v0.0.1/"
        return [
            each["where"] for each in facts if each["where"].startswith(f"s3://{self.bucket}/{place}/")
        ] == [where]

    def objects(self, place: str) -> dict[str, bytes]:
        """Return every object of a place, read by a client that is none of ours."""
        with self.s3.client() as client:
            listed = client.list_objects_v2(Bucket=self.bucket, Prefix=f"{place}/").get("Contents", ())
            keys = [item["Key"] for item in listed]
            return {
                key[len(place) + 1 :]: client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
                for key in keys
            }

    def parts(self, place: str) -> list[str]:
        """Return the keys of uploads that never ended."""
        with self.s3.client() as client:
            found = client.list_multipart_uploads(Bucket=self.bucket, Prefix=f"{place}/").get("Uploads", ())
        return [item["Key"] for item in found]

    def check_no_half(self, place: str) -> bool:
        """Check that a version that is noted as published is whole; return True if it is noted.

        KServe's storage initializer lists the noted folder, and takes what it finds.
        """
        objects = self.objects(place)
        folder = "classifier/v0.0.1/"
        noted = self.noted(place)
        if noted:
            loaded = download([(key, len(data)) for key, data in objects.items()], folder).files
            assert loaded == {path: len(data) for path, data in FILES.items()}
            assert {path: objects[folder + path] for path in loaded} == FILES
            assert "classifier/manifest-v0.0.1.json" in objects
        return noted

    def state(self, place: str) -> Any:
        """Return all that a verb leaves, with the name of the place and the time taken out."""
        objects = self.objects(place)
        for key in [key for key in objects if "manifest" in key]:
            manifest = json.loads(objects[key].replace(place.encode(), b"PLACE"))
            objects[key] = json.dumps({**manifest, "created": ""}).encode()
        return objects, self.noted(place), self.parts(place)


@pytest.fixture
def world(tmp_path: Path, s3: servers.S3Server) -> World:
    """A model; each publication has a place of its own."""
    return World(tmp_path, s3, f"published-kills-{next(_PLACES)}")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("verb", ["publish", "unpublish", "gc"])
def test_a_verb_killed_at_each_request_is_completed(world: World, verb: str) -> None:
    """It is killed before and after each request and note; the next run leaves what one without a kill leaves."""

    def begin() -> str:
        place = f"place{next(_PLACES):04}"
        if verb != "publish":
            world.register()
            world.run(place, "publish")
        if verb == "gc":
            world.registry.deregister("classifier", "v0.0.1")
        return place

    whole = begin()
    count = world.run(whole, verb)
    expected = world.state(whole)
    noted = set()
    for kill_at in (number / 2 for number in range(2, 2 * count + 2)):
        place = begin()
        world.run(place, verb, kill_at)
        noted.add(world.check_no_half(place))
        world.run(place, verb)
        assert world.state(place) == expected, kill_at
        assert world.check_no_half(place) == (verb == "publish")
    assert noted == {True, False}


@pytest.mark.long
def test_a_publication_outlives_the_clean_up_of_another(world: World) -> None:
    """Another one that ends drops the parts of killed uploads, and those that this one copies; it copies them again."""
    begun, go = _processes.Event(), _processes.Event()
    counted = _processes.Value("i", 0)
    url = f"s3://{world.bucket}/shared"
    slow = _processes.Process(target=act, args=(str(world.root), url, "publish", 0, counted, (begun, go)))
    slow.start()
    try:
        assert begun.wait(120) and world.parts("shared") == ["shared/classifier/v0.0.1/a/large"]
        assert world.run("shared", "publish") and world.parts("shared") == []
        go.set()
        slow.join(120)
        assert slow.exitcode == 0
    finally:
        slow.kill()
    assert world.check_no_half("shared") and world.parts("shared") == []
