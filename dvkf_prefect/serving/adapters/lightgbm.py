"""Boosters of LightGBM, in its text format."""

from __future__ import annotations

from typing import Any

from dvkf_prefect.serving.adapters.table import Files


class Booster:
    """A booster with the interface of an estimator.

    Attributes:
        n_features_in_: Number of features.
        feature_names_in_: Their names, None if LightGBM made them up.
    """

    def __init__(self, booster: Any) -> None:
        self._booster = booster
        self.n_features_in_ = int(booster.num_feature())
        names = booster.feature_name()
        made_up = [f"Column_{number}" for number in range(len(names))]
        self.feature_names_in_ = None if names == made_up else names

    def predict(self, rows: Any) -> Any:
        """Return the booster's prediction for each row; NaN is a missing value, a category is its code."""
        import numpy as np

        return self._booster.predict(np.asarray(rows, dtype=np.float64))


def load(files: Files) -> Booster:
    """Load a booster from its text."""
    import lightgbm

    return Booster(lightgbm.Booster(model_str=files.data.decode()))
