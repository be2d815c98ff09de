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
from dvkf_prefect.data.repository.selection import written_paths
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
from dvkf_prefect.formats.dvcfile_edit import content_keys, write_document
from dvkf_prefect.formats.files import describes_outputs
from dvkf_prefect.formats.objects import MD5, Content
from dvkf_prefect.formats.outputs import Origin, Output, check_overlap, matching, output_meant
from dvkf_prefect.paths import check_target

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """Options of an import from a repository.

    Attributes:
        rev: Branch or tag to follow, or a commit; None for the default branch.
        force: Replace an existing file or directory.
        no_exec: Write the `.dvc` file only, without contacting the repository.
        no_download: Write the `.dvc` file with the commit, without downloading data.
        remote: Name of the other repository's remote to download from.
        remote_config: Options that override those of that remote.
        config: Configuration file whose settings override the other repository's.
        annotations: Description, type, labels and meta to record.
    """

    rev: str | None = None
    force: bool = False
    no_exec: bool = False
    no_download: bool = False
    remote: str | None = None
    remote_config: Mapping[str, str] | None = None
    config: str | None = None
    annotations: Annotations = Annotations()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportUrlOptions:
    """Options of an import from a url.

    Attributes:
        force: Replace an existing file or directory.
        no_exec: Write the `.dvc` file only, without contacting the url.
        no_download: Write the `.dvc` file with the metadata that the service returns, without downloading data.
        to_remote: Upload the data to a remote instead of storing it locally.
        remote: Remote to upload to; None for the default one.
        version_aware: Record the versions that the service keeps, and fetch by them.
        fs_config: Options for the url, under the names of remote options.
        annotations: Description, type, labels and meta to record.
    """

    force: bool = False
    no_exec: bool = False
    no_download: bool = False
    to_remote: bool = False
    remote: str | None = None
    version_aware: bool = False
    fs_config: Mapping[str, str] | None = None
    annotations: Annotations = Annotations()


def import_repo(
    repo: Repository,
    url: str,
    path: str,
    out: str | os.PathLike[str] | None = None,
    options: ImportOptions | None = None,
) -> Import:
    """Implement `Repo.import_`.

    Raises:
        OutputError: The path is taken, or cannot be tracked.
        OutputNotFoundError: The other repository has no such path.
        GitError: The other repository cannot be cloned, or has no such revision.
        TransferError: Some objects could not be downloaded; nothing was tracked.
    """
    place = os.fspath(out) if out else resolve_out(path, None)
    with repo.lock(write=[place]):
        return _import_repo(repo, url, path, place, options or ImportOptions())


def _import_repo(repo: Repository, url: str, path: str, out: str, options: ImportOptions) -> Import:
    output = _new_output(repo, out, options.force)
    values: dict[str, Any] = {"url": _relative_to(url, repo.root)}
    if options.rev:
        values["rev"] = options.rev
    settings = _repo_settings(options.remote, options.remote_config, options.config)
    values.update(settings)
    annotations = options.annotations
    origin = Origin(path, repo=values)
    if options.no_exec:
        return _write_import(repo, output, origin, repo_dep(path, values), None, annotations, sign=False)
    with open_origin(repo, values, None, typed=True) as source:
        commit = source.at or ""
        content: Content | None = None
        if options.no_download:
            lookup.check_there(source, path)
        else:
            fetched = fetch.modern(fetch.bring(source, path, repo.cache), repo.cache)
            content = replace(fetched.content, isexec=False)
    if content is not None:
        put(repo, replace(output, content=content), repo.workspace.look(output.path))
    dep = repo_dep(path, {**values, "rev_lock": commit})
    return _write_import(repo, output, origin, dep, content, annotations)


def import_url(
    repo: Repository,
    url: str,
    out: str | os.PathLike[str] | None = None,
    options: ImportUrlOptions | None = None,
) -> Import:
    """Implement `Repo.import_url`.

    Raises:
        OutputError: The path is taken, or cannot be tracked.
        OutputNotFoundError: The url does not exist.
        TransferError: Some files could not be downloaded; nothing was tracked.
        RemoteError: The service does not respond, or refuses.
    """
    place = os.fspath(out) if out else resolve_out(url, None)
    with repo.lock(write=[place]):
        return _import_url(repo, url, place, options or ImportUrlOptions())


def _import_url(repo: Repository, url: str, out: str, options: ImportUrlOptions) -> Import:
    to_remote, remote, version_aware = options.to_remote, options.remote, options.version_aware
    annotations = options.annotations
    if to_remote and (options.no_exec or options.no_download or version_aware):
        raise ConfigError("--no-exec/--no-download/--version-aware cannot be combined with --to-remote")
    if remote and not to_remote:
        raise ConfigError("--remote can't be used without --to-remote")
    output = _new_output(repo, out, options.force)
    folder = repo.root / posixpath.dirname(output.source)
    path = _url_path(repo, url, folder)
    fs_config: dict[str, Any] = dict(options.fs_config or {})
    if version_aware:
        fs_config["version_aware"] = True
    origin = Origin(path, posixpath.dirname(output.source) or ".", fs_config=fs_config)
    if options.no_exec:
        return _write_import(
            repo, output, origin, url_dep(path, None, fs_config), None, annotations, sign=False
        )
    found = open_source(repo.config, path, folder=folder, fs_config=fs_config)
    content = None
    if to_remote:
        content = send(repo, found, remote)
    elif not options.no_download:
        content = bring_source(found, repo.cache, jobs=repo.jobs, progress=repo.progress)
        put(repo, replace(output, content=content), repo.workspace.look(output.path))
    dep = url_dep(path, found.facts(), fs_config)
    return _write_import(repo, output, origin, dep, content, annotations, push=not version_aware)


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
        raise OutputError(f"'{path or '.'}' cannot be an import: it contains the repository itself")
    if describes_outputs(posixpath.basename(path)):
        raise OutputError(f"'{path}' is the name of a DVC file. Name a data file or a directory.")
    output = Output(path, None, source=path + ".dvc")
    place = repo.root / path
    check_free(place, force)
    file = repo.root / output.source
    if file.exists() and not force:
        old = parse_dvc_file(read_description(file), output.source)
        if len(old) != 1 or old[0].path != path or old[0].origin is None:
            raise OutputError(f"'{output.source}' exists and is not an import. Replace it with --force.")
    if repo.git and (in_git := repo.git.tracked([repo.git_prefix + path])):
        raise OutputInGitError(
            f"'{path}' is tracked by git ({len(in_git)} file(s)). Run `git rm -r --cached '{path}'`."
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


def _out(content: Content | None) -> dict[str, Any]:
    return content_keys(content) if content is not None else {"hash": MD5}


def _write_import(
    repo: Repository,
    output: Output,
    origin: Origin,
    dep: dict[str, Any],
    content: Content | None,
    annotations: Annotations,
    *,
    sign: bool = True,
    push: bool = True,
) -> Import:
    out = {**_out(content), "path": posixpath.basename(output.path), **annotations.as_dict()}
    if not push:
        out["push"] = False
    document: dict[str, Any] = {"frozen": True, "deps": [dep], "outs": [out]}
    if sign:
        document = {"md5": document_md5(document), **document}
    file = repo.root / output.source
    write_atomic(file, write_document(None, output.source, document))
    _keep_out_of_git(repo, output)
    return Import(output.path, output.source, str(origin), content.digest if content else None)


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
    rev: str | None = None,
    recursive: bool = False,
    no_download: bool = False,
    to_remote: bool = False,
    remote: str | None = None,
) -> list[Import]:
    """Implement `Repo.update`.

    Raises:
        OutputNotFoundError: A target is not tracked, or its source no longer exists.
        OutputError: A target is not an import.
        OutputChangedError: Files would be lost; nothing was changed.
        TransferError: Some files could not be downloaded; that import was not changed.
    """
    if to_remote and no_download:
        raise ConfigError("--to-remote can't be used with --no-download")
    if remote and not to_remote:
        raise ConfigError("--remote can't be used without --to-remote")
    with repo.lock(write=lambda: [""] if recursive else written_paths(repo, targets)):
        return _update(repo, _imports(repo, targets, recursive), rev, no_download, to_remote, remote)


def _update(
    repo: Repository,
    wanted: Sequence[Output],
    rev: str | None,
    no_download: bool,
    to_remote: bool,
    remote: str | None,
) -> list[Import]:
    done: list[Import] = []
    for output in wanted:
        origin = output.origin
        assert origin is not None
        if origin.repo is not None:
            if to_remote:
                raise ConfigError(
                    f"'{output.source}' is imported from another repository; it can't be updated with --to-remote"
                )
            done.append(_update_repo(repo, output, origin, origin.repo, rev, no_download))
        else:
            done.append(_update_url(repo, output, origin, no_download, to_remote, remote))
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
            hint = output_meant([output for output in tracked if output.origin], target)
            raise OutputNotFoundError(
                f"'{target}' is not an import of {repo.root}. Name its .dvc file.{hint}"
            )
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
) -> Import:
    values: dict[str, Any] = {**old, **({"rev": rev} if rev else {})}
    with open_origin(repo, values, None) as source:
        dep = repo_dep(origin.path, {**values, "rev_lock": source.at})
        found = repo.workspace.look(output.path, hash_name=output.hash_name)
        if values == dict(old) and _is_as_locked(repo, output, origin, source):
            dep = repo_dep(origin.path, old)
        if dep["repo"] == dict(old) and output.digest is not None and found.digest == output.digest:
            return Import(output.path, output.source, str(origin), output.digest, changed=False)
        _check_kept(repo, output, found)
        content: Content | None = None
        if no_download:
            lookup.check_there(source, origin.path)
        else:
            fetched = fetch.modern(fetch.bring(source, origin.path, repo.cache), repo.cache)
            content = replace(fetched.content, isexec=False)
    return _rewrite(repo, output, origin, dep, content, found)


def _is_as_locked(repo: Repository, output: Output, origin: Origin, source: ExternalRepo) -> bool:
    """Return True if the path is unchanged since the commit that an import records, and that commit still opens."""
    values = origin.repo or {}
    if output.digest is None or not values.get("rev_lock") or not is_same(repo, output, origin, source):
        return False
    try:
        with open_origin(repo, values, values["rev_lock"]):
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
    content: Content | None = None
    if to_remote:
        content = send(repo, opened, remote)
    else:
        _check_kept(repo, output, found)
        if not no_download:
            content = bring_source(opened, repo.cache, jobs=repo.jobs, progress=repo.progress)
    dep = url_dep(origin.path, opened.facts(), origin.fs_config)
    return _rewrite(repo, output, origin, dep, content, None if to_remote else found)


def _check_kept(repo: Repository, output: Output, found: Found) -> None:
    """Refuse to replace files whose content is stored nowhere else.

    Raises:
        OutputChangedError: There are such files.
    """
    lost = repo.workspace.lost_by(output, found)
    if lost:
        raise OutputChangedError(lost)


def _rewrite(
    repo: Repository,
    output: Output,
    origin: Origin,
    dep: dict[str, Any],
    content: Content | None,
    found: Found | None,
) -> Import:
    """Check out new content and record it in the `.dvc` file, keeping the file's other fields."""
    if content is not None and found is not None:
        put(repo, replace(output, content=content), found)
    elif found is not None and found.digest is not None:
        repo.workspace.remove(output.path, found)
    file = repo.root / output.source
    old = read_description(file)
    document = copy.deepcopy(documents.load(old, output.source))
    (out,) = document["outs"]
    document["outs"] = [
        {**_out(content), **{key: value for key, value in out.items() if key not in _CONTENT}}
    ]
    document["deps"] = [dep]
    document["md5"] = document_md5(document)
    new = write_document(old, output.source, document)
    if new != old:
        write_atomic(file, new)
    _keep_out_of_git(repo, output)
    return Import(output.path, output.source, str(origin), content.digest if content else None)
