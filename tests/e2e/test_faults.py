"""Faults of the world around: catalog away, memory short, disk full, syncs that fail, bad input."""

import base64
import concurrent.futures
import json
import os
import pathlib
import shutil
import sqlite3
import subprocess
import threading
import time
import uuid

import grpc
import pytest
import requests
from google.protobuf.timestamp_pb2 import Timestamp

from journal import Journal, check, digest


def batch(stubs, records, **more):
    return stubs.ingestion.IngestBatchRequest(records=records, **more)


def details(error):
    """The google.rpc details of a gRPC error, by name."""
    found = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    return found


class Away:
    """The catalog's database, held by another process's transaction: every commit finds it locked."""

    def __init__(self, server):
        self.connection = sqlite3.connect(server.data / "catalog.db", timeout=5, isolation_level=None)

    def __enter__(self):
        self.connection.execute("BEGIN EXCLUSIVE")

    def __exit__(self, *_):
        self.connection.execute("ROLLBACK")
        self.connection.close()


def resident_kib(server):
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def test_f39_while_the_catalog_is_away_records_are_taken_memory_stays_bounded_and_all_heals(make_server, stubs, tmp_path):
    budget_mib = 64
    server = make_server({"ingestion": {"memory_budget": f"{budget_mib}MiB", "commit_bytes": "8MiB", "flush_interval": "300ms"}}).start()
    client = server.client()
    journal = Journal(tmp_path / "journal")
    before_kib = resident_kib(server)

    def send(count, size=4000):
        payloads = {str(uuid.uuid4()): json.dumps({"pad": os.urandom(size // 2).hex()}) for _ in range(count)}
        journal.sent(payloads, {k: digest(v) for k, v in payloads.items()})
        records = [stubs.common.DataRecord(endpoint_id="away", event_id=k, payload=v.encode()) for k, v in payloads.items()]
        for _ in range(100):
            try:
                assert client.IngestBatch(batch(stubs, records), timeout=30).accepted == count
                journal.acknowledged(payloads)
                return
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error
                assert b"RetryInfo" in details(error), "no RetryInfo"
                time.sleep(0.2)
        raise AssertionError("never accepted again")

    send(10)
    server.wait_absorbed()
    with Away(server):
        for _ in range(150):
            send(250)
        deadline = time.monotonic() + 60
        while requests.get(f"{server.http}/health").json()["status"] != "degraded":
            assert time.monotonic() < deadline, requests.get(f"{server.http}/health").text
            time.sleep(0.2)
        assert server.sql('SELECT count(*) AS n FROM "default".away')[0]["n"] == 10 + 150 * 250
        grown = (resident_kib(server) - before_kib) / 1024
        print(f"150 MiB taken with the catalog away: {grown:.0f} MiB more resident, budget {budget_mib} MiB")
        assert grown < 4 * budget_mib, f"{grown} MiB"
    server.wait_absorbed(60)
    table = server.catalog().load_table("default.away").scan(selected_fields=("event_id", "payload")).to_arrow()
    check(journal, list(zip(table["event_id"].to_pylist(), table["payload"].to_pylist())))
    assert requests.get(f"{server.http}/health").json()["status"] == "healthy"


def test_f39_f16_when_the_log_is_full_writes_are_refused_with_a_time_to_come_back_and_reads_go_on(make_server, stubs):
    server = make_server({
        "ingestion": {"flush_interval": "200ms"},
        "storage": {"wal": {"quota": "24MiB", "segment_bytes": "4MiB"}},
    }).start()
    client = server.client()
    record = lambda: stubs.common.DataRecord(endpoint_id="full", payload=json.dumps({"pad": os.urandom(20000).hex()}).encode())
    client.IngestBatch(batch(stubs, [record()]))
    server.wait_absorbed()
    accepted = 1
    with Away(server):
        refused = None
        for _ in range(200):
            try:
                accepted += client.IngestBatch(batch(stubs, [record() for _ in range(20)])).accepted
            except grpc.RpcError as error:
                refused = error
                break
        assert refused is not None and refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, refused
        assert b"RetryInfo" in details(refused)
        assert requests.get(f"{server.http}/livez").status_code == 200
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            accepted += client.IngestBatch(batch(stubs, [record()])).accepted
            break
        except grpc.RpcError:
            time.sleep(0.1)
    server.wait_absorbed()
    assert server.sql("SELECT count(*) AS n FROM \"default\".full")[0]["n"] == accepted


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not here")
@pytest.mark.parametrize("nth", [2, 5, 9])
def test_f15_a_sync_that_fails_once_is_final_nothing_is_acknowledged_after_it(make_server, stubs, tmp_path, nth):
    server = make_server().start(wait=False)
    server.wait_ready()
    client = server.client()
    journal = Journal(tmp_path / "journal")
    inject = f"inject=fdatasync:error=EIO:when={nth}"
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-o", str(tmp_path / "strace"), "-e", "trace=fdatasync", "-e", inject, "-p", str(server.process.pid)]
    )
    threads = pathlib.Path(f"/proc/{server.process.pid}/task")
    while not all("TracerPid:\t0" not in (task / "status").read_text() for task in threads.iterdir()):
        time.sleep(0.05)
    failed = 0
    for n in range(40):
        event_id, payload = f"s{n}", json.dumps({"n": n})
        journal.sent([event_id], {event_id: digest(payload)})
        try:
            client.IngestRecord(stubs.ingestion.IngestRecordRequest(
                record=stubs.common.DataRecord(endpoint_id="synced", event_id=event_id, payload=payload.encode())), timeout=10)
            assert not failed, f"record {n} was acknowledged after a failed sync"
            journal.acknowledged([event_id])
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE, error
            failed += 1
            if server.process.poll() is not None:
                break
    tracer.terminate()
    tracer.wait()
    assert failed, (tmp_path / "strace").read_text()
    if server.process.poll() is None:
        try:
            server.process.wait(10)
        except subprocess.TimeoutExpired:
            assert requests.get(f"{server.http}/health").status_code == 503
            server.kill()
    assert server.process.returncode != 0
    server.start()
    server.wait_absorbed()
    # Where the very first sync failed nothing was acknowledged, and there may be no table.
    tables = {row["table_name"] for row in server.sql("SHOW TABLES")}
    hot = server.sql('SELECT event_id, payload FROM "default".synced') if "synced" in tables else []
    check(journal, [(row["event_id"], row["payload"]) for row in hot])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a small file system")
def test_f16_on_a_full_disk_writes_are_refused_reads_go_on_and_it_heals_by_itself(make_server, stubs, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(small)])
    if mounted.returncode != 0:
        pytest.skip("no mount here")
    try:
        server = make_server({
            "node": {"data_dir": str(small / "data")},
            "ingestion": {"flush_interval": "300ms"},
            "storage": {"warehouse": str(small / "data/warehouse"), "wal": {"segment_bytes": "4MiB", "quota": "64MiB"}},
            "catalog": {"database": f"sqlite://{small}/data/catalog.db"},
        })
        server.data = small / "data"
        server.start()
        client = server.client()
        record = lambda n: stubs.common.DataRecord(
            endpoint_id="small", event_id=f"r{n}", payload=json.dumps({"pad": os.urandom(5000).hex()}).encode())
        sent = acked = 0
        fill = small / "filler"
        refused = []
        with open(fill, "wb") as filler:
            try:
                while True:
                    filler.write(b"x" * (1 << 20))
                    filler.flush()
            except OSError:
                pass
        for _ in range(300):
            try:
                acked += client.IngestBatch(batch(stubs, [record(sent + i) for i in range(20)]), timeout=20).accepted
            except grpc.RpcError as error:
                refused.append(error.code())
                if len(refused) > 3:
                    break
            sent += 20
        assert refused, "a full disk went unnoticed"
        assert server.process.poll() is None or refused[-1] == grpc.StatusCode.UNAVAILABLE
        assert set(refused) <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}, refused
        fill.unlink()
        if server.process.poll() is not None:
            server.start()
        deadline = time.monotonic() + 40
        healed = False
        while time.monotonic() < deadline and not healed:
            try:
                acked += client.IngestBatch(batch(stubs, [record(10**6)]), timeout=20).accepted
                healed = True
            except grpc.RpcError:
                time.sleep(0.2)
        assert healed, server.tail()
        server.wait_absorbed(60)
        ids = [row["event_id"] for row in server.sql('SELECT event_id FROM "default".small')]
        assert len(ids) == len(set(ids)) and len(ids) >= acked
        server.stop()
    finally:
        for made in [server] if "server" in dir() else []:
            if made.process and made.process.poll() is None:
                made.kill()
        subprocess.run(["umount", "-l", str(small)])


STRICT = {
    "strict": {
        "payload": "json",
        "columns": [
            {"name": "event_id", "type": "string", "envelope": "event_id", "required": True},
            {"name": "n", "type": "long", "path": "n", "required": True},
            {"name": "ratio", "type": "double", "path": "ratio"},
            {"name": "at", "type": "timestamptz", "path": "at"},
        ],
        "time": {"path": "at"},
    },
    "lenient": {
        "payload": "json",
        "malformed": "skip",
        "columns": [
            {"name": "event_id", "type": "string", "envelope": "event_id", "required": True},
            {"name": "n", "type": "long", "path": "n", "required": True},
        ],
    },
}

BAD = [
    ("not json", b"{", "MALFORMED_PAYLOAD"),
    ("invalid utf-8", b'{"n": 1, "t": "\xff\xfe"}', "INVALID_UTF8"),
    ("missing", b'{"ratio": 1}', "MISSING_FIELD"),
    ("wrong type", b'{"n": "one"}', "WRONG_TYPE"),
    ("too large for a long", b'{"n": 123456789012345678901234567890}', "WRONG_TYPE"),
    ("NaN", b'{"n": 1, "ratio": NaN}', "MALFORMED_PAYLOAD"),
    ("infinite", b'{"n": 1, "ratio": 1e999}', None),
    ("deep", b'{"n": 1, "d": ' + b"[" * 10000 + b"]" * 10000 + b"}", "TOO_DEEP"),
    ("no time at all", b'{"n": 1, "at": "yesterday"}', "WRONG_TYPE"),
    ("a year too far", b'{"n": 1, "at": 3e18}', "OUT_OF_RANGE"),
    ("an array", b"[1, 2]", "MALFORMED_PAYLOAD"),
]


def test_f52_each_bad_record_is_told_apart_and_its_neighbours_are_stored(make_server, stubs):
    server = make_server({"streams": STRICT}).start()
    client = server.client()
    good = lambda i: stubs.common.DataRecord(endpoint_id="strict", event_id=f"good{i}", payload=json.dumps({"n": i}).encode())
    records = []
    for i, (name, payload, _) in enumerate(BAD):
        records += [good(i), stubs.common.DataRecord(endpoint_id="strict", event_id=name, payload=payload)]
    wide = json.dumps({"n": 7, **{f"c{i}": i for i in range(10000)}}).encode()
    records.append(stubs.common.DataRecord(endpoint_id="strict", event_id="wide", payload=wide))
    answer = client.IngestBatch(batch(stubs, records))
    assert answer.accepted == len(BAD) + 1 and answer.rejected == len(BAD), answer
    by_id = {error.event_id: error for error in answer.errors}
    for name, _, code in BAD:
        assert name in by_id, f"{name} was taken"
        assert code is None or by_id[name].code == code, f"{name}: {by_id[name]}"
        assert by_id[name].message
    stored = {row["event_id"] for row in server.sql('SELECT event_id FROM "default".strict')}
    assert stored == {f"good{i}" for i in range(len(BAD))} | {"wide"}

    with pytest.raises(grpc.RpcError) as refused:
        client.IngestBatch(batch(stubs, [good(100), records[1]], atomic=True))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert server.sql('SELECT count(*) AS n FROM "default".strict')[0]["n"] == len(BAD) + 1

    answer = client.IngestBatch(batch(stubs, [
        stubs.common.DataRecord(endpoint_id="lenient", event_id="bad", payload=b'{"n": "x"}'),
        stubs.common.DataRecord(endpoint_id="lenient", event_id="fine", payload=b'{"n": 1}'),
    ]))
    assert (answer.accepted, answer.dead_lettered) == (1, 1)
    letter = server.sql('SELECT event_id, endpoint_id, reason, field, message FROM "default".dead_letters')
    assert [(row["event_id"], row["endpoint_id"], row["reason"], row["field"]) for row in letter] == [("bad", "lenient", "WRONG_TYPE", "n")]
    audit = server.cli("audit", "--url", server.http)
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_f60_wild_messages_are_refused_at_the_limit_with_the_right_code(server, stubs):
    channel = server.channel()
    raw = channel.unary_unary("/storage.IngestionService/IngestBatch", request_serializer=lambda b: b, response_deserializer=lambda b: b)
    whole = batch(stubs, [stubs.common.DataRecord(endpoint_id="x", payload=b"{}")]).SerializeToString()
    for bad in (whole[:-1], b"\x0a\xff\xff\xff\xff\x0f", b"\x08\x01", b"\xff" * 50, b"\x0b\x0c"):
        with pytest.raises(grpc.RpcError) as refused:
            raw(bad)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, (bad, refused.value)
    with pytest.raises(grpc.RpcError) as refused:
        raw(b"\x0a" + b"\x00" * (40 << 20))
    assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED), refused.value
    assert raw(b"") == b"" or True
    too_many = batch(stubs, [stubs.common.DataRecord(endpoint_id="x")] * 100001)
    with pytest.raises(grpc.RpcError) as refused:
        server.client().IngestBatch(too_many)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "100000" in refused.value.details()
    for name in ("../etc", "a b", "A", "x" * 64, "dead_letters", 'a"; DROP'):
        with pytest.raises(grpc.RpcError) as refused:
            server.client().IngestRecord(stubs.ingestion.IngestRecordRequest(
                record=stubs.common.DataRecord(endpoint_id=name, payload=b"{}")))
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT, name
    answer = server.client().IngestBatch(batch(stubs, []))
    assert (answer.accepted, answer.rejected) == (0, 0)
    answer = server.client().IngestBatch(batch(stubs, [stubs.common.DataRecord(endpoint_id="x", payload=b"{}")]))
    assert answer.accepted == 1, "it goes on"


def test_times_of_every_kind_and_none_come_out_as_sent(server, stubs):
    from datetime import datetime, timezone

    when = datetime(2024, 2, 29, 12, 34, 56, 789012, tzinfo=timezone.utc)
    stamp = Timestamp()
    stamp.FromDatetime(when)
    client = server.client()
    client.IngestBatch(batch(stubs, [
        stubs.common.DataRecord(endpoint_id="times", event_id="given", payload=b"1", event_time=stamp),
        stubs.common.DataRecord(endpoint_id="times", event_id="none", payload=b"1"),
    ]))
    rows = {row["event_id"]: row for row in server.sql('SELECT event_id, event_time, received_at FROM "default".times')}
    assert rows["given"]["event_time"].startswith("2024-02-29T12:34:56.789012")
    assert rows["none"]["event_time"] == rows["none"]["received_at"]


def test_f50_the_same_batch_again_and_the_same_key_again_change_nothing_also_after_a_restart(make_server, stubs):
    keyed = {"once": {"columns": [
        {"name": "event_id", "type": "string", "envelope": "event_id", "required": True},
        {"name": "payload", "type": "string", "envelope": "payload"}], "event_key": ["event_id"]}}
    server = make_server({"streams": keyed, "storage": {"wal": {"segment_bytes": "1MiB"}}, "ingestion": {"flush_interval": "100ms"}}).start()
    record = lambda n, stream="once": stubs.common.DataRecord(endpoint_id=stream, event_id=f"k{n}", payload=b"{}")

    def everyone(client):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda _: client.IngestBatch(batch(stubs, [record(n) for n in range(100)])), range(8)))

    answers = everyone(server.client())
    assert sum(a.accepted for a in answers) == 100 and sum(a.duplicates for a in answers) == 700
    first = server.client().IngestBatch(batch(stubs, [record(n, "named") for n in range(10)], batch_id="b-1"))
    again = server.client().IngestBatch(batch(stubs, [record(n, "named") for n in range(10)], batch_id="b-1"))
    assert first.accepted == 10 and again == first, "a request sent again has the first one's answer"
    theirs = batch(stubs, [record(n, "named") for n in range(10)], batch_id="b-1", tenant_id="another")
    assert server.client().IngestBatch(theirs).accepted == 10, "another tenant's batch of the same id was taken for ours"
    server.wait_absorbed()
    filler = [stubs.common.DataRecord(endpoint_id="filler", payload=json.dumps({"x": os.urandom(4000).hex()}).encode())] * 100
    for _ in range(12):
        server.client().IngestBatch(batch(stubs, filler))
    server.wait_absorbed()
    time.sleep(1.2)
    for restart in (server.kill, server.stop):
        restart()
        server.start()
        answers = everyone(server.client())
        assert sum(a.accepted for a in answers) == 0 and sum(a.duplicates for a in answers) == 800
        again = server.client().IngestBatch(batch(stubs, [record(n, "named") for n in range(10)], batch_id="b-1"))
        assert again == first, "also after a restart"
    assert server.sql('SELECT count(*) AS n FROM "default".once')[0]["n"] == 100
    assert server.sql('SELECT count(*) AS n FROM "default".named')[0]["n"] == 10
    assert server.cli("audit", "--url", server.http).returncode == 0


def test_f66_a_count_never_goes_back_while_rows_move_from_memory_to_the_lake(make_server, stubs):
    server = make_server({"ingestion": {"flush_interval": "50ms"}}).start()
    client = server.client()
    acked = [0]
    ending = threading.Event()

    def send():
        while not ending.is_set():
            acked[0] += client.IngestBatch(batch(stubs, [stubs.common.DataRecord(endpoint_id="moving", payload=b"{}")] * 7)).accepted

    sender = threading.Thread(target=send)
    sender.start()
    while acked[0] == 0:
        time.sleep(0.01)
    seen, deadline = 0, time.monotonic() + 8
    rounds = 0
    while time.monotonic() < deadline:
        low = acked[0]
        found = server.sql('SELECT count(*) AS n FROM "default".moving')[0]["n"]
        assert found >= low and found >= seen, f"{found} rows after {low} were acknowledged and {seen} seen"
        seen, rounds = found, rounds + 1
    ending.set()
    sender.join()
    print(f"{rounds} counts")
    assert server.sql('SELECT count(*) AS n FROM "default".moving')[0]["n"] == acked[0]
