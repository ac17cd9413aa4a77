"""Evaluates a small run and prints its figures as JSON: tests start it with other devices.

python evaluate_on_devices.py TRAIN_SHARDS TEST_SHARDS
"""

import json
import sys

import jax
from small_run import trained_run

from m3ae_tpu.evaluation.evaluate import evaluate_run

if __name__ == "__main__":
    figures = evaluate_run(
        trained_run(), lambda stage: None, train_shards=sys.argv[1], test_shards=sys.argv[2]
    )
    print(json.dumps({"devices": jax.device_count()} | figures))
