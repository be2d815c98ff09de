"""Import data from other repositories and urls, and update imports.

Source of the format: DVC 3.x. An import is a frozen `.dvc` file with one dependency and an md5 of the file itself.
"""

from __future__ import annotations

import copy
import os
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvkf_prefect.data.git import gitignore
from dvkf_prefect.data.imports import fetch, lookup
from dvkf_prefect.data.imports.changes import changed_sources, is_same
from dvkf_prefect.data.imports.external import ExternalRepo
from dvkf_prefect.data.imports.fetch import bring_source, fetch_imports
from dvkf_prefect.data.imports.origins import aware, dependency, from_source, open_origin, repo_dep, url_dep
from dvkf_prefect.data.imports.pending import place_imports, put
from dvkf_prefect.data.imports.relay import send
from dvkf_prefect.data.imports.sources import open_source
from dvkf_prefect.data.verbs.get import check_free, get, resolve_out
from dvkf_prefect.data.workspace.workspace import Found
from dvkf_prefect.errors import (
    ConfigError,
    DvkfError,
    OutputChangedError,
    OutputError,
    OutputInGitError,
    OutputNotFoundError,
)
from dvkf_prefect.files import read_description, write_atomic
from dvkf_prefect.formats import documents
from dvkf_prefect.formats.dvcfile import document_md5, parse_dvc_file
from dvkf_prefect.formats.dvcfile_edit import write_document
from dvkf_prefect.formats.files import describes_outputs
from dvkf_prefect.formats.objects import MD5, Stored
from dvkf_prefect.formats.outputs import Origin, Output, check_overlap, matching, with_content
from dvkf_prefect.paths import check_target

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository
    from dvkf_prefect.data.transfer.transfer import Progress

__all__ = [
    "Annotations",
    "Import",
    "changed_sources",
    "fetch_imports",
    "from_source",
    "get",
    "import_repo",
    "import_url",
    "place_imports",
    "resolve_out",
    "update",
]

# Keys of an output that describe its content.
_CONTENT = (
    "md5", "md5-dos2unix", "etag", "checksum", "size", "nfiles", "isexec", "hash", "files", "cloud", "version_id",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Import:
    """Result of an import or an update, for one output.

    Attributes:
        path: Path of the output, relative to the root.
        source: Path of its `.dvc` file.
        origin: Readable description of the source.
        digest: Digest of the output; None if the content was not read.
        changed: False if the source was unchanged and nothing was written.
    """

    path: str
    source: str
    origin: str
    digest: str | None
    changed: bool = True


@dataclass(frozen=True, slots=True)
class Annotations:
    """User's annotations of an output.

    Attributes:
        desc: Description.
        type: Kind of data.
        labels: Keywords.
        meta: Any other mapping.
    """

    desc: str | None = None
    type: str | None = None
    labels: tuple[str, ...] = ()
    meta: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the annotations that are set, in the order of a `.dvc` file."""
        values = {
            "desc": self.desc,
            "type": self.type,
            "labels": list(self.labels),
            "meta": dict(self.meta or {}),
        }
        return {key: value for key, value in values.items() if value}


# -- imports -----------------------------------------------------------------------------------------------------------


def import_repo(
    repo: Repository,
    url: str,
    path: str,
    *,
    out: str,
    rev: str | None,
    force: bool,
    no_exec: bool,
    no_download: bool,
    remote: str | None,
    remote_config: Mapping[str, str] | None,
    config: str | None,
    annotations: Annotations,
    jobs: int | None,
    progress: Progress | None,
) -> Import:
    """Implement `Repo.import_`; the caller holds the lock."""
    output = _new_output(repo, out, force)
    values: dict[str, Any] = {"url": _relative_to(url, repo.root)}
    if rev:
        values["rev"] = rev
    settings = _repo_settings(remote, remote_config, config)
    values.update(settings)
    origin = Origin(path, repo=values)
    if no_exec:
        return _write_import(repo, output, origin, repo_dep(path, values), None, annotations, sign=False)
    with open_origin(repo.root, values, None, typed=True) as source:
        commit = source.at or ""
        stored: Stored | None = None
        if no_download:
            lookup.check_there(source, path)
        else:
            content = fetch.modern(
                fetch.bring(source, path, repo.cache, jobs=jobs, progress=progress), repo.cache
            )
            stored = replace(content.stored, isexec=False)
    if stored is not None:
        put(repo, with_content(output, stored), repo.workspace.look(output.path), progress)
    dep = repo_dep(path, {**values, "rev_lock": commit})
    return _write_import(repo, output, origin, dep, stored, annotations)


def import_url(
    repo: Repository,
    url: str,
    *,
    out: str,
    force: bool,
    no_exec: bool,
    no_download: bool,
    to_remote: bool,
    remote: str | None,
    version_aware: bool,
    fs_config: Mapping[str, str] | None,
    annotations: Annotations,
    jobs: int | None,
    progress: Progress | None,
) -> Import:
    """Implement `Repo.import_url`; the caller holds the lock."""
    if to_remote and (no_exec or no_download or version_aware):
        raise ConfigError("--no-exec/--no-download/--version-aware cannot be combined with --to-remote")
    if remote and not to_remote:
        raise ConfigError("--remote can't be used without --to-remote")
    output = _new_output(repo, out, force)
    folder = repo.root / posixpath.dirname(output.source)
    path = _url_path(repo, url, folder)
    options: dict[str, Any] = dict(fs_config or {})
    if version_aware:
        options["version_aware"] = True
    origin = Origin(path, posixpath.dirname(output.source) or ".", fs_config=options)
    if no_exec:
        return _write_import(
            repo, output, origin, url_dep(path, None, options), None, annotations, sign=False
        )
    found = open_source(repo.config, path, folder=folder, fs_config=options)
    stored = None
    if to_remote:
        stored = send(repo, found, remote, jobs, progress)
    elif not no_download:
        stored = bring_source(found, repo.cache, jobs, progress)
        put(repo, with_content(output, stored), repo.workspace.look(output.path), progress)
    dep = url_dep(path, found.facts(), options)
    return _write_import(repo, output, origin, dep, stored, annotations, push=not version_aware)


def _repo_settings(
    remote: str | None, remote_config: Mapping[str, str] | None, config: str | None
) -> dict[str, Any]:
    """Return the keys `config` and `remote` of an import, by DVC's rules."""
    if remote and remote_config:
        if config:
            raise ConfigError(
                "a configuration file cannot go together with both --remote and --remote-config"
            )
        return {"config": {"core": {"remote": remote}, "remote": {remote: dict(remote_config)}}}
    values: dict[str, Any] = {"config": config} if config else {}
    if remote or remote_config:
        values["remote"] = remote or dict(remote_config or {})
    return values


def _new_output(repo: Repository, out: str, force: bool) -> Output:
    path = repo.relpath(out)
    if path:
        check_target(repo.root, path)
    if not path or path.split("/")[0] in (".dvc", ".git"):
        raise OutputError(f"'{path or '.'}' cannot be an import: it holds the repository itself")
    if describes_outputs(posixpath.basename(path)):
        raise OutputError(f"'{path}' is the name of a DVC file; name a data file or a directory")
    output = Output(path, None, source=path + ".dvc")
    place = repo.root / path
    check_free(place, force)
    file = repo.root / output.source
    if file.exists() and not force:
        old = parse_dvc_file(read_description(file), output.source)
        if len(old) != 1 or old[0].path != path or old[0].origin is None:
            raise OutputError(f"'{output.source}' exists and is no import; --force replaces it")
    if repo.git and (in_git := repo.git.tracked([repo.git_prefix + path])):
        raise OutputInGitError(
            f"'{path}' is tracked by git ({len(in_git)} file(s)); stop that first: `git rm -r --cached '{path}'`"
        )
    check_overlap(sorted([*_others(repo, output.source), output], key=lambda o: o.path))
    repo.git_ignored.check(output.source)
    return output


def _others(repo: Repository, source: str) -> list[Output]:
    return [other for other in repo.outputs() if other.source != source]


def _relative_to(url: str, root: Path) -> str:
    """Return a repository's folder relative to the root instead of the current folder; a url is not changed."""
    if os.path.isabs(url) or not os.path.isdir(url) or Path.cwd() == root:
        return url
    return os.path.relpath(url, root)


def _url_path(repo: Repository, url: str, folder: Path) -> str:
    """Return a url as the `.dvc` file records it.

    A path that is relative, or inside the repository, becomes relative to the `.dvc` file.
    """
    if "://" in url:
        return url
    full = os.path.abspath(url)
    inside = Path(full).is_relative_to(repo.root)
    return os.path.relpath(full, folder) if inside or not os.path.isabs(url) else url


def _out(stored: Stored | None) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if stored is not None:
        values = {"md5": stored.digest, "size": stored.size}
        if stored.nfiles is not None:
            values["nfiles"] = stored.nfiles
    return {**values, "hash": MD5}


def _write_import(
    repo: Repository,
    output: Output,
    origin: Origin,
    dep: dict[str, Any],
    stored: Stored | None,
    annotations: Annotations,
    *,
    sign: bool = True,
    push: bool = True,
) -> Import:
    out = {**_out(stored), "path": posixpath.basename(output.path), **annotations.as_dict()}
    if not push:
        out["push"] = False
    document: dict[str, Any] = {"frozen": True, "deps": [dep], "outs": [out]}
    if sign:
        document = {"md5": document_md5(document), **document}
    file = repo.root / output.source
    write_atomic(file, write_document(None, output.source, document))
    _keep_out_of_git(repo, output)
    return Import(output.path, output.source, str(origin), stored.digest if stored else None)


def _keep_out_of_git(repo: Repository, output: Output) -> None:
    if repo.git:
        files = [output.source]
        if gitignore.ignore(repo.root / output.path):
            files.append(posixpath.join(posixpath.dirname(output.path), ".gitignore"))
        repo.stage(files)


# -- updates -----------------------------------------------------------------------------------------------------------


def update(
    repo: Repository,
    targets: Sequence[str],
    *,
    rev: str | None,
    recursive: bool,
    no_download: bool,
    to_remote: bool,
    remote: str | None,
    jobs: int | None,
    progress: Progress | None,
) -> list[Import]:
    """Implement `Repo.update`; the caller holds the lock."""
    if to_remote and no_download:
        raise ConfigError("--to-remote can't be used with --no-download")
    if remote and not to_remote:
        raise ConfigError("--remote can't be used without --to-remote")
    wanted = _imports(repo, targets, recursive)
    done: list[Import] = []
    for output in wanted:
        origin = output.origin
        assert origin is not None
        if origin.repo is not None:
            if to_remote:
                raise ConfigError(
                    f"'{output.source}' is imported from another repository; it can't be updated with --to-remote"
                )
            done.append(_update_repo(repo, output, origin, origin.repo, rev, no_download, jobs, progress))
        else:
            done.append(_update_url(repo, output, origin, no_download, to_remote, remote, jobs, progress))
    return done


def _imports(repo: Repository, targets: Sequence[str], recursive: bool) -> list[Output]:
    tracked = repo.outputs()
    picked: dict[str, Output] = {}
    for target in targets:
        found = list(matching(tracked, target))
        if recursive and (repo.root / target).is_dir():
            prefix = "" if target in ("", ".") else target.rstrip("/") + "/"
            found = [o for o in tracked if o.origin is not None and o.source.startswith(prefix)]
        elif not found:
            raise OutputNotFoundError(f"'{target}' is not an import of {repo.root}; name its .dvc file")
        for output in found:
            if output.origin is None:
                raise OutputError(
                    f"'{output.source}' is not an import, so there is nothing to update it from"
                )
            picked[output.path] = output
    return [picked[path] for path in sorted(picked)]


def _update_repo(
    repo: Repository,
    output: Output,
    origin: Origin,
    old: Mapping[str, Any],
    rev: str | None,
    no_download: bool,
    jobs: int | None,
    progress: Progress | None,
) -> Import:
    values: dict[str, Any] = {**old, **({"rev": rev} if rev else {})}
    with open_origin(repo.root, values, None) as source:
        dep = repo_dep(origin.path, {**values, "rev_lock": source.at})
        found = repo.workspace.look(output.path, hash_name=output.hash_name)
        if values == dict(old) and _is_as_locked(repo, output, origin, source):
            dep = repo_dep(origin.path, old)
        if dep["repo"] == dict(old) and output.digest is not None and found.digest == output.digest:
            return Import(output.path, output.source, str(origin), output.digest, changed=False)
        _check_kept(repo, output, found)
        stored: Stored | None = None
        if no_download:
            lookup.check_there(source, origin.path)
        else:
            content = fetch.modern(
                fetch.bring(source, origin.path, repo.cache, jobs=jobs, progress=progress), repo.cache
            )
            stored = replace(content.stored, isexec=False)
    return _rewrite(repo, output, origin, dep, stored, found, progress)


def _is_as_locked(repo: Repository, output: Output, origin: Origin, source: ExternalRepo) -> bool:
    """Return True if the path is unchanged since the commit that an import records, and that commit still opens."""
    values = origin.repo or {}
    if output.digest is None or not values.get("rev_lock") or not is_same(repo, output, origin, source):
        return False
    try:
        with open_origin(repo.root, values, values["rev_lock"]):
            return True
    except DvkfError:
        return False


def _update_url(
    repo: Repository,
    output: Output,
    origin: Origin,
    no_download: bool,
    to_remote: bool,
    remote: str | None,
    jobs: int | None,
    progress: Progress | None,
) -> Import:
    opened = open_source(
        repo.config, origin.path, folder=repo.root / origin.folder, fs_config=aware(repo, origin)
    )
    found = repo.workspace.look(output.path, hash_name=output.hash_name)
    old = dependency(repo, output)
    facts = opened.facts()
    same = url_dep(origin.path, facts, origin.fs_config) == old and output.digest is not None
    if same and (to_remote or found.digest == output.digest):
        return Import(output.path, output.source, str(origin), output.digest, changed=False)
    stored: Stored | None = None
    if to_remote:
        stored = send(repo, opened, remote, jobs, progress)
    else:
        _check_kept(repo, output, found)
        if not no_download:
            stored = bring_source(opened, repo.cache, jobs, progress)
    dep = url_dep(origin.path, opened.facts(), origin.fs_config)
    return _rewrite(repo, output, origin, dep, stored, None if to_remote else found, progress)


def _check_kept(repo: Repository, output: Output, found: Found) -> None:
    """Refuse to replace files whose content is stored nowhere else.

    Raises:
        OutputChangedError: There are such files.
    """
    lost = repo.workspace.lost_by(replace(output, digest=None) if output.digest is None else output, found)
    if lost:
        raise OutputChangedError(lost)


def _rewrite(
    repo: Repository,
    output: Output,
    origin: Origin,
    dep: dict[str, Any],
    stored: Stored | None,
    found: Found | None,
    progress: Progress | None,
) -> Import:
    """Check out new content and record it in the `.dvc` file, keeping the file's other fields."""
    if stored is not None and found is not None:
        put(repo, with_content(output, stored), found, progress)
    elif found is not None and found.digest is not None:
        repo.workspace.remove(output.path, found)
    file = repo.root / output.source
    old = read_description(file)
    document = copy.deepcopy(documents.load(old, output.source))
    (out,) = document["outs"]
    document["outs"] = [{**_out(stored), **{key: value for key, value in out.items() if key not in _CONTENT}}]
    document["deps"] = [dep]
    document["md5"] = document_md5(document)
    new = write_document(old, output.source, document)
    if new != old:
        write_atomic(file, new)
    _keep_out_of_git(repo, output)
    return Import(output.path, output.source, str(origin), stored.digest if stored else None)
