"""Fit a classifier: python train.py TABLE MODEL; its settings are in params.yaml under `train`."""

import sys

import joblib
import numpy as np
from ruamel.yaml import YAML
from sklearn.svm import SVC

table, model = sys.argv[1:]
with open("params.yaml") as stream:
    settings = YAML(typ="safe").load(stream)["train"]
data = np.load(table)
classifier = SVC(C=settings["C"], gamma=settings["gamma"]).fit(data["x"], data["y"])
joblib.dump(classifier, model)
print(f"fitted on {len(data['y'])} images, {classifier.n_support_.sum()} support vectors -> {model}")
