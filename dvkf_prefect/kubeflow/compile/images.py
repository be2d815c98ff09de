"""Images of stages on a cluster, and the packages that pods install at start.

KFP runs ``python3 -m kfp.dsl.executor_main`` in the stage's container, which imports this package. No public image
contains both, so there is no default one. A stage without an image may list ``packages`` that include this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dvkf_prefect.errors import ConfigError
from dvkf_prefect.kubeflow.compile.pod_settings import Placement

# Image of stages that install all that they need.
PYTHON_IMAGE = "python:3.11-slim"
# As a name, an archive or a repository.
_PACKAGE = re.compile(r"(^|/)dvkf[-_.]prefect(?![A-Za-z0-9])", re.IGNORECASE)
# Containers have no capabilities and may run as any user, so neither the image's packages nor HOME are writable.
# The new environment sees the packages of the image's Python, even if that is a virtual environment itself.
OWN_ENVIRONMENT = """
place=$(mktemp -d) || exit 1
if ! [ -d "$HOME" ] || ! [ -w "$HOME" ]; then export HOME="$place"; fi
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
known=$(python3 -c 'import site; print(*site.getsitepackages(), sep="\\n")') || exit 1
python3 -m venv --without-pip --system-site-packages "$place/venv" || exit 1
. "$place/venv/bin/activate"
printf '%s\\n' "$known" > "$(python3 -c 'import site; print(site.getsitepackages()[0])')/image.pth"
exec "$0" "$@"
"""


def image_of(placement: Placement | None, default: str) -> str:
    """Return the image of a stage's container; "" if none is named and its packages are not enough.

    Args:
        placement: Settings of the stage's pod.
        default: Image of stages that name none, or "".

    Example:
        >>> image_of(Placement(packages=("dvkf-prefect[serve]==0.4.0",)), "")
        'python:3.11-slim'
    """
    if placement is not None and placement.image:
        return placement.image
    if default:
        return default
    packages = placement.packages if placement is not None else ()
    return PYTHON_IMAGE if any(_PACKAGE.search(package.strip()) for package in packages) else ""


def check_images(placements: Mapping[str, Placement], default: str) -> None:
    """Check that every stage has an image.

    Args:
        placements: Settings of the pods by stage.
        default: Image of stages that name none, or "".

    Raises:
        ConfigError: A stage has no image.
    """
    without = [stage for stage, placement in placements.items() if not image_of(placement, default)]
    if without:
        shown = ", ".join(f"'{stage}'" for stage in without[:3]) + (", …" if len(without) > 3 else "")
        raise ConfigError(
            f"no image for stage {shown}: a pod needs one that contains kfp, dvkf-prefect and what the stage imports. "
            "Make one with `dvkf image build` and name it (`image` of the block, DVKF_KUBEFLOW_IMAGE, or "
            "`meta: kubeflow: image`), or list `packages` with dvkf-prefect, which pods install at each start"
        )


def install_in_own_environment(component: Any) -> None:
    """Let a component's container install its packages where it may write, whatever its user and rights.

    Args:
        component: A KFP component with ``packages_to_install``.
    """
    container = component.component_spec.implementation.container
    command: Sequence[str] = container.command
    container.command = ["sh", "-c", OWN_ENVIRONMENT, *command]
