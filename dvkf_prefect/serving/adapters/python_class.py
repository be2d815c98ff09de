"""A class of the user: a folder with model.py, which defines ``Model`` with ``load`` and ``predict``.

The folder is imported as a package of its own name. So model.py imports files beside it by ``from . import helper``,
and two versions do not share modules.
"""

from __future__ import annotations

import importlib.util
import secrets
import sys
from typing import Any

from dvkf_prefect.errors import ServingError
from dvkf_prefect.serving.adapters.table import Files

CLASS = "Model"


def load(files: Files) -> Any:
    """Import model.py, make a ``Model``, and call its ``load`` with the folder's path.

    Raises:
        ServingError: model.py defines no such class, or the class has no ``load`` or ``predict``.
    """
    path = files.path
    name = f"_dvkf_model_{secrets.token_hex(8)}"
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=[str(path.parent)])
    if spec is None or spec.loader is None:
        raise ServingError(f"{path.name} is not a Python module. Register a folder with a model.py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    found = getattr(module, CLASS, None)
    if not callable(found):
        raise ServingError(f"no class {CLASS}: {path.name}. Define it with the methods load and predict.")
    model = found()
    for method in ("load", "predict"):
        if not callable(getattr(model, method, None)):
            raise ServingError(f"no method {method}: class {CLASS} of {path.name}. Define it.")
    model.load(path.parent)
    return model
