"""Records in ClickHouse's current engine: its types, its tokens, its constraints. Half a gigabyte of packages: LAKEGATE_CHDB=1."""

import datetime
import json
import os
import random
import time

import pytest
import requests

from downstreams import CurrentClickHouse, until
from test_clickhouse import settings
from test_consumers import balanced, consumer, event, send

pytestmark = pytest.mark.skipif(os.environ.get("LAKEGATE_CHDB") != "1", reason="set LAKEGATE_CHDB=1: it fetches 534 MB")


@pytest.fixture
def clickhouse(tmp_path):
    server = CurrentClickHouse(tmp_path / "clickhouse").start()
    yield server
    server.kill()


def with_engine(clickhouse, engine, **more):
    found = settings(clickhouse, **more)
    found["sinks"]["raw"]["clickhouse"]["engine"] = engine
    return found


def test_columns_have_the_current_types_and_the_values_of_the_lake(make_server, clickhouse):
    columns = [
        {"name": "id", "type": "string", "required": True},
        {"name": "at", "type": "timestamptz"},
        {"name": "day", "type": "date"},
        {"name": "price", "type": "decimal(10,2)"},
        {"name": "ok", "type": "boolean"},
        {"name": "n", "type": "int"},
        {"name": "share", "type": "double"},
        {"name": "rest", "type": "json"},
    ]
    stream = {"columns": columns, "payload": "json", "event_key": ["id"]}
    sink = settings(clickhouse, **{"from": {"streams": ["orders"]}})
    sink["sinks"]["raw"]["clickhouse"] = {"url": clickhouse.url, "table": "of_{stream}", "order_by": ["id"]}
    server = make_server({"streams": {"orders": stream}, **sink}).start()

    def post(*documents):
        body = "\n".join(json.dumps(one) for one in documents)
        answer = requests.post(f"{server.http}/api/ingest/streams/orders", data=body, headers={"content-type": "application/x-ndjson"}, timeout=30)
        assert answer.status_code in (200, 202), answer.text

    moment = "2026-06-12T23:59:58.997001Z"
    post(
        {"id": "a", "at": moment, "day": "1969-12-31", "price": 12.5, "ok": True, "n": -7, "share": 0.25, "rest": {"x": [1]}},
        {"id": "b'\\", "at": "1969-07-20T20:17:40Z", "day": "2100-02-28", "price": -0.01, "ok": False},
    )
    until(lambda: clickhouse.count(table="of_orders") == 2)
    types = dict(line.split("\t") for line in clickhouse.ask("SELECT name, type FROM system.columns WHERE table = 'of_orders' FORMAT TabSeparatedRaw").splitlines())
    assert types["at"] == "Nullable(DateTime64(6, 'UTC'))" and types["_received_at"] == "DateTime64(6, 'UTC')"
    assert (types["day"], types["price"], types["ok"]) == ("Nullable(Date32)", "Nullable(Decimal(10, 2))", "Nullable(Bool)")
    rows = clickhouse.ask("SELECT id, at, day, price, ok, n, share, rest FROM default.of_orders ORDER BY id FORMAT JSONCompactEachRow").splitlines()
    a, b = map(json.loads, rows)
    assert a[:4] == ["a", "2026-06-12 23:59:58.997001", "1969-12-31", 12.5] and a[4:7] == [True, -7, 0.25] and json.loads(a[7]) == {"x": [1]}
    assert b == ["b'\\", "1969-07-20 20:17:40.000000", "2100-02-28", -0.01, False, None, None, None]
    received = clickhouse.ask("SELECT min(toUnixTimestamp64Micro(_received_at)) FROM default.of_orders")
    assert abs(int(received) / 1e6 - datetime.datetime.now(datetime.UTC).timestamp()) < 3600
    server.stop()
    config = json.loads(server.config.read_text())
    config["streams"]["orders"]["columns"].append({"name": "seen", "type": "timestamp"})
    server.config.write_text(json.dumps(config))
    server.start()
    post({"id": "c", "seen": "2026-01-02T03:04:05"})
    until(lambda: clickhouse.count(table="of_orders") == 3)
    assert clickhouse.ask("SELECT seen FROM default.of_orders WHERE id = 'c' FORMAT TabSeparatedRaw") == "2026-01-02 03:04:05.000000"
    assert balanced(consumer(server, "raw"))


def test_f57_f65_a_plain_table_has_each_event_once_whatever_answer_is_lost(make_server, clickhouse):
    server = make_server(with_engine(clickhouse, "MergeTree()")).start()
    chance, total = random.Random(5), 0
    for turn in range(6):
        clickhouse.lose_next_answer()
        send(server, [event(n) for n in range(total, total + 700)])
        total += 700
        time.sleep(chance.uniform(0, 0.3))
        if turn % 2:
            server.kill()
            server.start()
        elif turn == 4:
            clickhouse.kill()
            clickhouse.start()
    until(lambda: clickhouse.count("uniqExact(_key)") == total, 60, "every event")
    until(lambda: consumer(server, "raw")["lag_records"] == 0)
    assert clickhouse.count() == total, "once, in a table that merges nothing away"
    assert consumer(server, "raw")["retries"] + 1 and balanced(consumer(server, "raw"))


def test_rows_that_a_constraint_refuses_are_set_aside_and_can_be_sent_again(make_server, clickhouse):
    server = make_server(with_engine(clickhouse, "MergeTree()")).start()
    send(server, [event(0)])
    until(lambda: clickhouse.count() == 1)
    clickhouse.ask("ALTER TABLE default.raw_events ADD CONSTRAINT small CHECK JSONExtractInt(data, 'n') < 1000")
    sent = [event(n) for n in range(1, 500)]
    bad = [event(1000 + n) for n in range(7)]
    mixed = sent + bad
    random.Random(3).shuffle(mixed)
    send(server, mixed)
    until(lambda: consumer(server, "raw")["dead"] == 7 and consumer(server, "raw")["delivered"] == 500, what="the seven aside")
    assert clickhouse.count() == clickhouse.count("uniqExact(_key)") == 500
    status = consumer(server, "raw")
    assert balanced(status) and status["breaker"] == "closed" and status["state"] == "running"
    dead = requests.get(f"{server.http}/api/consumers/raw/dead", timeout=10).json()["dead"]
    assert {one["event"]["eventId"] for one in dead} == {one["eventId"] for one in bad}
    assert all("small" in one["reason"] and "469" in one["reason"] for one in dead)
    assert "0 delivered, 7 refused again" in server.cli("consumers", "dead", "replay", "raw", "--url", server.http).stdout
    clickhouse.ask("ALTER TABLE default.raw_events DROP CONSTRAINT small")
    assert "7 delivered, 0 refused" in server.cli("consumers", "dead", "replay", "raw", "--url", server.http).stdout
    assert clickhouse.count() == clickhouse.count("uniqExact(_key)") == 507
    keys = set(clickhouse.ask("SELECT _key FROM default.raw_events FORMAT TabSeparatedRaw").splitlines())
    assert {one["key"] for one in dead} <= keys and consumer(server, "raw")["dead"] == 0
