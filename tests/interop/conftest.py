"""What the tests with generated repositories share."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


def _load(name: str) -> None:
    """Load a helper module that lies beside this file, under the name that tests import it by."""
    pytest.register_assert_rewrite(name)
    folder = [str(Path(__file__).parent)]
    spec = next(found for finder in sys.meta_path if (found := finder.find_spec(name, folder)))
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_load("commands")
_load("generators")
_load("cases")
_load("odd_shapes")

from commands import Dvc  # noqa: E402


@pytest.fixture(scope="session")
def dvc() -> Iterator[Dvc]:
    """The real `dvc`, without its start for each command."""
    running = Dvc()
    yield running
    running.close()
