"""Compare with `dvc` and with what the disk and the network allow, in turn, on the same data: make bench.

Every figure is the wall time of a whole process; a ratio is the median over pairs of runs. Writes RESULTS.md beside
this file, a section for each group that was run, and the first group's table into the README.

    python tests/benchmarks/run.py [GROUP ...] [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import random
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from contest import Contender, Row, compete, table

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("RESULTS.md")
BEGIN, END = "<!-- benchmark: made by make bench -->", "<!-- end of benchmark -->"
WALK = "import os\nf=['data']\nfor d in f:\n for e in os.scandir(d):\n  f.append(e.path) if e.is_dir() else e.stat()"


def sh(*command: str, cwd: Path) -> None:
    """Run a command that must work."""
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def make_repository(root: Path, name: str) -> Path:
    """Make a repository with a folder remote of its own."""
    repo = root / name
    repo.mkdir(parents=True)
    sh("git", "init", "-q", cwd=repo)
    sh("dvc", "init", "-q", cwd=repo)
    sh("dvc", "config", "core.site_cache_dir", str(root / f"{name}-site"), cwd=repo)
    sh("dvc", "remote", "add", "-q", "-d", "store", str(root / f"{name}-store"), cwd=repo)
    return repo


def content(number: int, size: int) -> bytes:
    """Return pseudo-random bytes."""
    seed = hashlib.sha512(str(number).encode()).digest()
    return (seed * (size // 64 + 1))[:size]


def fill(folder: Path, files: int, size: int) -> None:
    """Write files of one size, 1,000 a folder."""
    for number in range(files):
        if number % 1000 == 0:
            part = folder / f"{number // 1000:04}"
            part.mkdir(parents=True)
        (part / f"{number:07}.bin").write_bytes(content(number, size))


def fill_like_imagenet(folder: Path, files: int) -> None:
    """Write files of about 110 KB, log-normal as pictures are, 50 a folder."""
    sizes = random.Random(1)
    for number in range(files):
        if number % 50 == 0:
            part = folder / f"n{number // 50:08}"
            part.mkdir(parents=True)
        size = min(2_000_000, int(sizes.lognormvariate(11.4, 0.6)))
        (part / f"n{number // 50:08}_{number}.JPEG").write_bytes(content(number, size))


def forget(repo: Path, *names: str) -> None:
    """Move parts of a repository aside.

    They are not deleted before the end: ext4 does not use an inode again for a minute or more after its file was
    deleted, and creating files next to many such inodes takes ten times as long, whoever creates them.
    """
    aside = repo.parent / "aside"
    aside.mkdir(exist_ok=True)
    for name in names:
        path = repo / name
        if path.exists():
            path.rename(aside / f"{time.monotonic_ns()}")


def start_up(root: Path, rounds: int) -> list[Row]:
    """Start-up of a process, outside and inside a repository."""
    ours, theirs = make_repository(root, "start-dvkf"), make_repository(root, "start-dvc")
    return [
        compete(
            work,
            [Contender("dvkf", ["dvkf", verb], ours), Contender("dvc", ["dvc", verb], theirs)],
            9,
            goal=goal,
        )
        for work, verb, goal in (("--version", "--version", 3), ("status, empty repository", "status", 5))
    ]


class Files:
    """The verbs on one directory of files.

    Args:
        root: Where to work.
        name: What the data is, for the table.
        make: Fills a folder.
        rounds: Runs of each.
        versus: The tools; without dvc only ours runs.
    """

    def __init__(
        self,
        root: Path,
        name: str,
        make: Callable[[Path], None],
        rounds: int,
        versus: tuple[str, ...] = ("dvkf", "dvc"),
    ) -> None:
        self.name = name
        self.rounds = rounds
        self.root = root
        self.sides = {
            tool: make_repository(root, f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{tool}")
            for tool in versus
        }
        for repo in self.sides.values():
            make(repo / "data")

    def row(
        self,
        work: str,
        verb: str,
        goal: float | None,
        prepare: Callable[[Path], None] = lambda repo: None,
        limit: tuple[str, str, float] | None = None,
    ) -> Row:
        """Run a verb with both tools, and what stands for the limit: its name, its command and its goal."""
        contenders = []
        for tool, repo in self.sides.items():

            def ready(repo: Path = repo) -> None:
                prepare(repo)

            contenders.append(Contender(tool, [tool, *verb.split()], repo, ready))
        if limit:
            repo = self.sides["dvkf"]
            command = (
                limit[1].replace("{aside}", "../aside/$(date +%s%N)").replace("{python}", sys.executable)
            )
            (self.root / "aside").mkdir(exist_ok=True)
            contenders.append(Contender(limit[0], ["sh", "-c", command], repo))
        return compete(
            f"{work}, {self.name}",
            contenders,
            self.rounds,
            goal=goal,
            limit_goal=limit[2] if limit else None,
            warm_up=self.rounds > 1,
        )

    def change_one(self, repo: Path) -> None:
        """Change one file to something that it never was."""
        next((repo / "data").rglob("*.*")).write_text(str(time.monotonic_ns()))

    def unknown(self, repo: Path) -> None:
        """As before the first add."""
        forget(repo, ".dvc/cache", ".dvc/tmp", f"../{repo.name}-site", "data.dvc")

    def run(self) -> list[Row]:
        """Measure every verb."""
        copy = "cp -r data {aside}"

        def unpushed(repo: Path) -> None:
            forget(repo, f"../{repo.name}-store", f"../{repo.name}-site")

        def uncached(repo: Path) -> None:
            forget(repo, ".dvc/cache", "data", f"../{repo.name}-site", ".dvc/tmp")

        def changed(repo: Path) -> None:
            self.change_one(repo)

        def changed_and_added(repo: Path) -> None:
            self.change_one(repo)
            sh("dvkf", "add", "-q", "data", cwd=repo)

        md5 = f"{copy} && find data -type f -print0 | xargs -0 md5sum"
        walk = "{python} -I -S -c " + shlex.quote(WALK)
        rows = [
            self.row("add", "add data", 8, self.unknown, ("cp -r and md5sum", md5, 1.5)),
            self.row("status, clean", "status", 20, limit=("a walk with stat", walk, 3)),
            self.row("push to a folder, first", "push", 8, unpushed, ("cp -r", copy, 1.3)),
            self.row("push to a folder, nothing new", "push", 20),
            self.row(
                "checkout, full", "checkout", 6, lambda repo: forget(repo, "data"), ("cp -r", copy, 1.3)
            ),
            self.row("checkout, nothing to do", "checkout", 15),
            self.row("pull from a folder, cold", "pull", 15, uncached, ("cp -r", copy, 1.5)),
        ]
        rows += [
            self.row("add after one file changed", "add data", 20, changed),
            self.row("push after one file changed", "push", 20, changed_and_added),
        ]
        return rows


def many_files(root: Path, rounds: int) -> list[Row]:
    """20,000 files of 4 KB."""
    return Files(root, "20,000 x 4 KB", lambda folder: fill(folder, 20_000, 4096), rounds).run()


def more_files(root: Path, rounds: int) -> list[Row]:
    """100,000 files of 1 KB, each once."""
    return Files(root, "100,000 x 1 KB", lambda folder: fill(folder, 100_000, 1000), 1).run()


def pictures(root: Path, rounds: int) -> list[Row]:
    """A mix of sizes as ImageNet's, 550 MB."""
    return Files(root, "5,000 pictures", lambda folder: fill_like_imagenet(folder, 5000), rounds).run()


def large_file(root: Path, rounds: int) -> list[Row]:
    """One file of 4 GB."""
    source = root / "large"
    with source.open("wb") as stream:
        for number in range(4096):
            stream.write(random.Random(number).randbytes(1 << 20))

    def make(folder: Path) -> None:
        os.link(source, folder)

    files = Files(root, "4 GB file", make, rounds)

    def delete(repo: Path, *names: str) -> None:
        # A few files only: what forget() avoids does not arise, and the disk is not filled.
        for name in names:
            subprocess.run(["rm", "-rf", str(repo / name)], check=True)
        os.sync()

    def unknown(repo: Path) -> None:
        delete(repo, ".dvc/cache", ".dvc/tmp", f"../{repo.name}-site", "data.dvc")

    def unpushed(repo: Path) -> None:
        delete(repo, f"../{repo.name}-store", f"../{repo.name}-site")

    def uncached(repo: Path) -> None:
        delete(repo, ".dvc/cache", "data", f"../{repo.name}-site", ".dvc/tmp")

    # One read and one write of the data; the copy is removed, unmeasured by the next.
    limit = (
        "cat and cp",
        "cat data > /dev/null && cp --reflink=never data ../aside/large && rm ../aside/large",
        1.2,
    )
    twice = (
        "cat and 2 cp",
        limit[1].replace("rm ", "cp --reflink=never data ../aside/b && rm ../aside/b "),
        1.2,
    )
    return [
        files.row("add", "add data", 1.5, unknown, limit),
        files.row("push to a folder", "push", 1.5, unpushed, limit),
        files.row("pull from a folder", "pull", 1.5, uncached, twice),
    ]


def million(root: Path, rounds: int) -> list[Row]:
    """1,000,000 files of 100 B, each verb once, beside 100,000 of them."""
    rows = []
    for count in (100_000, 1_000_000):
        files = Files(root, f"{count:,} x 100 B", lambda folder, n=count: fill(folder, n, 100), 1, ("dvkf",))
        for work, verb in (
            ("add", "add data"),
            ("status, clean", "status"),
            ("push to a folder, first", "push"),
            ("push to a folder, nothing new", "push"),
        ):
            rows.append(files.row(work, verb, None))
        rows.append(files.row("checkout, full", "checkout", None, lambda repo: forget(repo, "data")))
    for small, big in zip(rows[:5], rows[5:], strict=True):
        ratio = big.seconds["dvkf"] / small.seconds["dvkf"]
        print(
            f"{big.work}: {ratio:.1f} x the time of 100,000 (goal 12 x), {big.memory['dvkf']:.0f} MB (goal 1,500)"
        )
    return rows


def s3(root: Path, rounds: int) -> list[Row]:
    """4,000 files of 4 KB against SeaweedFS on loopback, with s5cmd and s3fs beside."""
    sys.path.insert(0, str(ROOT / "tests"))
    from servers import seaweedfs

    (root / "weed").mkdir()
    with seaweedfs(root / "weed") as server:
        options = server.options()
        keys = {
            "AWS_ACCESS_KEY_ID": options["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": options["secret_access_key"],
        }
        endpoint = options["endpointurl"]
        files = Files(root, "4,000 x 4 KB on S3", lambda folder: fill(folder, 4000, 4096), rounds)
        for tool, repo in files.sides.items():
            server.make_bucket(f"bench-{tool}")
            for name, value in {"url": f"s3://bench-{tool}/start", **options}.items():
                sh("dvc", "remote", "modify", "-q", "store", name, value, cwd=repo)
            sh("dvkf", "add", "-q", "data", cwd=repo)
        server.make_bucket("bench-peers")

        def unpushed(repo: Path) -> None:
            tool = repo.name.rsplit("-", 1)[1]
            forget(repo, f"../{repo.name}-site")
            sh(
                "dvc",
                "remote",
                "modify",
                "-q",
                "store",
                "url",
                f"s3://bench-{tool}/{time.monotonic_ns()}",
                cwd=repo,
            )

        def uncached(repo: Path) -> None:
            forget(repo, ".dvc/cache", "data", f"../{repo.name}-site", ".dvc/tmp")

        s5 = f"s5cmd --endpoint-url {endpoint} cp"
        s3fs = (
            "{python} -c \"import s3fs; f = s3fs.S3FileSystem(client_kwargs={'endpoint_url': '"
            + endpoint
            + "'}, max_concurrency=32); f."
        )
        os.environ.update(keys)
        sh("sh", "-c", f"{s5} data/ s3://bench-peers/there/", cwd=files.sides["dvkf"])
        put = "put('data', 'bench-peers/fs/$(date +%s%N)', recursive=True)\""
        get = "get('bench-peers/there/', '../aside/$(date +%s%N)/', recursive=True)\""
        rows = [
            files.row(
                "push, first",
                "push",
                4,
                unpushed,
                ("s5cmd", f"{s5} data/ s3://bench-peers/$(date +%s%N)/", 1),
            ),
            files.row("push, nothing new", "push", 10),
            files.row(
                "pull, cold", "pull", 6, uncached, ("s5cmd", f"{s5} 's3://bench-peers/there/*' {{aside}}/", 1)
            ),
        ]
        rows += [
            files.row("push, first (s3fs beside)", "push", None, unpushed, ("s3fs put", s3fs + put, 1)),
            files.row("pull, cold (s3fs beside)", "pull", None, uncached, ("s3fs get", s3fs + get, 1)),
        ]
        return rows


def stages(root: Path, rounds: int) -> list[Row]:
    """repro of 200 stages of which none changed."""
    sides = {tool: make_repository(root, f"stages-{tool}") for tool in ("dvkf", "dvc")}
    for repo in sides.values():
        (repo / "in").write_text("in")
        lines = ["stages:"]
        for n in range(200):
            dep = "in" if n % 20 == 0 else f"o{n - 1}"
            lines += [
                f"  s{n}:",
                f"    cmd: cp {dep} o{n}",
                "    deps:",
                f"    - {dep}",
                "    outs:",
                f"    - o{n}",
            ]
        (repo / "dvc.yaml").write_text("\n".join(lines) + "\n")
        sh("dvkf", "repro", "-q", cwd=repo)
        sh("dvc", "repro", "-q", cwd=repo)
    contenders = [Contender(tool, [tool, "repro"], repo) for tool, repo in sides.items()]
    return [compete("repro of 200 stages, nothing changed", contenders, rounds, goal=10)]


def dvc_suite(root: Path, rounds: int) -> list[Row]:
    """DVC's own benchmark suite (dvc.testing.benchmarks) on 3,000 files, without experiments and plots."""
    found = importlib.util.find_spec("dvc.testing.benchmarks")
    assert found and found.origin
    data = make_repository(root, "dataset")
    fill(data / "data/tiny/dataset", 3000, 2000)
    sh("dvc", "add", "-q", "data/tiny/dataset", cwd=data)
    sh("dvc", "push", "-q", cwd=data)
    sh("git", "add", "-A", cwd=data)
    sh(
        "git",
        "-c",
        "user.name=bench",
        "-c",
        "user.email=bench@example.org",
        "commit",
        "-qm",
        "data",
        cwd=data,
    )
    medians: dict[str, dict[str, float]] = {}
    for tool in ("dvkf", "dvc"):
        report = root / f"{tool}.json"
        sh(
            *(
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "-W",
                "ignore",
                "--dvc-bin",
                tool,
            ),
            *(
                "--dvc-bench-repo",
                str(data),
                f"--benchmark-json={report}",
                "-k",
                "not exp_show and not plots",
            ),
            str(Path(found.origin).parent / "cli"),
            cwd=root,
        )
        for one in json.loads(report.read_text())["benchmarks"]:
            name = one["name"].removesuffix("[None]").removeprefix("test_")
            medians.setdefault(name, {})[tool] = one["stats"]["median"]
    rows = [
        Row(name, both, {}, {"dvc": both["dvc"] / both["dvkf"]}, None, None) for name, both in medians.items()
    ]
    for row in rows:
        print(
            f"{row.work}: dvkf {row.seconds['dvkf']:.3f} s, dvc {row.seconds['dvc']:.3f} s, {row.ratios['dvc']:.1f} x"
        )
    return rows


GROUPS = {
    "files": many_files,
    "start": start_up,
    "more": more_files,
    "pictures": pictures,
    "large": large_file,
    "s3": s3,
    "stages": stages,
    "suite": dvc_suite,
    "million": million,
}


def write(done: dict[str, str]) -> None:
    """Write the sections that were made, and keep the others."""
    known = dict(re.findall(r"^## (\w+): .*\n\n((?:.*\n)*?)(?=^## |\Z)", RESULTS.read_text(), re.MULTILINE))
    known.update(done)
    parts = [
        "# Benchmark results\n\nMade by `make bench`: wall time of whole processes in turn, medians; a ratio is the "
        "median over the pairs of runs. Memory is the peak of the largest process. Goals are those of the project's "
        "design.\n"
    ]
    for name, function in GROUPS.items():
        if name in known:
            title = (function.__doc__ or "").strip().rstrip(".")
            parts.append(f"## {name}: {title}\n\n{known[name].strip()}\n")
    RESULTS.write_text("\n".join(parts))
    if "files" in done:
        readme = ROOT / "README.md"
        before, _, rest = readme.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        rows = done["files"].split("\n\n")[1]
        readme.write_text(f"{before}{BEGIN}\n{rows}\n{END}{after}")


def main() -> None:
    """Measure, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; 40 GB of room are needed for all groups")
    options = parser.parse_args()
    os.environ.update(DVC_NO_ANALYTICS="1", DO_NOT_TRACK="1", GIT_CONFIG_GLOBAL=os.devnull)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    version = subprocess.run(["dvc", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    with contextlib.ExitStack() as ended:
        # Nothing is deleted before all is measured, see forget().
        for name in options.groups or GROUPS:
            folder = ended.enter_context(
                tempfile.TemporaryDirectory(prefix="dvkf-bench-", dir=options.folder)
            )
            os.environ["HOME"] = folder
            print(f"-- {name}", flush=True)
            rows = GROUPS[name](Path(folder), options.rounds)
            missed = [f"- {row.work}: {'; '.join(row.missed)}" for row in rows if row.missed]
            text = f"{options.rounds} rounds; {machine}, dvc {version}.\n\n{table(rows)}\n"
            write({name: text + ("\nShort of its goal:\n\n" + "\n".join(missed) + "\n" if missed else "")})


if __name__ == "__main__":
    main()
