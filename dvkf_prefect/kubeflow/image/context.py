"""Build context of an image: a Dockerfile, the user's requirements, and a wheel of this package as installed here.

The wheel has the code of this machine, so a pod runs the same version as its dispatcher, released or not. Only plain
instructions are used, which Docker's older builder, podman and kaniko know. Source of the format: PEP 427 (wheels).
"""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from dvkf_prefect.data.upkeep.doctor import SCHEMES
from dvkf_prefect.errors import ConfigError

_NAME = "dvkf_prefect"
_FOLDER = "/opt/dvkf"
_USUAL = ("requirements.txt", "pyproject.toml")
_INCLUDED = re.compile(r"(?:-r|-c|--requirement|--constraint)(?:\s+|=)?(\S+)")
_LOCAL = re.compile(r"(-e\b|--editable\b|\.{0,2}/|\.$|file:|-f\b|--find-links\b)")
_VARIABLES = (
    ("HOME", "/home/stage"),
    ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
    # Debian's Python asks for it; an image is an environment of its own.
    ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
    ("PIP_ROOT_USER_ACTION", "ignore"),
    ("PYTHONUNBUFFERED", "1"),
    ("PREFECT_SERVER_ANALYTICS_ENABLED", "false"),
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """Description of an image.

    Attributes:
        base: Image to build on, with Python and pip.
        version: Version of this package.
        files: Requirement files of the user below ``root``; the first one includes the others.
        requirements: Requirements of the user, as pip writes them.
        pins: Requirements of this package: kfp and the libraries of the remote.
        root: Folder of the requirement files.
        user: User of the container, as uid or ``uid:gid``; the base image's if empty.
    """

    base: str
    version: str
    files: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    pins: tuple[str, ...] = ()
    root: Path = field(default_factory=Path)
    user: str = ""

    @property
    def dockerfile(self) -> str:
        """The text of the Dockerfile."""
        wheel = wheel_name(self.version)
        lines = [
            "# Image of stages: written by `dvkf image build`.",
            f"FROM {self.base}",
            # HOME belongs to everyone: clusters run containers as any user, with all capabilities dropped.
            'RUN mkdir -p "/home/stage" && chmod 1777 "/home/stage"',
            "ENV " + " ".join(f"{name}={value}" for name, value in _VARIABLES),
            f"WORKDIR {_FOLDER}",
            *(f"COPY {file} {_FOLDER}/{file}" for file in self.files),
            f"COPY dvkf.txt {wheel} {_FOLDER}/",
            f"RUN python3 -m pip install --no-cache-dir {self._arguments}-r dvkf.txt",
            "WORKDIR /home/stage",
        ]
        if self.user:
            lines.append(f"USER {self.user}")
        return "\n".join(lines) + "\n"

    @property
    def _arguments(self) -> str:
        return f"-r {self.files[0]} " if self.files else ""

    def write(self, folder: Path) -> None:
        """Write the build context.

        Args:
            folder: An empty folder.

        Raises:
            ConfigError: A requirement file is gone.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for file in self.files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(self.root / file, folder / file)
            except OSError as error:
                raise ConfigError(f"the requirements {file} cannot be read: {error.strerror}") from error
        lines = [*self.requirements, *self.pins, f"./{wheel_name(self.version)}"]
        (folder / "dvkf.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        write_wheel(folder, self.version)
        (folder / "Dockerfile").write_text(self.dockerfile, encoding="utf-8")


def make_recipe(
    root: Path,
    *,
    version: str,
    base: str = "",
    files: Sequence[str] = (),
    requirements: Sequence[str] = (),
    scheme: str = "",
    user: str = "",
) -> Recipe:
    """Return the recipe of an image for a project.

    Args:
        root: Folder of the project.
        version: Version of this package.
        base: Image to build on; Docker's ``python:X.Y-slim`` of this machine's Python version by default.
        files: Requirement file, or pyproject.toml, relative to ``root``; the project's own if neither it nor
            ``requirements`` is given.
        requirements: Requirements in pip's form.
        scheme: Kind of the remote, such as ``ssh``.
        user: User of the container.

    Raises:
        ConfigError: Requirements cannot be read, or are files of this machine.
    """
    if not files and not requirements:
        files = [name for name in _USUAL if (root / name).is_file()][:1]
    wanted = list(requirements)
    taken: list[str] = []
    for file in files:
        if Path(file).name == "pyproject.toml":
            wanted += _of_project(root / file)
        elif taken:
            raise ConfigError(
                f"expected one requirements file, not {taken[0]} and {file}. Include one in the other (-r)."
            )
        else:
            taken += _with_included(root, file)
    for text in wanted:
        _check_line(text, "the requirements")
    for text, value in (("the base image", base), ("the user", user)):
        if re.search(r"[\s\\]", value):
            raise ConfigError(f"{text} {value!r} contains white space or a backslash")
    return Recipe(
        base=base or f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim",
        version=version,
        files=tuple(taken),
        requirements=tuple(wanted),
        pins=tuple(_pins(scheme)),
        root=root,
        user=user,
    )


def _pins(scheme: str) -> Iterator[str]:
    """Yield the pinned requirements of pods: kfp, and the libraries of the remote that are no dependency."""
    yield f"kfp=={metadata.version('kfp')}"
    own = {
        re.split(r"[^\w.-]", text, maxsplit=1)[0].lower()
        for text in metadata.requires("dvkf-prefect") or ()
        if "extra ==" not in text
    }
    for _, name in SCHEMES.get(scheme, ()):
        if name not in own:
            try:
                yield f"{name}=={metadata.version(name)}"
            except metadata.PackageNotFoundError:
                yield name


def _of_project(path: Path) -> list[str]:
    """Return the dependencies that a pyproject.toml declares."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    project = values.get("project", {})
    if "dependencies" in project.get("dynamic", ()):
        raise ConfigError(f"{path}: its dependencies are dynamic. Name a requirements file (--requirements).")
    return [str(text) for text in project.get("dependencies", ())]


def _with_included(root: Path, file: str) -> list[str]:
    """Return a requirements file and those that it includes, as paths below the root."""
    todo, found = [file], list[str]()
    top = root.resolve()
    while todo:
        path = (root / todo.pop(0)).resolve()
        if not path.is_relative_to(top):
            raise ConfigError(f"the requirements {path} are outside {top}, the root of the build")
        name = path.relative_to(top).as_posix()
        if name in found:
            continue
        if not re.fullmatch(r"[\w./-]+", name):
            raise ConfigError(f"the requirements '{name}': use letters, digits, '.', '-' and '_' in its path")
        found.append(name)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise ConfigError(f"the requirements {name} cannot be read: {why}") from error
        for number, line in enumerate(text.splitlines(), 1):
            line = line.partition(" #")[0].strip()
            if included := _INCLUDED.match(line):
                if "://" not in included[1]:
                    todo.append(str(path.parent / included[1]))
            elif line and not line.startswith("#"):
                _check_line(line, f"{name}, line {number}")
    return found


def _check_line(line: str, where: str) -> None:
    if _LOCAL.match(line) or re.search(r"@\s*(file:|\.{0,2}/)", line):
        raise ConfigError(
            f"{where}: '{line}' is on this machine, where the image cannot read it. Name a package of an "
            "index, or a url."
        )
    if "\n" in line:
        raise ConfigError(f"{where}: one requirement a line, not {line!r}")


# -- the wheel of this package -------------------------------------------------------------------------------------


def wheel_name(version: str) -> str:
    """Return the file name of this package's wheel."""
    return f"{_NAME}-{version}-py3-none-any.whl"


def write_wheel(folder: Path, version: str) -> Path:
    """Write a wheel of the package installed on this machine, and return its path.

    Args:
        folder: Folder for the file.
        version: Version of this package.

    Raises:
        ConfigError: The package is not installed, only on the search path.
    """
    try:
        about = metadata.distribution("dvkf-prefect")
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            "dvkf-prefect is not installed here, so it cannot be put into an image: run `pip install .` in its clone"
        ) from error
    # An editable installation keeps the version at which it was made.
    described = re.sub(
        r"(?m)^Version: .*$", f"Version: {version}", about.read_text("METADATA") or "", count=1
    )
    info = f"{_NAME}-{version}.dist-info"
    root = Path(__file__).parents[2]
    files = {
        f"{_NAME}/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    files[f"{info}/METADATA"] = described.encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: dvkf\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{info}/entry_points.txt"] = (about.read_text("entry_points.txt") or "").encode()
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    path = folder / wheel_name(version)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            # A fixed time: the same code makes the same layer again.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
