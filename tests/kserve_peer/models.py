"""The models that both servers load; scikit-learn and numpy are all that they need."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_iris
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import make_pipeline


class Echo:
    """Answers its rows."""

    n_features_in_ = 2

    def predict(self, rows: Any) -> Any:
        return rows


class Moody:
    """Fails as its input says."""

    n_features_in_ = 1

    def predict(self, rows: Any) -> Any:
        value = float(np.asarray(rows).ravel()[0])
        if value == 9:
            raise KeyError("no such thing")
        if value == 8:
            raise ValueError("not this one")
        if value == 7:
            return np.array([np.nan])
        if value == 6:
            return np.array([np.inf])
        return np.array([value])


def build() -> dict[str, Any]:
    """Fit the models; both environments get equal ones."""
    import pandas as pd

    features, classes = load_iris(return_X_y=True)
    table = pd.DataFrame({"a": [0.0, 1.0, 2.0], "b": [1.0, 0.0, 4.0]})
    words = make_pipeline(CountVectorizer(), MultinomialNB())
    return {
        "iris": LogisticRegression(max_iter=500).fit(features, classes),
        "echo": Echo(),
        "moody": Moody(),
        "words": words.fit(["good day", "bad night"], [1, 0]),
        "table": LinearRegression().fit(table, [1.0, 2.0, 3.0]),
    }
