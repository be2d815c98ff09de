"""Push and fetch: group outputs by remote, transfer each group, and collect the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dvkf_prefect.data.progress import Direction
from dvkf_prefect.data.remotes.remote import Remote
from dvkf_prefect.data.repository.selection import Choice, Selection, select
from dvkf_prefect.data.transfer import plan, remote_users
from dvkf_prefect.data.transfer.plan import Plan
from dvkf_prefect.data.transfer.run_cache import Runs, move_runs, plan_runs, run_outputs
from dvkf_prefect.data.transfer.transfer import Transfer, cloud_status, execute
from dvkf_prefect.errors import RemoteError, TransferError
from dvkf_prefect.formats.config import keeps_versions
from dvkf_prefect.formats.outputs import Output

if TYPE_CHECKING:
    from dvkf_prefect.data.repository.repository import Repository


@dataclass(frozen=True, slots=True)
class Plans:
    """Planned transfers of a push or a fetch, one for each remote; `str` returns a readable summary.

    Attributes:
        plans: One plan for each remote.
        runs: Entries of the run cache to transfer, by remote.
        elsewhere: Outputs to fetch from their import source, or from a remote that keeps versions.
    """

    plans: tuple[Plan, ...]
    runs: dict[str, Runs] = field(default_factory=dict)
    elsewhere: tuple[Output, ...] = ()

    @property
    def files(self) -> int:
        """Number of objects to transfer."""
        return sum(plan.files for plan in self.plans) + sum(len(runs.keys) for runs in self.runs.values())

    def __str__(self) -> str:
        lines = [str(plan) for plan in self.plans]
        lines += [
            f"run cache, remote '{name}': {len(runs.keys):,} run(s)" for name, runs in self.runs.items()
        ]
        lines += [
            f"from {output.origin or 'a remote that keeps versions'}: {output.path}, "
            + (f"{output.size:,} bytes" if output.size is not None else "of unknown size")
            for output in self.elsewhere
        ]
        return "\n".join(lines)


@dataclass(slots=True)
class _Result:
    """Collected results and failures of the transfers to several remotes."""

    done: Transfer | None = None
    failures: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    places: dict[str, None] = field(default_factory=dict)
    fatal: RemoteError | None = None

    def add(self, transfer: Transfer) -> None:
        self.done = self.done + transfer if self.done else transfer

    def fail(self, place: str, failures: dict[str, str], missing: set[str] | None = None) -> None:
        if failures:
            self.failures.update(failures)
            self.missing |= missing or set()
            self.places[place] = None


def plan_push(
    repo: Repository,
    targets: Sequence[str] = (),
    *,
    choice: Choice | None = None,
    remote: str | None = None,
    run_cache: bool = False,
    deep: bool = False,
) -> Plans:
    """Implement `Repo.plan_push`."""
    return _plan(repo, "push", select(repo, targets, choice), remote, run_cache, deep)


def plan_fetch(
    repo: Repository,
    targets: Sequence[str] = (),
    *,
    rev: str | None = None,
    choice: Choice | None = None,
    remote: str | None = None,
    run_cache: bool = False,
) -> Plans:
    """Implement `Repo.plan_fetch`."""
    return _plan(repo, "fetch", select(repo, targets, choice, rev=rev), remote, run_cache, False)


def _plan(
    repo: Repository,
    direction: Direction,
    selection: Selection,
    remote: str | None,
    run_cache: bool,
    deep: bool,
) -> Plans:
    outputs, elsewhere = list(selection.outputs), list[Output]()
    if direction == "fetch":
        outputs, elsewhere = _split(repo, outputs, remote)
    plans: list[Plan] = []
    runs: dict[str, Runs] = {}
    if run_cache:
        place = repo.remote(remote)
        runs[place.name] = plan_runs(repo.cache, place, push=direction == "push")
    for name, group in _groups(repo, outputs, remote, direction).items():
        place = repo.remote(name)
        if direction == "push":
            extra = run_outputs(repo.cache) if run_cache and place.name in runs else []
            found = plan.plan_push(group, repo.cache, place, parts=selection.parts, optional=extra, deep=deep)
        else:
            found = plan.plan_fetch(group, repo.cache, place, parts=selection.parts, check=True)
        plans.append(found)
    return Plans(tuple(plans), runs, tuple(elsewhere))


def push(
    repo: Repository,
    targets: Sequence[str] = (),
    *,
    choice: Choice | None = None,
    remote: str | None = None,
    run_cache: bool = False,
    deep: bool = False,
) -> Transfer:
    """Implement `Repo.push`."""
    selection = select(repo, targets, choice, overlap="any")
    result = _Result()

    def send(group: Sequence[Output], place: Remote, runs: bool) -> None:
        # Upload the outputs of runs before the run cache entries that name them.
        extra = run_outputs(repo.cache) if runs else []
        made = plan.plan_push(group, repo.cache, place, parts=selection.parts, optional=extra, deep=deep)
        if group or extra:
            remote_users.mark(repo, place)
        result.add(execute(made, progress=repo.progress))
        result.fail(str(place), made.failures, made.missing)

    _each_remote(repo, list(selection.outputs), remote, "push", run_cache, result, send)
    return _ended(result)


def fetch(
    repo: Repository,
    targets: Sequence[str] = (),
    *,
    rev: str | None = None,
    choice: Choice | None = None,
    remote: str | None = None,
    run_cache: bool = False,
) -> Transfer:
    """Implement `Repo.fetch`."""
    selection = select(repo, targets, choice, rev=rev, overlap="any")
    return fetch_selection(repo, selection, remote=remote, run_cache=run_cache)


def fetch_selection(
    repo: Repository,
    selection: Selection,
    *,
    remote: str | None = None,
    run_cache: bool = False,
    allow_missing: bool = False,
) -> Transfer:
    """Download selected outputs into the cache; with ``allow_missing``, missing objects are no failures."""
    result = _Result()

    def receive(group: Sequence[Output], place: Remote, runs: bool) -> None:
        made = plan.plan_fetch(group, repo.cache, place, parts=selection.parts)
        result.add(execute(made, progress=repo.progress))
        result.fail(str(place), made.failures, made.missing)

    rest, elsewhere = _split(repo, selection.outputs, remote)
    if elsewhere:
        from dvkf_prefect.data.imports.fetch import fetch_all

        try:
            result.add(fetch_all(repo, elsewhere, remote, lambda _: Transfer("")))
        except TransferError as error:
            result.fail(error.place, error.failures, set(error.missing))
    if rest or not elsewhere or run_cache:
        _each_remote(repo, rest, remote, "fetch", run_cache, result, receive)
    if allow_missing:
        for name in result.missing:
            result.failures.pop(name, None)
    return _ended(result)


def status(
    repo: Repository,
    targets: Sequence[str] = (),
    *,
    choice: Choice | None = None,
    remote: str | None = None,
    deep: bool = False,
) -> dict[str, str]:
    """Implement `Repo.cloud_status`."""
    selection = select(repo, targets, choice)
    states: dict[str, str] = {}
    for name, group in _groups(repo, list(selection.outputs), remote, "push").items():
        found = cloud_status(group, repo.cache, repo.remote(name), parts=selection.parts, deep=deep)
        states.update(found)
    return dict(sorted(states.items()))


def _each_remote(
    repo: Repository,
    outputs: list[Output],
    remote: str | None,
    direction: Direction,
    run_cache: bool,
    result: _Result,
    act: Callable[[Sequence[Output], Remote, bool], None],
) -> None:
    """Call ``act`` with the outputs of each remote.

    If one of several remotes cannot be used, the error is kept in ``result`` and the others continue.
    """
    groups = _groups(repo, outputs, remote, direction)
    shares_runs = repo.config.remote(remote)[0] if run_cache else None
    if shares_runs is not None:
        groups.setdefault(shares_runs, [])
    for name, group in groups.items():
        place = repo.remote(name)
        with_runs = place.name == shares_runs
        with repo.lock():
            if direction == "push":
                place.sweep()
            try:
                act(group, place, with_runs)
                if with_runs:
                    runs = plan_runs(repo.cache, place, push=direction == "push")
                    move_runs(
                        runs,
                        repo.cache,
                        place,
                        push=direction == "push",
                        progress=repo.progress,
                    )
                    result.add(Transfer(place.name, runs.files, runs.size, runs.present))
                    result.fail(str(place), runs.failures)
            except RemoteError as error:
                if len(groups) == 1:
                    raise
                result.fatal = result.fatal or error


def _groups(
    repo: Repository, outputs: list[Output], remote: str | None, direction: Direction
) -> dict[str | None, list[Output]]:
    """Group outputs by remote; outputs that name a remote other than the requested one are left out."""
    groups: dict[str | None, list[Output]] = {}
    for output in outputs:
        if direction == "push" and not output.pushed:
            continue
        if remote and output.remote and output.remote.lower() != remote.lower():
            continue
        groups.setdefault(repo.config.remote(output.remote or remote)[0], []).append(output)
    return groups or {repo.config.remote(remote)[0]: []}


def _split(
    repo: Repository, outputs: Sequence[Output], remote: str | None
) -> tuple[list[Output], list[Output]]:
    """Split outputs into those that remotes store by digest, and those with another source.

    The second group is fetched from import sources and from remotes that keep versions.
    """
    kept = any(keeps_versions(options) for options in repo.config.values["remote"].values())
    if not kept and not any(output.origin for output in outputs):
        return list(outputs), []
    from dvkf_prefect.data.imports.origins import from_source

    rest: list[Output] = []
    elsewhere: list[Output] = []
    for output in outputs:
        other = from_source(output) or repo.config.is_versioned(output.remote or remote)
        (elsewhere if other else rest).append(output)
    return rest, elsewhere


def _ended(result: _Result) -> Transfer:
    if result.fatal:
        raise result.fatal
    if result.failures:
        raise TransferError(" and ".join(result.places), result.failures, missing=result.missing)
    return result.done or Transfer("")
