"""Trino on our catalog: creates, reads, appends and drops; reads what we wrote.

Trino is half a gigabyte: this runs where `LAKEGATE_TRINO` is set, and starts it by `scripts/services/services.sh`.
"""

import os
import subprocess

import pytest
import requests

from conftest import ROOT

pytestmark = pytest.mark.skipif(not os.environ.get("LAKEGATE_TRINO"), reason="LAKEGATE_TRINO is not set")


def ask(url, sql):
    """One statement by Trino's client protocol."""
    answer = requests.post(f"{url}/v1/statement", data=sql, headers={"X-Trino-User": "test", "X-Trino-Catalog": "iceberg"}).json()
    rows = []
    while True:
        rows += answer.get("data", [])
        assert "error" not in answer, answer["error"]["message"]
        if "nextUri" not in answer:
            return rows
        answer = requests.get(answer["nextUri"], headers={"X-Trino-User": "test"}).json()


def test_trino_reads_what_we_wrote_and_makes_appends_to_and_drops_tables(server, stubs):
    records = [stubs.common.DataRecord(endpoint_id="seen", event_id=f"e{n}", payload=b'{"a": 1}', version=n) for n in range(1000)]
    assert server.client().IngestBatch(stubs.ingestion.IngestBatchRequest(records=records)).accepted == 1000
    server.wait_absorbed()
    services = ["bash", str(ROOT / "scripts/services/services.sh")]
    env = dict(os.environ, CATALOG_URI=f"{server.http}/iceberg")
    started = subprocess.run([*services, "up", "trino"], capture_output=True, text=True, env=env)
    assert started.returncode == 0, started.stderr
    url = started.stdout.split()[-1]
    try:
        assert ask(url, 'SELECT count(*), count(DISTINCT event_id), sum(version) FROM "default".seen') == [[1000, 1000, 499500]]
        ask(url, "CREATE SCHEMA made")
        ask(url, "CREATE TABLE made.numbers (n BIGINT, text VARCHAR, at TIMESTAMP(6) WITH TIME ZONE) WITH (partitioning = ARRAY['day(at)'])")
        ask(url, "INSERT INTO made.numbers SELECT n, 'x', TIMESTAMP '2026-01-02 03:04:05 UTC' FROM UNNEST(sequence(1, 500)) AS t(n)")
        ask(url, "INSERT INTO made.numbers VALUES (501, 'last', NULL)")
        assert ask(url, "SELECT count(*), sum(n) FROM made.numbers") == [[501, 125751]]
        assert server.sql("SELECT count(*) AS c, sum(n) AS s FROM made.numbers")[0] == {"c": 501, "s": 125751}
        assert server.catalog().load_table("made.numbers").scan().to_arrow().num_rows == 501
        ask(url, 'ALTER TABLE "default".seen EXECUTE optimize')
        assert server.client().IngestBatch(stubs.ingestion.IngestBatchRequest(records=records[:10])).accepted == 10
        server.wait_absorbed()
        assert ask(url, 'SELECT count(*) FROM "default".seen') == [[1010]]
        assert server.sql('SELECT count(*) AS c FROM "default".seen')[0] == {"c": 1010}
        ask(url, "DROP TABLE made.numbers")
        ask(url, "DROP SCHEMA made")
        assert ("made",) not in server.catalog().list_namespaces()
    finally:
        subprocess.run([*services, "down", "trino"])
