"""The warehouse in a bucket (MinIO) and the catalog in PostgreSQL: written and read by several, away and back again."""

import concurrent.futures
import json
import os
import threading
import time

import pytest
import requests

from stores import (
    bucket_settings, expected, health, last_errors, lent, minio, own_key, postgres, pyiceberg, records, send, stored_ids, until,
)

SECRETS = ["minio-secret-for-tests", "pg-secret-for-tests"]


def check_no_secret(*servers):
    for server in servers:
        log = server.log.read_text(errors="replace")
        assert not [s for s in SECRETS if s in log]


def attach(duck, server, minio):
    connection = duck()
    host = minio.address.removeprefix("http://")
    connection.execute(f"CREATE SECRET (TYPE s3, KEY_ID '{minio.s3['access_key']}', SECRET '{minio.s3['secret_key']}', ENDPOINT '{host}', URL_STYLE 'path', USE_SSL false)")
    connection.execute(f"ATTACH 'lakegate' AS lake (TYPE iceberg, ENDPOINT '{server.http}/iceberg', AUTHORIZATION_TYPE 'none')")
    return connection


def test_a_warehouse_in_a_bucket_is_written_compacted_and_read_by_other_engines(make_server, stubs, minio, duck):
    server = make_server(bucket_settings(minio)).start()
    for start in range(0, 3000, 300):
        send(server, stubs, "seen", range(start, start + 300))
        server.wait_absorbed()
    send(server, stubs, "seen", range(3000, 3100))
    assert server.sql('SELECT count(*) AS c, count(DISTINCT event_id) AS d FROM "default".seen')[0] == {"c": 3100, "d": 3100}
    server.wait_absorbed()
    judge = pyiceberg(f"{server.http}/iceberg", **own_key(minio))
    assert stored_ids(judge.load_table("default.seen")) == expected(range(3100))
    connection = attach(duck, server, minio)
    assert connection.execute("SELECT count(*), count(DISTINCT event_id) FROM lake.default.seen").fetchone() == (3100, 3100)
    # The tables' care: eleven small files become one, and the past is cut.
    table = lambda *words: server.cli("table", *words, "--url", server.http)
    assert "default.seen" in table("ls").stdout and "event_id" in table("show", "default.seen").stdout
    assert "11 files became 1, 3,100 rows" in table("compact", "default.seen").stdout
    assert len(table("snapshots", "default.seen").stdout.splitlines()) == 13
    assert "11 snapshots expired, 1 are left" in table("expire", "default.seen", "--keep", "1").stdout
    assert table("show", "default.nowhere").returncode == 1
    assert stored_ids(judge.load_table("default.seen")) == expected(range(3100))
    # PyIceberg writes too, and we read it.
    judge.create_namespace("theirs")
    import pyarrow as pa

    judge.create_table("theirs.made", schema=pa.schema([("n", pa.int64())])).append(pa.table({"n": list(range(100))}))
    assert server.sql("SELECT sum(n) AS s FROM theirs.made")[0] == {"s": 4950}
    # Engines are told where the files are, and no key unless the settings say so.
    told = requests.get(f"{server.http}/iceberg/v1/config").json()["defaults"]
    assert told["s3.endpoint"] == minio.address and told["s3.path-style-access"] == "true" and "s3.secret-access-key" not in told
    assert not (server.data / "warehouse").exists()
    check_no_secret(server)


def test_engines_without_a_key_read_with_the_one_that_the_catalog_lends(make_server, stubs, minio, duck):
    server = make_server(bucket_settings(minio, **lent(minio))).start()
    send(server, stubs, "lent", range(50))
    server.wait_absorbed()
    assert stored_ids(pyiceberg(f"{server.http}/iceberg").load_table("default.lent")) == expected(range(50))
    connection = duck()
    connection.execute(f"ATTACH 'lakegate' AS lake (TYPE iceberg, ENDPOINT '{server.http}/iceberg', AUTHORIZATION_TYPE 'none')")
    assert connection.execute("SELECT count(*) FROM lake.default.lent").fetchone() == (50,)
    assert "s3.secret-access-key" not in requests.get(f"{server.http}/iceberg/v1/config").text


def test_f38_large_files_go_up_in_parts_and_come_back_as_they_were(make_server, stubs, minio):
    settings = bucket_settings(minio)
    settings["ingestion"] = {"flush_interval": "20s", "commit_bytes": "256MiB"}
    server = make_server(settings).start()
    pads = {}
    for start in range(0, 6000, 1000):
        batch = []
        for i in range(start, start + 1000):
            pads[f"e-{i}"] = os.urandom(2500).hex()
            batch.append(stubs.common.DataRecord(endpoint_id="large", event_id=f"e-{i}", payload=json.dumps({"pad": pads[f"e-{i}"]}).encode()))
        assert server.client().IngestBatch(stubs.ingestion.IngestBatchRequest(records=batch), timeout=60).accepted == 1000
    server.wait_absorbed(60)
    listed = minio.client.list_objects_v2(Bucket="warehouse", Prefix="lake/default/large/data/")["Contents"]
    parts = [minio.client.head_object(Bucket="warehouse", Key=o["Key"], PartNumber=1).get("PartsCount") for o in listed]
    assert max(p or 0 for p in parts) >= 2, (parts, [o["Size"] for o in listed])
    table = pyiceberg(f"{server.http}/iceberg", **own_key(minio)).load_table("default.large")
    rows = table.scan(selected_fields=("event_id", "payload")).to_arrow().to_pylist()
    assert len(rows) == 6000 and all(json.loads(r["payload"])["pad"] == pads[r["event_id"]] for r in rows)


@pytest.mark.parametrize("wrong, says", [
    ({"secret_key": "minio-secret-for-tests-wrong"}, ["storage.s3.secret_key"]),
    ({"access_key": "nobody-at-all"}, ["storage.s3.access_key"]),
    ({"bucket": "not-made-yet"}, ["not-made-yet", "make it, or correct storage.warehouse"]),
    ({"endpoint": "http://127.0.0.1:9"}, ["127.0.0.1:9", "cannot be used now"]),
])
def test_f40_a_store_that_refuses_is_named_with_what_to_do_and_records_are_taken_meanwhile(make_server, stubs, minio, wrong, says):
    settings = bucket_settings(minio, **{k: v for k, v in wrong.items() if k != "bucket"})
    if "bucket" in wrong:
        settings["storage"]["warehouse"] = f"s3://{wrong['bucket']}/lake"
    server = make_server(settings).start()
    send(server, stubs, "waits", range(20))
    errors = until(lambda: last_errors(server), 60, what="an error")
    assert all(text in errors[0] for text in says), errors
    assert health(server)["status"] == "degraded"
    assert health(server)["services"]["lake"]["error"]
    send(server, stubs, "waits", range(20, 40))
    check_no_secret(server)
    if "bucket" in wrong:
        minio.client.create_bucket(Bucket=wrong["bucket"])
        server.wait_absorbed(60)
        assert server.sql('SELECT count(*) AS c FROM "default".waits')[0] == {"c": 40}


def test_f40_a_store_that_goes_and_comes_back_while_the_process_is_killed_loses_and_doubles_nothing(make_server, stubs, minio):
    server = make_server(bucket_settings(minio)).start()
    send(server, stubs, "back", range(100))
    server.wait_absorbed()
    minio.down()
    send(server, stubs, "back", range(100, 200))
    until(lambda: last_errors(server), 60, what="an error")
    assert health(server)["status"] == "degraded"
    server.kill()
    # It starts without the store, takes records, and says what waits.
    server.start()
    send(server, stubs, "back", range(200, 300))
    assert requests.post(f"{server.http}/api/sql", json={"sql": 'SELECT count(*) FROM "default".back'}).status_code == 503
    until(lambda: last_errors(server), 60, what="an error")
    server.kill()
    server.start()
    send(server, stubs, "back", range(300, 400))
    minio.up()
    server.wait_absorbed(90)
    until(lambda: health(server)["status"] == "healthy", 30)
    assert server.sql('SELECT count(*) AS c, count(DISTINCT event_id) AS d FROM "default".back')[0] == {"c": 400, "d": 400}
    table = pyiceberg(f"{server.http}/iceberg", **own_key(minio)).load_table("default.back")
    assert stored_ids(table) == expected(range(400))
    check_no_secret(server)


def test_f40_f41_a_store_killed_again_and_again_under_load_keeps_each_record_once(make_server, stubs, minio):
    server = make_server(bucket_settings(minio)).start()
    done, sent = threading.Event(), []

    def load():
        n = 0
        while not done.is_set():
            send(server, stubs, "shaken", range(n, n + 20))
            sent.extend(range(n, n + 20))
            n += 20
            time.sleep(0.02)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        working = pool.submit(load)
        for _ in range(4):
            time.sleep(1.5)
            os.kill(minio.pid(), 9)
            time.sleep(1.0)
            minio.up()
        done.set()
        working.result()
    server.wait_absorbed(90)
    table = pyiceberg(f"{server.http}/iceberg", **own_key(minio)).load_table("default.shaken")
    assert stored_ids(table) == expected(sent)


def test_f39_postgres_that_goes_and_comes_back_while_the_process_is_killed_loses_and_doubles_nothing(make_server, stubs, postgres):
    server = make_server({"catalog": {"database": postgres.address}}).start()
    send(server, stubs, "rows", range(100))
    server.wait_absorbed()
    assert server.catalog().load_table("default.rows").scan().to_arrow().num_rows == 100
    postgres.down()
    send(server, stubs, "rows", range(100, 200))
    until(lambda: last_errors(server), 60, what="an error")
    assert health(server)["status"] == "degraded"
    server.kill()
    server.start()
    send(server, stubs, "rows", range(200, 300))
    postgres.up()
    server.wait_absorbed(90)
    assert stored_ids(server.catalog().load_table("default.rows")) == expected(range(300))


def test_f40_a_database_that_refuses_stops_the_start_and_its_password_is_told_to_nobody(make_server, postgres):
    port = postgres.port
    for database, says in [
        (f"postgres://postgres:pg-secret-for-tests@127.0.0.1:{port}/nowhere", "make the database, or correct catalog.database"),
        (f"postgres://nobody:pg-secret-for-tests@127.0.0.1:{port}/postgres", "catalog.database"),
    ]:
        server = make_server({"catalog": {"database": database}}, name=says[:4] + str(len(database))).start(wait=False)
        assert server.process.wait(30) != 0
        assert says in server.tail(), server.tail()
        check_no_secret(server)
        shown = server.cli("config", "show", "--config", str(server.config))
        assert "pg-secret-for-tests" not in shown.stdout + shown.stderr


def test_two_instances_write_one_stream_into_one_warehouse_while_one_of_them_is_killed(make_server, stubs, minio, postgres, duck):
    settings = lambda node: {**bucket_settings(minio, postgres.address), "node": {"id": node}}
    one, two = make_server(settings("one"), "one").start(), make_server(settings("two"), "two").start()
    each = 2000

    def load(server, start):
        for n in range(start, start + each, 50):
            for _ in range(600):
                try:
                    send(server, stubs, "shared", range(n, n + 50))
                    break
                except Exception:
                    # Killed meanwhile. What was acknowledged is there; what was not is sent again by its event ids below.
                    time.sleep(0.1)
                    yield_ids.update(range(n, n + 50))
            else:
                raise AssertionError("never taken")

    yield_ids = set()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        work = [pool.submit(load, s, i * each) for i, s in enumerate([one, two, one, two])]
        for _ in range(3):
            time.sleep(1.0)
            two.kill()
            two.start()
        for w in work:
            w.result()
    one.wait_absorbed(90)
    two.wait_absorbed(90)
    judge = pyiceberg(f"{one.http}/iceberg", **own_key(minio))
    found = stored_ids(judge.load_table("default.shared"))
    # A request that was cut off may have been stored before it was sent again; all others are there once.
    again = {f"e-{i}" for i in yield_ids}
    assert sorted(set(found)) == expected(range(4 * each))
    assert sorted(i for i in found if i not in again) == sorted(set(expected(range(4 * each))) - again)
    connection = attach(duck, two, minio)
    assert connection.execute("SELECT count(DISTINCT event_id), count(*) FROM lake.default.shared").fetchone() == (4 * each, len(found))
    for server in (one, two):
        assert server.sql('SELECT count(*) AS c FROM "default".shared')[0] == {"c": len(found)}
    properties = judge.load_table("default.shared").properties
    assert len([p for p in properties if p.startswith("lakegate.") and ".wal" in p]) == 2, properties


def test_two_instances_open_the_same_empty_database_and_table_at_once(make_server, stubs, postgres, tmp_path):
    warehouse = {"storage": {"warehouse": str(tmp_path / "warehouse")}, "catalog": {"database": postgres.address}}
    servers = [make_server(warehouse, f"n{i}").start(wait=False) for i in range(3)]
    for server in servers:
        server.wait_ready()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda pair: send(pair[1], stubs, "first", range(pair[0] * 100, pair[0] * 100 + 100)), enumerate(servers)))
    for server in servers:
        server.wait_absorbed()
    assert stored_ids(servers[0].catalog().load_table("default.first")) == expected(range(300))
