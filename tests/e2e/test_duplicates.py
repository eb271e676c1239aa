"""What is sent again: the same answer, one copy, over kills, instances and engines."""

import collections
import concurrent.futures
import json
import random
import shutil
import signal
import subprocess
import threading
import time

import grpc
import pytest

from conftest import ROOT, free_port

STREAMS = {
    "orders": {"event_key": ["event_id"]},
    "strict": {"event_key": ["event_id"], "on_conflict": "reject"},
    "short": {"event_key": ["event_id"], "duplicate_window": "1s"},
    "typed": {
        "columns": [{"name": "event_id", "type": "string", "envelope": "event_id"}, {"name": "n", "type": "long", "required": True}],
        "payload": "json",
        "event_key": ["event_id"],
    },
}


def batch(stubs, stream, payloads, batch_id="", **more):
    records = [
        stubs.common.DataRecord(endpoint_id=stream, event_id=event_id, payload=json.dumps(payload).encode())
        for event_id, payload in payloads
    ]
    return stubs.ingestion.IngestBatchRequest(records=records, batch_id=batch_id, **more)


def count(server, stream):
    return server.sql(f"SELECT count(*) AS n FROM default.{stream}")[0]["n"]


@pytest.fixture
def server(make_server):
    return make_server({"streams": STREAMS}).start()


def test_f50_a_request_sent_again_gets_the_same_answer_also_after_a_restart(server, stubs):
    request = batch(stubs, "typed", [(f"e{i}", {"n": i if i % 10 else "no number"}) for i in range(100)], "one")
    first = server.client().IngestBatch(request)
    assert (first.accepted, first.rejected, len(first.errors)) == (90, 10, 10)
    assert server.client().IngestBatch(request) == first
    server.kill()
    server.start()
    assert server.client().IngestBatch(request) == first
    server.wait_absorbed()
    server.stop()
    server.start()
    assert server.client().IngestBatch(request) == first
    assert count(server, "typed") == 90
    tally = audit(server)["typed"]
    assert (tally["received"], tally["accepted"], tally["rejected"], tally["duplicate"]) == (400, 90, 10, 300)


def test_f50_the_same_request_many_times_at_once_is_stored_once_and_answered_alike(server, stubs):
    request = batch(stubs, "undeclared", [(f"e{i}", {"n": i}) for i in range(500)], "many")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: server.client().IngestBatch(request, timeout=30), range(64)))
    assert all(answer == answers[0] for answer in answers) and answers[0].accepted == 500
    assert count(server, "undeclared") == 500


def test_f50_beyond_the_window_a_key_is_new_again(server, stubs):
    request = batch(stubs, "short", [("e", {"n": 1})])
    client = server.client()
    assert client.IngestBatch(request).accepted == 1
    assert client.IngestBatch(request).duplicates == 1
    for _ in range(600):
        if client.IngestBatch(request).accepted:
            break
        time.sleep(0.05)
    assert count(server, "short") == 2


def test_f51_the_same_id_with_another_content_is_a_conflict(server, stubs):
    client = server.client()
    assert client.IngestBatch(batch(stubs, "orders", [("a", {"n": 1})], "id")).accepted == 1
    for other in ([("a", {"n": 2})], [("b", {"n": 1})], [("a", {"n": 1}), ("b", {"n": 1})]):
        with pytest.raises(grpc.RpcError) as refused:
            client.IngestBatch(batch(stubs, "orders", other, "id"))
        assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS, refused.value
    server.kill()
    server.start()
    with pytest.raises(grpc.RpcError) as refused:
        server.client().IngestBatch(batch(stubs, "orders", [("a", {"n": 2})], "id"))
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert count(server, "orders") == 1


def test_f51_an_event_key_with_another_payload_is_given_back_where_the_stream_says_so(server, stubs):
    client = server.client()
    first = [("a", {"n": 1}), ("b", {"n": 1})]
    assert client.IngestBatch(batch(stubs, "strict", first)).accepted == 2
    server.kill()
    server.start()
    client = server.client()
    answer = client.IngestBatch(batch(stubs, "strict", [("c", {"n": 1}), ("a", {"n": 2}), ("b", {"n": 1})]))
    assert (answer.accepted, answer.rejected, answer.duplicates) == (1, 1, 1)
    assert [(e.index, e.event_id, e.code) for e in answer.errors] == [(1, "a", "CONFLICT")]
    with pytest.raises(grpc.RpcError) as refused:
        client.IngestBatch(batch(stubs, "strict", [("d", {"n": 1}), ("a", {"n": 2})], atomic=True))
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS or refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    record = stubs.common.DataRecord(endpoint_id="strict", event_id="a", payload=b'{"n": 3}')
    with pytest.raises(grpc.RpcError) as refused:
        client.IngestRecord(stubs.ingestion.IngestRecordRequest(record=record))
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert {row["event_id"]: json.loads(row["payload"])["n"] for row in server.sql("SELECT event_id, payload FROM default.strict")} == {
        "a": 1, "b": 1, "c": 1,
    }


def test_s47_one_tenants_ids_say_nothing_to_another(server, stubs):
    client = server.client()
    for tenant in ("a", "b"):
        request = batch(stubs, "orders", [("e", {"of": tenant})], "id")
        request.tenant_id = tenant
        assert client.IngestBatch(request).accepted == 1
    assert server.sql("SELECT payload FROM a.orders") == [{"payload": '{"of": "a"}'}]


def audit(server):
    answer = server.cli("audit", "--json", "--url", server.http)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return {stream["stream"]: stream for stream in json.loads(answer.stdout)["streams"]}


class Redis:
    """A real Redis that keeps what it confirmed, on a port of its own."""

    def __init__(self, folder):
        self.folder, self.port, self.process = folder, free_port(), None
        self.url = f"redis://127.0.0.1:{self.port}/0"
        folder.mkdir()

    def start(self):
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder, "appendonly": "yes", "appendfsync": "always", "save": ""}
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(["redis-server", *arguments], stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if subprocess.run(["redis-cli", "-p", str(self.port), "ping"], capture_output=True).stdout == b"PONG\n":
                return self
            time.sleep(0.02)
        raise AssertionError((self.folder / "log").read_text())

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def forget(self):
        subprocess.run(["redis-cli", "-p", str(self.port), "flushall"], check=True, capture_output=True)


@pytest.fixture
def redis(tmp_path):
    if not shutil.which("redis-server"):
        subprocess.run([ROOT / "scripts/services/services.sh", "install", "redis"], check=True)
    server = Redis(tmp_path / "redis").start()
    yield server
    server.kill()


def sharing(redis, **more):
    return {"streams": STREAMS, "duplicates": {"redis": {"url": redis.url, **more}}}


def test_f50_two_instances_store_a_key_once_and_a_request_once(make_server, stubs, redis):
    one, two = (make_server(sharing(redis), name).start() for name in ("one", "two"))
    first = one.client().IngestBatch(batch(stubs, "orders", [("a", {"n": 1}), ("b", {"n": 1})]))
    assert first.accepted == 2
    answer = two.client().IngestBatch(batch(stubs, "orders", [("a", {"n": 1}), ("c", {"n": 1}), ("c", {"n": 1})]))
    assert (answer.accepted, answer.duplicates) == (1, 2)
    named = batch(stubs, "undeclared", [(f"e{i}", {"n": i}) for i in range(100)], "named")
    answers = [server.client().IngestBatch(named) for server in (one, two, one, two)]
    assert all(answer == answers[0] for answer in answers) and answers[0].accepted == 100
    with pytest.raises(grpc.RpcError) as refused:
        two.client().IngestBatch(batch(stubs, "undeclared", [("e0", {"n": 1})], "named"))
    assert refused.value.code() == grpc.StatusCode.ALREADY_EXISTS
    assert one.client().IngestBatch(batch(stubs, "strict", [("a", {"n": 1})])).accepted == 1
    other = two.client().IngestBatch(batch(stubs, "strict", [("a", {"n": 2})]))
    assert (other.rejected, other.errors[0].code) == (1, "CONFLICT")
    assert count(one, "undeclared") == 100 and count(one, "orders") == 2 and count(two, "orders") == 1


def test_s37_redis_is_spoken_to_over_tls_and_only_where_its_certificate_is_right(make_server, stubs, tmp_path):
    from test_security import Authority

    if not shutil.which("redis-server"):
        subprocess.run([ROOT / "scripts/services/services.sh", "install", "redis"], check=True)
    authority = Authority(tmp_path)
    certificate, key = authority.issue("redis", "redis")
    (tmp_path / "others").mkdir()
    others = Authority(tmp_path / "others")
    port = free_port()
    options = {"tls-port": port, "port": 0, "bind": "127.0.0.1", "dir": tmp_path, "save": "", "tls-cert-file": certificate,
               "tls-key-file": key, "tls-ca-cert-file": authority.file, "tls-auth-clients": "no"}
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    with open(tmp_path / "redis.log", "wb") as log:
        process = subprocess.Popen(["redis-server", *arguments], stdout=log, stderr=log)
    asked = lambda *words: subprocess.run(["redis-cli", "--tls", "--cacert", authority.file, "-p", str(port), *words], capture_output=True, text=True).stdout
    try:
        deadline = time.monotonic() + 20
        while asked("ping") != "PONG\n":
            assert time.monotonic() < deadline, (tmp_path / "redis.log").read_text()
            time.sleep(0.05)

        def settings(ca, **more):
            return {"streams": STREAMS, "duplicates": {"redis": {"url": f"rediss://127.0.0.1:{port}/0", "ca": str(ca), **more}}}

        one, two = (make_server(settings(authority.file), name).start() for name in ("one", "two"))
        assert one.client().IngestBatch(batch(stubs, "orders", [("a", {"n": 1})])).accepted == 1
        assert two.client().IngestBatch(batch(stubs, "orders", [("a", {"n": 1})])).duplicates == 1
        keys = int(asked("dbsize"))
        assert keys >= 1
        wrong = make_server(settings(others.file, wait="300ms"), "wrong").start()
        with pytest.raises(grpc.RpcError) as refused:
            wrong.client().IngestBatch(batch(stubs, "orders", [("b", {"n": 1})]))
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and int(asked("dbsize")) == keys
        missing = make_server(settings(tmp_path / "nothing.pem"), "missing").start(wait=False)
        assert missing.process.wait(30) != 0 and "duplicates.redis.ca" in missing.tail()
    finally:
        process.kill()
        process.wait()


def test_f51_over_http_a_request_id_with_another_content_is_a_conflict(make_server):
    import requests
    from test_events import SETTINGS, event

    shop = make_server(SETTINGS).start()
    sent, other = event(), event()
    ask = lambda path, body: requests.post(shop.http + path, json=body, headers={"idempotency-key": "order-7"}, timeout=10)
    for restarted in (False, True):
        if restarted:
            shop.kill()
            shop.start()
        assert ask("/events", sent).status_code == 202, "the first answer again"
        conflict = ask("/events", other)
        assert (conflict.status_code, conflict.json()["code"]) == (409, "conflict"), conflict.text
        assert conflict.headers["content-type"] == "application/problem+json"
        assert ask("/events/batch", {"events": [sent, other]}).status_code == 409
    assert [row["event_id"] for row in shop.sql("SELECT event_id FROM default.events")] == [sent["eventId"]]


def test_what_redis_forgets_this_instance_still_knows(make_server, stubs, redis):
    server = make_server(sharing(redis)).start()
    request = batch(stubs, "orders", [("a", {"n": 1})])
    assert server.client().IngestBatch(request).accepted == 1
    redis.forget()
    assert server.client().IngestBatch(request).duplicates == 1
    server.kill()
    redis.forget()
    server.start()
    assert server.client().IngestBatch(request).duplicates == 1
    assert count(server, "orders") == 1


def test_f64_a_crash_between_append_and_confirmation_is_confirmed_by_the_replay(make_server, stubs, redis):
    one = make_server(sharing(redis), "one").start(LAKEGATE_FAILPOINTS="ingest.before_confirm=kill")
    two = make_server(sharing(redis), "two").start()
    request = batch(stubs, "orders", [("a", {"n": 1})])
    with pytest.raises(grpc.RpcError):
        one.client().IngestBatch(request, timeout=20)
    one.process.wait(20)
    one.start()
    assert two.client().IngestBatch(request, timeout=20).duplicates == 1, "its claim was confirmed by the replay"
    assert one.client().IngestBatch(request).duplicates == 1
    assert count(one, "orders") == 1


@pytest.mark.parametrize(("crash", "stored_by"), [("ingest.before_confirm", 1), ("ingest.before_append", 2)])
def test_f64_what_a_crashed_instance_claimed_is_nobodys_until_it_is_back_and_tells(make_server, stubs, redis, crash, stored_by):
    one = make_server(sharing(redis), "one").start(LAKEGATE_FAILPOINTS=f"{crash}=kill")
    two = make_server(sharing(redis, wait="300ms"), "two").start()
    request = batch(stubs, "orders", [("a", {"n": 1}), ("b", {"n": 1})], "named")
    with pytest.raises(grpc.RpcError):
        one.client().IngestBatch(request, timeout=20)
    one.process.wait(20)
    for _ in range(3):
        with pytest.raises(grpc.RpcError) as refused:
            two.client().IngestBatch(request, timeout=20)
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert two.client().IngestBatch(batch(stubs, "orders", [("c", {"n": 1})])).accepted == 1, "other keys are not held up"
    one.start()
    answers = [server.client().IngestBatch(request, timeout=20) for server in (two, one)]
    assert answers[0] == answers[1] and answers[0].accepted == 2, "the same request, the same answer"
    assert (count(one, "orders"), count(two, "orders")) == ((2, 1) if stored_by == 1 else (0, 3))


def test_f64_claims_outlast_a_redis_that_is_away_between_append_and_confirmation(make_server, stubs, redis):
    one = make_server(sharing(redis, timeout="300ms"), "one").start(LAKEGATE_FAILPOINTS="ingest.before_confirm=sleep:2000")
    two = make_server(sharing(redis, wait="300ms", timeout="300ms"), "two").start()
    request = batch(stubs, "orders", [("a", {"n": 1})])
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(one.client().IngestBatch, request, timeout=30)
        deadline = time.monotonic() + 20
        while "accepted" not in str(audit(one).get("orders")) and time.monotonic() < deadline:
            time.sleep(0.02)
        redis.kill()
        assert first.result().accepted == 1, "it is stored, whoever knows of it"
    redis.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            assert two.client().IngestBatch(request).duplicates == 1
            break
        except grpc.RpcError as refused:
            assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (count(one, "orders"), count(two, "orders")) == (1, 0)


def test_while_redis_is_away_requests_wait_or_are_taken_and_marked(make_server, stubs, redis):
    waits = make_server(sharing(redis, wait="300ms", timeout="200ms"), "waits").start()
    takes = make_server(sharing(redis, when_away="accept_and_mark", timeout="200ms"), "takes").start()
    redis.kill()
    with pytest.raises(grpc.RpcError) as refused:
        waits.client().IngestBatch(batch(stubs, "orders", [("a", {"n": 1})]))
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert waits.client().IngestBatch(batch(stubs, "undeclared", [("a", {"n": 1})])).accepted == 1, "no key, no need to ask"
    request = batch(stubs, "orders", [("b", {"n": 1})])
    assert takes.client().IngestBatch(request).accepted == 1
    assert takes.client().IngestBatch(request).duplicates == 1
    redis.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and b"lakegate:k" not in subprocess.run(
        ["redis-cli", "-p", str(redis.port), "keys", "*"], capture_output=True
    ).stdout:
        time.sleep(0.05)
    assert waits.client().IngestBatch(request).duplicates == 1, "what was taken meanwhile is confirmed"


def write_ids(path, ids):
    path.write_text("event_id,n\n" + "".join(f"{name},{n}\n" for n, name in enumerate(ids)))
    return str(path)


def test_f50_rows_of_files_and_records_share_redis_over_instances_and_a_crash(make_server, stubs, redis, tmp_path):
    import requests

    drop = tmp_path / "drop"
    drop.mkdir()
    settings = {**sharing(redis), "imports": {"roots": [str(drop)]}}
    one, two = (make_server(settings, name).start() for name in ("one", "two"))

    def take(server, path):
        return requests.post(f"{server.http}/api/ingest/file", json={"path": path, "stream": "orders"}, timeout=120).json()

    def send(server, ids):
        answer = server.client().IngestBatch(batch(stubs, "orders", [(name, {"n": 1}) for name in ids]), timeout=60)
        return answer.accepted, answer.duplicates

    names = lambda letter, count: [f"{letter}{n}" for n in range(count)]
    job = take(one, write_ids(drop / "a.csv", names("a", 500)))
    assert (job["documents"], job["duplicates"]) == (500, 0), job
    assert send(two, names("a", 10)) == (0, 10), "what one has from a file, two does not take as a record"
    assert send(two, names("b", 10)) == (10, 0)
    job = take(one, write_ids(drop / "b.csv", names("b", 20) + names("a", 5)))
    assert (job["documents"], job["duplicates"]) == (10, 15), "nor one from a file what two has as records"
    many = names("c", 20_000)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        paths = [write_ids(drop / "c1.csv", many), write_ids(drop / "c2.csv", many[::-1])]
        jobs = list(pool.map(take, (one, two), paths))
    assert sum(job["documents"] for job in jobs) == sum(job["duplicates"] for job in jobs) == 20_000, jobs
    one.kill()
    one.start(LAKEGATE_FAILPOINTS="import.after_commit=kill")
    with pytest.raises(requests.RequestException):
        take(one, write_ids(drop / "d.csv", names("d", 10)))
    one.process.wait(20)
    one.start()
    assert send(two, names("d", 10)) == (0, 10), "the commit stands: its keys are confirmed after the crash"
    assert count(one, "orders") + count(two, "orders") == 500 + 10 + 10 + 20_000 + 10
    redis.forget()
    assert send(one, names("d", 10)) == (0, 10)


# Under fire.
EVENTS = 100_000
CLIENTS = 8
A_BATCH = 500


def framed(number, body):
    out, length = bytearray([number << 3 | 2]), len(body)
    while length >= 0x80:
        out.append(length & 0x7F | 0x80)
        length >>= 7
    out.append(length)
    return bytes(out) + body


def send_all(servers, stubs, seed, records, ended):
    """One client: all events, in an order of its own, until each batch was answered."""
    order = random.Random(seed)
    mine = records[:]
    order.shuffle(mine)
    batches = [b"".join(mine[at : at + A_BATCH]) for at in range(0, len(mine), A_BATCH)]
    calls = []
    for server in servers:
        channel = server.channel()
        calls.append(channel.unary_unary("/storage.IngestionService/IngestBatch", None, stubs.ingestion.IngestBatchResponse.FromString))
    for body in batches:
        while not ended.is_set():
            try:
                answer = order.choice(calls)(body, timeout=15)
                assert answer.accepted + answer.duplicates == A_BATCH, answer
                break
            except grpc.RpcError:
                time.sleep(order.random() * 0.2)
    return len(batches)


def under_fire(servers, stubs, disturb):
    records = [
        framed(1, stubs.common.DataRecord(endpoint_id="orders", event_id=f"e{i}", payload=b'{"n": %d}' % i).SerializeToString())
        for i in range(EVENTS)
    ]
    ended = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(send_all, servers, stubs, seed, records, ended) for seed in range(CLIENTS)]
        try:
            disturb(lambda: all(client.done() for client in clients))
            for client in clients:
                assert client.result(600) == EVENTS // A_BATCH
        finally:
            ended.set()


def stored_ids(server):
    server.wait_absorbed(60)
    table = server.catalog().load_table("default.orders").scan(selected_fields=("event_id",)).to_arrow()
    return table["event_id"].to_pylist()


def test_duplicates_under_fire_are_stored_once_by_one_instance(make_server, stubs):
    server = make_server({"streams": STREAMS, "duplicates": {"keys_max": 200_000}}).start()
    rng = random.Random(7)

    def disturb(done):
        for _ in range(6):
            time.sleep(rng.uniform(0.3, 2))
            if done():
                return
            server.kill()
            server.start()

    under_fire([server], stubs, disturb)
    ids = collections.Counter(stored_ids(server))
    assert len(ids) == EVENTS and max(ids.values()) == 1
    assert audit(server)["orders"]["accepted"] == EVENTS


def test_duplicates_under_fire_are_stored_once_by_two_instances_that_share_redis(make_server, stubs, redis):
    one, two = (make_server(sharing(redis), name).start() for name in ("one", "two"))
    rng = random.Random(8)

    def disturb(done):
        for turn in range(9):
            time.sleep(rng.uniform(0.5, 3))
            if done():
                return
            victim = (one, two, redis)[turn % 3]
            victim.kill()
            victim.start()

    under_fire([one, two], stubs, disturb)
    ids = collections.Counter(stored_ids(one)) + collections.Counter(stored_ids(two))
    assert len(ids) == EVENTS
    assert max(ids.values()) == 1, [event_id for event_id, n in ids.items() if n > 1][:5]
    assert audit(one)["orders"]["accepted"] + audit(two)["orders"]["accepted"] == EVENTS
