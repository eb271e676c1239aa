"""Clients that mean harm, on the real binary: what they get, and that everybody else is served as before."""

import contextlib
import json
import os
import resource
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time

import grpc
import pytest
import requests

from test_events import SETTINGS, event, stored
from test_security import Authority


@pytest.fixture
def shop(make_server):
    return make_server(SETTINGS).start()


def resident_kib(server):
    with open(f"/proc/{server.process.pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def open_files(server):
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def open_sockets(server):
    folder = f"/proc/{server.process.pid}/fd"
    found = 0
    for name in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"{folder}/{name}").startswith("socket:")
    return found


def cpu_seconds(server):
    fields = open(f"/proc/{server.process.pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until(holds, what, seconds=30):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def say(server, data, port=None, timeout=10):
    """Sends bytes as they are; what comes back until the server closes or says nothing more."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port or server.http_port), timeout=timeout) as raw:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            raw.sendall(data)
            raw.settimeout(2)
            while piece := raw.recv(65536):
                answer += piece
    return answer


def statuses(answer):
    """The status codes of the answers one after the other."""
    found = []
    while answer.startswith(b"HTTP/1.1 "):
        head, _, rest = answer.partition(b"\r\n\r\n")
        found.append(int(head.split(b" ")[1]))
        length = next((int(l.split(b":")[1]) for l in head.split(b"\r\n") if l.lower().startswith(b"content-length:")), 0)
        answer = rest[length:]
    return found


def post(server, body, *headers, host=None):
    lines = [b"POST /events HTTP/1.1", b"host: " + (host or f"localhost:{server.http_port}".encode()), b"content-type: application/json", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def test_s34_no_request_hides_in_the_body_of_another(shop):
    hidden = post(shop, *(lambda body: (body, b"content-length: %d" % len(body)))(json.dumps(event()).encode()))
    outer = json.dumps(event()).encode()
    chunked = lambda body: b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    for name, request in {
        "length and chunks": post(shop, b"0\r\n\r\n" + hidden, b"content-length: 5", b"transfer-encoding: chunked"),
        "chunks and length": post(shop, chunked(outer) + hidden, b"transfer-encoding: chunked", b"content-length: %d" % (len(chunked(outer)) + len(hidden))),
        "two lengths": post(shop, outer + hidden, b"content-length: %d" % len(outer), b"content-length: %d" % (len(outer) + len(hidden))),
        "a list of lengths": post(shop, outer + hidden, b"content-length: %d, %d" % (len(outer), len(outer) + 9)),
        "a signed length": post(shop, outer + hidden, b"content-length: +%d" % len(outer)),
        "a length in hexadecimal": post(shop, outer + hidden, b"content-length: 0x10"),
        "another encoding": post(shop, chunked(outer) + hidden, b"transfer-encoding: xchunked"),
        "chunks that are not last": post(shop, chunked(outer) + hidden, b"transfer-encoding: chunked, identity"),
        "a space before the colon": post(shop, chunked(outer) + hidden, b"transfer-encoding : chunked"),
        "a chunk length that wraps": post(shop, b"ffffffffffffffff0\r\n" + outer + b"\r\n0\r\n\r\n" + hidden, b"transfer-encoding: chunked"),
        "a chunk length with a sign": post(shop, b"-1\r\n" + outer + b"\r\n0\r\n\r\n" + hidden, b"transfer-encoding: chunked"),
        "a folded header": post(shop, outer + hidden, b"x-a: b\r\n content-length: %d" % len(outer)),
    }.items():
        before = stored(shop) if (shop.data / "warehouse").exists() and seen(shop) else 0
        codes = statuses(say(shop, request))
        assert len(codes) <= 1 and all(code >= 400 for code in codes) or codes == [202] and stored(shop) == before + 1, f"{name}: {codes}"
        assert not codes or 200 not in codes, name
    ids = {row["event_id"] for row in shop.sql("SELECT event_id FROM default.events")} if seen(shop) else set()
    assert json.loads(hidden.partition(b"\r\n\r\n")[2])["eventId"] not in ids, "the hidden request was obeyed"


def seen(server):
    return any(stream["stream"] == "events" for stream in requests.get(f"{server.http}/api/status", timeout=10).json()["streams"])


def test_s34_strange_targets_hosts_and_lengths_of_headers_are_refused(shop):
    body = json.dumps(event()).encode()
    length = b"content-length: %d" % len(body)
    assert statuses(say(shop, post(shop, body, length, host=b"evil.example"))) in ([403], [421], [400]), "a name of another's"
    twice = post(shop, body, length, b"host: evil.example")
    assert all(code >= 400 for code in statuses(say(shop, twice))), "two hosts"
    absolute = post(shop, body, length).replace(b"POST /events", b"POST http://evil.example/events")
    assert all(code >= 400 for code in statuses(say(shop, absolute))), "an address of another's"
    for name, request in {
        "a megabyte of one header": post(shop, body, length, b"x-a: " + b"a" * (1 << 20)),
        "a hundred thousand headers": post(shop, body, length, *[b"x-%d: a" % n for n in range(100_000)]),
        "a megabyte of address": b"GET /" + b"a" * (1 << 20) + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "a zero byte": post(shop, body, length, b"x-a: \0"),
        "an old version": b"GET / HTTP/0.9\r\n\r\n",
        "no protocol at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 500,
    }.items():
        codes = statuses(say(shop, request))
        assert all(code >= 400 for code in codes), f"{name}: {codes}"
    assert requests.post(f"{shop.http}/events", json=event(), timeout=10).status_code == 202
    many = [event() for _ in range(5000)]
    pipelined = b"".join(post(shop, text, b"content-length: %d" % len(text)) for text in (json.dumps(one).encode() for one in many))
    with socket.create_connection(("127.0.0.1", shop.http_port)) as raw:
        sender = threading.Thread(target=raw.sendall, args=(pipelined,))
        sender.start()
        raw.settimeout(20)
        answer = b""
        while answer.count(b"HTTP/1.1 202") < len(many):
            piece = raw.recv(1 << 20)
            assert piece, answer[-500:]
            answer += piece
        sender.join()
    assert statuses(answer) == [202] * len(many), "five thousand on their way at once are answered in order"
    assert resident_kib(shop) < 1 << 20


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


# Of a request: POST, http, the path by name, no value indexed.
HEADERS = b"\x83\x86\x04\x1d/storage.IngestionService/Ping\x0f\x10\x10application/grpc"


@pytest.mark.parametrize(
    ("name", "begin", "again"),
    [
        ("continuation", frame(1, 0, 1, b"\x83\x86"), lambda n: frame(9, 0, 1, b"\0\x01a\x01b" * 100)),
        ("empty continuation", frame(1, 0, 1, b"\x83\x86"), lambda n: frame(9, 0, 1)),
        ("empty data", frame(1, 4, 1, HEADERS), lambda n: frame(0, 0, 1)),
        ("settings", b"", lambda n: frame(4, 0, 0, b"\0\x04\0\0\xff\xff")),
        ("ping", b"", lambda n: frame(6, 0, 0, b"12345678")),
        ("reset", b"", lambda n: frame(1, 5, 2 * n + 1, HEADERS) + frame(3, 0, 2 * n + 1, b"\0\0\0\x08")),
        ("made you reset", b"", lambda n: frame(1, 4, 2 * n + 1, HEADERS) + frame(8, 0, 2 * n + 1, b"\0\0\0\0")),
        ("header bomb", frame(1, 4, 1, b"\x40\x01a\x7f\xd8\x1e" + b"b" * 4000), lambda n: frame(1, 5, 2 * n + 3, b"\x83\x86" + b"\xbe" * 4000)),
        ("priority", b"", lambda n: frame(2, 0, 2 * n + 1, b"\0\0\0\0\x10")),
    ],
)
def test_s33_floods_of_frames_end_their_connection_and_harm_nobody_else(server, stubs, name, begin, again):
    record = stubs.common.DataRecord(endpoint_id="cart", payload=b"{}")
    client = server.client()
    ask = lambda: client.IngestRecord(stubs.ingestion.IngestRecordRequest(record=record), timeout=10)
    ask()
    memory, sockets = resident_kib(server), open_sockets(server)
    block = b"".join(again(n) for n in range(2000))

    def attack(port):
        """Sends until it is cut off or five seconds are over, reading nothing."""
        with socket.create_connection(("127.0.0.1", port), timeout=2) as raw:
            with contextlib.suppress(OSError):
                raw.sendall(PREFACE + begin)
                end = time.monotonic() + 3
                while time.monotonic() < end:
                    raw.sendall(block)

    attackers = [threading.Thread(target=attack, args=(port,)) for port in (server.grpc_port, server.http_port)]
    for attacker in attackers:
        attacker.start()
    times = []
    while not times or any(attacker.is_alive() for attacker in attackers):
        began = time.monotonic()
        assert ask().status == 1
        times.append(time.monotonic() - began)
        time.sleep(0.01)
    assert max(times) < 2, f"{name}: another's answer took {max(times):.1f} s"
    wait_until(lambda: open_sockets(server) <= sockets, f"{name}: the connections stay open")
    assert resident_kib(server) < memory + (64 << 10), name
    used = cpu_seconds(server)
    time.sleep(0.5)
    assert cpu_seconds(server) - used < 0.3, f"{name}: it still works on it"


def test_f61_past_the_limit_of_files_the_open_ones_live_and_it_heals_without_spinning(make_server):
    server = make_server({**SETTINGS, "limits": {"http": {"header_timeout": "5s"}}})
    with open(server.log, "ab") as log:
        from conftest import BINARY

        few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
        server.process = subprocess.Popen([BINARY, "serve", "--config", server.config], stdout=log, stderr=log, preexec_fn=few)
    server.wait_ready()
    session = requests.Session()
    assert session.post(f"{server.http}/events", json=event(), timeout=10).status_code == 202
    taken = [socket.create_connection(("127.0.0.1", server.http_port), timeout=5) for _ in range(220)]
    wait_until(lambda: open_files(server) >= 199, "the files are not used up")
    used, since = cpu_seconds(server), time.monotonic()
    for _ in range(10):
        assert session.post(f"{server.http}/events", json=event(), timeout=10).status_code == 202, "who is connected is served"
        time.sleep(0.1)
    assert cpu_seconds(server) - used < 0.3 + 0.4 * (time.monotonic() - since), "it spins on what it cannot take"
    for one in taken:
        one.close()
    wait_until(lambda: open_files(server) < 100, "the files do not come back")
    assert requests.post(f"{server.http}/events", json=event(), timeout=10).status_code == 202
    assert stored(server) == 12
    server.stop()


def test_f59_peers_that_hang_are_closed_and_their_files_come_back(make_server):
    limits = {"websocket": {"ping_interval": "500ms", "idle_timeout": "2s"}, "http": {"header_timeout": "2s"}}
    server = make_server({**SETTINGS, "limits": limits}).start()
    before = open_sockets(server)
    script = """
import socket, sys
port, hand = int(sys.argv[1]), sys.argv[2].encode()
sockets = []
for n in range(150):
    one = socket.create_connection(("127.0.0.1", port))
    one.sendall([hand, b"POST /events HTTP/1.1\\r\\nhost: localhost\\r\\n", b""][n % 3])
    sockets.append(one)
print("open", flush=True)
sys.stdin.read()
"""
    hand = f"GET /events/stream HTTP/1.1\r\nHost: localhost:{server.http_port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    peer = subprocess.Popen([sys.executable, "-c", script, str(server.http_port), hand], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert peer.stdout.readline() == b"open\n"
        peer.send_signal(signal.SIGSTOP)
        wait_until(lambda: open_sockets(server) <= before, "sockets stay open")
        assert requests.get(f"{server.http}/metrics", timeout=10).json()["websocket"]["activeConnections"] == 0
    finally:
        peer.kill()
        peer.wait()


@pytest.mark.parametrize("secret", [False, True])
def test_f62_a_storm_of_connections_leaves_files_and_memory_as_they_were(make_server, tmp_path, secret):
    settings = dict(SETTINGS)
    authority = Authority(tmp_path)
    if secret:
        certificate, key = authority.issue("server", "server")
        settings["tls"] = {"certificate": str(certificate), "key": str(key)}
    server = make_server(settings).start(wait=not secret)
    scheme, trust = ("https", str(authority.file)) if secret else ("http", None)
    address = f"{scheme}://localhost:{server.http_port}"
    ready = lambda: requests.get(f"{address}/readyz", timeout=2, verify=trust).status_code == 200

    def is_ready():
        with contextlib.suppress(requests.ConnectionError):
            return ready()

    wait_until(is_ready, "not ready")
    context = ssl.create_default_context(cafile=trust) if secret else None
    opened = [0]

    def storm(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            raw = socket.create_connection(("127.0.0.1", server.http_port), timeout=10)
            if secret and opened[0] % 2:
                # Half of them leave in the middle of the handshake.
                raw = context.wrap_socket(raw, server_hostname="localhost")
            # Closed hard, so that the client's ports are free again at once.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raw.close()
            opened[0] += 1

    def storms(seconds):
        threads = [threading.Thread(target=storm, args=(seconds,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert ready()
        for thread in threads:
            thread.join()

    storms(2)
    sockets, memory, first = open_sockets(server), resident_kib(server), opened[0]
    storms(6)
    assert opened[0] - first > (300 if secret else 3000), opened
    wait_until(lambda: open_sockets(server) <= sockets + 2, "sockets stay open")
    assert resident_kib(server) < memory + (24 << 10), f"{memory} KiB before, {resident_kib(server)} after {opened[0]} connections"


NAMES = ['a"; DROP TABLE x; --', "a`b", "../x", "a/../../b", "", "x" * 10_000, "ОРДЕР", "ordeгs", "orders\0", "a b", "A", "select%00", "-a", "a.b", "con\u202e", "{tenant}", "'||'"]


def test_s22_names_that_are_none_reach_no_table_no_path_and_no_statement(server, stubs):
    client = server.client()
    before = {path for path in server.data.rglob("*") if path.is_dir()}
    for name in NAMES:
        if name:
            records = [stubs.common.DataRecord(endpoint_id=name, payload=b"{}")]
            answer = client.IngestBatch(stubs.ingestion.IngestBatchRequest(records=records))
            assert (answer.accepted, answer.errors[0].code) == (0, "INVALID_NAME"), name
            with contextlib.suppress(grpc.RpcError):
                answer = client.IngestBatch(stubs.ingestion.IngestBatchRequest(tenant_id=name, endpoint_id="fine", records=[stubs.common.DataRecord(payload=b"{}")]))
                assert answer.accepted == 0, name
        path = requests.utils.quote(name, safe="")
        for address in (f"/api/ingest/streams/{path}", f"/api/feeds/{path}", f"/api/dlq?tenant={path}"):
            method = "post" if "streams" in address else "get"
            answer = requests.request(method, server.http + address, json={} if method == "post" else None, timeout=10)
            assert 400 <= answer.status_code < 500, f"{address[:80]}: {answer.status_code}"
        quoted = name.replace('"', '""')
        answer = requests.post(f"{server.http}/api/sql", json={"sql": f'SELECT * FROM "default"."{quoted}"'}, timeout=10)
        assert 400 <= answer.status_code < 500, f"{name[:80]}: {answer.status_code}"
    for reserved in ("select", "table", "order", "null", "default"):
        assert client.IngestBatch(stubs.ingestion.IngestBatchRequest(endpoint_id=reserved, records=[stubs.common.DataRecord(payload=b"{}")])).accepted == 1
        assert server.sql(f'SELECT count(*) AS n FROM "default"."{reserved}"')[0]["n"] == 1
    server.wait_absorbed()
    tables = {name for _, name in server.catalog().list_tables("default")}
    assert tables <= {"select", "table", "order", "null", "default", "dead_letters"}
    made = {path for path in server.data.rglob("*") if path.is_dir()} - before
    assert all(not {"..", "x", "DROP"} & set(path.parts) and str(path).isascii() for path in made), made


def test_s42_pages_of_others_may_read_nothing_and_no_answer_says_that_all_may(make_server):
    server = make_server({**SETTINGS, "limits": {"http": {"origins": ["https://shop.example"]}}}).start()
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for path in ("/events", "/api/sql", "/api/status", "/health"):
        for origin in ("https://evil.example", "null", "https://shop.example.evil.example", "http://shop.example"):
            answer = requests.options(server.http + path, headers={"origin": origin, **ask}, timeout=10)
            assert "access-control-allow-origin" not in answer.headers, (path, origin)
            answer = requests.get(server.http + path, headers={"origin": origin}, timeout=10)
            assert "access-control-allow-origin" not in answer.headers, (path, origin)
        answer = requests.options(server.http + path, headers={"origin": "https://shop.example", **ask}, timeout=10)
        assert answer.headers["access-control-allow-origin"] == "https://shop.example" and "origin" in answer.headers["vary"].lower()
        assert "access-control-allow-credentials" not in answer.headers
    sent = event()
    plain = requests.post(f"{server.http}/events", data=json.dumps(sent), headers={"content-type": "text/plain"}, timeout=10)
    assert plain.status_code == 415, "what a page may send without asking is not taken"
    form = requests.post(f"{server.http}/events", data={"a": json.dumps(sent)}, timeout=10)
    assert form.status_code == 415
