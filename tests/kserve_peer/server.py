"""A `kserve.ModelServer` with the models; a program for kserve's environment.

Each model answers as those of kserve's own sklearnserver (python/sklearnserver/sklearnserver/model.py of v0.21).

Usage: server.py HTTP_PORT GRPC_PORT; a port of gRPC that is 0 serves HTTP alone.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import kserve
from kserve.errors import InferenceError
from kserve.utils.utils import get_predict_input, get_predict_response

sys.path.insert(0, str(Path(__file__).parent))
from models import build


class Sklearn(kserve.Model):
    """A model of scikit-learn's interface, as sklearnserver serves it."""

    def __init__(self, name: str, estimator: Any) -> None:
        super().__init__(name)
        self.estimator = estimator
        self.ready = True

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
        try:
            result = self.estimator.predict(get_predict_input(payload))
            return get_predict_response(payload, result, self.name)
        except Exception as error:
            raise InferenceError(str(error)) from error


def main() -> None:
    http, grpc = map(int, sys.argv[1:])
    options = {"enable_grpc": bool(grpc), **({"grpc_port": grpc} if grpc else {})}
    server = kserve.ModelServer(http_port=http, workers=1, access_log_format=None, **options)
    server.start([Sklearn(name, estimator) for name, estimator in build().items()])


if __name__ == "__main__":
    main()
