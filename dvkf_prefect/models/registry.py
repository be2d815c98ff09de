"""Model versions, registered by annotated git tags that GTO and DVC Studio read too.

A model is declared in a dvc.yaml under ``artifacts``; a version is a commit with a tag. The commit's dvc.lock or
`.dvc` file records the model's digest. So a version identifies its content without any download.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from dvkf_prefect.data.git.command import Git
from dvkf_prefect.data.repository.locks import RepoLock
from dvkf_prefect.data.repository.repository import Repository
from dvkf_prefect.errors import ConfigError, DvkfError, ModelDigestError, ModelError, ModelNotFoundError
from dvkf_prefect.files import read_description
from dvkf_prefect.formats import documents
from dvkf_prefect.models import tags
from dvkf_prefect.models.content import ModelContent, ModelContents
from dvkf_prefect.models.facts import end_fact, note_fact
from dvkf_prefect.models.history import ROLLED_BACK, ModelHistory, Registered, gather
from dvkf_prefect.models.lineage import TRAILER as LINEAGE
from dvkf_prefect.models.lineage import as_trailer, record_lineage
from dvkf_prefect.models.making import check_committed
from dvkf_prefect.models.tags import TagEvent
from dvkf_prefect.models.version import ModelVersion
from dvkf_prefect.text import did_you_mean

Part = Literal["major", "minor", "patch"]

_LOCK_WAIT = 30.0
# Attempts at a tag whose number another process may take first.
_ATTEMPTS = 20


class ModelRegistry:
    """The models of one repository.

    Args:
        repo: The repository; it must be in git.

    Attributes:
        repo: The repository.
        git: The git work tree that contains it.

    Raises:
        ConfigError: The repository is not in git.

    Example:
        >>> registry = ModelRegistry(Repo.open("path/to/repository"))
        >>> version = registry.register("classifier")
        >>> registry.assign("classifier", version.version, "prod")
    """

    def __init__(self, repo: Repository) -> None:
        if repo.git is None:
            raise ConfigError(
                f"{repo.root} is not in git, and models are registered by git tags. Run `git init`."
            )
        self.repo = repo
        self.git: Git = repo.git
        self._contents = ModelContents(repo, self.git)

    # -- reading -------------------------------------------------------------------------------------------------------

    def list(self, name: str | None = None, *, include_inactive: bool = False) -> builtins.list[ModelVersion]:
        """Return the versions, grouped by model, highest first.

        Args:
            name: Restrict the list to this model.
            include_inactive: Include withdrawn versions and deprecated models.

        Raises:
            ModelNotFoundError: No model of that name is registered.
        """
        models = self._read()
        chosen = models.values() if name is None else [self._model(models, name)]
        return [
            self._version(history, version)
            for history in chosen
            if history.active or include_inactive
            for version in (history.versions if include_inactive else history.standing)
        ]

    def show(self, name: str, which: str = "latest") -> ModelVersion:
        """Return one version.

        Args:
            name: Name of the model.
            which: A version; ``latest``, the highest active one; or ``#stage``, the holder of a stage.

        Raises:
            ModelNotFoundError: There is no such version; the message lists the existing ones.
        """
        history = self._model(self._read(), name)
        return self._version(history, self._find(history, which))

    def history(self, name: str | None = None, *, ascending: bool = False) -> builtins.list[TagEvent]:
        """Return the events of the models in GTO's order, each with its version.

        Args:
            name: Restrict the events to this model.
            ascending: Return the oldest event first, in place of the newest.

        Raises:
            ModelNotFoundError: No model of that name is registered.
        """
        models = self._read()
        chosen = models.values() if name is None else [self._model(models, name)]
        events = [history.named(event) for history in chosen for event in history.events]
        return sorted(events, key=lambda event: (event.created, event.rank), reverse=not ascending)

    def check_ref(self, ref: str) -> TagEvent | None:
        """Return the event that a tag records; None if the tag does not exist or is not one of the registry's.

        Args:
            ref: Name of a tag, or ``refs/tags/`` and the name, as CI systems give it.
        """
        parsed = tags.parse_tag_name(tag := ref.removeprefix("refs/tags/"))
        history = self._read().get(parsed.model) if parsed else None
        events = history.events if history else ()
        return next((history.named(event) for event in events if history and event.tag == tag), None)

    def overview(self, *, include_inactive: bool = False) -> dict[str, dict[str, Any]]:
        """Return the models as ``gto show --json`` prints them.

        Args:
            include_inactive: Include deprecated models.

        Returns:
            By model: ``version``, the highest registered one or None; ``stage``, the holder or None of each stage that
            the file .gto allows, or that any version holds; ``registered``; ``active``.
        """
        models = self._read()
        held = {stage for history in models.values() for stage in history.stages()}
        stages = self._allowed_stages() or sorted(held)
        return {
            name: {
                "version": next((v.name for v in history.standing if v.registrations), None),
                "stage": {stage: by.name if (by := history.holder(stage)) else None for stage in stages},
                "registered": True,  # GTO's word for "it has tags"
                "active": history.active,
            }
            for name, history in models.items()
            if history.active or include_inactive
        }

    # -- versions ------------------------------------------------------------------------------------------------------

    def register(
        self,
        name: str,
        *,
        version: str | None = None,
        bump: Part | None = None,
        rev: str = "HEAD",
        message: str = "",
        trailers: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Register a commit as a new version of a model.

        Args:
            name: The model as dvc.yaml declares it under ``artifacts``; ``folder:name`` for folder/dvc.yaml.
            version: The version; by default the next patch of the highest one, v0.0.1 for the first.
            bump: Part of the highest version to increment instead.
            rev: The commit. HEAD stands for the workspace: changes of what made the model are then refused.
            message: Message of the tag.
            trailers: ``Key: value`` lines for the end of the message, such as the run that produced the model.

        Raises:
            ModelError: The name or version is not valid, or the commit or version is already registered. Also if
                the commit does not declare the model, records no content for it, or does not hold what made it; for
                HEAD, if the workspace has changes of it.
            GitError: There is no such revision, or git refused the tag.
        """
        tags.check_model_name(name)
        if version is not None and bump is not None:
            raise ModelError("version and bump exclude each other. Give one of them.")
        if version is not None and not tags.is_version(version):
            raise ModelError(f"'{version}' is not a version. Use one like v1.0.0 or v1.0.0-rc.1.")
        model = self._committed(name, rev)
        rev = model.rev
        trailers = {**as_trailer(record_lineage(self.repo, model)), **(trailers or {})}
        with self._writing():
            for _ in range(_ATTEMPTS):
                history = self._read().get(name) or ModelHistory(name, ())
                chosen = self._next_version(history, version, bump, rev)
                text = message or f"Registering artifact {name} version {chosen}"
                tag = tags.tag_name("register", name, version=chosen)
                if self._tag(history, tag, rev, text, trailers):
                    return self.show(name, chosen)
                if version is not None:
                    break
        raise ModelError(f"the tag {tag} exists already. Choose another version.")

    def _committed(self, name: str, rev: str) -> ModelContent:
        """Return a commit's model, after checking that the commit holds all that made it."""
        commit = self.git.resolve(rev)
        model = self._contents.read(name, commit)
        check_committed(self.repo, self.git, name, model.path, commit, here=rev == "HEAD")
        return model

    def _next_version(self, history: ModelHistory, version: str | None, part: Part | None, rev: str) -> str:
        taken = {known.name: known for known in history.versions if known.registrations or known.withdrawals}
        for known in taken.values():
            if known.rev == rev:
                state = "registered" if known.active else "registered and withdrawn"
                raise ModelError(
                    f"commit {rev[:7]} is {state} as '{history.name}' {known.name} already. Register another commit."
                )
        if version is not None:
            if version in taken:
                raise ModelError(
                    f"'{history.name}' {version} is registered already, at commit {taken[version].rev[:7]}. Choose "
                    "another version."
                )
            return version
        highest = next((known.name for known in history.standing if known.registrations), None)
        if highest is None and part is not None:
            raise ModelError(
                f"'{history.name}' has no version to count up from. Register the first one without `bump`."
            )
        proposed = tags.FIRST_VERSION if highest is None else tags.bump(highest, part or "patch")
        while proposed in taken:
            proposed = tags.bump(proposed, part or "patch")
        return proposed

    def deregister(
        self, name: str, version: str, *, message: str = "", trailers: Mapping[str, str] | None = None
    ) -> ModelVersion:
        """Withdraw a version; its tags stay, and its number is not used again.

        Raises:
            ModelNotFoundError: There is no such version.
            ModelError: The version was already withdrawn.
        """
        with self._writing():
            history = self._model(self._read(), name)
            found = self._named(history, version)
            tag = tags.tag_name("deregister", name, version=version)
            text = message or f"Deregistering artifact {name} version {version}"
            if not found.active or not self._tag(history, tag, found.rev, text, trailers):
                raise ModelError(f"'{name}' {version} was deregistered already")
            after = self._model(self._read(), name)
            return self._version(after, self._named(after, version))

    def deprecate(self, name: str, *, message: str = "", trailers: Mapping[str, str] | None = None) -> None:
        """Deprecate a model; it is hidden until a version is registered or assigned again.

        Raises:
            ModelNotFoundError: No model of that name is registered.
            ModelError: The model is already deprecated.
        """
        with self._writing():
            history = self._model(self._read(), name)
            if not history.active:
                raise ModelError(f"'{name}' was deprecated already")
            rev = history.events[-1].rev
            text = message or f"Deprecating artifact '{name}'"
            if not self._tag(history, tags.tag_name("deprecate", name), rev, text, trailers):
                self._counted(name, "deprecate", "", rev, text, trailers)

    # -- stages --------------------------------------------------------------------------------------------------------

    def assign(
        self,
        name: str,
        version: str,
        stage: str,
        *,
        message: str = "",
        trailers: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Assign a stage to a version.

        Args:
            name: Name of the model.
            version: The version, or ``latest``.
            stage: The stage, such as ``prod``.
            message: Message of the tag.
            trailers: ``Key: value`` lines for the end of the message.

        Raises:
            ModelNotFoundError: There is no such version.
            ModelError: The stage's name is invalid or not allowed by the file .gto, or the version already holds
                it.
        """
        self.check_stage(stage)
        with self._writing():
            history = self._model(self._read(), name)
            found = self._find(history, version)
            if history.holder(stage) is found:
                raise ModelError(f"'{name}' {found.name} is in stage '{stage}' already")
            text = message or f"Assigning stage {stage} to artifact {name} version {found.name}"
            self._counted(name, "assign", stage, found.rev, text, trailers)
            return self.show(name, found.name)

    def unassign(
        self,
        name: str,
        version: str,
        stage: str,
        *,
        message: str = "",
        trailers: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Remove a stage from a version; the version assigned before it, if any, holds it again.

        Raises:
            ModelNotFoundError: There is no such version, or it is not in that stage.
        """
        self.check_stage(stage)
        with self._writing():
            history = self._model(self._read(), name)
            found = self._find(history, version)
            if found.assigned(stage) is None:
                raise ModelNotFoundError(f"'{name}' {found.name} is not in stage '{stage}' {_known(history)}")
            text = message or f"Unassigning stage '{stage}' to artifact '{name}' version '{found.name}'"
            self._counted(name, "unassign", stage, found.rev, text, trailers)
            return self.show(name, found.name)

    def rollback(
        self,
        name: str,
        stage: str,
        *,
        reason: str = "",
        trailers: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Return a stage to the version that held it before.

        Each rollback goes one version further back. It skips withdrawn versions and those that were rolled back
        from.

        Args:
            name: Name of the model.
            stage: The stage.
            reason: Reason for the rollback; added to the tag's message.
            trailers: ``Key: value`` lines for the end of the message.

        Returns:
            The version that holds the stage now.

        Raises:
            ModelNotFoundError: No version holds the stage, or none did before; the message lists the versions.
        """
        self.check_stage(stage)
        with self._writing():
            history = self._model(self._read(), name)
            current, earlier = self._before(history, stage)
            text = (
                f"Rolling back stage {stage} of artifact {name} from version {current.name} to {earlier.name}"
            )
            if reason:
                text += f"\n\n{reason.strip()}"
            marks = {**(trailers or {}), ROLLED_BACK: current.name}
            self._counted(name, "assign", stage, earlier.rev, text, marks)
            return self.show(name, earlier.name)

    def earlier(self, name: str, stage: str, version: str = "") -> ModelVersion:
        """Return the version that a rollback of a stage would give it to.

        Args:
            name: Name of the model.
            stage: The stage.
            version: An earlier holder of the stage; empty for the one before the current holder.

        Raises:
            ModelNotFoundError: No version holds the stage, or none did before; the message lists the versions.
        """
        history = self._model(self._read(), name)
        return self._version(history, self._before(history, stage, version)[1])

    def _before(self, history: ModelHistory, stage: str, version: str = "") -> tuple[Registered, Registered]:
        current = history.holder(stage)
        if current is None:
            raise ModelNotFoundError(
                f"no version of '{history.name}' is in stage '{stage}' {_known(history)}"
            )
        earlier = history.before(stage, version)
        if earlier is None:
            what = (
                f"{version} was rolled back from or never" if version else f"no version of '{history.name}'"
            )
            raise ModelNotFoundError(f"{what} held stage '{stage}' before {current.name} {_known(history)}")
        return current, earlier

    def check_stage(self, stage: str) -> None:
        """Refuse the name of a stage that GTO or the file .gto does not allow."""
        tags.check_stage_name(stage)
        allowed = self._allowed_stages()
        if allowed is not None and stage not in allowed:
            raise ModelError(
                f"stage '{stage}' is not allowed by the file .gto. Use one of: {', '.join(allowed)}."
                + did_you_mean(stage, allowed)
            )

    def _allowed_stages(self) -> builtins.list[str] | None:
        """Return the stages in GTO's settings; None if it has none, so that every stage is allowed."""
        try:
            settings = documents.load(read_description(self.git.root / ".gto"), ".gto")
        except FileNotFoundError:
            return None
        allowed = settings.get("stages") if isinstance(settings, dict) else None
        return [str(name) for name in allowed] if isinstance(allowed, list) else None

    def note(self, version: ModelVersion, kind: str, values: Mapping[str, Any]) -> bool:
        """Note a later fact about a registered version, see `dvkf_prefect.models.facts`.

        Args:
            version: The version.
            kind: Kind of the fact: ``registry``, ``published`` or ``service``.
            values: Values for JSON; ``where`` is the place, which has one fact of a kind.

        Returns:
            False if the fact is noted already.

        Raises:
            GitError: The version has no tag, or git refused.
        """
        with self._writing():
            tag = tags.tag_name("register", version.name, version=version.version)
            return note_fact(self.git, tag, kind, values)

    def end_note(self, name: str, version: str, kind: str, where: str) -> bool:
        """Note that a fact about a version holds no more.

        Args:
            name: Name of the model.
            version: The version.
            kind: Kind of the fact, see `note`.
            where: Its place.

        Returns:
            False if no such fact is noted.

        Raises:
            GitError: Git refused.
        """
        with self._writing():
            return end_fact(self.git, tags.tag_name("register", name, version=version), kind, where)

    # -- content -------------------------------------------------------------------------------------------------------

    def materialise(self, version: ModelVersion, dest: Path) -> Path:
        """Copy a version's file or folder out of the cache; fetch it from the remote if missing.

        Args:
            version: The version.
            dest: Destination path. If it already has that content, nothing is done.

        Returns:
            ``dest``.

        Raises:
            OutputChangedError: ``dest`` exists with other content.
            ModelDigestError: The content is damaged in the cache, and the remote has no intact copy.
            ModelError: The version has no recorded content.
            MissingObjectError: Neither the cache nor the remote has it.
            RemoteError: The remote cannot be used.
        """
        if version.digest is None:
            raise ModelError(
                f"{version.name} {version.version} has no content recorded by DVC at commit {version.rev[:7]}. "
                "Register another version."
            )
        model = self._contents.read(version.name, version.rev)
        digest = model.content.digest
        if digest != version.digest:
            raise ModelDigestError(
                f"{version.name} at commit {version.rev[:7]} is {digest}, not {version.digest}"
            )
        return self._contents.export(model, dest)

    def find_same(self, name: str, rev: str = "HEAD") -> ModelVersion | None:
        """Return the latest version if its content equals a commit's, which then needs no registration.

        Args:
            name: Name of the model.
            rev: The commit.

        Raises:
            ModelNotFoundError: The commit does not declare the model.
            ModelError: DVC recorded no content for it at that commit, or the commit does not hold what made it.
            GitError: There is no such revision.
        """
        tags.check_model_name(name)
        model = self._committed(name, rev)
        history = self._read().get(name)
        standing = [version for version in history.standing if version.registrations] if history else []
        if not history or not standing:
            return None
        latest = self._version(history, standing[0])
        return latest if latest.digest == model.content.digest else None

    # -- tags ----------------------------------------------------------------------------------------------------------

    def _read(self) -> dict[str, ModelHistory]:
        return gather(tags.read_tags(self.git))

    def _model(self, models: Mapping[str, ModelHistory], name: str) -> ModelHistory:
        if name not in models:
            known = ", ".join(models) or "none"
            raise ModelNotFoundError(
                f"no model '{name}' is registered in {self.git.root} (registered: {known}). Register a version of it "
                f"first.{did_you_mean(name, models)}"
            )
        return models[name]

    def _named(self, history: ModelHistory, version: str) -> Registered:
        found = history.find(version)
        if found is None:
            raise ModelNotFoundError(
                f"'{history.name}' has no version '{version}' {_known(history, version)}"
            )
        return found

    def _find(self, history: ModelHistory, which: str) -> Registered:
        """Return the active version that `show`'s ``which`` selects."""
        if which.startswith("#"):
            found = history.holder(which[1:])
            if found is None:
                raise ModelNotFoundError(
                    f"no version of '{history.name}' is in stage '{which[1:]}' {_known(history, which[1:])}"
                )
            return found
        if which in ("latest", "greatest"):
            if not history.standing:
                raise ModelNotFoundError(f"'{history.name}' has no version {_known(history)}")
            return history.standing[0]
        found = self._named(history, which)
        if not found.active:
            raise ModelNotFoundError(f"'{history.name}' {which} was deregistered {_known(history)}")
        return found

    def _version(self, history: ModelHistory, version: Registered) -> ModelVersion:
        event = version.event
        model: ModelContent | None = None
        # Tags of other tools may lack the content that `register` demands; show such versions all the same.
        with suppress(DvkfError, OSError, ValueError):
            model = self._contents.read(history.name, version.rev)
        content = model.content if model else None
        return ModelVersion(
            name=history.name,
            version=version.name,
            rev=version.rev,
            path=model.path if model else None,
            digest=content.digest if content else None,
            size=content.size if content else None,
            nfiles=(content.nfiles or 1) if content else None,
            stages=tuple(stage for stage, holder in history.stages().items() if holder is version),
            created=event.created,
            author=event.author,
            message=event.message,
            trailers={key: value for key, value in event.trailers.items() if key != LINEAGE},
            active=version.active and history.active,
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Lock out this repository's other writers, so that no two take the same number."""
        with RepoLock(self.repo.tmp_dir / "models.lock").hold(_LOCK_WAIT):
            yield

    def _tag(
        self, history: ModelHistory, tag: str, rev: str, text: str, trailers: Mapping[str, str] | None = None
    ) -> bool:
        message = tags.join_message(text, trailers or {})
        return tags.create_tag(self.git, tag, rev, message, after=history.events)

    def _counted(
        self,
        name: str,
        action: tags.Action,
        stage: str,
        rev: str,
        text: str,
        trailers: Mapping[str, str] | None = None,
    ) -> None:
        """Create a tag with the model's next number; if another process takes it first, try the one after."""
        for _ in range(_ATTEMPTS):
            history = self._model(self._read(), name)
            counters = (event.counter or 0 for event in history.events)
            counter = max((known for known in counters if known < tags.COUNTERS), default=0) + 1
            tag = tags.tag_name(action, name, stage=stage, counter=counter)
            if self._tag(history, tag, rev, text, trailers):
                return
        raise ModelError(f"the tag {tag} was taken by another process {_ATTEMPTS} times. Try again.")


def _known(history: ModelHistory, meant: str = "") -> str:
    if not history.standing:
        return "(versions: none). Register one first."
    names = [version.name for version in history.standing]
    held = "".join(f", #{stage} {holder.name}" for stage, holder in history.stages().items())
    step = did_you_mean(meant, (*names, *history.stages())) or " Use one of them."
    return f"(versions: {', '.join(names)}{held}).{step}"
