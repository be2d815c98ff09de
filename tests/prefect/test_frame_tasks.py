"""The task that writes tables, on a real repository and a real Prefect server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from prefect import flow

from dvkf_prefect import compare_table, diff_frames, read_frame, write_data
from dvkf_prefect.blocks import DvcRepository
from dvkf_prefect.cards import artifact_key
from dvkf_prefect.errors import OutputChangedError
from dvkf_prefect.repo import Repo
from dvkf_prefect.tasks.data import commit_results


def test_a_table_is_written_tracked_and_shown(repo: Repo, artifacts: Callable[[str], list[Any]]) -> None:
    block = DvcRepository(path=str(repo.root))

    @flow
    def write(rows: int) -> Any:
        version = write_data(block, pd.DataFrame({"id": range(rows)}), "tables/users.csv")
        return version, commit_results(block, "Write users")

    first, commit = write(2)
    second, _ = write(3)
    assert (first.path, first.nfiles) == ("tables/users.csv", 1) and first.digest != second.digest
    assert write(3) == (second, None)
    assert read_frame(repo, "tables/users.csv", rev=commit)["id"].tolist() == [0, 1]
    assert diff_frames(repo, "tables/users.csv", commit, key="id").rows_added == 1
    cards = artifacts(artifact_key("data", "digits", "tables/users.csv"))
    assert second.digest[:12] in cards[-1].description and first.digest[:12] in cards[-1].data
    assert (
        "| table | 3 rows, 1 column |" in cards[-1].data
        and "| id | int64 | 0 | 3 | 0 to 2 |" in cards[-1].data
    )
    assert "![Histograms of id](data:image/svg+xml" in cards[-1].data and "First rows" not in cards[-1].data
    compared = flow(lambda: compare_table(block, "tables/users.csv", commit, key="id"), name="compare")()
    assert compared.rows_added == 1
    (card,) = artifacts(artifact_key("table", "digits", "tables/users.csv"))
    assert "1 rows added" in card.description and "Rows are compared by id" in card.data
    read = pd.read_csv("dvkf://tables/users.csv", storage_options=block.storage_options(commit))
    assert read["id"].tolist() == [0, 1]
    (repo.root / "tables/users.csv").write_text("by hand")
    with pytest.raises(OutputChangedError):
        write(4)
