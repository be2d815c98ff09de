"""The volume that pods of a run share: read before the remote, verified, and never needed."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from dvkf_prefect.cli import main
from dvkf_prefect.data.cache.cache import Cache
from dvkf_prefect.data.remotes import open_storage
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.errors import ConfigError
from dvkf_prefect.formats.objects import object_key
from dvkf_prefect.formats.tree import Tree
from dvkf_prefect.kubeflow.cluster.runner import ClusterSettings, KfpClusterRunner
from dvkf_prefect.kubeflow.compile.pod_settings import parse_defaults
from dvkf_prefect.kubeflow.compile.workspace import check_workspace, parse_workspace
from dvkf_prefect.kubeflow.exchange.objects import RemoteObjects, volume_at

from .fake import VERSIONS, platform

every_version = pytest.mark.parametrize("version", VERSIONS)
VOLUME = {"size": "1Gi", "access_mode": "ReadWriteMany", "storage_class": "nfs"}


class Disk:
    """A remote and a volume, and pods that write to them and read from them."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.mount = folder / "mount"
        self.mount.mkdir()
        self.remote = Remote("store", open_storage(str(folder / "store"), {}, name="store"))
        self.pods = 0

    def pod(self, *, keep: bool = True) -> RemoteObjects:
        self.pods += 1
        cache = Cache(self.folder / f"pod-{self.pods}" / "cache")
        return RemoteObjects(self.remote, cache, volume=volume_at(str(self.mount)), keep=keep)

    def written(self, *, keep: bool = True) -> str:
        """Digest of a directory that a pod wrote."""
        objects = self.pod(keep=keep)
        files = []
        for name in ("a", "b"):
            file = self.folder / name
            file.write_text(name * 100)
            files.append((name, objects.add_file(file)))
        digest = objects.add_tree(Tree.from_pairs(files))
        objects.flush()
        return digest

    def read(self, digest: str, objects: RemoteObjects | None = None) -> dict[str, str]:
        objects = objects or self.pod()
        objects.prepare([digest])
        place = self.folder / f"out-{self.pods}"
        objects.export(digest, place)
        return {file.name: file.read_text() for file in place.iterdir()}

    def on_volume(self, digest: str):
        return self.mount / "dvkf" / object_key(digest)

    def on_remote(self, digest: str):
        return self.folder / "store" / object_key(digest)


@pytest.fixture
def disk(tmp_path) -> Disk:
    return Disk(tmp_path)


CONTENT = {"a": "a" * 100, "b": "b" * 100}


def test_outputs_are_on_the_volume_and_on_the_remote(disk):
    digest = disk.written()
    objects = disk.pod()
    for each in [digest, *objects.read_tree(digest).digests]:
        assert disk.on_volume(each).is_file() and disk.on_remote(each).is_file()
        if each != digest:
            disk.on_remote(each).unlink()  # so the bytes can come from the volume only
    assert disk.read(digest) == CONTENT


@pytest.mark.parametrize("damage", ["missing", "wrong", "empty", "tree", "folder"])
def test_what_the_volume_lacks_or_has_wrong_comes_from_the_remote(disk, damage, caplog):
    digest = disk.written()
    file = disk.on_volume(disk.pod().read_tree(digest).digests[0])
    if damage == "missing":
        file.unlink()
    elif damage == "folder":
        shutil.rmtree(disk.mount / "dvkf")
    else:
        place = disk.on_volume(digest) if damage == "tree" else file
        place.chmod(0o644)
        place.write_bytes(b"" if damage == "empty" else b"other bytes")
    assert disk.read(digest) == CONTENT
    if damage in ("wrong", "tree"):
        assert "on the volume of the run is not usable" in caplog.text
        # A damaged object is removed, so that no later stage reads it again.
        assert not (disk.on_volume(digest) if damage == "tree" else file).exists()


def test_a_volume_that_cannot_be_written_or_read_fails_no_stage(disk, monkeypatch, caplog):
    (disk.mount / "dvkf").write_text("a file in place of the folder")
    digest = disk.written()
    assert "later stages download them" in caplog.text
    assert disk.read(digest) == CONTENT
    assert volume_at("") is None and volume_at(str(disk.mount / "not-mounted")) is None


def test_only_what_later_stages_read_is_kept(disk):
    digest = disk.written(keep=False)
    assert not disk.on_volume(digest).exists() and disk.on_remote(digest).is_file()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": "1Gi"}, "'access_mode' is missing"),
        ({**VOLUME, "size": "4K"}, "'size': expected a quantity"),
        (
            {**VOLUME, "access_mode": "ReadOnlyMany"},
            "'access_mode': expected one of ReadWriteOnce, ReadWriteMany",
        ),
        ({**VOLUME, "class": "x"}, "'class': unknown setting"),
        ({**VOLUME, "storage_class": ""}, "'storage_class': expected the name"),
    ],
)
def test_a_workspace_that_the_server_would_refuse_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_workspace(values)


@pytest.mark.parametrize(
    ("version", "workspace", "message"),
    [
        ((2, 5), {"size": "1Gi"}, 'unknown field "pipelineConfig"'),
        ((2, 17), {}, "size is required"),
        ((2, 17), {"size": "1 Gi"}, "invalid size"),
        ((2, 17), {"size": "1Gi"}, "must specify accessModes"),
        (
            (2, 17),
            {
                "size": "1Gi",
                "kubernetes": {"pvcSpecPatch": {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}},
            },
            "storageClassName must be omitted",
        ),
        ((2, 14), {"size": "1Gi", "kubernetes": {"pvcSpecPatch": {"accessModes": ["ReadWriteOnce"]}}}, ""),
    ],
)
def test_the_fake_server_refuses_the_claims_that_a_server_refuses(version, workspace, message):
    """v2/compiler/argocompiler/argo.go, GetWorkspacePVC"""
    spec = {"platforms": {"kubernetes": {"pipelineConfig": {"workspace": workspace}}}}
    problem = platform.pipeline_problem(spec, version)
    assert message in problem if message else not problem
    assert platform.mounts_workspace(spec, version) == (version >= (2, 15))
    clash = {"pvcMount": [{"pvcName": "a", "mountPath": "/kfp-workspace/a"}]}
    assert "conflicts with workspace" in platform.driver_problem({}, clash, version, workspace=True)
    assert not platform.driver_problem({}, clash, version)


def test_a_pod_may_mount_nothing_else_there():
    for values in (
        {"volumes": [{"claim": "a", "mount": "/kfp-workspace/a"}]},
        {"ephemeral_volumes": [{"name": "kfp-workspace", "mount": "/a", "size": "1Gi"}]},
    ):
        with pytest.raises(ConfigError, match="the pod of stage 'train' mounts"):
            check_workspace({"train": parse_defaults(values)}, None)


@every_version
def test_stages_of_a_run_share_the_volume_where_the_server_mounts_it(project, kfp, settings, version):
    settings = dataclasses.replace(settings, workspace=parse_workspace(VOLUME))
    with KfpClusterRunner(project.repo, settings) as runner:
        if version != "2.17":
            with pytest.raises(ConfigError, match=f"Kubeflow Pipelines {version}, which mounts it in no pod"):
                runner.start_all(project.steps())["report"].wait(60)
            assert not kfp.workflows
            return
        runs = runner.start_all(project.steps())
        results = {stage: run.wait(60) for stage, run in runs.items()}
    config = kfp.run.body["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["pipelineConfig"]
    assert config["workspace"] == {
        "size": "1Gi",
        "kubernetes": {"pvcSpecPatch": {"accessModes": ["ReadWriteMany"], "storageClassName": "nfs"}},
    }
    kept = kfp.folder / kfp.workflows[0].name / "workspace" / "dvkf"
    for stage, there in (("prepare", True), ("train", True), ("report", False)):
        assert all((kept / object_key(out.digest)).is_file() == there for out in results[stage].outs)


def test_an_exported_pipeline_has_the_volume(project, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("DVKF_KUBEFLOW_IMAGE", "a:1")
    file = tmp_path / "pipeline.yaml"
    command = ["export", "kfp", "-o", str(file), "--remote-secret", "s", "--remote-secret-key", "k=password"]
    volume = [f"--workspace={key}={value}" for key, value in VOLUME.items()]
    assert main([*command, *volume]) == 0
    assert "2.15 or newer" in capsys.readouterr().out
    text = file.read_text()
    assert "accessModes" in text and "/kfp-workspace" in text
    assert main([*command, "--workspace", "size=1Gi"]) != 0
    assert "'access_mode' is missing" in capsys.readouterr().err


def test_the_block_takes_it():
    options = {"host": "http://localhost", "workspace": VOLUME}
    assert ClusterSettings.from_options(options).workspace == parse_workspace(VOLUME)
    assert ClusterSettings.from_options({"host": "http://localhost", "workspace": {}}).workspace is None


def test_the_environment_takes_it():
    said = {
        "DVKF_KUBEFLOW_HOST": "http://h",
        "DVKF_KUBEFLOW_WORKSPACE": "size=5Gi, access_mode=ReadWriteMany,storage_class=nfs",
    }
    found = ClusterSettings.from_environment(said)
    assert found is not None
    assert found.workspace == parse_workspace(
        {"size": "5Gi", "access_mode": "ReadWriteMany", "storage_class": "nfs"}
    )
    for value, problem in (("5Gi", "'5Gi' is no pair of key and value"), ("size=5Gi,colour=red", "'colour'")):
        with pytest.raises(ConfigError, match=problem):
            ClusterSettings.from_environment({**said, "DVKF_KUBEFLOW_WORKSPACE": value})
