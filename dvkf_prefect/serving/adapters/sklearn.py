"""Estimators of scikit-learn, or of any library with its interface, pickled by joblib or pickle."""

from __future__ import annotations

import io
from typing import Any

from dvkf_prefect.serving.adapters.table import Files


def load(files: Files) -> Any:
    """Unpickle an estimator."""
    import joblib

    return joblib.load(io.BytesIO(files.data))
