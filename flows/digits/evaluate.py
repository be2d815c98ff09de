"""Measure a model on held-out images: python evaluate.py MODEL TABLE METRICS PREDICTIONS."""

import csv
import json
import sys

import joblib
import numpy as np
from sklearn.metrics import accuracy_score, f1_score

model, table, metrics, predictions = sys.argv[1:]
data = np.load(table)
predicted = joblib.load(model).predict(data["x"])
scores = {
    "accuracy": round(accuracy_score(data["y"], predicted), 4),
    "f1": round(f1_score(data["y"], predicted, average="macro"), 4),
    "images": len(data["y"]),
}
with open(metrics, "w") as stream:
    json.dump(scores, stream, indent=2)
    stream.write("\n")
with open(predictions, "w", newline="") as stream:
    rows = csv.writer(stream, lineterminator="\n")
    rows.writerow(["image", "actual", "predicted"])
    rows.writerows(zip(data["names"], data["y"], predicted, strict=True))
print(f"accuracy {scores['accuracy']} on {scores['images']} images")
