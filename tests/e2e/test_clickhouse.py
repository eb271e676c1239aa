"""Records in ClickHouse: a real server of the distribution, which is old and knows no insert tokens."""

import json
import random
import time

import pytest
import requests

from downstreams import ClickHouse, installed, until
from test_consumers import balanced, consumer, event, send


@pytest.fixture
def clickhouse(tmp_path):
    installed("clickhouse")
    server = ClickHouse(tmp_path / "clickhouse").start()
    yield server
    server.kill()


def settings(clickhouse, **more):
    sink = {
        "from": {"streams": ["events"]},
        "batch": {"wait": "50ms"},
        "retry": {"pause_min": "50ms", "pause_max": "500ms"},
        "breaker": {"open_for": "200ms"},
        "clickhouse": {"url": clickhouse.url, "order_by": ["event_type"], "timeout": "5s"},
        **more,
    }
    return {"sinks": {"raw": sink}}


def test_events_are_in_raw_events_with_their_columns_and_keys(make_server, clickhouse):
    server = make_server(settings(clickhouse)).start()
    sent = [event(n, userId=None if n % 2 else f"u'{n}\\") for n in range(1000)]
    sent = [{name: value for name, value in one.items() if value is not None} for one in sent]
    send(server, sent)
    until(lambda: clickhouse.count() == 1000, what="the rows")
    rows = [json.loads(line) for line in clickhouse.ask("SELECT * FROM default.raw_events FORMAT JSONEachRow").splitlines()]
    by_id = {row["event_id"]: row for row in rows}
    for one in sent:
        row = by_id[one["eventId"]]
        assert (row["event_type"], row["session_id"], row["_tenant"], row["_stream"]) == (one["eventType"], one["sessionId"], "default", "events")
        assert json.loads(row["data"]) == one["data"] and int(row["timestamp"]) == 1781308798997000
    assert len({row["_key"] for row in rows}) == 1000
    lake = {row["event_id"]: row["user_id"] for row in server.sql("SELECT event_id, user_id FROM default.events")}
    assert {row["event_id"]: row["user_id"] for row in rows} == lake
    assert balanced(consumer(server, "raw")) and consumer(server, "raw")["delivered"] == 1000


def test_f57_f65_a_server_that_is_killed_and_a_gateway_that_is_killed_leave_each_event_once(make_server, clickhouse):
    server = make_server(settings(clickhouse)).start()
    chance = random.Random(11)
    total = 0
    for turn in range(6):
        send(server, [event(n) for n in range(total, total + 1000)])
        total += 1000
        time.sleep(chance.uniform(0, 0.3))
        if turn % 2:
            clickhouse.kill()
            started = time.monotonic()
            send(server, [event(n) for n in range(total, total + 500)])
            assert time.monotonic() - started < 5, "nobody waits for ClickHouse"
            total += 500
            health = until(lambda: (h := requests.get(f"{server.http}/health", timeout=10).json())["status"] == "degraded" and h)
            assert health["services"]["clickhouse"]["status"] == "degraded"
            clickhouse.start()
        else:
            server.kill()
            server.start()
    until(lambda: clickhouse.count("uniqExact(_key)") == total, 60, "every event")
    until(lambda: consumer(server, "raw")["lag_records"] == 0)
    assert clickhouse.count(final="FINAL") == total, "each once"
    assert server.sql("SELECT count(*) AS n FROM default.events")[0]["n"] == total
    assert balanced(consumer(server, "raw"))


def test_columns_that_a_contract_gains_are_added(make_server, clickhouse):
    columns = [{"name": "id", "type": "string", "required": True}, {"name": "n", "type": "long"}]
    stream = {"columns": columns, "payload": "json", "event_key": ["id"]}
    sink = settings(clickhouse, **{"from": {"streams": ["orders"]}})
    sink["sinks"]["raw"]["clickhouse"] = {"url": clickhouse.url, "table": "of_{stream}"}
    server = make_server({"streams": {"orders": stream}, **sink}).start()

    def post(*documents):
        body = "\n".join(json.dumps(one) for one in documents)
        answer = requests.post(f"{server.http}/api/ingest/streams/orders", data=body, headers={"content-type": "application/x-ndjson"}, timeout=30)
        assert answer.status_code in (200, 202), answer.text

    post({"id": "a", "n": 1})
    until(lambda: clickhouse.count(table="of_orders") == 1)
    server.stop()
    config = json.loads(server.config.read_text())
    config["streams"]["orders"]["columns"] += [{"name": "price", "type": "decimal(10,2)"}, {"name": "ok", "type": "boolean"}]
    server.config.write_text(json.dumps(config))
    server.start()
    post({"id": "b", "n": 2, "price": 12.5, "ok": True})
    until(lambda: clickhouse.count(table="of_orders") == 2)
    rows = clickhouse.ask("SELECT id, n, price, ok FROM default.of_orders ORDER BY id FORMAT TabSeparated").splitlines()
    assert rows == ["a\t1\t\\N\t\\N", "b\t2\t12.50\t1"]


def test_rows_that_do_not_fit_are_set_aside_the_others_go_on_and_they_can_be_sent_again(make_server, clickhouse):
    clickhouse.ask("CREATE TABLE default.small (id String, n Nullable(UInt8)) ENGINE = MergeTree() ORDER BY id")
    columns = [{"name": "id", "type": "string", "required": True}, {"name": "n", "type": "long"}]
    sink = settings(clickhouse, **{"from": {"streams": ["orders"]}})
    sink["sinks"]["raw"]["clickhouse"] = {"url": clickhouse.url, "table": "small"}
    server = make_server({"streams": {"orders": {"columns": columns, "payload": "json", "event_key": ["id"]}}, **sink}).start()
    body = "\n".join(json.dumps({"id": f"i{n}", "n": n}) for n in range(300))
    answer = requests.post(f"{server.http}/api/ingest/streams/orders", data=body, headers={"content-type": "application/x-ndjson"}, timeout=30)
    assert answer.status_code in (200, 202), answer.text
    until(lambda: consumer(server, "raw")["delivered"] == 256, what="all that fit")
    status = consumer(server, "raw")
    assert balanced(status) and (status["dead"], status["dead_kept"], status["state"]) == (44, 44, "running")
    assert clickhouse.count(table="small") == 256 and clickhouse.count("max(n)", "small") == 255
    listed = server.cli("consumers", "dead", "ls", "raw", "--url", server.http)
    assert listed.returncode == 0 and listed.stdout.count("has no room for the number") == 44, listed
    server.kill()
    server.start()
    assert "0 delivered, 44 refused again" in server.cli("consumers", "dead", "replay", "raw", "--url", server.http).stdout
    clickhouse.ask("ALTER TABLE default.small MODIFY COLUMN n Nullable(Int64)")
    assert "44 delivered, 0 refused" in server.cli("consumers", "dead", "replay", "raw", "--url", server.http).stdout
    rows = clickhouse.ask("SELECT id, n FROM default.small ORDER BY n FORMAT TabSeparated").splitlines()
    assert rows == [f"i{n}\t{n}" for n in range(300)]
    assert (consumer(server, "raw")["delivered"], consumer(server, "raw")["dead_kept"]) == (300, 0)
