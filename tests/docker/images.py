"""Base images made of this machine's own Python, since no image can be pulled here."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

_TOOLS = ("sh", "mktemp", "mkdir", "chmod", "cat", "rm", "ls", "env")
_LEFT_OUT = {
    "EXTERNALLY-MANAGED",
    "__pycache__",
    "site-packages",
    "test",
    "idlelib",
    "tkinter",
    "turtledemo",
    "ensurepip",
}
# Commands as pip writes them, by the module that has their function.
_SCRIPT = "#!/usr/local/bin/python3\nfrom {} import {name}\n{name}()\n"
_SCRIPTS = {
    "pip": _SCRIPT.format("pip._internal.cli.main", name="main"),
    "prefect": _SCRIPT.format("prefect.cli", name="app"),
}
_VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
# A library of the user's, which is on no index; pip finds it in the image.
TINY = "tinylib"


def make_image(name: str, *, packages: bool, programs: Sequence[str] = ()) -> None:
    """Import an image with Python, pip, a shell, and with ``packages`` all that this package requires.

    Its pip finds only ``tinylib`` 1.0, in place of an index.

    Args:
        name: Name and tag of the image.
        packages: Add the packages that this one requires, and the commands of pip and Prefect.
        programs: More programs of this machine, such as ``git``.
    """
    command = [
        "docker",
        "import",
        "--change",
        "ENV PIP_NO_INDEX=1",
        "--change",
        "ENV PIP_FIND_LINKS=/wheels",
        "-",
        name,
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as importing:
        assert importing.stdin is not None
        with tarfile.open(fileobj=importing.stdin, mode="w|", dereference=True) as tar:
            for place, path in _files(packages, programs):
                tar.add(path, place, recursive=False)
            for folder, mode in (("tmp", 0o1777), ("root", 0o700), ("wheels", 0o755), ("etc", 0o755)):
                about = tarfile.TarInfo(folder)
                about.type, about.mode = tarfile.DIRTYPE, mode
                tar.addfile(about)
            for link in ("python3", "python"):
                about = tarfile.TarInfo(f"usr/local/bin/{link}")
                about.type, about.linkname, about.mode = tarfile.SYMTYPE, _VERSION, 0o777
                tar.addfile(about)
            _text(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
            _text(tar, "etc/group", b"root:x:0:\n")
            for script, text in _SCRIPTS.items() if packages else ():
                _text(tar, f"usr/local/bin/{script}", text.encode(), mode=0o755)
            _text(tar, f"wheels/{TINY}-1.0-py3-none-any.whl", _tiny())
    assert importing.returncode == 0


def _text(tar: tarfile.TarFile, name: str, data: bytes, *, mode: int = 0o644) -> None:
    about = tarfile.TarInfo(name)
    about.size, about.mode = len(data), mode
    tar.addfile(about, io.BytesIO(data))


def _files(packages: bool, programs: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yield place in the image and path here, of each file."""
    executable = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    standard = Path(sysconfig.get_path("stdlib"))
    binaries = [executable]
    yield f"usr/local/bin/{_VERSION}", executable
    for path in sorted(standard.rglob("*")):
        inner = path.relative_to(standard)
        if path.is_file() and not _LEFT_OUT.intersection(inner.parts):
            yield f"usr/local/lib/{_VERSION}/{inner}", path
            if path.suffix == ".so" and "tkinter" not in path.name:
                binaries.append(path)
    for tool in (*_TOOLS, *programs):
        found = shutil.which(tool)
        assert found
        binaries.append(Path(found).resolve())
        yield f"bin/{tool}", Path(found).resolve()
    # Of libraries that wheels take from the system.
    listed = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    names = r"lib(?:stdc\+\+|gcc_s|z|pthread|dl|rt|util|m)\.so\.\d"
    more = re.findall(rf"{names} \(libc6,x86-64[^)]*\) => (\S+)", listed)
    yield from _libraries(binaries, more)
    site = f"usr/local/lib/{_VERSION}/{_site_folder(executable)}"
    for name in ("pip", *(_required() if packages else ())):
        for file in metadata.distribution(name).files or ():
            path = Path(str(file.locate()))
            if path.is_file() and path.suffix != ".pyc" and ".." not in file.parts:
                yield f"{site}/{file}", path


def _site_folder(executable: Path) -> str:
    """Return the name of the folder where a Python looks for packages: Debian's has another."""
    code = "import site; print(*site.getsitepackages())"
    found = subprocess.run([executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return "dist-packages" if "/dist-packages" in found else "site-packages"


def _libraries(binaries: list[Path], more: list[str]) -> Iterator[tuple[str, Path]]:
    shown = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True).stdout
    found = dict(re.findall(r"^\s+(\S+) => (/\S+) \(", shown, re.MULTILINE))
    loaders = set(re.findall(r"^\s+(/lib\S*/ld-\S+) \(", shown, re.MULTILINE))
    home = Path(found["libc.so.6"]).parent
    for name, path in {**found, **{Path(p).name: p for p in more}}.items():
        yield f"{home}/{name}".lstrip("/"), Path(path)
    for loader in loaders:
        yield loader.lstrip("/"), Path(loader)


def _required() -> list[str]:
    """Return the packages that this one requires, themselves and through others, but not itself."""
    todo: list[tuple[str, tuple[str, ...]]] = [("dvkf-prefect", ())]
    seen: dict[str, set[str]] = {}
    while todo:
        name, extras = todo.pop()
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in seen and seen[key].issuperset(extras):
            continue
        seen.setdefault(key, set()).update(extras)
        for text in metadata.requires(name) or ():
            required = Requirement(text)
            if required.marker is None or any(required.marker.evaluate({"extra": e}) for e in ("", *extras)):
                todo.append((required.name, tuple(required.extras)))
    return sorted(seen.keys() - {"dvkf-prefect", "pip"})


def _tiny() -> bytes:
    """Return the wheel of the user's library."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        info = f"{TINY}-1.0.dist-info"
        archive.writestr(f"{TINY}.py", "def double(text):\n    return text * 2\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {TINY}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return held.getvalue()
