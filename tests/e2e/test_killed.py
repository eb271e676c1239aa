"""Killed at any time: C1 to C8 by the journal's checker, the rows read by PyIceberg, the hot ones by SQL."""

import json
import random
import subprocess
import threading
import time
import uuid

import grpc
import pytest

from journal import Journal, check, digest


class Sender(threading.Thread):
    """Sends batches until told to stop, over whatever comes; notes what it was told."""

    def __init__(self, server, stubs, journal, seed):
        super().__init__(daemon=True)
        self.server, self.stubs, self.journal = server, stubs, journal
        self.random = random.Random(seed)
        self.ending = threading.Event()
        self.refused = 0

    def run(self):
        client = self.server.client()
        while not self.ending.is_set():
            records, digests = [], {}
            for _ in range(self.random.choice([1, 1, 3, 50, 400])):
                event_id = str(uuid.UUID(int=self.random.getrandbits(128), version=4))
                payload = json.dumps({"id": event_id, "n": self.random.random(), "text": "x" * self.random.randrange(200)})
                digests[event_id] = digest(payload)
                records.append(self.stubs.common.DataRecord(endpoint_id="killed", event_id=event_id, payload=payload.encode()))
            self.journal.sent(digests, digests)
            try:
                answer = client.IngestBatch(self.stubs.ingestion.IngestBatchRequest(records=records), timeout=10)
                assert answer.accepted == len(records), answer
                self.journal.acknowledged(digests)
            except grpc.RpcError:
                self.refused += 1
                time.sleep(0.01)

    def end(self):
        self.ending.set()
        self.join(30)
        assert not self.is_alive(), "the client hangs"


def stored(server):
    """What another engine finds in the table, once the lake has everything."""
    server.wait_absorbed()
    table = server.catalog().load_table("default.killed").scan(selected_fields=("event_id", "payload")).to_arrow()
    return list(zip(table["event_id"].to_pylist(), table["payload"].to_pylist()))


def assert_whole(server, journal):
    hot = server.sql("SELECT event_id, payload FROM default.killed")
    check(journal, [(row["event_id"], row["payload"]) for row in hot])
    rows, acknowledged, _ = check(journal, stored(server))
    assert acknowledged > 0 and rows >= acknowledged
    audit = server.cli("audit", "--url", server.http)
    assert audit.returncode == 0, audit.stdout + audit.stderr


@pytest.mark.parametrize("seed", [1, 2])
def test_f01_killed_at_random_under_load_nothing_is_lost_or_doubled(make_server, stubs, tmp_path, seed):
    rounds = 8
    chance = random.Random(seed)
    journal = Journal(tmp_path / "journal")
    server = make_server({"ingestion": {"flush_interval": "150ms"}}).start()
    sender = Sender(server, stubs, journal, seed)
    sender.start()
    for _ in range(rounds):
        time.sleep(chance.uniform(0.001, 0.5))
        server.kill()
        server.start()
    time.sleep(0.3)
    sender.end()
    print(f"seed {seed}: {rounds} kills, {sender.refused} refused requests")
    assert_whole(server, journal)


POINTS = [
    ("wal.before_write", "f02"),
    ("wal.after_partial_write", "f02"),
    ("wal.after_write_before_sync", "f02"),
    ("wal.after_sync", "f02"),
    ("ingest.before_ack", "f02"),
    ("wal.rotate.after_create", "f03"),
    ("wal.rotate.after_preallocate", "f03"),
    ("wal.rotate.after_header", "f03"),
    ("lake.write.half", "f04"),
    ("lake.write.before_sync", "f04"),
    ("lake.commit.before", "f05"),
    ("lake.commit.after_upload", "f05"),
    ("lake.commit.after_swap", "f05"),
]


@pytest.mark.parametrize("point,fault", POINTS, ids=[f"{fault}-{point}" for point, fault in POINTS])
def test_killed_at_every_fail_point_nothing_is_lost_or_doubled(make_server, stubs, tmp_path, point, fault):
    journal = Journal(tmp_path / "journal")
    settings = {"ingestion": {"flush_interval": "100ms"}, "storage": {"wal": {"segment_bytes": "1MiB"}}}
    server = make_server(settings).start(wait=False, LAKEGATE_FAILPOINTS=f"{point}=kill@3")
    sender = Sender(server, stubs, journal, 7)
    sender.start()
    try:
        server.process.wait(60)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"{point} was not reached:\n{server.tail()}")
    assert server.process.returncode == -9, f"ended by itself with {server.process.returncode}:\n{server.tail()}"
    server.start()
    time.sleep(0.3)
    sender.end()
    assert_whole(server, journal)


def test_f34_f44_an_outside_reader_sees_only_whole_snapshots_and_counts_that_grow(make_server, stubs, tmp_path):
    journal = Journal(tmp_path / "journal")
    server = make_server({"ingestion": {"flush_interval": "100ms"}}).start()
    sender = Sender(server, stubs, journal, 3)
    sender.start()
    counts = []
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        try:
            table = server.catalog().load_table("default.killed")
        except Exception as error:
            if "NoSuchTable" in type(error).__name__:
                continue
            raise
        counts.append(table.scan(selected_fields=("event_id",)).to_arrow().num_rows)
    sender.end()
    assert len(counts) > 3 and counts == sorted(counts) and counts[-1] > 0, counts
    assert_whole(server, journal)


def test_a_graceful_end_brings_everything_into_the_lake_and_answers_what_is_under_way(make_server, stubs, tmp_path):
    journal = Journal(tmp_path / "journal")
    server = make_server({"ingestion": {"flush_interval": "1h"}}).start()
    sender = Sender(server, stubs, journal, 5)
    sender.start()
    time.sleep(1)
    assert server.stop() == 0
    sender.end()
    server.start()
    assert_whole(server, journal)
