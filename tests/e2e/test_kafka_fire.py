"""A small run of `scripts/kafka_fire.py`: every failure once or twice, then each record is counted once."""

import os
import sys

import pytest

from conftest import ROOT
from stores import MINIO
from test_kafka import skip_without_kafka


def test_f40_f41_f55_a_topic_while_processes_broker_store_and_catalog_fail_is_in_the_table_once(tmp_path):
    skip_without_kafka()
    if not os.access(MINIO, os.X_OK):
        pytest.skip("minio is not here; `cargo xtask services install minio` builds it")
    sys.path.insert(0, str(ROOT / "scripts"))
    import kafka_fire

    seed = os.environ.get("SEED")
    done = kafka_fire.run(tmp_path, messages=3000, turns=8, rate=300, seed=int(seed) if seed else None)
    assert done["records"] >= 3000 and sum(done["failures"].values()) >= 8, done
