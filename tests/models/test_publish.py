"""Published versions: the files of each format, their copies inside the service, and what an interruption leaves."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import servers

from dvkf_prefect.cli import main
from dvkf_prefect.data.remotes import s3_objects
from dvkf_prefect.data.remotes.filesystems import FilesystemStorage
from dvkf_prefect.errors import ConfigError, CorruptObjectError, MissingObjectError, ModelError
from dvkf_prefect.models.facts import read_facts
from dvkf_prefect.models.layouts import FORMATS
from dvkf_prefect.models.places import Place
from dvkf_prefect.models.publishing import publish_version
from dvkf_prefect.models.runtimes import Downloaded, download, loaded_by
from dvkf_prefect.models.unpublishing import collect_published

from .conftest import Project

SKLEARN = b"\x80\x04\x95csklearn.linear_model._logistic\nLogisticRegression\n"
LIGHTGBM = b"tree\nversion=v4\nnum_class=1\n"
UBJ = b"{L\x00\x00\x00\x00\x00\x00\x00\x02i\x07learner{"
JSON = b'{"learner":{"attributes":{}},"version":[2,1,1]}'
TENSOR = "[{name: INPUT__0, type: FP32, dims: [-1, 4]}]"

Files = dict[str, bytes]


def release(project: Project, files: Files, declared: str = "") -> Any:
    """Commit a model of one file or of several, and register it; names with a / are in the folder ``model``."""
    single = len(files) == 1 and not next(iter(files)).startswith("model/")
    path = next(iter(files)) if single else "model"
    shutil.rmtree(project.root / "model", ignore_errors=True)
    for name, data in files.items():
        target = project.root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (project.root / "dvc.yaml").write_text(f"artifacts:\n  classifier: {{path: {path}{declared}}}\n")
    project.repo.add([project.root / path])
    project.commit()
    return project.registry.register("classifier")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "place"


def tree(place: Path, version: str = "v0.0.1") -> dict[str, bytes]:
    folder = place / "classifier" / version
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Format, files, declaration in dvc.yaml, published files (None for those made), name in the URL.
FITTING: list[tuple[str, Files, str, dict[str, str | None], str]] = [
    ("sklearn", {"iris.joblib": b"x"}, "", {"model.joblib": "iris.joblib"}, ""),
    ("sklearn", {"iris.pkl": SKLEARN}, "", {"model.joblib": "iris.pkl"}, ""),
    (
        "sklearn",
        {"model/a.pkl": SKLEARN, "model/names.json": b"[]"},
        "",
        {"model.joblib": "model/a.pkl", "names.json": "model/names.json"},
        "",
    ),
    ("sklearn", {"model.bin": b"x"}, ", labels: [sklearn, iris]", {"model.joblib": "model.bin"}, ""),
    ("sklearn", {"model.bin": b"x"}, ", type: sklearn", {"model.joblib": "model.bin"}, ""),
    ("custom", {"model.bin": b"x"}, ", type: model, meta: {format: custom}", {"model.bin": "model.bin"}, ""),
    ("xgboost", {"a.ubj": UBJ}, "", {"model.ubj": "a.ubj"}, ""),
    ("xgboost", {"a.bst": UBJ}, "", {"model.ubj": "a.bst"}, ""),
    ("xgboost", {"a.json": JSON}, "", {"model.json": "a.json"}, ""),
    ("xgboost", {"a.bst": b"binf"}, ", type: xgboost", {"model.bst": "a.bst"}, ""),
    ("lightgbm", {"a.txt": LIGHTGBM}, "", {"model.bst": "a.txt"}, ""),
    ("lightgbm", {"a.bst": LIGHTGBM}, "", {"model.bst": "a.bst"}, ""),
    (
        "pytorch",
        {"net.pt": b"PK"},
        f", meta: {{inputs: {TENSOR}, outputs: {TENSOR}}}",
        {"classifier/1/model.pt": "net.pt", "classifier/config.pbtxt": None},
        "classifier",
    ),
    (
        "pytorch",
        {"model/net.pt": b"PK", "model/config.pbtxt": b'name: "net"\nmax_batch_size: 8\n'},
        "",
        {"net/1/model.pt": "model/net.pt", "net/config.pbtxt": "model/config.pbtxt"},
        "net",
    ),
    (
        "torchserve",
        {"net.mar": b"PK"},
        "",
        {"model-store/net.mar": "net.mar", "config/config.properties": None},
        "net",
    ),
    (
        "tensorflow",
        {"model/saved_model.pb": b"p", "model/variables/variables.index": b"v"},
        "",
        {
            "1/saved_model.pb": "model/saved_model.pb",
            "1/variables/variables.index": "model/variables/variables.index",
        },
        "",
    ),
    (
        "tensorflow-triton",
        {"model/saved_model.pb": b"p"},
        ", type: tensorflow-triton",
        {"classifier/1/model.savedmodel/saved_model.pb": "model/saved_model.pb", "classifier/config.pbtxt": None},
        "classifier",
    ),
    (
        "onnx",
        {"net.onnx": b"o"},
        "",
        {"classifier/1/model.onnx": "net.onnx", "classifier/config.pbtxt": None},
        "classifier",
    ),
    (
        "triton",
        {"model/m/config.pbtxt": b"", "model/m/1/model.plan": b"p"},
        "",
        {"m/config.pbtxt": "model/m/config.pbtxt", "m/1/model.plan": "model/m/1/model.plan"},
        "m",
    ),
    ("mlflow", {"model/MLmodel": b"m"}, "", {"MLmodel": "model/MLmodel"}, ""),
    (
        "huggingface",
        {"model/config.json": b"{}", "model/tokenizer.json": b"{}", "model/model.safetensors": b"s"},
        "",
        {n: f"model/{n}" for n in ("config.json", "tokenizer.json", "model.safetensors")},
        "",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "files", "declared", "published", "served_as"), FITTING, ids=lambda value: str(value)[:30]
)
def test_files_of_each_format(
    project: Project,
    place: Path,
    name: str,
    files: Files,
    declared: str,
    published: dict[str, str | None],
    served_as: str,
) -> None:
    version = release(project, files, declared)
    done = publish_version(project.registry, version, str(place), allow_empty=name == "triton")
    manifest = done.manifest
    assert (manifest.format, manifest.served_as) == (name, served_as)
    found = tree(place)
    assert {path: files[source] for path, source in published.items() if source} == {
        path: data for path, data in found.items() if published[path]
    }
    assert found.keys() == published.keys()
    # Each runtime of the format loads it, from KServe's own view of the listing.
    assert {loaded.runtime for loaded in done.loaded} == set(FORMATS[name].runtimes)
    assert all(loaded.files for loaded in done.loaded)
    assert {file.path: file.digest for file in manifest.files} == {
        path: hashlib.md5(data).hexdigest() for path, data in found.items()
    }


REFUSED = [
    (
        {"model.bin": b"x"},
        "",
        r"format of model 'classifier' is not known from its files: model.bin. Name it",
    ),
    ({"a.pkl": b"\x80\x04cmine"}, "", "format of model 'classifier' is not known"),
    (
        {"model/a.onnx": b"o", "model/b.pt": b"p"},
        "",
        r"format of model 'classifier' may be onnx or pytorch.*sklearn, xgboost, lightgbm",
    ),
    ({"a.bin": b"x"}, ", labels: [sklearn, onnx]", "may be sklearn or onnx"),
    ({"a.bin": b"x"}, ", meta: {format: sklern}", "format 'sklern' of model 'classifier' is not known"),
    (
        {"model/a.pkl": SKLEARN, "model/b.joblib": b"x"},
        "",
        r"exactly one of \*.joblib, \*.pkl, \*.pickle at its top, and has a.pkl, b.joblib",
    ),
    (
        {"model/a.ubj": UBJ, "model/features.json": b"[]"},
        "",
        r"needs exactly one of \*.ubj, \*.bst, \*.json at its top, and has a.ubj, features.json",
    ),
    ({"net.pt": b"PK"}, "", "Triton cannot derive the inputs of a PyTorch model"),
    (
        {"net.pt": b"PK"},
        ", meta: {inputs: [{name: a}], outputs: [1]}",
        r"has \{'name': 'a'\} among the inputs",
    ),
    ({"a.h5": b"h"}, ", type: tensorflow", "is no SavedModel"),
    ({"a.zip": b"PK"}, ", type: sklearn", "is an archive, which KServe unpacks"),
    ({"a.tar.gz": b"z"}, ", type: mlflow", "'a.tar.gz' is the only file, so the storage initializer unpacks"),
    (
        {"model/a.bin": b"x"},
        ", type: mlflow",
        "kserve-mlserver loads MLmodel at the top of the folder, not a.bin",
    ),
    (
        {"model/config.json": b"{}", "model/m.safetensors": b"s"},
        ", type: huggingface",
        r"loads config.json, a tokenizer and",
    ),
    (
        {"model/MLmodel": b"m", "model/data": b""},
        "",
        r"v0.0.1 has empty files, which KServe 0.17 and later do not download: data. Give them content",
    ),
    ({"model/m/1/model.pt": b"p"}, ", type: triton", "with <model>/config.pbtxt in every folder, not m"),
    ({"net.mar": b""}, "", "has empty files"),
    ({"a.bin": b"x"}, ", type: torchserve", "Make an archive with `torch-model-archiver`"),
]


@pytest.mark.parametrize(("files", "declared", "said"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_no_runtime_would_load_is_refused_before_the_first_copy(
    project: Project, place: Path, files: Files, declared: str, said: str
) -> None:
    version = release(project, files, declared)
    with pytest.raises(ModelError, match=said):
        publish_version(project.registry, version, str(place))
    assert not list(place.rglob("model*")) and not project.registry.show("classifier").stages
    assert read_facts(project.registry.git, "classifier@v0.0.1") == ()


def test_an_empty_module_is_a_module_after_the_download(project: Project, place: Path) -> None:
    files = {"model/MLmodel": b"m", "model/code/pkg/__init__.py": b"", "model/code/pkg/a.py": b"a = 1\n"}
    done = publish_version(project.registry, release(project, files), str(place))
    assert tree(place)["code/pkg/__init__.py"] == b"\n"
    objects = [(file.path, file.size) for file in done.manifest.files]
    assert set(download(objects, "").files) == {"MLmodel", "code/pkg/__init__.py", "code/pkg/a.py"}


@pytest.mark.parametrize(
    ("objects", "path", "skip", "expected"),
    [
        # The prefix is matched as text: a version also gets what a longer one has.
        ({"m/v1/a": 1, "m/v10/b": 1}, "m/v1", True, {"a": 1, "0/b": 1}),
        ({"m/v1/a": 1, "m/v10/b": 1, "m/v1-rc/c": 1}, "m/v1/", True, {"a": 1}),
        ({"m/v1/a": 1, "m/manifest-v1.json": 9}, "m/v1/", True, {"a": 1}),
        ({"m/v1/a": 1, "m/v1/b": 0, "m/v1/": 0}, "m/v1/", True, {"a": 1}),
        ({"m/v1/a": 1, "m/v1/b": 0, "m/v1/": 0}, "m/v1/", False, {"a": 1, "b": 0}),
        ({"m/a.bst": 3}, "m/a.bst", True, {"a.bst": 3}),
    ],
)
def test_the_download_of_a_service(
    objects: dict[str, int], path: str, skip: bool, expected: dict[str, int]
) -> None:
    assert download(objects.items(), path, skip_empty=skip).files == expected


def test_the_download_of_nothing_and_of_an_archive() -> None:
    with pytest.raises(ModelError, match="no model found in m/v1/"):
        download([("m/v1/a", 0)], "m/v1/")
    assert download([("m/a.ZIP", 3)], "m/").archive == "a.ZIP"
    assert download([("m/a.zip", 3), ("m/b", 3)], "m/").archive is None


@pytest.mark.parametrize(
    ("runtime", "kind", "files", "loaded"),
    [
        ("kserve-sklearnserver", "", ["a.pkl", "b.txt", "sub/c.pkl"], ["a.pkl"]),
        ("kserve-sklearnserver", "", ["a.pkl", "b.pickle"], None),
        ("kserve-xgbserver", "", ["model.ubj", "manifest.json"], None),
        ("kserve-lgbserver", "", ["model.txt"], None),
        ("kserve-mlserver", "sklearn", ["a.pkl"], None),
        ("kserve-mlserver", "sklearn", ["model.pkl", "model.joblib"], ["model.joblib"]),
        ("kserve-mlserver", "onnx", ["model.onnx"], None),
        ("kserve-tensorflow-serving", "", ["1/saved_model.pb", "10/saved_model.pb", "9/x"], ["10/"]),
        ("kserve-tensorflow-serving", "", ["saved_model.pb"], None),
        ("kserve-tritonserver", "", ["m/1/model.onnx", "README"], ["m/1/model.onnx"]),
        ("kserve-tritonserver", "", ["m/1/model.onnx", "other/file"], None),
        ("kserve-tritonserver", "", ["m/0/model.onnx"], None),
        ("kserve-tritonserver", "", ["m/1/model.pt"], None),
        ("kserve-tritonserver", "", ["m/2/model.pt", "m/config.pbtxt"], ["m/2/model.pt"]),
        ("kserve-torchserve", "", ["model-store/a.mar"], None),
        ("nothing", "", ["a"], None),
    ],
)
def test_rules_of_the_runtimes(runtime: str, kind: str, files: list[str], loaded: list[str] | None) -> None:
    there = Downloaded(dict.fromkeys(files, 1))
    if loaded is None:
        with pytest.raises(ModelError):
            loaded_by(runtime, there, kind=kind)
    else:
        assert list(loaded_by(runtime, there, kind=kind).files) == loaded


# -- S3 ----------------------------------------------------------------------------------------------------------------


class Bucket:
    """A bucket, with a client that is none of ours."""

    def __init__(self, server: servers.S3Server, name: str) -> None:
        self.server, self.name = server, name
        self.models = f"{server.make_bucket(name)}/models"

    def list(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        with self.server.client() as client:
            found = client.list_objects_v2(Bucket=self.name, Prefix=prefix).get("Contents", ())
        return {item["Key"]: item for item in found}

    def read(self, key: str) -> bytes:
        with self.server.client() as client:
            body: bytes = client.get_object(Bucket=self.name, Key=key)["Body"].read()
        return body

    def write(self, key: str, data: bytes) -> None:
        with self.server.client() as client:
            client.put_object(Bucket=self.name, Key=key, Body=data)


_NUMBER = iter(range(1000))


@pytest.fixture
def bucket(s3: servers.S3Server) -> Bucket:
    return Bucket(s3, f"publish-{next(_NUMBER)}")


@pytest.fixture
def pushed(project: Project, bucket: Bucket) -> Project:
    """A project with an S3 remote and no cache."""
    for key, value in {"url": f"s3://{bucket.name}/dvc", **bucket.server.options()}.items():
        project.repo.config.values["remote"].setdefault("store", {})[key] = value
    project.repo.config.values.setdefault("core", {})["remote"] = "store"
    return project


def push(project: Project) -> None:
    project.repo.push()
    shutil.rmtree(project.repo.cache.root)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys that were uploaded by this machine."""
    keys: list[str] = []
    upload = FilesystemStorage.upload

    def counted(self: FilesystemStorage, key: str, source: Path) -> None:
        keys.append(key)
        upload(self, key, source)

    monkeypatch.setattr(FilesystemStorage, "upload", counted)
    return keys


def test_s3_copies_inside_the_service(pushed: Project, bucket: Bucket, sent: list[str]) -> None:
    pytest.importorskip("sklearn")
    import joblib
    from sklearn.linear_model import LogisticRegression

    trained = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    joblib.dump(trained, buffer := io.BytesIO())
    version = release(pushed, {"iris.joblib": buffer.getvalue()})
    push(pushed)
    done = publish_version(pushed.registry, version, bucket.models)
    assert done.manifest.uri == f"s3://{bucket.name}/models/classifier/v0.0.1/"
    assert (done.copied, done.sent, sent) == (1, 0, ["classifier/manifest-v0.0.1.json"])
    assert f"is published at {done.manifest.uri} as sklearn (1 copied by the service)" in str(done)
    folder = "models/classifier/v0.0.1/"
    assert list(bucket.list(folder)) == [f"{folder}model.joblib"]
    assert bucket.list(folder)[f"{folder}model.joblib"]["ETag"].strip('"') == version.digest
    loaded = joblib.load(io.BytesIO(bucket.read(f"{folder}model.joblib")))
    assert loaded.predict([[0.0], [1.0]]).tolist() == [0, 1]
    manifest = json.loads(bucket.read("models/classifier/manifest-v0.0.1.json"))
    assert (manifest["digest"], manifest["commit"], manifest["format"]) == (
        version.digest,
        version.rev,
        "sklearn",
    )
    assert manifest["runtimes"]["kserve-sklearnserver"] == ["v1", "v2"]
    assert read_facts(pushed.registry.git, "classifier@v0.0.1") == (
        {"kind": "published", "where": done.manifest.uri, "format": "sklearn", "digest": version.digest},
    )
    # Again: nothing is written, and the manifest is the same.
    sent.clear()
    before = bucket.list("models/")
    again = publish_version(pushed.registry, version, bucket.models)
    assert (again.new, again.kept, again.copied, again.manifest, sent) == (False, 1, 0, done.manifest, [])
    assert bucket.list("models/") == before


def test_a_damaged_object_is_not_published(pushed: Project, bucket: Bucket) -> None:
    version = release(pushed, {"iris.joblib": b"right"})
    push(pushed)
    digest = version.digest or ""
    bucket.write(f"dvc/files/md5/{digest[:2]}/{digest[2:]}", b"wrong")
    with pytest.raises(CorruptObjectError, match=r"model.joblib is 2bda2998d9b0ee197da142a0447f6725, not"):
        publish_version(pushed.registry, version, bucket.models)
    assert "models/classifier/manifest-v0.0.1.json" not in bucket.list()


def test_a_tampered_published_file_is_replaced(pushed: Project, bucket: Bucket) -> None:
    version = release(pushed, {"iris.joblib": b"right"})
    push(pushed)
    publish_version(pushed.registry, version, bucket.models)
    bucket.write("models/classifier/v0.0.1/model.joblib", b"wrong")
    done = publish_version(pushed.registry, version, bucket.models)
    assert (done.copied, done.new) == (1, True)
    assert bucket.read("models/classifier/v0.0.1/model.joblib") == b"right"


def test_large_objects_are_copied_in_parts(
    pushed: Project, bucket: Bucket, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_objects, "LARGEST_COPY", 6 << 20)
    monkeypatch.setattr(s3_objects, "PART", 5 << 20)
    data = bytes(range(256)) * (11 << 12)
    version = release(pushed, {"net.bin": data}, ", type: custom")
    push(pushed)
    key, other = "models/classifier/v0.0.1/net.bin", "models/classifier/v0.0.10/net.bin"
    with bucket.server.client() as client:
        for each in (key, other):  # as killed publications leave them
            client.create_multipart_upload(Bucket=bucket.name, Key=each)
    done = publish_version(pushed.registry, version, bucket.models)
    assert (done.copied, sent) == (1, ["classifier/manifest-v0.0.1.json"])
    assert bucket.list(key)[key]["ETag"].strip('"').endswith("-3")
    assert hashlib.md5(bucket.read(key)).hexdigest() == version.digest
    assert not publish_version(pushed.registry, version, bucket.models).new
    with bucket.server.client() as client:
        left = client.list_multipart_uploads(Bucket=bucket.name)["Uploads"]
    assert [upload["Key"] for upload in left] == [other]


def test_another_service_gets_the_files_from_this_machine(
    pushed: Project, place: Path, bucket: Bucket, s3: servers.S3Server
) -> None:
    version = release(pushed, {"model/MLmodel": b"m", "model/a/model.pkl": b"p"})
    push(pushed)
    done = publish_version(pushed.registry, version, str(place))
    assert (done.copied, done.sent) == (0, 2) and "2 sent through this machine" in str(done)
    assert tree(place) == {"MLmodel": b"m", "a/model.pkl": b"p"}
    # To S3 from a repository whose data is in the cache alone.
    pushed.repo.config.values["remote"]["models"] = dict(pushed.repo.config.values["remote"].pop("store"))
    pushed.repo.config.values["core"].pop("remote")
    done = publish_version(pushed.registry, version, "remote://models/models")
    assert done.sent == 2 and bucket.read("dvc/models/classifier/v0.0.1/MLmodel") == b"m"


def test_another_version_whose_name_starts_the_same(pushed: Project, bucket: Bucket) -> None:
    first = release(pushed, {"a.joblib": b"1"})
    push(pushed)
    publish_version(pushed.registry, first, bucket.models)
    (pushed.root / "a.joblib").write_bytes(b"22")
    pushed.repo.add([pushed.root / "a.joblib"])
    pushed.commit()
    second = pushed.registry.register("classifier", version="v0.0.10")
    pushed.repo.push()
    done = publish_version(pushed.registry, second, bucket.models)
    objects = [(key, item["Size"]) for key, item in bucket.list().items()]
    path = done.manifest.uri.removeprefix(f"s3://{bucket.name}/")
    assert download(objects, path).files == {"model.joblib": 2}
    assert download(objects, "models/classifier/v0.0.1/").files == {"model.joblib": 1}


class Killed(BaseException):
    pass


def test_a_publication_killed_anywhere_is_completed(project: Project, place: Path) -> None:
    """At each write to the place: the next run completes it, and the manifest was the last."""
    files = {"model/MLmodel": b"m", "model/b": b"b", "model/c": b"c"}
    version = release(project, files)
    writes: list[str] = []
    from dvkf_prefect.data.remotes.folder import FolderStorage

    with pytest.MonkeyPatch.context() as patch:
        for name in ("upload", "write"):
            original: Callable[..., None] = getattr(FolderStorage, name)

            def killed(self: Any, key: str, what: Any, original: Callable[..., None] = original) -> None:
                if len(writes) == at:
                    raise Killed
                writes.append(key)
                original(self, key, what)

            patch.setattr(FolderStorage, name, killed)
        for at in range(4):
            shutil.rmtree(place, ignore_errors=True)
            writes.clear()
            with pytest.raises(Killed):
                publish_version(project.registry, version, str(place))
            assert Place(project.repo, str(place)).manifest("classifier", "v0.0.1") is None
            done_before, at = list(writes), 100
            done = publish_version(project.registry, version, str(place))
            assert (done.kept, done.sent, done.new) == (len(done_before), 3 - len(done_before), True)
            assert tree(place) == {"MLmodel": b"m", "b": b"b", "c": b"c"}
            assert writes[-1] == "classifier/manifest-v0.0.1.json" and len(writes) == 4


def test_what_a_published_version_refuses(project: Project, place: Path, tmp_path: Path) -> None:
    version = release(project, {"a.joblib": b"1"})
    publish_version(project.registry, version, str(place))
    with pytest.raises(
        ModelError, match=r"is published at file://.* with format sklearn, and a service may use it"
    ):
        publish_version(project.registry, version, str(place), as_format="custom")
    other = tmp_path / "other"
    (other / "classifier" / "v0.0.1").mkdir(parents=True)
    (other / "classifier" / "v0.0.1" / "b.pkl").write_bytes(b"2")
    with pytest.raises(
        ModelError, match=r"holds other files, which a runtime could load: b.pkl. Remove them"
    ):
        publish_version(project.registry, version, str(other))
    with pytest.raises(ModelError, match="'lightning' of model 'classifier' is not known"):
        publish_version(project.registry, version, str(place), as_format="lightning")
    project.repo.config.values["remote"]["store"] = {"url": str(tmp_path / "store")}
    with pytest.raises(ConfigError, match=r"is among the data of remote 'store'.*remote://store/models"):
        publish_version(project.registry, version, "remote://store/files/models")
    shutil.rmtree(project.repo.cache.root)
    with pytest.raises(
        MissingObjectError, match=r"is not in the cache, and there is no default remote. Add a remote"
    ):
        publish_version(project.registry, version, str(other))


def test_libraries_read_what_is_published(project: Project, place: Path, tmp_path: Path) -> None:
    """The files under their fixed names, by the calls of the runtimes."""
    numpy = pytest.importorskip("numpy")
    xgboost, lightgbm = pytest.importorskip("xgboost"), pytest.importorskip("lightgbm")
    x, y = numpy.arange(40.0).reshape(20, 2), numpy.arange(20) % 2
    booster = xgboost.train({"max_depth": 2, "nthread": 1}, xgboost.DMatrix(x, y), 2)
    trees = lightgbm.train(
        {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 1}, lightgbm.Dataset(x, y), 2
    )
    for number, (name, save) in enumerate(
        (
            ("a.ubj", booster.save_model),
            ("a.json", booster.save_model),
            ("a.txt", trees.save_model),
        ),
        start=1,
    ):
        save(str(tmp_path / name))
        version = release(project, {name: (tmp_path / name).read_bytes()})
        done = publish_version(project.registry, version, str(place))
        (file,) = done.manifest.files
        path = place / "classifier" / f"v0.0.{number}" / file.path
        if name == "a.txt":  # kserve: lightgbm.Booster(model_file=...)
            assert numpy.allclose(lightgbm.Booster(model_file=str(path)).predict(x), trees.predict(x))
        else:  # kserve: xgboost.Booster(model_file=...)
            found = xgboost.Booster(model_file=str(path)).predict(xgboost.DMatrix(x))
            assert numpy.allclose(found, booster.predict(xgboost.DMatrix(x)))


def test_the_folder_of_a_zip_is_not_unpacked(project: Project, place: Path) -> None:
    """A container of its own gets the archive's content, as KServe unpacks it."""
    zipfile.ZipFile(buffer := io.BytesIO(), "w").writestr("a", "b")
    version = release(project, {"a.zip": buffer.getvalue() or b"PK"}, ", type: custom")
    done = publish_version(project.registry, version, str(place))
    assert [loaded.files for loaded in done.loaded] == [("a.zip",)]


def test_the_command_line_knows_the_formats() -> None:
    from dvkf_prefect.cli import models

    assert set(models._FORMATS) == FORMATS.keys()


def test_the_command_line(
    project: Project, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version = release(project, {"a.joblib": b"1"})
    monkeypatch.chdir(project.root)
    assert main(["model", "publish", "classifier"]) == 251
    assert (
        "no place of published versions. Give its address, or set DVKF_MODELS_URL." in capsys.readouterr().err
    )
    assert main(["model", "publish", "classifier@v0.0.1", "--to", str(place)]) == 0
    assert f"is published at file://{place}/classifier/v0.0.1/ as sklearn" in capsys.readouterr().out
    monkeypatch.setenv("DVKF_MODELS_URL", str(place))
    assert main(["model", "publish", "classifier", "--json", "--format", "sklearn"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["uri"], shown["new"]) == (f"file://{place}/classifier/v0.0.1/", False)
    assert shown["files"] == {"model.joblib": 1} and shown["digest"] == version.digest
    with pytest.raises(SystemExit):
        main(["model", "publish", "classifier", "--format", "nothing"])
    assert main(["lineage", "classifier"]) == 0
    assert f"published:     file://{place}/classifier/v0.0.1/" in capsys.readouterr().out


def test_s3_removes_a_version_and_nothing_that_starts_like_it(pushed: Project, bucket: Bucket) -> None:
    for number in (1, 2):
        version = release(pushed, {"model.bin": b"%d" % number}, ", meta: {format: custom}")
        push(pushed)
        publish_version(pushed.registry, version, bucket.models)
    pushed.registry.register("classifier", version="v0.0.10", rev=pushed.train("ten"))
    push(pushed)
    publish_version(pushed.registry, pushed.registry.show("classifier", "v0.0.10"), bucket.models)
    pushed.registry.deregister("classifier", "v0.0.1")
    found = collect_published(pushed.registry, bucket.models, grace=0, dry_run=False)
    assert [(each.version, each.removed) for each in found.versions] == [
        ("v0.0.1", True),
        ("v0.0.10", False),
        ("v0.0.2", False),
    ]
    names = [f"models/classifier/{v}" for v in ("manifest-v0.0.10.json", "manifest-v0.0.2.json")]
    names += [f"models/classifier/{v}/model.bin" for v in ("v0.0.10", "v0.0.2")]
    assert list(bucket.list("models/")) == names
