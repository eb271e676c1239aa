"""Kafka topics into tables: each record once, whatever dies when. A real broker; PyIceberg and DuckDB as judges."""

import collections
import functools
import http.server
import io
import json
import os
import random
import shutil
import subprocess
import threading
import time
import uuid

import fastavro
import pytest
import requests
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

from conftest import ROOT, free_port

SCRIPT = ROOT / "scripts" / "services" / "services.sh"
COLUMNS = [
    "event_date", "event_time", "tenant_id", "service", "entity_type", "entity_id", "event_type", "status", "actor_type",
    "actor_id", "channel", "ward_id", "locality_id", "attributes_json", "raw_payload",
]  # fmt: skip


class Broker:
    """One broker on loopback, its folder its own."""

    def __init__(self, folder):
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.env = dict(os.environ, SERVICES_DIR=str(folder), KAFKA_PORT=str(self.port), KAFKA_CONTROLLER_PORT=str(free_port()))

    def run(self, command):
        done = subprocess.run(["bash", SCRIPT, command, "kafka"], env=self.env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    @functools.cached_property
    def client(self):
        return AdminClient({"bootstrap.servers": self.address, "log_level": 0})

    def admin(self):
        return self.client

    def topic(self, name, partitions=1, **config):
        for future in self.admin().create_topics([NewTopic(name, partitions, 1, config=config)]).values():
            future.result(30)

    def delete(self, name):
        for future in self.admin().delete_topics([name]).values():
            future.result(30)
        deadline = time.monotonic() + 30
        while name in self.admin().list_topics(timeout=10).topics:
            assert time.monotonic() < deadline, f"{name} is still there"
            time.sleep(0.2)

    def producer(self, **more):
        return Producer({"bootstrap.servers": self.address, "enable.idempotence": True, "log_level": 0, **more})

    def send(self, topic, values, partition=-1, **more):
        producer = self.producer(**more)
        for value in values:
            producer.produce(topic, value, partition=partition) if partition >= 0 else producer.produce(topic, value)
            producer.poll(0)
        assert producer.flush(60) == 0


def skip_without_kafka():
    if not shutil.which("java"):
        pytest.skip("Kafka needs Java 17 (package openjdk-17-jre-headless)")
    if "up_kafka" not in SCRIPT.read_text():
        pytest.skip(f"{SCRIPT} does not start Kafka")


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    broker = Broker(tmp_path_factory.mktemp("kafka"))
    if given := os.environ.get("LAKEGATE_TEST_KAFKA"):
        broker.address = given
        yield broker
        return
    skip_without_kafka()
    broker.run("up")
    yield broker
    broker.run("down")


@pytest.fixture
def topic():
    return f"t-{uuid.uuid4().hex[:12]}"


def event(entity_id, **more):
    return {
        "event_date": "2024-12-17", "event_time": "2024-12-17 10:00:00", "tenant_id": "TENANT_001", "service": "PGR",
        "entity_type": "complaint", "entity_id": entity_id, "event_type": "CaseSubmitted", "status": "OPEN",
        "actor_type": "CITIZEN", "actor_id": "CIT_001", "channel": "WEB", "ward_id": "WARD_001", "locality_id": "LOC_001",
        "attributes_json": {"complaint_type": "Water Supply", "priority": "MEDIUM", "sla_hours": 72}, "raw_payload": None,
        **more,
    }  # fmt: skip


def value(entity_id, **more):
    return json.dumps(event(entity_id, **more)).encode()


def source(broker, topic, **more):
    settings = {"brokers": broker.address, "topic": topic, "group_id": f"of-{topic}", "flush_interval": "200ms", **more}
    return {"kafka": {"sources": [settings]}}


def until(what, seconds=60, every=0.1):
    """Waits for a truth, and gives it."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, f"not in {seconds} s: {what.__doc__ or what}"
        time.sleep(every)


def rows(server, table="bronze.service_events_raw", *columns):
    """The table as another reader finds it."""
    from pyiceberg.exceptions import NoSuchTableError

    try:
        found = server.catalog().load_table(table)
    except NoSuchTableError:
        return []
    if not found.metadata.current_snapshot_id:
        return []
    return found.scan(selected_fields=columns or ("*",)).to_arrow().to_pylist()


def ids(server, **more):
    return sorted(row["entity_id"] for row in rows(server, "bronze.service_events_raw", "entity_id"))


def component(server, name="kafka"):
    return requests.get(f"{server.http}/health", timeout=10).json()["services"].get(name)


def trouble(server):
    return (component(server) or {}).get("error") or ""


def test_the_document_as_written_with_its_variables_alone(broker, make_server, topic, duck):
    from kafka import KafkaProducer

    broker.topic(topic)
    server = make_server().start(KAFKA_BROKERS=broker.address, KAFKA_TOPIC=topic, KAFKA_GROUP_ID=f"bronze-{topic}",
                                 BATCH_SIZE="100", FLUSH_INTERVAL_SEC="1")  # fmt: skip
    producer = KafkaProducer(
        bootstrap_servers=[broker.address],
        value_serializer=lambda v: json.dumps(v).encode("utf-8"),
    )
    producer.send(topic, event("CMP_001"))
    undated = event("CMP_002", attributes_json=json.dumps({"a": 1}), event_time="2024-12-18 23:59:59")
    del undated["event_date"]
    producer.send(topic, undated)
    producer.flush()
    until(lambda: len(ids(server)) == 2)
    table = server.catalog().load_table("bronze.service_events_raw")
    assert [field.name for field in table.schema().fields] == COLUMNS
    assert [table.schema().find_column_name(f.source_id) for f in table.spec().fields] == ["event_date", "service"]
    first, second = sorted(rows(server), key=lambda row: row["entity_id"])
    assert json.loads(first["attributes_json"]) == event("")["attributes_json"] and first["raw_payload"] is None
    assert json.loads(second["attributes_json"]) == {"a": 1} and str(second["event_date"]) == "2024-12-18"
    # The document's own question, by another engine.
    location = table.metadata_location.removeprefix("file://")
    counted = duck().execute(f"SELECT service, count(*) FROM iceberg_scan('{location}') GROUP BY 1").fetchall()
    assert counted == [("PGR", 2)]
    log = server.log.read_text()
    for line in ("Connected to Kafka", "Starting consumer loop (batch_size=100, flush_interval=1s)...", "events into bronze.service_events_raw"):
        assert line in log, log
    # Kafka's own offsets follow, for those who watch the group.
    watcher = Consumer({"bootstrap.servers": broker.address, "group.id": f"bronze-{topic}"})
    until(lambda: watcher.committed([TopicPartition(topic, 0)], timeout=10)[0].offset == 2)
    watcher.close()
    assert table.properties[f"kafka.kafka.{topic}.0"] == "next offset 2"


def test_rows_are_seen_before_their_commit_and_counted_once_after_it(broker, make_server, topic):
    broker.topic(topic)
    server = make_server({"ingestion": {"flush_interval": "3s"}, **source(broker, topic)}).start()
    broker.send(topic, [value(f"e{n}") for n in range(250)])
    count = lambda: server.sql("SELECT count(*) AS n, count(DISTINCT entity_id) AS d FROM bronze.service_events_raw")[0]  # noqa: E731
    until(lambda: "bronze" in str(server.sql("SHOW TABLES")) and count()["n"] == 250, every=0.02)
    assert ids(server) == [], "they are in memory alone"
    until(lambda: len(ids(server)) == 250)
    for _ in range(20):
        assert count() == {"n": 250, "d": 250}
    audit = requests.get(f"{server.http}/api/audit", timeout=30).json()
    assert audit["closes"], audit


class Load(threading.Thread):
    """Sends until it is told to end, and knows what the broker has."""

    def __init__(self, broker, topic, partitions, rate):
        super().__init__(daemon=True)
        self.producer = broker.producer(**{"delivery.timeout.ms": 300000, "linger.ms": 5})
        self.topic, self.partitions, self.rate = topic, partitions, rate
        self.delivered, self.failed, self.ending = collections.Counter(), [], threading.Event()

    def note(self, error, message):
        if error:
            self.failed.append(str(error))
        else:
            self.delivered[json.loads(message.value())["entity_id"]] += 1

    def run(self):
        number = 0
        while not self.ending.is_set():
            for _ in range(self.rate // 20):
                day = f"2024-12-{1 + number % 28:02}"
                while True:
                    try:
                        self.producer.produce(self.topic, value(f"e{number}", event_date=day, service="PGR"),
                                              partition=number % self.partitions, on_delivery=self.note)  # fmt: skip
                        break
                    except BufferError:
                        self.producer.poll(0.1)
                number += 1
            self.producer.poll(0)
            time.sleep(0.05)
        assert self.producer.flush(240) == 0

    def end(self):
        self.ending.set()
        self.join(300)
        assert not self.failed, self.failed[:3]
        return self.delivered


def judge(server, delivered, seconds=120):
    """Each delivered record is in the table once, and nothing else."""
    until(lambda: len(ids(server)) >= len(delivered), seconds, every=0.5)
    time.sleep(2)
    found = collections.Counter(ids(server))
    twice = [name for name, count in found.items() if count > 1]
    missing = [name for name in delivered if name not in found]
    assert not twice and not missing and len(found) == len(delivered), (len(delivered), len(found), twice[:5], missing[:5])


def test_f55_f36_killed_again_and_again_with_a_restarted_broker_and_a_second_instance(tmp_path_factory, make_server, topic):
    skip_without_kafka()
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    broker = Broker(tmp_path_factory.mktemp("kafka-killed"))
    broker.run("up")
    try:
        broker.topic(topic, 6)
        # The catalog's process is not the one that is killed.
        keeper = make_server(name="keeper").start()
        shared = {"storage": {"warehouse": str(keeper.data / "warehouse")}, "catalog": {"uri": f"{keeper.http}/iceberg"}}
        properties = {"session.timeout.ms": "6000", "partition.assignment.strategy": chance.choice(["range", "cooperative-sticky"])}
        settings = {**shared, **source(broker, topic, properties=properties)}
        one, two = make_server(settings, "one").start(), make_server(settings, "two")
        load = Load(broker, topic, 6, int(os.environ.get("KAFKA_RATE", 6000)))
        load.start()
        for turn in range(int(os.environ.get("KAFKA_TURNS", 6))):
            time.sleep(chance.uniform(1, 6))
            what = ["kill", "second comes", "kill", "broker", "second killed", "kill"][turn % 6]
            if what == "kill":
                one.kill()
                one.start()
            elif what == "second comes":
                two.start()
            elif what == "broker":
                broker.run("down")
                time.sleep(chance.uniform(0, 2))
                broker.run("up")
            elif two.process and two.process.poll() is None:
                two.kill() if chance.random() < 0.5 else two.stop()
        delivered = load.end()
        judge(keeper, delivered, 240)
        for server in (one, two):
            if server.process and server.process.poll() is None:
                assert server.stop() == 0
        judge(keeper, delivered, 10)
        print(f"{len(delivered)} records")
    finally:
        broker.run("down")


def test_f36_a_process_that_was_frozen_while_another_took_over_adds_nothing_twice(broker, make_server, topic):
    import signal

    broker.topic(topic, 2)
    keeper = make_server(name="keeper").start()
    shared = {"storage": {"warehouse": str(keeper.data / "warehouse")}, "catalog": {"uri": f"{keeper.http}/iceberg"}}
    properties = {"session.timeout.ms": "6000"}
    # Long enough for the rows to be in memory when the process is frozen.
    frozen = make_server({**shared, "ingestion": {"flush_interval": "4s"}, **source(broker, topic, properties=properties)}, "frozen").start()
    broker.send(topic, [value("first")])
    until(lambda: ids(keeper) == ["first"])
    broker.send(topic, [value(f"e{n}") for n in range(1000)])
    until(lambda: frozen.sql("SELECT count(*) AS n FROM bronze.service_events_raw")[0]["n"] == 1001, every=0.02)
    frozen.process.send_signal(signal.SIGSTOP)
    assert ids(keeper) == ["first"]
    other = make_server({**shared, **source(broker, topic, properties=properties)}, "other").start()
    until(lambda: len(ids(keeper)) == 1001)
    frozen.process.send_signal(signal.SIGCONT)
    until(lambda: "begins anew" in frozen.log.read_text() or "elsewhere" in frozen.log.read_text())
    broker.send(topic, [value(f"l{n}") for n in range(500)])
    until(lambda: len(ids(keeper)) >= 1501)
    time.sleep(5)
    assert len(ids(keeper)) == len(set(ids(keeper))) == 1501
    assert other.stop() == 0 and frozen.stop() == 0


@pytest.mark.parametrize("refilled", [False, True])
def test_a_topic_that_was_made_anew_stops_the_source_until_it_is_told_what_to_do(broker, make_server, topic, refilled):
    broker.topic(topic)
    server = make_server(source(broker, topic)).start()
    broker.send(topic, [value(f"old{n}") for n in range(10)])
    until(lambda: len(ids(server)) == 10)
    server.stop()
    broker.delete(topic)
    broker.topic(topic)
    # Refilled, the old position lies inside the new topic: the last record tells.
    broker.send(topic, [value(f"new{n}") for n in range(30 if refilled else 5)])
    server.start()
    message = until(lambda: trouble(server) if "has stopped" in trouble(server) else "")
    assert "made anew" in message and "on_lost_position" in message
    assert len(ids(server)) == 10
    server.stop()
    settings = json.loads(server.config.read_text())
    settings["kafka"]["sources"][0]["on_lost_position"] = "earliest"
    server.config.write_text(json.dumps(settings))
    server.start()
    until(lambda: len(ids(server)) == (40 if refilled else 15))


def test_f56_records_that_retention_removed_before_they_were_read_stop_the_source(broker, make_server, topic):
    broker.topic(topic)
    server = make_server(source(broker, topic)).start()
    broker.send(topic, [value(f"a{n}") for n in range(10)])
    until(lambda: len(ids(server)) == 10)
    server.stop()
    broker.send(topic, [value(f"b{n}") for n in range(10)])
    for future in broker.admin().delete_records([TopicPartition(topic, 0, 15)]).values():
        future.result(30)
    server.start()
    message = until(lambda: trouble(server) if "has stopped" in trouble(server) else "")
    assert "5 offsets were removed" in message and "on_lost_position" in message
    assert component(server)["status"] == "degraded" and len(ids(server)) == 10


def test_poison_tombstones_and_aborted_transactions(broker, make_server, topic):
    broker.topic(topic)
    server = make_server(source(broker, topic)).start()
    producer = broker.producer(**{"transactional.id": topic})
    producer.init_transactions()
    for names, ending in ((["a", "b"], producer.commit_transaction), (["lost"], producer.abort_transaction)):
        producer.begin_transaction()
        for name in names:
            producer.produce(topic, value(name))
        assert producer.flush(30) == 0
        ending()
    plain = broker.producer()
    plain.produce(topic, b"{ not JSON")
    plain.produce(topic, None, key=b"k")
    plain.produce(topic, json.dumps({"entity_id": "no time"}).encode())
    plain.produce(topic, value("c"))
    assert plain.flush(30) == 0
    until(lambda: ids(server) == ["a", "b", "c"])
    letters = until(lambda: [row for row in rows(server, "default.dead_letters")] if len(rows(server, "default.dead_letters")) == 2 else None)
    assert all(letter["source"] == "kafka" and f"Kafka topic {topic}, partition 0, offset " in letter["message"] for letter in letters)
    assert sorted(int(letter["message"].split("offset ")[1].split(":")[0]) for letter in letters) == [5, 7]
    metrics = requests.get(f"{server.http}/metrics", headers={"accept": "text/plain"}, timeout=10).text
    assert 'lakegate_kafka_tombstones_total{source="kafka"} 1' in metrics
    audit = requests.get(f"{server.http}/api/audit", timeout=30).json()
    assert audit["closes"], audit
    # A restart reads the end of the partition again, and sets nothing aside twice.
    server.kill()
    server.start()
    broker.send(topic, [value("d")])
    until(lambda: ids(server) == ["a", "b", "c", "d"])
    server.wait_absorbed()
    assert len(rows(server, "default.dead_letters")) == 2


def test_partitions_that_are_added_are_read_from_their_beginning_also_with_start_latest(broker, make_server, topic):
    broker.topic(topic, 1)
    broker.send(topic, [value("before")])
    server = make_server(source(broker, topic, start="latest", properties={"topic.metadata.refresh.interval.ms": "1000"})).start()
    until(lambda: "read here from now on" in server.log.read_text())
    server.kill()
    # Sent while it is down: after the first start, so not before the latest record of then.
    broker.send(topic, [value("between")])
    server.start()
    until(lambda: ids(server) == ["between"])
    for future in broker.admin().create_partitions([NewPartitions(topic, 2)]).values():
        future.result(30)
    until(lambda: len(broker.admin().list_topics(topic, timeout=10).topics[topic].partitions) == 2)
    broker.send(topic, [value("added")], partition=1)
    until(lambda: ids(server) == ["added", "between"])


def test_it_starts_at_a_time_and_reads_a_pattern_of_topics(broker, make_server, topic):
    broker.topic(f"{topic}-a", 2)
    producer = broker.producer()
    for at, name in ((1000, "old"), (5000, "new")):
        producer.produce(f"{topic}-a", value(name), partition=0, timestamp=at)
    assert producer.flush(30) == 0
    settings = source(broker, f"^{topic}-.*", start="timestamp", start_timestamp_ms=3000, properties={"topic.metadata.refresh.interval.ms": "1000"})
    server = make_server(settings).start()
    until(lambda: ids(server) == ["new"])
    broker.topic(f"{topic}-b")
    broker.send(f"{topic}-b", [value("b")])
    until(lambda: ids(server) == ["b", "new"])


class Registry(http.server.ThreadingHTTPServer):
    """A schema registry's answers."""

    def __init__(self, schemas):
        self.schemas, self.is_away = schemas, False
        super().__init__(("127.0.0.1", 0), self.Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = self.server.schemas.get(self.path)
            self.send_response(503 if self.server.is_away else 200 if found else 404)
            body = json.dumps(found or {"error_code": 40403}).encode()
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass


def test_avro_with_a_schema_registry_that_is_away_for_a_while(broker, make_server, topic):
    fields = [{"name": name, "type": ["null", "string"], "default": None} for name in COLUMNS if name not in ("event_time", "event_date")]
    fields.append({"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-micros"}})
    schema = {"type": "record", "name": "event", "fields": fields}
    registry = Registry({"/schemas/ids/7": {"schema": json.dumps(schema)}})
    registry.is_away = True

    def avro(entity_id):
        out = io.BytesIO(b"\0\0\0\0\7")
        out.seek(5)
        record = {**event(entity_id), "event_time": 1_734_429_600_000_000, "attributes_json": '{"a": [1]}'}
        fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
        return out.getvalue()

    broker.topic(topic)
    server = make_server(source(broker, topic, format="avro", registry={"url": registry.url})).start()
    broker.send(topic, [avro("a"), avro("b")[:20], b"\0\0\0\0\x09x", b"plain", avro("c")])
    until(lambda: "registry does not answer" in server.log.read_text())
    assert ids(server) == [] and rows(server, "default.dead_letters") == []
    registry.is_away = False
    until(lambda: ids(server) == ["a", "c"])
    [row, _] = rows(server)
    assert str(row["event_time"]) == "2024-12-17 10:00:00" and str(row["event_date"]) == "2024-12-17"
    until(lambda: len(rows(server, "default.dead_letters")) == 3)
    registry.shutdown()
