import json, subprocess, pytest
from dvkf_prefect import KubeflowPipelines, DataRepository
from .test_repro_cluster_flow import *
from .test_repro_cluster_flow import start, kfp, pipeline, cluster
from .test_repro_flow import Pipeline
from .conftest import git

S = """\
prepare: {cmd: "cat in/a > rows", deps: [in], outs: [rows]}
train: {cmd: "cat rows rows > model", deps: [rows], outs: [model]}
report: {cmd: "echo '{\\"acc\\": 1}' > m.json", deps: [model], metrics: [m.json: {cache: false}]}
"""

@pytest.mark.parametrize("fetch", [False, True])
def test_train(pipeline, kfp, fetch):
    import sys
    sys.path.insert(0, "flows")
    from train import train
    pipeline.write(S)
    with open(pipeline.root/"dvc.yaml", "a") as f:
        f.write("artifacts:\n  m: {path: model, type: model}\n")
    git(pipeline.root, "add", "--all"); git(pipeline.root, "commit", "--quiet", "--message", "Stages")
    DataRepository(path=str(pipeline.root)).save("rr", overwrite=True)
    cluster(kfp, pipeline, fetch=fetch).save("pp", overwrite=True)
    for n in range(3):
        if n == 2:
            (pipeline.root/"in/a").write_text("zzz\n"); pipeline.repo.add(["in"])
        s = train(repository="rr", pipelines="pp", model="m", metric="acc", minimum=0.5, stage="prod")
        print("SUMMARY", n, json.dumps(s, default=str))
        print(git(pipeline.root, "status", "--short"))
        print(sorted(p.name for p in pipeline.root.iterdir()))
        print(subprocess.run(["dvc", "status"], cwd=pipeline.root, capture_output=True, text=True).stdout)
    from dvkf_prefect.data.repo import Repo
    print(pipeline.repo.diff("HEAD", None))
    from dvkf_prefect.models.registry import ModelRegistry
    r = ModelRegistry(pipeline.repo)
    try: print("MAT", r.materialise(r.show("m"), pipeline.root.parent / "out"))
    except Exception as e: print("MATERR", repr(e))
    print(pipeline.repo.pull())
    print(subprocess.run(["dvc", "status"], cwd=pipeline.root, capture_output=True, text=True).stdout)
    print(pipeline.repo.push(run_cache=True))
