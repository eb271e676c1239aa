"""Trino at work on the bronze table while a topic flows into it: rows, compaction, expiry, columns. Trino counts at the end.

Needs a Trino: runs where `LAKEGATE_TRINO` is set.
"""

import collections
import json
import os
import threading
import time

import pytest
import requests

from stores import Services, bucket_settings, last_errors, minio, own_key, pyiceberg  # noqa: F401
from test_kafka import Broker, component, event, skip_without_kafka, source, topic, until  # noqa: F401

trino = pytest.importorskip("trino")
pytestmark = pytest.mark.skipif(not os.environ.get("LAKEGATE_TRINO"), reason="LAKEGATE_TRINO is not set")

TABLE = "iceberg.bronze.service_events_raw"
PARTITIONS = 6


class Numbered(threading.Thread):
    """Sends records until it is told to end; each says the partition and the offset that it gets."""

    def __init__(self, broker, topic, rate):  # noqa: F811
        super().__init__(daemon=True)
        self.producer = broker.producer(**{"delivery.timeout.ms": 600000, "linger.ms": 5})
        self.topic, self.rate, self.ending = topic, rate, threading.Event()
        self.next, self.wrong = [0] * PARTITIONS, []

    def note(self, error, message):
        if error or json.loads(message.value())["entity_id"] != f"{message.partition()}-{message.offset()}":
            self.wrong.append((str(error), message.partition(), message.offset(), message.value()))

    def send(self, number):
        partition = number % PARTITIONS
        value = json.dumps(event(f"{partition}-{self.next[partition]}", event_date=f"2024-12-{1 + number % 20:02}")).encode()
        while True:
            try:
                self.producer.produce(self.topic, value, partition=partition, on_delivery=self.note)
                break
            except BufferError:
                self.producer.poll(0.1)
        self.next[partition] += 1

    def run(self):
        number = 0
        while not self.ending.is_set():
            for _ in range(self.rate // 20):
                self.send(number)
                number += 1
            self.producer.poll(0)
            time.sleep(0.05)
        assert self.producer.flush(300) == 0

    def end(self):
        self.ending.set()
        self.join(400)
        assert not self.wrong, self.wrong[:3]
        return sum(self.next)


class Trino:
    def __init__(self, url):
        properties = {"iceberg.expire_snapshots_min_retention": "0s", "iceberg.remove_orphan_files_min_retention": "0s"}
        self.connection = trino.dbapi.connect(host="127.0.0.1", port=int(url.rsplit(":", 1)[1]), user="test", catalog="iceberg",
                                              schema="bronze", session_properties=properties)  # fmt: skip

    def ask(self, sql):
        return self.connection.cursor().execute(sql).fetchall()


@pytest.fixture
def flowing(minio, make_server, tmp_path_factory, topic):  # noqa: F811
    """A topic that flows into the bronze table in a bucket, and a Trino beside it."""
    skip_without_kafka()
    broker = Broker(tmp_path_factory.mktemp("kafka"))
    broker.run("up")
    broker.topic(topic, PARTITIONS)
    settings = {**bucket_settings(minio), **source(broker, topic)}
    server = make_server(settings).start()
    service = Services(["trino"], CATALOG_URI=f"{server.http}/iceberg", S3_ENDPOINT=minio.address).up()
    yield server, broker, Trino(service.address)
    service.remove()
    broker.run("down")


def judge(engine, sent, own):
    """Each (partition, offset) once, and Trino's own rows once."""
    count = f"SELECT count(*), count(DISTINCT entity_id) FROM {TABLE} WHERE entity_type = "
    until(lambda: engine.ask(f"{count} 'complaint'")[0][0] >= sent, 180, every=1)
    assert engine.ask(f"{count} 'complaint'") == [[sent, sent]]
    by_partition = f"""
        SELECT split_part(entity_id, '-', 1), count(*), min(n), max(n), count(DISTINCT n)
        FROM (SELECT entity_id, CAST(split_part(entity_id, '-', 2) AS bigint) AS n FROM {TABLE} WHERE entity_type = 'complaint') GROUP BY 1"""
    for _, rows, first, last, distinct in engine.ask(by_partition):
        assert rows == distinct == last + 1 and first == 0
    assert engine.ask(f"{count} 'trino'") == [[own, own]]


def test_f42_f43_trino_inserts_compacts_expires_and_adds_columns_while_a_topic_flows(flowing, minio, topic):  # noqa: F811
    server, broker, engine = flowing
    load = Numbered(broker, topic, int(os.environ.get("KAFKA_RATE", 2000)))
    load.start()
    until(lambda: any("service_events_raw" in row for row in engine.ask("SHOW TABLES FROM iceberg.bronze")) and engine.ask(f"SELECT count(*) FROM {TABLE}")[0][0] > 0)
    own, done, refused = 0, collections.Counter(), []

    def work(what, sql):
        try:
            engine.ask(sql)
            done[what] += 1
            return True
        except trino.exceptions.TrinoQueryError as error:
            # A commit of ours came between, and Trino gave up: nothing was changed.
            assert "commit" in error.message.lower() or "conflict" in error.message.lower(), error.message
            refused.append((what, error.message))
            return False

    deadline, turn = time.monotonic() + int(os.environ.get("KAFKA_SECONDS", 60)), 0
    while time.monotonic() < deadline or min(done[what] for what in ("insert", "optimize", "expire", "column")) < 2:
        assert time.monotonic() < deadline + 300, (done, refused)
        row = f"(DATE '2024-12-05', TIMESTAMP '2024-12-05 10:00:00', 'TENANT_001', 'PGR', 'trino', 't{own}', 'Counted')"
        own += work("insert", f"INSERT INTO {TABLE} (event_date, event_time, tenant_id, service, entity_type, entity_id, event_type) VALUES {row}")
        work("optimize", f"ALTER TABLE {TABLE} EXECUTE optimize")
        work("expire", f"ALTER TABLE {TABLE} EXECUTE expire_snapshots(retention_threshold => '0s')")
        if turn % 3 == 0:
            work("column", f"ALTER TABLE {TABLE} ADD COLUMN more_{turn} VARCHAR")
        turn += 1
    sent = load.end()
    judge(engine, sent, own)
    assert not last_errors(server) and not (component(server) or {}).get("error"), server.tail()
    # A column that Trino added is one that Trino fills; ours stay as they were.
    assert engine.ask(f"SELECT count(*) FROM {TABLE} WHERE more_0 IS NOT NULL") == [[0]]
    # Nothing runs any more: what no snapshot names may go, and all is still there, over a restart too.
    server.stop()
    server.start()
    engine.ask(f"ALTER TABLE {TABLE} EXECUTE optimize")
    engine.ask(f"ALTER TABLE {TABLE} EXECUTE expire_snapshots(retention_threshold => '0s')")
    engine.ask(f"ALTER TABLE {TABLE} EXECUTE remove_orphan_files(retention_threshold => '0s')")
    broker.send(topic, [json.dumps(event(f"{PARTITIONS - 1}-{load.next[PARTITIONS - 1]}")).encode()], partition=PARTITIONS - 1)
    judge(engine, sent + 1, own)
    found = server.sql(f"SELECT count(*) AS n, count(DISTINCT entity_id) AS d FROM {TABLE}")[0]
    assert found == {"n": sent + 1 + own, "d": sent + 1 + own}
    table = pyiceberg(f"{server.http}/iceberg", **own_key(minio)).load_table("bronze.service_events_raw")
    ids = table.scan(selected_fields=("entity_id",)).to_arrow()["entity_id"].to_pylist()
    assert len(ids) == len(set(ids)) == sent + 1 + own
    audit = requests.get(f"{server.http}/api/audit", timeout=60).json()
    assert audit["closes"], audit
    print(f"{sent} records of the topic, {own} rows of Trino; {dict(done)}; Trino gave up {len(refused)} times: {collections.Counter(what for what, _ in refused)}")


def test_f43_a_table_that_trino_drops_and_makes_anew_stops_the_source_and_nothing_is_lost(flowing, topic):  # noqa: F811
    server, broker, engine = flowing
    load = Numbered(broker, topic, 600)
    load.start()
    until(lambda: "bronze" in str(engine.ask("SHOW SCHEMAS")) and engine.ask("SHOW TABLES FROM iceberg.bronze") and engine.ask(f"SELECT count(*) FROM {TABLE}")[0][0] > 500)
    engine.ask(f"CREATE TABLE {TABLE}_kept AS SELECT * FROM {TABLE}")
    create = engine.ask(f"SHOW CREATE TABLE {TABLE}")[0][0]
    engine.ask(f"DROP TABLE {TABLE}")
    engine.ask(create.split("WITH (")[0] + "WITH (format = 'PARQUET', partitioning = ARRAY['event_date', 'service'])")
    told = until(lambda: (component(server) or {}).get("error") or "", 120)
    assert "has stopped" in told and "service_events_raw" in told, told
    sent = load.end()
    # Who meant it starts again: the new table knows no position, so that it gets all that the topic has.
    server.stop()
    server.start()
    judge(engine, sent, 0)
