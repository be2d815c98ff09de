"""Hostile repositories, each tried with every verb in a process of its own; prints what went wrong as JSON.

Run as ``python zoo.py FOLDER PART PARTS`` with a git identity; FOLDER is empty and holds all that is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MD5 = "b026324c6904b2a9cb4b88d6d61c81d1"
MEMORY = 500 << 20
# A hang is told from a slow machine: processor time is what counts, and the wall only where nothing happens at all.
CPU = 10
WALL = 60
VERBS = [
    "status", "pull", "pull -f", "checkout -f", "repro --dry", "list . -R", "gc -w -f", "diff HEAD", "du .",
    "get {root} d -o {world}/got", "import {root} d -o {world}/mine/imported --force", "filesystem",
]  # fmt: skip
Build = Callable[[Path, Path], None]


def dvc_file(path: str, digest: str = MD5) -> str:
    """Return a `.dvc` file for an output, its path in quotes."""
    return f"outs:\n- md5: {digest}\n  size: 2\n  hash: md5\n  path: {json.dumps(path)}\n"


def manifest(root: Path, text: str) -> None:
    """Let `d` be a folder of this manifest; the object goes to the remote."""
    digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    for place in (root.parent / "remote", root / ".dvc/cache"):
        file = place / "files/md5" / digest[:2] / f"{digest[2:]}.dir"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (root / "d.dvc").write_text(dvc_file("d", digest + ".dir"))


PATHS = [
    ".git/hooks/post-checkout", ".git", ".GIT/config", ".Git/hooks/x", "git~1/config", "GIT~1/config", ".git /config",
    ".git./config", ".git::$INDEX_ALLOCATION/config", ".g\u200cit/config", ".gi\ufeffT/config", ".dvc/config",
    ".dvc/config.local", ".dvc/tmp/lock", ".DVC/config", ".hg/hgrc", "sub/.git/config", "sub/.dvc/config", ".",
    "..", "../outside/evil", "/tmp/dvkf-evil/x", "a/../../outside/evil", "sub/../.git/config", "./.git/config",
    "x\u0000y", "a" * 300, "a/" * 2500 + "b", "outside\\..\\..\\x", "-rf", "--exec=touch PWNED", "$(touch PWNED)",
    "`touch PWNED`", "; touch PWNED", "\u001b]0;x\u0007", "\u202egpj", "https://example.invalid/x", "s3://b/x", "~/x",
    "dvc.yaml", ".gitignore", "x.dvc", " ", "\n", "d/one",
]  # fmt: skip
TARGETS = [
    "../outside", "../outside/canary", "/", "/etc", "/proc", "/dev/zero", "/dev/stdin", ".", "..", ".git",
    ".git/config", ".dvc", "missing", "loop",
]  # fmt: skip
LINKED = [
    "d", "f", "x.dvc", "dvc.yaml", "dvc.lock", "params.yaml", ".dvcignore", ".gitignore", ".dvc/config",
    ".dvc/config.local", ".dvc/tmp", ".dvc/tmp/lock", ".dvc/tmp/rwlock", ".dvc/tmp/dvkf", ".dvc/cache",
    ".dvc/cache/files", ".dvc/cache/files/md5", ".dvc/cache/tmp-dvkf",
]  # fmt: skip
DOCUMENTS = {
    "bomb": "i: &i [x,x,x,x,x,x,x,x]\n" + "".join(
        f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]\n" for p, c in zip("ihgfedcb", "hgfedcba", strict=True)
    ),
    "deep": "a: " + "[" * 20_000, "tag": "!!python/object/apply:os.system ['touch PWNED']\n", "list": "- 1\n",
    "number": "1\n", "binary": "\x00\x01\x02", "merge": "<<: *x\n", "self": "a: &a\n  b: *a\n", "tabs": "\ta: 1\n",
    "twice": "outs: []\nouts: []\n", "date": "outs: 2020-01-01\n", "null": "outs:\n- null\n", "text": "outs: x\n",
    "huge": "outs:\n- md5: 1e999\n  size: 99999999999999999999999999\n  path: x\n",
    "negative": f"outs:\n- md5: {MD5}\n  size: -5\n  nfiles: -1\n  path: x\n",
    "digest": "outs:\n- md5: ../../../../outside/x\n  size: 1\n  path: x\n",
    "wdir": f"wdir: ../outside\n{dvc_file('x')}",
    "wdir git": f"wdir: .git\n{dvc_file('x')}", "wdir root": f"wdir: /\n{dvc_file('etc/x')}",
    "import": "frozen: true\ndeps:\n- path: x\n  repo:\n    url: \"ext::sh -c 'touch PWNED'\"\nouts:\n- path: i\n",
    "option": "frozen: true\ndeps:\n- path: x\n  repo:\n    url: --upload-pack=touch PWNED\nouts:\n- path: i\n",
    "file": "frozen: true\ndeps:\n- path: /etc/hostname\nouts:\n- path: i\n",
}  # fmt: skip
STAGES = {
    "matrix": "stages:\n  s:\n    cmd: touch PWNED\n    matrix:\n" + "".join(
        f"      {c}: [{','.join(map(str, range(99)))}]\n" for c in "abcdef"
    ),
    "cycle": "stages:\n  a: {cmd: touch PWNED, deps: [y], outs: [x]}\n  b: {cmd: touch PWNED, deps: [x], outs: [y]}\n",
    "git": "stages:\n  a: {cmd: touch PWNED, outs: [.git/hooks/post-checkout]}\n",
    "wdir": "stages:\n  a: {cmd: touch PWNED, wdir: ../outside, outs: [canary]}\n",
    "out": "stages:\n  a: {cmd: touch PWNED, outs: [../outside/canary]}\n",
    "absolute": "stages:\n  a: {cmd: touch PWNED, outs: [/etc/passwd]}\n",
    "vars": "vars: [../outside/canary, /dev/zero]\nstages:\n  a: {cmd: touch PWNED}\n",
    "itself": "vars: [{a: '${b}'}, {b: '${a}'}]\nstages:\n  a: {cmd: touch PWNED ${a}}\n",
    "foreach": "stages:\n  a: {foreach: /dev/zero, do: {cmd: touch PWNED}}\n",
    "artifact": "artifacts: {m: {path: .git/config}}\nplots: [.git/config, ../outside/canary]\nmetrics: [/dev/zero]\n",
}  # fmt: skip


def listed(*relpaths: str) -> str:
    """Return a manifest of these paths, as JSON may write them."""
    return "[" + ", ".join(f'{{"md5": "{MD5}", "relpath": "{path}"}}' for path in relpaths) + "]"


MANIFESTS = {
    "git": listed(".git/hooks/post-checkout"), "case": listed("s/.GiT/config"), "up": listed("../outside/e"),
    "absolute": listed("/tmp/dvkf-evil/x"), "ignored": listed("s/.g\u200cit/.dvc/config"), "both": listed("a", "a/b"),
    "twice": listed("a", "a"), "digest": '[{"md5": "../../../outside/canary", "relpath": "a"}]', "number": "1",
    "object": "{}", "text": "x", "deep": "[" * 20_000, "empty name": listed(""), "nul": listed("a\\u0000"),
    "surrogate": listed("\\ud800"), "long": listed("a" * 400), "linked": listed("link/evil"),
}  # fmt: skip
CONFIGS = {
    "command": "[core]\n    remote = r\n"
    "['remote \"r\"']\n    url = s3://b/x\n    credentialpath = {world}/outside/canary\n",
    "token": "[core]\n    remote = r\n"
    "['remote \"r\"']\n    url = https://example.invalid/x\n    auth = custom\n",
    "self": "[core]\n    remote = r\n['remote \"r\"']\n    url = remote://r/x\n",
    "none": "[core]\n    remote = nobody\n",
    "device": "[core]\n    remote = r\n['remote \"r\"']\n    url = /dev/zero\n",
    "odd": "[[x]]\n= 1\n", "binary": "\x00\x01",
    "type": "[cache]\n    type = x;touch PWNED\n", "long": "[core]\n" + "".join(f"    a{i} = 1\n" for i in range(5000)),
    "interpolation": "[core]\n    a = %(b)s\n    b = %(a)s\n",
}  # fmt: skip
TAGS = [
    "m@v1.0.0",
    "m@v1.0.0-rc.1",
    "--output=PWNED",
    "m#prod#1",
    "a" * 200,
    "m@v9" + "9" * 100,
    "\u202em@v1.0.0",
]


def put(root: Path, name: str, text: str) -> None:
    """Write a file of a repository, its folders too."""
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        file.write_text(text)


def clear(place: Path) -> None:
    """Remove whatever is at a place."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.parent.mkdir(parents=True, exist_ok=True)


def link(root: Path, name: str, target: str) -> None:
    """Put a link in the place of a file or a folder."""
    place = root / name
    clear(place)
    up = "../" * name.count("/")
    place.symlink_to(target if target.startswith("/") else up + target)


def fifo(root: Path, name: str) -> None:
    """Put a fifo in the place of a file or a folder."""
    clear(root / name)
    os.mkfifo(root / name)


def parent_link(root: Path, target: str) -> None:
    """Have an output below a link, and a folder that an ignore file hides below another."""
    link(root, "link", target)
    put(root, "x.dvc", dvc_file("link/evil"))


def hidden_link(root: Path, target: str) -> None:
    """Have a link in a tracked folder that `.dvcignore` hides, and a manifest with a file below it."""
    manifest(root, MANIFESTS["linked"])
    put(root, ".dvcignore", "d/link\n")
    clear(root / "d")
    link(root, "d/link", target)


def remote_object(root: Path, kind: str) -> None:
    """Have something else than a file where an object of the remote is."""
    for file in [p for p in (root.parent / "remote").rglob("*") if p.is_file()]:
        file.unlink()
        if kind == "fifo":
            os.mkfifo(file)
        elif kind == "folder":
            file.mkdir()
        else:
            file.symlink_to(kind)


def builders() -> Iterator[tuple[str, Build]]:
    """Yield a name and what makes a good repository hostile."""
    for path in PATHS:
        yield f"output {path[:40]!r}", lambda r, w, p=path: put(r, "x.dvc", dvc_file(p))  # type: ignore[misc]
    for name in LINKED:
        for target in TARGETS[:8]:
            yield f"link {name} -> {target}", lambda r, w, n=name, t=target: link(r, n, t)  # type: ignore[misc]
        if name != ".gitignore":  # git itself waits for one, so that no clone can be made of it
            yield f"fifo {name}", lambda r, w, n=name: fifo(r, n)  # type: ignore[misc]
    for target in TARGETS:
        yield f"parent link {target}", lambda r, w, t=target: parent_link(r, t)  # type: ignore[misc]
        yield f"hidden link {target}", lambda r, w, t=target: hidden_link(r, t)  # type: ignore[misc]
    for kind in ("fifo", "folder", "/dev/zero", "/etc/passwd", "/nowhere"):
        yield f"remote {kind}", lambda r, w, k=kind: remote_object(r, k)  # type: ignore[misc]
    for name, text in DOCUMENTS.items():
        yield f"document {name}", lambda r, w, t=text: put(r, "x.dvc", t)  # type: ignore[misc]
        yield (
            f"lock {name}",
            lambda r, w, t=text: (put(r, "dvc.yaml", STAGES["artifact"]), put(r, "dvc.lock", t))[0],
        )  # type: ignore[misc]
    for name, text in {**DOCUMENTS, **STAGES}.items():
        yield f"pipeline {name}", lambda r, w, t=text: put(r, "dvc.yaml", t)  # type: ignore[misc]
    for name, text in MANIFESTS.items():
        yield f"manifest {name}", lambda r, w, t=text: manifest(r, t)  # type: ignore[misc]
    for name, text in CONFIGS.items():
        yield f"config {name}", lambda r, w, t=text: put(r, ".dvc/config", t.replace("{world}", str(w)))  # type: ignore[misc]
    for tag in TAGS:
        yield (
            f"tag {tag[:30]!r}",
            lambda r, w, t=tag: git(r, "update-ref", f"refs/tags/{t}", "HEAD", check=False),
        )  # type: ignore[misc]


def git(root: Path, *arguments: str, check: bool = True) -> None:
    """Run git quietly."""
    subprocess.run(
        ["git", *arguments], cwd=root, check=check, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def seen(world: Path) -> dict[str, tuple[int, int]]:
    """Return what lies outside the repositories: sizes and times."""
    found = {}
    for top in (world / "outside", Path("/tmp/dvkf-evil")):
        for folder, _, names in os.walk(top):
            found[folder] = (0, 0)
            for name in names:
                info = os.lstat(f"{folder}/{name}")
                found[f"{folder}/{name}"] = (info.st_size, info.st_mtime_ns)
    return found


def run_filesystem(root: Path) -> int:
    """Walk a repository by its file system, and read what is in it."""
    from dvkf_prefect.data.views.filesystem import DvkfFileSystem
    from dvkf_prefect.errors import DvkfError

    try:
        fs = DvkfFileSystem(str(root))
        for path in fs.find("")[:50]:
            with contextlib.suppress(DvkfError, OSError), fs.open(path) as file:
                file.read(1 << 20)
    except (DvkfError, OSError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 255
    return 0


def attempt(verb: str, root: Path, world: Path) -> str | None:
    """Run one verb in a process of its own; return what was wrong."""
    said = world / "said"
    child = os.fork()
    if not child:
        with open(said, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU, CPU + 1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        os.setpgid(0, 0)
        os.chdir(world / "mine" if verb.startswith("import") else root)
        from dvkf_prefect import cli

        code = 1
        try:
            words = [w.format(root=root, world=world) for w in verb.split()]
            code = run_filesystem(root) if verb == "filesystem" else cli.main(words)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code & 255)
    end = time.monotonic() + WALL
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            os.wait4(child, 0)
            return "hangs"
        time.sleep(0.005)
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)} ({usage.ru_utime:.1f} s)"
    if usage.ru_maxrss * 1024 > MEMORY:
        return f"took {usage.ru_maxrss >> 10} MB"
    text = said.read_text(errors="replace")
    if "Traceback" in text or "unexpected error" in text:
        return "traceback: " + text[-400:]
    return None


def make_base(world: Path) -> Path:
    """Make the good repository that every hostile one starts as."""
    from dvkf_prefect import cli

    base = world / "base" / "r"
    base.mkdir(parents=True)
    (world / "base" / "remote").mkdir()
    os.chdir(base)
    git(base, "init", "-q")
    cli.main(["init", "-q"])
    (base / "d").mkdir()
    (base / "d/one").write_text("1\n")
    (base / "d/two").write_text("2\n")
    (base / "f").write_text("1\n")
    cli.main(["add", "-q", "d", "f"])
    cli.main(["remote", "add", "-q", "-d", "r", "../remote"])
    cli.main(["push", "-q"])
    git(base, "add", "-A")
    git(base, "commit", "-qm", "1")
    shutil.rmtree(base / "d")
    shutil.rmtree(base / ".dvc/cache")
    (base / "f").unlink()
    return base


def main() -> None:
    """Try a part of the table."""
    world, part, parts = Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3])
    import dvkf_prefect.cli.data
    import dvkf_prefect.data.views.filesystem

    base = make_base(world)
    out: dict[str, object] = {}
    (world / "outside").mkdir()
    (world / "outside/canary").write_text("mine\n")
    (world / "mine").mkdir()
    git(world / "mine", "init", "-q")
    os.chdir(world / "mine")
    dvkf_prefect.cli.main(["init", "-q"])
    before, wrong, count, tries = seen(world), [], 0, 0
    for number, (name, build) in enumerate(builders()):
        if number % parts != part:
            continue
        count += 1
        home = world / "w"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(base.parent, home, symlinks=True)
        root = home / "r"
        for link_name in ("outside",):
            (home / link_name).symlink_to(world / link_name)
        with contextlib.suppress(OSError, UnicodeError):
            build(root, world)
        git(root, "add", "-A", "-f", check=False)
        git(root, "commit", "-qm", "2", check=False)
        hooks = sorted(os.listdir(root / ".git/hooks")), (root / ".git/config").read_bytes()
        for verb in VERBS:
            tries += 1
            fault = attempt(verb, root, world)
            if seen(world) != before:
                fault = f"wrote outside: {sorted(set(seen(world).items()) ^ set(before.items()))}"
                before = seen(world)
            if (root / ".git").is_dir() and hooks != (
                sorted(os.listdir(root / ".git/hooks")),
                (root / ".git/config").read_bytes(),
            ):
                fault = "wrote into git's folder"
            if any((place / "PWNED").exists() for place in (root, home, world, world / "mine")):
                fault = "ran code"
                for place in (root, home, world, world / "mine"):
                    (place / "PWNED").unlink(missing_ok=True)
            if fault:
                wrong.append(f"{name}: {verb}: {fault}")
        for leftover in (world / "got", world / "mine/imported"):
            clear(leftover)
    out = {"repositories": count, "tries": tries, "wrong": wrong}
    (world / "result.json").write_text(json.dumps(out))


if __name__ == "__main__":
    main()
