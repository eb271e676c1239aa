"""Cart events and documents over WebSocket, by clients of others' making."""

import contextlib
import json
import shutil
import socket
import struct
import subprocess
import threading
import time

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from test_duplicates import redis  # noqa: F401
from test_events import SETTINGS, event, shop, stored  # noqa: F401


def events_of(server):
    return server.http.replace("http", "ws") + "/events/stream"


def say(ws, kind, payload=None, **more):
    ws.send(json.dumps({"type": kind, "payload": payload, **more}))


def hear(ws, timeout=10):
    return json.loads(ws.recv(timeout=timeout))


@pytest.mark.parametrize("compression", ["deflate", None])
def test_an_event_is_acknowledged_once_it_is_durable(shop, compression):
    sent = event()
    with connect(events_of(shop), compression=compression) as ws:
        say(ws, "cart_event", sent)
        answer = hear(ws)
        assert (answer["type"], answer["eventId"], answer["status"]) == ("event_ack", sent["eventId"], "received")
        assert "timestamp" in answer
        shop.kill()
    shop.start()
    assert [row["event_id"] for row in shop.sql("SELECT event_id FROM default.events")] == [sent["eventId"]]
    with connect(events_of(shop), compression=compression) as ws:
        say(ws, "cart_event", sent)
        again = hear(ws)
        assert again["type"] == "event_ack" and "duplicate" in again["message"]


def test_what_makes_no_sense_is_answered_and_the_socket_stays(shop):
    with connect(events_of(shop)) as ws:
        for text in ("nope", "[]", "{}", json.dumps({"type": "shout"}), json.dumps({"type": "cart_event"})):
            ws.send(text)
            answer = hear(ws)
            assert answer["type"] == "event_error" and answer["error"] and "eventId" not in answer
        bad = event()
        del bad["storeId"]
        say(ws, "cart_event", bad)
        answer = hear(ws)
        assert answer["type"] == "event_error" and answer["eventId"] == bad["eventId"] and "store" in answer["error"]
        say(ws, "heartbeat")
        assert hear(ws)["type"] == "heartbeat_ack"
        lent = event()
        id, at = lent.pop("eventId"), lent.pop("timestamp")
        say(ws, "cart_event", lent, eventId=id, timestamp=at)
        assert hear(ws)["eventId"] == id
    assert stored(shop) == 1


def test_many_events_in_one_go_are_each_acknowledged_in_order(shop):
    sent = [event() for _ in range(5000)]
    with connect(events_of(shop), max_queue=None) as ws:
        def send():
            for one in sent:
                say(ws, "cart_event", one)
        thread = threading.Thread(target=send)
        thread.start()
        answers = [hear(ws, 30) for _ in sent]
        thread.join()
    assert [a["eventId"] for a in answers] == [e["eventId"] for e in sent]
    assert {a["type"] for a in answers} == {"event_ack"}
    assert {row["event_id"] for row in shop.sql("SELECT event_id FROM default.events")} == {e["eventId"] for e in sent}


def test_subscribers_hear_of_matching_events_whichever_way_they_came(shop):
    with connect(events_of(shop)) as all_of_them, connect(events_of(shop)) as some, connect(events_of(shop)) as sender:
        say(all_of_them, "subscribe")
        say(some, "subscribe", {"filter": {"eventTypes": ["purchase_completed"], "storeId": "b"}})
        assert hear(all_of_them)["type"] == hear(some)["type"] == "subscribed"
        sent = [event(eventType=kind, storeId=store) for kind in ("item_added", "purchase_completed") for store in "ab"]
        say(sender, "cart_event", sent[0])
        hear(sender)
        assert requests.post(f"{shop.http}/events", json=sent[1]).status_code == 202
        assert requests.post(f"{shop.http}/events/batch", json={"events": sent[2:]}).status_code == 202
        assert [hear(all_of_them)["eventId"] for _ in sent] == [e["eventId"] for e in sent]
        confirmed = hear(some)
        assert (confirmed["type"], confirmed["eventId"], confirmed["storeId"]) == ("event_ack", sent[3]["eventId"], "b")
        say(some, "unsubscribe")
        assert hear(some)["type"] == "unsubscribed"
        assert requests.post(f"{shop.http}/events", json=event(eventType="purchase_completed", storeId="b")).status_code == 202
        say(some, "heartbeat")
        assert hear(some)["type"] == "heartbeat_ack"
        say(sender, "heartbeat")
        assert hear(sender)["type"] == "heartbeat_ack", "who did not subscribe hears nothing"


def test_s02_without_credentials_sockets_are_of_the_tenant_they_name_and_hear_its_events_alone(shop):
    of = lambda tenant: connect(f"{events_of(shop)}?tenant={tenant}")
    header = connect(events_of(shop), additional_headers={"x-tenant-id": "umbrella"})
    with of("acme") as sender, of("acme") as same, header as other, connect(events_of(shop)) as nobody:
        for ws in (same, other, nobody):
            say(ws, "subscribe")
            assert hear(ws)["type"] == "subscribed"
        sent, umbrella, unnamed = event(), event(), event()
        say(sender, "cart_event", sent)
        assert hear(sender)["eventId"] == hear(same)["eventId"] == sent["eventId"]
        assert requests.post(f"{shop.http}/events", json=umbrella, headers={"x-tenant-id": "umbrella"}).status_code == 202
        assert hear(other)["eventId"] == umbrella["eventId"]
        assert requests.post(f"{shop.http}/events", json=unnamed).status_code == 202
        assert hear(nobody)["eventId"] == unnamed["eventId"]
        for ws in (sender, same, other, nobody):
            say(ws, "heartbeat")
            assert hear(ws)["type"] == "heartbeat_ack", "nothing else was heard"
    for tenant, ids in (("acme", [sent]), ("umbrella", [umbrella]), ("default", [unnamed])):
        assert [row["event_id"] for row in shop.sql(f"SELECT event_id FROM {tenant}.events")] == [e["eventId"] for e in ids]
    with pytest.raises(InvalidStatus) as refused, of("No Such"):
        pass
    assert refused.value.response.status_code == 400


def test_s35_foreign_pages_and_wrong_frames_are_refused(make_server):
    shop = make_server({**SETTINGS, "limits": {"websocket": {"message_bytes_max": "64KiB", "connections": 3}}}).start()
    for origin in ("https://evil.example", "null", "http://203.0.113.5", "http://[2001:db8::1]:80", "http://127.0.0.1.evil.example"):
        with pytest.raises(InvalidStatus) as refused, connect(events_of(shop), origin=origin):
            pass
        assert refused.value.response.status_code == 403
    with connect(events_of(shop), origin=f"http://localhost:{shop.http_port}"):
        pass
    assert requests.get(f"{shop.http}/events/stream").status_code == 426
    with connect(events_of(shop), max_size=None) as ws:
        with pytest.raises(ConnectionClosed) as closed:
            ws.send(json.dumps({"type": "cart_event", "payload": {"a": "x" * 100_000}}))
            while True:
                ws.recv(timeout=10)
        assert closed.value.rcvd.code == 1009
    open_ones = lambda: requests.get(f"{shop.http}/metrics", timeout=10).json()["websocket"]["activeConnections"]
    handshake = (
        f"GET /events/stream HTTP/1.1\r\nHost: localhost:{shop.http_port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    for frame, code in [
        (b"\x81\x05hello", 1002),
        (b"\xc1\x80\0\0\0\0", 1002),
        (b"\x09\x80\0\0\0\0", 1002),
        (b"\x81\xff\x7f" + b"\xff" * 7, 1009),
    ]:
        while open_ones() > 2:
            time.sleep(0.05)
        with socket.create_connection(("127.0.0.1", shop.http_port)) as raw:
            raw.sendall(handshake.encode() + frame)
            raw.settimeout(10)
            answer = b""
            while piece := raw.recv(4096):
                answer += piece
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert b"101" in head.split(b"\r\n")[0] and b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        assert rest[0] == 0x88 and struct.unpack(">H", rest[2:4])[0] == code, (frame, rest)
    deadline = time.monotonic() + 20
    while open_ones() > 0:
        assert time.monotonic() < deadline, "closed sockets keep their places"
        time.sleep(0.05)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(events_of(shop)))
        with pytest.raises(InvalidStatus) as refused, connect(events_of(shop)):
            pass
        assert refused.value.response.status_code == 503


def test_a_stop_ends_sockets_with_going_away_and_answers_what_is_under_way(shop):
    with connect(events_of(shop)) as ws:
        sent = [event() for _ in range(200)]
        for one in sent:
            say(ws, "cart_event", one)
        shop.process.terminate()
        heard = []
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                heard.append(hear(ws, 30)["eventId"])
        assert closed.value.rcvd.code == 1001
    shop.process.wait(30)
    shop.start()
    assert {row["event_id"] for row in shop.sql("SELECT event_id FROM default.events")} >= set(heard)


def test_silent_sockets_are_pinged_and_dead_ones_closed(make_server):
    limits = {"websocket": {"ping_interval": "200ms", "idle_timeout": "1s"}}
    shop = make_server({**SETTINGS, "limits": limits}).start()
    with connect(events_of(shop), ping_interval=None) as ws:
        deadline = time.monotonic() + 2.5
        while time.monotonic() < deadline:
            with pytest.raises(TimeoutError):
                ws.recv(timeout=0.5)
        say(ws, "heartbeat")
        assert hear(ws)["type"] == "heartbeat_ack", "who answers pings stays"
    handshake = (
        f"GET /events/stream HTTP/1.1\r\nHost: localhost:{shop.http_port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", shop.http_port)) as raw:
        raw.sendall(handshake.encode())
        raw.settimeout(15)
        answer = b""
        while piece := raw.recv(4096):
            answer += piece
    assert b"\x89\x00" in answer, "it was pinged"
    assert b"\x88" in answer and struct.pack(">H", 1001) in answer, "and closed"


def test_health_and_metrics_have_the_documented_members(shop):
    with connect(events_of(shop)) as ws:
        say(ws, "cart_event", event())
        hear(ws)
        requests.post(f"{shop.http}/events", json=event())
        health = requests.get(f"{shop.http}/health").json()
        assert health["status"] == "healthy" and {"redis", "clickhouse", "downstream"} <= set(health["services"])
        assert set(health["metrics"]) == {"eventsPerSecond", "activeConnections", "errorRate"} and health["timestamp"]
        figures = requests.get(f"{shop.http}/metrics").json()
        assert set(figures["ingestion"]) == {"eventsReceived", "eventsProcessed", "eventsFailed", "averageProcessingTime"}
        assert figures["ingestion"]["eventsReceived"] == 2 and figures["ingestion"]["averageProcessingTime"] > 0
        assert figures["websocket"] == {"activeConnections": 1, "totalConnections": 1, "messagesReceived": 1, "messagesSent": 1}
        assert set(figures["storage"]) == {"eventsStored", "duplicatesIgnored", "storageLatency"}
        text = requests.get(f"{shop.http}/metrics", headers={"accept": "text/plain"}).text
        assert "lakegate_websockets 1" in text


def test_documents_are_counted_as_they_become_durable(shop):
    url = shop.http.replace("http", "ws") + "/api/ingest/stream"
    document = lambda n: json.dumps({"event_type": "Login", "timestamp": f"2025-06-12T23:59:58.{n % 1000:03d}Z", "fields": {"memberCode": f"m{n}"}})
    with connect(url) as ws:
        ws.send(document(0))
        answer = hear(ws)
        assert (answer["type"], answer["durable"]) == ("ack", 1)
        ws.send("\n".join(document(n) for n in range(1, 3000)) + "\nbroken\n" + document(0) + "\n")
        while answer["durable"] < 3002:
            answer = hear(ws)
        assert (answer["accepted"], answer["skipped"], answer["duplicates"], answer["rejected"]) == (3000, 1, 1, 0)
    assert stored(shop, "documents") == 3000


def test_a_node_script_sends_and_hears(shop, tmp_path):
    if not shutil.which("node"):
        pytest.skip("node is not here")
    if subprocess.run(["node", "-e", "process.exit(typeof WebSocket === 'function' ? 0 : 1)"]).returncode:
        flags = ["--experimental-websocket"]
    else:
        flags = []
    if subprocess.run(["node", *flags, "-e", "new WebSocket('ws://127.0.0.1:1').onerror = () => process.exit(0)"], capture_output=True).returncode:
        pytest.skip("this node has no WebSocket")
    script = tmp_path / "client.mjs"
    script.write_text(
        """
        const [url, text] = process.argv.slice(2);
        const ws = new WebSocket(url);
        ws.onopen = () => ws.send(JSON.stringify({ type: 'cart_event', payload: JSON.parse(text) }));
        ws.onmessage = (message) => { console.log(message.data); ws.close(); };
        """
    )
    sent = event()
    done = subprocess.run(["node", *flags, script, events_of(shop), json.dumps(sent)], capture_output=True, text=True, timeout=30)
    assert json.loads(done.stdout)["eventId"] == sent["eventId"], done.stderr


PAGE = """<!doctype html><title>shop</title><script>
const [url, text] = [%s, %s];
const ws = new WebSocket(url), heard = [];
const tell = (what) => fetch('/heard', { method: 'POST', body: JSON.stringify(what) });
ws.onopen = () => ws.send(JSON.stringify({ type: 'subscribe' }));
ws.onmessage = (message) => {
  heard.push(JSON.parse(message.data));
  if (heard.length === 1) ws.send(JSON.stringify({ type: 'cart_event', payload: JSON.parse(text) }));
  if (heard.length === 2) { ws.close(1000); tell({ heard, extensions: ws.extensions }); }
};
ws.onerror = () => tell({ error: true, heard });
</script>"""


@pytest.mark.parametrize("welcome", [True, False])
def test_a_page_in_a_browser_sends_and_hears_and_one_of_others_does_not(make_server, tmp_path, welcome):
    import http.server
    import queue

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not chromium:
        pytest.skip("no chromium is here; apt install chromium")
    told, sent, pages = queue.Queue(), event(), {}

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(pages["page"].encode())

        def do_POST(self):
            told.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    origin = f"http://shop.example:{site.server_port}"
    origins = [origin] if welcome else [f"http://other.example:{site.server_port}"]
    shop = make_server({**SETTINGS, "limits": {"http": {"origins": origins}}}).start()
    pages["page"] = PAGE % (json.dumps(events_of(shop)), json.dumps(json.dumps(sent)))
    browser = subprocess.Popen(
        [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP shop.example 127.0.0.1", f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0", origin],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )
    try:
        said = told.get(timeout=60)
    finally:
        browser.terminate()
        browser.wait(20)
        site.shutdown()
    if welcome:
        assert [message["type"] for message in said["heard"]] == ["subscribed", "event_ack"], said
        assert said["heard"][1]["eventId"] == sent["eventId"] and "permessage-deflate" in said["extensions"]
        assert stored(shop) == 1
    else:
        assert said == {"error": True, "heard": []}


def test_f64_none_overtakes_an_event_that_was_told_to_come_back_later(make_server, redis):
    server = make_server({**SETTINGS, "duplicates": {"redis": {"url": redis.url, "wait": "1s", "timeout": "200ms"}}}).start()
    sent = [event() for _ in range(30)]
    with connect(events_of(server)) as ws:
        say(ws, "cart_event", event())
        assert hear(ws)["type"] == "event_ack"
        redis.kill()
        for one in sent:
            say(ws, "cart_event", one)
        first = hear(ws, 20)
        assert (first["type"], first["eventId"]) == ("event_error", sent[0]["eventId"])
        redis.start()
        behind = [hear(ws, 20) for _ in sent[1:]]
        assert {answer["type"] for answer in behind} == {"event_error"}, "stored, they would come before the first one's second try"
        assert [answer["eventId"] for answer in behind] == [one["eventId"] for one in sent[1:]]
        for one in sent:
            say(ws, "cart_event", one)
        again = [hear(ws, 20) for _ in sent]
        assert [(answer["type"], answer["eventId"]) for answer in again] == [("event_ack", one["eventId"]) for one in sent]
    assert server.sql("SELECT count(*) AS n FROM default.events") == [{"n": 31}]
