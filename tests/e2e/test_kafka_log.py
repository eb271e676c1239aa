"""A log that instances share in Kafka: what is acknowledged is in the table once, whoever dies. A real broker; PyIceberg counts.

The first tests are the suite of the log: they hold for the local log and for this one.
"""

import json
import os
import random
import threading
import time
import uuid

import grpc
import pytest
import requests

import journal
from test_kafka import Broker, component, skip_without_kafka, until

STREAMS = {
    "orders": {"event_key": ["event_id"]},
    "others": {"event_key": ["event_id"]},
    "typed": {
        "columns": [{"name": "event_id", "type": "string", "envelope": "event_id"}, {"name": "n", "type": "long", "required": True}],
        "payload": "json",
        "malformed": "skip",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    skip_without_kafka()
    broker = Broker(tmp_path_factory.mktemp("kafka-log"))
    broker.run("up")
    yield broker
    broker.run("down")


def shared(broker, topic, **more):
    log = {
        "brokers": broker.address, "topic": topic, "group_id": f"of-{topic}", "partitions": 4, "timeout": "4s",
        "properties": {"session.timeout.ms": "6000"}, **more,
    }  # fmt: skip
    return {"log": "kafka", "kafka": {"log": log}, "streams": STREAMS}


@pytest.fixture(params=["local", "kafka"])
def settings(request, broker):
    """An instance with the one log or the other."""
    if request.param == "local":
        return {"streams": STREAMS}
    return shared(broker, f"log-{uuid.uuid4().hex[:8]}")


def ready(server):
    """Its log can be written to and read."""
    until(lambda: (component(server, "log") or {"status": "healthy"})["status"] == "healthy")
    return server


def batch(stubs, stream, ids, batch_id="", payload=None):
    record = lambda id: stubs.common.DataRecord(endpoint_id=stream, event_id=id, payload=(payload or (lambda id: json.dumps({"id": id}).encode()))(id))  # noqa: E731, E501
    return stubs.ingestion.IngestBatchRequest(records=[record(id) for id in ids], batch_id=batch_id)


def stored(server, stream="orders", columns=("event_id", "payload")):
    from pyiceberg.exceptions import NoSuchTableError

    try:
        table = server.catalog().load_table(f"default.{stream}")
    except NoSuchTableError:
        return []
    if not table.metadata.current_snapshot_id:
        return []
    return [tuple(row[c] for c in columns) for row in table.scan(selected_fields=columns).to_arrow().to_pylist()]


def closes(*servers):
    """The sums of all instances together, by stream."""
    sums = {}
    for server in servers:
        audit = requests.get(f"{server.http}/api/audit", timeout=30).json()
        for stream in audit["streams"]:
            assert stream["closes"], stream
            for what in ("received", "accepted", "duplicate", "dead_lettered", "rejected"):
                sums.setdefault(stream["stream"], {}).setdefault(what, 0)
                sums[stream["stream"]][what] += stream[what]
    return sums


class Sender(threading.Thread):
    """Sends batches of one stream, each until it is answered, and writes down what it was told."""

    def __init__(self, stubs, servers, path, name, stream="orders", chance=None):
        super().__init__(daemon=True)
        self.stubs, self.servers, self.name, self.stream = stubs, servers, name, stream
        self.journal, self.chance = journal.Journal(path), chance or random.Random(1)
        self.ending, self.refused, self.sent = threading.Event(), 0, 0

    def run(self):
        clients = {}
        while not self.ending.is_set():
            ids = [f"{self.name}-{self.sent + n}" for n in range(self.chance.randint(1, 40))]
            self.sent += len(ids)
            payload = lambda id: json.dumps({"id": id, "by": self.name}).encode()  # noqa: E731
            self.journal.sent(ids, {id: journal.digest(payload(id)) for id in ids})
            while not self.ending.is_set():
                # Another gateway each time: it knows nothing of what the one before did with it.
                server = self.chance.choice(self.servers)
                client = clients.setdefault(server, server.client())
                try:
                    answer = client.IngestBatch(batch(self.stubs, self.stream, ids, payload=payload), timeout=15)
                    assert answer.accepted + answer.duplicates == len(ids), answer
                    self.journal.acknowledged(ids)
                    break
                except grpc.RpcError as error:
                    # Never an answer that says it is wrong.
                    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED), error
                    self.refused += 1
                    self.ending.wait(0.1)
            self.ending.wait(0.01)

    def end(self):
        self.ending.set()
        self.join(60)
        assert not self.is_alive()
        return self.journal


def judge(server, sender, seconds=60):
    _, acknowledged = sender.journal.read()
    until(lambda: acknowledged <= {id for id, _ in stored(server, sender.stream)}, seconds, every=0.3)
    return journal.check(sender.journal, stored(server, sender.stream))


def test_suite_what_is_acknowledged_is_there_after_each_kill_once_and_unchanged(settings, make_server, stubs, tmp_path):
    keeper = make_server(name="keeper").start()
    server = make_server({**of(keeper), **settings}).start()
    sender = Sender(stubs, [server], tmp_path / "journal", "a")
    sender.start()
    for _ in range(3):
        before = sender.sent
        until(lambda: sender.sent > before + 100)
        server.kill()
        server.start()
    sender.end()
    found, acknowledged, sent = judge(keeper, sender)
    assert acknowledged > 300
    print(f"{sent} sent, {acknowledged} acknowledged, {found} stored")


def of(keeper):
    """Another instance over the same lake."""
    return {"storage": {"warehouse": str(keeper.data / "warehouse")}, "catalog": {"uri": f"{keeper.http}/iceberg"}}


def test_suite_a_position_grows_and_all_is_read_back_by_sql(settings, make_server, stubs):
    server = ready(make_server(settings).start())
    client = server.client()
    positions = [client.IngestBatch(batch(stubs, "typed", [f"e{n}"], payload=lambda id: b'{"n":1}'), timeout=30).position for n in range(20)]
    assert positions == sorted(set(positions))
    seen = lambda: "typed" in str(server.sql("SHOW TABLES")) and server.sql("SELECT event_id FROM default.typed")  # noqa: E731
    rows = until(lambda: len(seen() or []) == 20 and seen(), every=0.05)
    assert sorted(row["event_id"] for row in rows) == sorted(f"e{n}" for n in range(20))


def test_suite_duplicates_dead_letters_and_what_is_given_back_add_up(settings, make_server, stubs):
    server = ready(make_server(settings).start())
    client = server.client()
    number = lambda id: b'{"n":1}' if id[0] == "e" else b'{"n":"none"}'  # noqa: E731
    request = batch(stubs, "typed", ["e1", "x1", "e2"], "one", number)
    first = client.IngestBatch(request, timeout=30)
    assert (first.accepted, first.dead_lettered) == (2, 1)
    assert client.IngestBatch(request, timeout=30) == first
    server.kill()
    client = ready(server.start()).client()
    client.IngestBatch(request, timeout=30)
    client.IngestBatch(batch(stubs, "orders", ["a", "b"]), timeout=30)
    client.IngestBatch(batch(stubs, "orders", ["b", "c"]), timeout=30)
    until(lambda: len(stored(server)) == 3 and len(stored(server, "dead_letters", ("endpoint_id",))) == 1)
    until(lambda: closes(server)["orders"]["duplicate"] == 1)
    sums = closes(server)
    assert sorted(id for id, _ in stored(server)) == ["a", "b", "c"]
    assert sorted(id for id, in stored(server, "typed", ("event_id",))) == ["e1", "e2"]
    assert {what: n for what, n in sums["typed"].items() if n} == {"received": 9, "accepted": 2, "dead_lettered": 1, "duplicate": 6}
    assert requests.get(f"{server.http}/api/audit", timeout=30).json()["closes"]


def test_gateways_and_writers_are_killed_and_the_broker_restarted(tmp_path_factory, make_server, stubs, tmp_path):
    skip_without_kafka()
    chance = random.Random(7)
    broker = Broker(tmp_path_factory.mktemp("kafka-log-killed"))
    broker.run("up")
    try:
        keeper = make_server(name="keeper").start()
        settings = {**of(keeper), **shared(broker, "log")}
        gateway = {**of(keeper), **shared(broker, "log", writer=False)}
        gateways = [make_server(gateway, f"gateway-{n}").start() for n in (1, 2)]
        writers = [make_server(settings, f"writer-{n}").start() for n in (1, 2)]
        senders = [Sender(stubs, gateways, tmp_path / s, s, s, random.Random(n)) for n, s in enumerate(("orders", "others"))]
        for sender in senders:
            sender.start()

        def go_on():
            before = [sender.sent for sender in senders]
            until(lambda: all(sender.sent > b + 30 for sender, b in zip(senders, before)), 90)

        victims = (writers[0], gateways[0], writers[1], gateways[1])
        for victim in victims if os.environ.get("LAKEGATE_KAFKA_LOG") else victims[:2]:
            go_on()
            victim.kill()
            time.sleep(chance.uniform(0, 1))
            victim.start()
        go_on()
        broker.run("down")
        refused = [sender.refused for sender in senders]
        until(lambda: all(sender.refused > r for sender, r in zip(senders, refused)))
        until(lambda: component(gateways[0], "log")["status"] == "unhealthy")
        answer = requests.post(f"{gateways[0].http}/events", json={"eventId": "x"}, timeout=30)
        assert answer.status_code in (400, 404, 503), answer.text
        broker.run("up")
        go_on()
        writers[0].kill()
        for sender in senders:
            sender.end()
        for sender in senders:
            print(sender.stream, judge(keeper, sender, 90), "refused", sender.refused)
        for server in (*gateways, writers[1]):
            assert server.stop() == 0
        for sender in senders:
            judge(keeper, sender, 10)
    finally:
        broker.run("down")


def test_the_second_writer_takes_over_and_knows_the_keys(broker, make_server, stubs):
    keeper = make_server(name="keeper").start()
    topic = f"log-{uuid.uuid4().hex[:8]}"
    one = ready(make_server({**of(keeper), **shared(broker, topic)}, "one").start())
    one.client().IngestBatch(batch(stubs, "orders", ["a", "b"]), timeout=30)
    until(lambda: len(stored(keeper)) == 2)
    assert one.stop() == 0
    two = ready(make_server({**of(keeper), **shared(broker, topic)}, "two").start())
    assert two.client().IngestBatch(batch(stubs, "orders", ["b", "c", "a"]), timeout=30).accepted == 3
    until(lambda: len(stored(keeper)) == 3)
    until(lambda: closes(two).get("orders", {}).get("duplicate") == 2)
    assert sorted(id for id, _ in stored(keeper)) == ["a", "b", "c"]


def test_f56_a_topic_that_was_made_anew_stops_the_writer(broker, make_server, stubs):
    topic = f"log-{uuid.uuid4().hex[:8]}"
    server = ready(make_server(shared(broker, topic)).start())
    server.client().IngestBatch(batch(stubs, "orders", ["a", "b"]), timeout=30)
    server.client().IngestBatch(batch(stubs, "orders", ["c"]), timeout=30)
    until(lambda: len(stored(server)) == 3)
    server.stop()
    broker.delete(topic)
    server.start()
    until(lambda: component(server, "log")["parts"]["gateway"]["status"] == "healthy")
    server.client().IngestBatch(batch(stubs, "orders", ["d"]), timeout=30)
    until(lambda: "made anew" in str(component(server, "log")))
    assert component(server, "log")["status"] == "degraded"
    assert len(stored(server)) == 3


def test_what_follows_the_local_log_is_refused(make_server, tmp_path):
    server = make_server()
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps({
        "log": "kafka",
        "storage": {"wal_enabled": False},
        "sinks": {"copies": {"from": {"streams": ["orders"]}, "kafka": {"brokers": "127.0.0.1:1", "topic": "t"}}},
    }))  # fmt: skip
    found = server.cli("config", "check", str(file))
    assert found.returncode == 78
    for part in ("kafka.log.brokers", "storage.wal_enabled", "sinks: follow"):
        assert part in found.stdout + found.stderr, found
