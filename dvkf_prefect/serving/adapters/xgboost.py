"""Boosters of XGBoost, in its JSON, UBJSON or binary format.

A file has the booster alone, without the labels of an ``XGBClassifier``. So ``predict`` returns what the objective
returns, as KServe's xgbserver does: probabilities for ``binary:logistic``.
"""

from __future__ import annotations

from typing import Any

from dvkf_prefect.serving.adapters.table import Files


class Booster:
    """A booster with the interface of an estimator.

    Attributes:
        n_features_in_: Number of features.
        feature_names_in_: Their names, None if the model was trained without names.
    """

    def __init__(self, booster: Any) -> None:
        self._booster = booster
        self.n_features_in_ = int(booster.num_features())
        self.feature_names_in_ = booster.feature_names

    def predict(self, rows: Any) -> Any:
        """Return the booster's prediction for each row; NaN is a missing value."""
        import numpy as np
        import xgboost

        matrix = xgboost.DMatrix(np.asarray(rows, dtype=np.float32), feature_names=self.feature_names_in_)
        return self._booster.predict(matrix)


def load(files: Files) -> Booster:
    """Load a booster from bytes."""
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(bytearray(files.data))
    return Booster(booster)
