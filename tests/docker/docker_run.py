"""Run a pipeline by KFP's own DockerRunner, with the rights of a stage's container.

The runner replaces ``print`` and the log handlers of its process. Arguments: the file with the pipeline's
specification, the folder for outputs, the user, and folders that containers see at the same paths.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from docker.types import Mount
from kfp import components, local


def main(spec: str, root: str, user: str, *mounts: str) -> None:
    """Run the pipeline; exit with 1 if it fails."""
    options: dict[str, Any] = {
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "network_mode": "none",
        "mounts": [Mount(path, path, type="bind") for path in mounts],
        **({"user": user} if user else {}),
    }
    local.init(runner=local.DockerRunner(**options), pipeline_root=root, raise_on_error=True)
    values = json.loads(Path(spec).read_text())
    text = json.dumps(values.get("pipeline_spec", values))
    components.load_component_from_text(text)()


if __name__ == "__main__":
    main(*sys.argv[1:])
