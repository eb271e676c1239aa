"""Sinks and routes: every record reaches the systems beside the lake, whatever fails, and nothing else is held up."""

import collections
import hashlib
import hmac
import json
import random
import subprocess
import threading
import time
import uuid

import pytest
import requests

from websockets.sync.client import connect

from downstreams import Downstream, until
from test_duplicates import redis  # noqa: F401
from test_sockets import hear, say

QUICK = {
    "retry": {"pause_min": "20ms", "pause_max": "200ms", "attempts": 3},
    "breaker": {"open_for": "200ms", "failures_in_a_row": 5, "calls_min": 10, "slow_after": "2s"},
    "timeout": "1s",
}


def event(n=0, kind="cart_updated", **more):
    return {
        "eventId": str(uuid.uuid4()),
        "eventType": kind,
        "timestamp": "2026-06-12T23:59:58.997Z",
        "sessionId": f"s-{n % 7}",
        "storeId": "store-1",
        "data": {"n": n, "total": 12.5},
        **more,
    }


def send(server, events, at_once=500, **headers):
    for at in range(0, len(events), at_once):
        some = events[at : at + at_once]
        answer = requests.post(f"{server.http}/events/batch", json={"events": some}, headers=headers, timeout=60)
        assert answer.status_code == 202, answer.text
        assert answer.json()["successful"] == len(some)


def consumer(server, name):
    return requests.get(f"{server.http}/api/consumers/{name}", timeout=10).json()


def tell(server, name, what):
    answer = requests.post(f"{server.http}/api/consumers/{name}/{what}", timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.json()


def balanced(status):
    return status["matched"] == status["delivered"] + status["skipped"] + status["dead"]


def settings(*routes, hosts=(), **more):
    ports = [int(route["url"].split(":")[2].split("/")[0]) for route in routes]
    allowed = {"host": "127.0.0.1", "ports": ports, "allow_private": True}
    return {"limits": {"downstream": {"hosts": [allowed, *hosts]}}, "routes": list(routes), **more}


@pytest.fixture
def downstream():
    service = Downstream()
    yield service
    service.stop()


def test_each_event_of_a_type_goes_to_its_service_signed_with_key_and_trace(make_server, downstream):
    route = {
        "name": "prediction",
        "url": f"{downstream.url}/api/predict/analyze/{{{{session_id}}}}",
        "from": {"streams": ["events"], "event_types": ["cart_abandoned"], "where": "data.n >= 10 and store_id = 'store-1'"},
        "headers": {"authorization": "Bearer secret-of-prediction"},
        "signature_secret": "hush",
        **QUICK,
    }
    templated = {
        "name": "completion",
        "url": f"{downstream.url}/complete",
        "from": {"event_types": ["purchase_completed"]},
        "body": {"id": "{{event_id}}", "text": "n is {{data.n}}", "data": "{{data}}"},
        **QUICK,
    }
    server = make_server(settings(route, templated)).start()
    trace = uuid.uuid4().hex
    wanted = event(10, "cart_abandoned", sessionId="a/../b?c", metadata={"userAgent": "x"})
    others = [event(9, "cart_abandoned"), event(11, "cart_updated"), event(12, "cart_abandoned", storeId="other")]
    bought = event(3, "purchase_completed")
    send(server, [wanted, *others, bought], **{"traceparent": f"00-{trace}-00f067aa0ba902b7-01"})
    until(lambda: len(downstream.taken) >= 2, what="both deliveries")
    until(lambda: consumer(server, "prediction")["delivered"] == 1 and consumer(server, "completion")["delivered"] == 1)
    by_path = {path: (headers, body, raw) for path, headers, body, raw in downstream.taken}
    assert set(by_path) == {"/api/predict/analyze/a%2F..%2Fb%3Fc", "/complete"}
    headers, body, raw = by_path["/api/predict/analyze/a%2F..%2Fb%3Fc"]
    headers = {name.lower(): value for name, value in headers.items()}
    # Escaped for browsers at the way in, which is what the table has too.
    assert {**body, "sessionId": wanted["sessionId"]} == wanted
    assert headers["authorization"] == "Bearer secret-of-prediction"
    assert headers["traceparent"].split("-")[1] == trace and headers["x-request-id"] == trace
    assert len(headers["idempotency-key"]) == 32
    parts = dict(part.split("=") for part in headers["x-lakegate-signature"].split(","))
    right = hmac.new(b"hush", parts["t"].encode() + b"." + raw, hashlib.sha256).hexdigest()
    assert parts["v1"] == right
    assert by_path["/complete"][1] == {"id": bought["eventId"], "text": "n is 3", "data": bought["data"]}
    assert "secret-of-prediction" not in server.log.read_text() and "hush" not in server.log.read_text()


def test_f57_a_service_that_fails_opens_its_breaker_holds_up_nobody_and_misses_nothing(make_server, downstream):
    other = Downstream()
    routes = [
        {"name": "sick", "url": f"{downstream.url}/a", "order_key": ["session_id"], "concurrency": 8, **QUICK},
        {"name": "sound", "url": f"{other.url}/b", "order_key": ["session_id"], "concurrency": 8, **QUICK},
    ]
    server = make_server(settings(*routes)).start()
    sent = []
    for mood in ("failing", "hanging", "busy", "elsewhere", "gone", "well"):
        if mood == "gone":
            downstream.stop()
        else:
            if downstream.server is None:
                downstream.start()
            downstream.mood = mood
        some = [event(n) for n in range(len(sent), len(sent) + 200)]
        sent += some
        send(server, some)
        until(lambda: len(other.taken) >= len(sent), what=f"the sound service while the other is {mood}")
        if mood != "well":
            status = until(lambda: (s := consumer(server, "sick"))["breaker"] != "closed" and s, what=f"an open breaker while {mood}")
            assert status["state"] == "failing" and status["last_error"] and status["lag_records"] > 0
            health = requests.get(f"{server.http}/health", timeout=10)
            assert health.status_code == 200 and health.json()["status"] == "degraded"
            assert health.json()["services"]["downstream"]["status"] == "degraded"
            assert "sick" in health.json()["services"]["downstream"]["error"]
    until(lambda: consumer(server, "sick")["delivered"] == len(sent), 60, "all deliveries")
    status = consumer(server, "sick")
    assert balanced(status) and status["dead"] == 0
    health = until(lambda: (h := requests.get(f"{server.http}/health", timeout=10).json())["status"] == "healthy" and h)
    assert health["services"]["downstream"]["error"] is None
    metrics = requests.get(f"{server.http}/metrics", headers={"accept": "text/plain"}, timeout=10).text
    assert f'lakegate_breaker_state{{service="{downstream.url}",state="closed"}} 1' in metrics
    assert 'lakegate_consumer_records{consumer="sick",outcome="delivered"} 1200' in metrics
    log = server.log.read_text()
    assert "its breaker is open" in log and "its breaker is closed" in log
    for service in (downstream, other):
        in_order(service.events(), sent)
        assert len(service.keys()) == len(sent)
    other.stop()


def in_order(taken, sent):
    """Each event at least once; of each session, the first deliveries in the order in which they were sent."""
    seen, firsts = set(), collections.defaultdict(list)
    for one in taken:
        if one["eventId"] not in seen:
            seen.add(one["eventId"])
            firsts[one["sessionId"]].append(one["eventId"])
    wanted = collections.defaultdict(list)
    for one in sent:
        wanted[one["sessionId"]].append(one["eventId"])
    assert firsts == wanted


def test_what_a_service_refuses_for_good_is_kept_and_can_be_sent_again(make_server, downstream):
    route = {"name": "r", "url": f"{downstream.url}/x", "order_key": ["session_id"], **QUICK}
    server = make_server(settings(route)).start()
    downstream.refuses = lambda body: body["data"]["n"] % 10 == 0
    sent = [event(n) for n in range(50)]
    send(server, sent)
    until(lambda: consumer(server, "r")["delivered"] == 45 and consumer(server, "r")["dead"] == 5)
    server.kill()
    server.start()
    status = consumer(server, "r")
    assert (status["matched"], status["dead_kept"]) == (50, 5)
    listed = server.cli("consumers", "dead", "ls", "r", "--url", server.http)
    assert listed.returncode == 0 and listed.stdout.count("422 Unprocessable") == 5, listed
    replayed = server.cli("consumers", "dead", "replay", "r", "--url", server.http)
    assert "0 delivered, 5 refused again" in replayed.stdout
    downstream.refuses = lambda body: False
    assert "5 delivered, 0 refused" in server.cli("consumers", "dead", "replay", "r", "--url", server.http).stdout
    status = consumer(server, "r")
    assert (status["delivered"], status["dead"], status["dead_kept"]) == (50, 0, 0)
    assert {e["eventId"] for e in downstream.events()} == {e["eventId"] for e in sent}
    assert set(downstream.keys().values()) == {1}


def test_pause_resume_rewind_and_skip_by_the_command_line(make_server, downstream):
    route = {"name": "r", "url": f"{downstream.url}/x", **QUICK}
    server = make_server(settings(route)).start()

    def cli(*arguments):
        done = server.cli("consumers", *arguments, "--url", server.http)
        assert done.returncode == 0, done
        return done.stdout

    send(server, [event(n) for n in range(20)])
    until(lambda: consumer(server, "r")["delivered"] == 20)
    assert "paused" in cli("pause", "r")
    server.kill()
    server.start()
    send(server, [event(n) for n in range(20, 40)])
    status = consumer(server, "r")
    assert (status["state"], status["delivered"], status["lag_records"]) == ("paused", 20, 20)
    cli("skip", "r")
    cli("resume", "r")
    status = until(lambda: (s := consumer(server, "r"))["skipped"] == 20 and s)
    assert balanced(status) and len(downstream.taken) == 20
    cli("rewind", "r", "--to", "head")
    until(lambda: consumer(server, "r")["delivered"] == 60)
    assert sorted(downstream.keys().values()) == [1] * 20 + [2] * 20, "the same keys again"
    shown = cli("ls")
    assert shown.splitlines()[0].split()[:3] == ["name", "kind", "state"] and " http " in shown
    assert server.cli("consumers", "show", "nobody", "--url", server.http).returncode == 1


def test_s13_a_host_that_is_not_allowed_is_never_asked(make_server, downstream):
    route = {"name": "r", "url": f"{downstream.url}/x", **QUICK}
    server = make_server({"routes": [route], "limits": {"downstream": {"hosts": ["example.com"]}}}).start()
    send(server, [event()])
    status = until(lambda: (s := consumer(server, "r"))["state"] == "failing" and s)
    assert "limits.downstream.hosts" in status["last_error"] and downstream.asked == 0
    server.stop()
    private = {"routes": [{**route, "url": f"http://localhost:{downstream.port}/x"}], "limits": {"downstream": {"hosts": [f"localhost:{downstream.port}"]}}}
    server = make_server(private, "two").start()
    send(server, [event()])
    status = until(lambda: (s := consumer(server, "r"))["state"] == "failing" and s)
    assert "this machine" in status["last_error"] and downstream.asked == 0


def test_f65_kills_at_any_moment_lose_nothing_keep_the_order_and_the_keys(make_server, downstream):
    route = {"name": "r", "url": f"{downstream.url}/x", "order_key": ["session_id"], "concurrency": 4, **QUICK}
    server = make_server(settings(route)).start()
    chance = random.Random(7)
    sent = []
    for _ in range(5):
        some = [event(n) for n in range(len(sent), len(sent) + 300)]
        send(server, some)
        sent += some
        time.sleep(chance.uniform(0, 0.5))
        server.kill()
        server.start()
    until(lambda: consumer(server, "r")["lag_records"] == 0 and len(downstream.keys()) == len(sent), 150)
    in_order(downstream.events(), sent)
    status = consumer(server, "r")
    assert balanced(status) and status["dead"] == status["skipped"] == 0


def test_what_the_log_has_no_more_is_read_back_from_the_tables(make_server, downstream):
    downstream.mood = "failing"
    small = {"storage": {"wal": {"segment_bytes": "1MiB", "quota": "8MiB"}}, "ingestion": {"commit_bytes": "1MiB", "flush_interval": "200ms"}}
    route = {"name": "r", "url": f"{downstream.url}/x", "order_key": ["session_id"], "concurrency": 8, **QUICK, "timeout": "20s"}
    server = make_server({**settings(route), **small}).start()
    sent = []
    pad = "x" * 8000
    for _ in range(6):
        some = [event(n, data={"n": n, "pad": pad}) for n in range(len(sent), len(sent) + 120)]
        send(server, some, at_once=60)
        sent += some
        server.wait_absorbed()
    server.kill()
    server.start()
    downstream.mood = "well"
    until(lambda: len(downstream.keys()) == len(sent), 90, "all of them")
    until(lambda: (s := consumer(server, "r"))["state"] == "running" and s["lag_records"] == 0, 30)
    taken = {one["eventId"]: one for one in downstream.events()}
    assert all(taken[one["eventId"]]["data"]["n"] == one["data"]["n"] for one in sent)
    assert balanced(consumer(server, "r"))


def test_a_consumer_that_is_added_later_begins_with_the_oldest_rows(make_server, downstream):
    plain = make_server().start()
    sent = [event(n) for n in range(300)]
    send(plain, sent[:200])
    plain.wait_absorbed()
    plain.stop()
    routes = [
        {"name": "all", "url": f"{downstream.url}/all", "start": "lake", **QUICK},
        {"name": "new", "url": f"{downstream.url}/new", **QUICK},
    ]
    config = json.loads(plain.config.read_text())
    config.update(settings(*routes))
    plain.config.write_text(json.dumps(config))
    plain.start()
    until(lambda: consumer(plain, "all")["delivered"] >= 200)
    send(plain, sent[200:])
    until(lambda: consumer(plain, "all")["delivered"] >= 300 and consumer(plain, "new")["delivered"] == 100)

    def of(path):
        return collections.Counter(body["eventId"] for at, _, body, _ in downstream.taken if at == path)

    assert of("/all") == {one["eventId"]: 1 for one in sent}
    assert of("/new") == {one["eventId"]: 1 for one in sent[200:]}


def test_subscribers_hear_of_events_that_another_instance_took(make_server, redis):
    shared = {"duplicates": {"redis": {"url": redis.url, "when_away": "accept_and_mark"}}}
    one, two = (make_server(shared, name).start() for name in ("one", "two"))

    def redis_of(server):
        return requests.get(f"{server.http}/health", timeout=10).json()["services"]["redis"]

    until(lambda: redis_of(one)["status"] == redis_of(two)["status"] == "healthy")
    with connect(one.http.replace("http", "ws") + "/events/stream") as listener:
        say(listener, "subscribe", {"filter": {"eventTypes": ["purchase_completed"]}})
        assert hear(listener)["type"] == "subscribed"
        sent = [event(n, kind) for n in range(10) for kind in ("item_added", "purchase_completed")]
        send(two, sent)
        heard = [hear(listener) for _ in range(10)]
        assert [one["eventId"] for one in heard] == [one["eventId"] for one in sent if one["eventType"] == "purchase_completed"]
        assert all(one["confirmation"] for one in heard)
        redis.kill()
        until(lambda: redis_of(one)["status"] == "degraded", what="health that tells of Redis")
        assert requests.get(f"{one.http}/readyz", timeout=10).status_code == 200
        redis.start()
        until(lambda: redis_of(one)["status"] == redis_of(two)["status"] == "healthy")
        again = event(1, "purchase_completed")
        send(two, [again])
        assert hear(listener)["eventId"] == again["eventId"]


def test_health_is_unhealthy_only_where_events_are_not_taken(make_server, redis):
    server = make_server({"duplicates": {"redis": {"url": redis.url, "when_away": "wait", "wait": "100ms"}}}).start()
    health = lambda: requests.get(f"{server.http}/health", timeout=10)
    found = until(lambda: (h := health()).json()["status"] == "healthy" and {"catalog", "store"} <= set(h.json()["services"]) and h.json())
    services = found["services"]
    assert all(services[name]["latencyMs"] > 0 and services[name]["lastError"] is None for name in ("catalog", "store", "disk", "wal"))
    redis.kill()
    answer = until(lambda: (h := health()).status_code == 503 and h.json())
    assert answer["status"] == "unhealthy" and "duplicates" in answer["services"]["redis"]["parts"]
    assert requests.post(f"{server.http}/events", json=event(), timeout=30).status_code == 503
    redis.start()
    found = until(lambda: (h := health()).status_code == 200 and h.json()["status"] == "healthy" and h.json())
    assert found["services"]["redis"]["error"] is None and found["services"]["redis"]["lastError"]["error"]
    assert requests.post(f"{server.http}/events", json=event(), timeout=30).status_code == 202


def test_what_redis_refuses_for_one_stream_is_set_aside_and_the_others_go_on(make_server, redis):
    def ask(*words):
        return subprocess.run(["redis-cli", "-p", str(redis.port), *words], capture_output=True, text=True, check=True).stdout.strip()

    ask("SET", "of:plain", "no stream")
    sink = {"from": {"streams": ["events", "plain"]}, "redis": {"url": redis.url, "key": "of:{stream}"}, "batch": {"wait": "10ms"}}
    server = make_server({"sinks": {"r": sink}}).start()
    for n in range(20):
        send(server, [event(n)])
        answer = requests.post(f"{server.http}/api/ingest/streams/plain", json={"n": n}, timeout=30)
        assert answer.status_code in (200, 202), answer.text
    status = until(lambda: (s := consumer(server, "r"))["delivered"] == 20 and s["dead"] == 20 and s)
    assert balanced(status) and ask("XLEN", "of:events") == "20"
    assert server.cli("consumers", "dead", "ls", "r", "--url", server.http).stdout.count("WRONGTYPE") == 20
    ask("DEL", "of:plain")
    assert "20 delivered, 0 refused" in server.cli("consumers", "dead", "replay", "r", "--url", server.http).stdout
    assert ask("XLEN", "of:plain") == "20" and balanced(consumer(server, "r"))


def test_records_and_notices_go_to_redis_streams(make_server, redis):
    def entries(key):
        out = subprocess.run(["redis-cli", "-p", str(redis.port), "--json", "xrange", key, "-", "+"], capture_output=True, text=True, check=True).stdout
        return [dict(zip(fields[::2], fields[1::2])) for _, fields in json.loads(out or "[]")]

    batch = {"batch": {"wait": "10ms"}, "retry": {"pause_min": "20ms", "pause_max": "200ms"}, "breaker": {"open_for": "200ms"}}
    sinks = {
        "recent": {"from": {"streams": ["events"]}, "redis": {"url": redis.url, "key": "recent:{tenant}:{stream}"}, **batch},
        "notices": {"from": {"streams": ["events"]}, "brings": "notices", "redis": {"url": redis.url, "key": "notices"}, **batch},
    }
    server = make_server({"sinks": sinks}).start()
    sent = [event(n) for n in range(300)]
    send(server, sent[:200])
    until(lambda: len(entries("recent:default:events")) == 200)
    server.wait_absorbed()
    redis.kill()
    send(server, sent[200:])
    until(lambda: consumer(server, "recent")["state"] == "failing")
    redis.start()
    found = until(lambda: len(f := entries("recent:default:events")) >= 300 and f)
    assert {json.loads(entry["body"])["eventId"] for entry in found} == {one["eventId"] for one in sent}
    assert len({entry["idempotency-key"] for entry in found}) == 300
    server.wait_absorbed()
    told = until(lambda: (n := [json.loads(entry["body"]) for entry in entries("notices")]) and sum({x["snapshotId"]: x["rows"] for x in n}.values()) == 300 and n)
    assert {notice["table"] for notice in told} == {"default.events"} and told[-1]["position"] == 300
    snapshots = [str(snapshot.snapshot_id) for snapshot in server.catalog().load_table("default.events").snapshots()]
    assert {notice["snapshotId"] for notice in told} <= set(snapshots)


def test_a_server_that_ends_says_so_first_and_refuses_nothing_that_comes_meanwhile(make_server):
    server = make_server().start()
    answers, unready = [], []

    def bring():
        session = requests.Session()
        while not stop.is_set():
            if requests.get(f"{server.http}/readyz", timeout=5).status_code != 200:
                unready.append(time.monotonic())
                return
            answers.append(session.post(f"{server.http}/events", json=event(), timeout=10).status_code)

    stop = threading.Event()
    threads = [threading.Thread(target=bring) for _ in range(4)]
    [thread.start() for thread in threads]
    until(lambda: len(answers) > 50)
    server.stop()
    stop.set()
    [thread.join() for thread in threads]
    assert len(unready) == 4, "every client was told before the port closed"
    assert set(answers) == {202}
    server.start()
    assert server.sql("SELECT count(*) AS n FROM default.events")[0]["n"] == len(answers)


def test_a_feed_over_a_websocket_goes_on_behind_the_row_that_it_had(server):
    sent = [event(n) for n in range(30)]
    send(server, sent[:20])
    address = server.http.replace("http", "ws") + "/api/feeds/events"
    with connect(f"{address}?from=earliest") as feed:
        first = [hear(feed) for _ in range(12)]
        assert [one["row"]["event_id"] for one in first] == [one["eventId"] for one in sent[:12]]
    with connect(f"{address}?after={first[-1]['id']}") as feed:
        rest = [hear(feed) for _ in range(8)]
        send(server, sent[20:])
        rest += [hear(feed) for _ in range(10)]
    assert [one["row"]["event_id"] for one in rest] == [one["eventId"] for one in sent[12:]]
    lines = requests.get(f"{server.http}/api/feeds/events?from=earliest&limit=3", timeout=10).text.splitlines()
    assert [json.loads(line)["event_id"] for line in lines] == [one["eventId"] for one in sent[:3]]
