"""Cache policy for tasks with versions of data as parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prefect.cache_policies import NO_CACHE, STABLE_TRANSFORMS, CachePolicy, CompoundCachePolicy, Inputs
from prefect.context import TaskRunContext
from prefect.utilities.hashing import hash_objects

from dvkf_prefect.blocks import DvcRepository
from dvkf_prefect.formats.outputs import DataVersion


@dataclass
class DataVersionPolicy(CachePolicy):
    """Cache policy by the content of versions of data, and by all other parameters as they are.

    A `DataVersion` counts by its path in the repository and its digest, also inside lists, tuples and mappings. A
    `DvcRepository` counts by its `shared_name`. So keys are equal on all workers, whatever folder each one uses, and a
    commit without new data keeps them. Prefect's `INPUTS` counts parameters of these two types so, too.

    Combine it with Prefect's policies by ``+``, and leave out parameters by ``-``.
    It comes first in a sum: Prefect's own policies replace parameters that are left out of their sums by `INPUTS`.

    Attributes:
        exclude: Parameters that are left out.
        others: Policies that are added to it. `INPUTS` is left out, since this policy has the parameters.

    Example:
        ``@task(cache_policy=DataVersionPolicy() + TASK_SOURCE - "logger")``
    """

    exclude: tuple[str, ...] = ()
    others: tuple[CachePolicy, ...] = field(default=())

    def __add__(self, other: CachePolicy) -> CachePolicy:
        """Return a policy whose keys are those of this and of another policy."""
        # Prefect refuses two storages, locks or isolations in a sum; one of both is the sum's.
        summed = super().__add__(other)
        made = replace(
            self,
            key_storage=summed.key_storage,
            isolation_level=summed.isolation_level,
            lock_manager=summed.lock_manager,
        )
        if other == NO_CACHE:
            return made
        # A compound such as DEFAULT has its parts in a list.
        for each in other.policies if isinstance(other, CompoundCachePolicy) else (other,):
            if isinstance(each, Inputs):
                made = replace(made, exclude=(*made.exclude, *each.exclude))
            else:
                made = replace(made, others=(*made.others, each))
        return made

    def __sub__(self, other: str) -> CachePolicy:
        """Return a policy without a parameter."""
        return replace(
            self, exclude=(*self.exclude, other), others=tuple(each - other for each in self.others)
        )

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """Return the key; Prefect calls this.

        Args:
            task_ctx: The task run.
            inputs: Parameters of the task run.
            flow_parameters: Parameters of the flow run.
            kwargs: Further arguments of later Prefect versions.
        """
        kept = {name: value for name, value in (inputs or {}).items() if name not in self.exclude}
        named = {name: _identity(value) for name, value in kept.items()}
        keys = [hash_objects(named, raise_on_failure=True)]
        keys += [other.compute_key(task_ctx, kept, flow_parameters, **kwargs) for other in self.others]
        return hash_objects(*[key for key in keys if key is not None])


def _identity(value: Any) -> Any:
    """Return a value with versions and repositories replaced by their identity."""
    if isinstance(value, DataVersion):
        return ("dvkf.DataVersion", value.path, value.digest)
    if isinstance(value, DvcRepository):
        return ("dvkf.DvcRepository", value.shared_name)
    if isinstance(value, Mapping):
        return {key: _identity(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_identity(each) for each in value)
    return value


# Parameters of Prefect's own policies; `INPUTS` would hash the path of the repository on this worker.
STABLE_TRANSFORMS[DataVersion] = _identity
STABLE_TRANSFORMS[DvcRepository] = _identity
