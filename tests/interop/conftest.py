"""What the tests with generated repositories share."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

for _name in ("generators", "cases", "odd_shapes"):
    pytest.register_assert_rewrite(_name)

from recorded import ANSWERS, DATE, Answers  # noqa: E402


@pytest.fixture(scope="session")
def dvc() -> Answers:
    """The real `dvc`, or what is recorded of it; see `recorded`."""
    return ANSWERS


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    """Store what a fixture of many tests asks under its own name: any of them may come first."""
    if fixturedef.scope == "function":
        return (yield)
    with ANSWERS.owned(f"fixture {fixturedef.argname} {getattr(request, 'param', '')}".rstrip()):
        return (yield)


@pytest.fixture(autouse=True)
def one_date(monkeypatch: pytest.MonkeyPatch, clean_environment: None) -> None:
    """The same ids for the same commits, and lines of one width."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("GIT_AUTHOR_DATE", DATE)
    monkeypatch.setenv("GIT_COMMITTER_DATE", DATE)
