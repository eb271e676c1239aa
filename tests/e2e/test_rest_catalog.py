"""An external REST catalog in place of ours: the Iceberg project's own, with a proxy before it that loses its answers."""

import http.client
import http.server
import threading
import time

import pytest
import requests

from stores import bucket_settings, expected, last_errors, minio, own_key, pyiceberg, rest_catalog, send, stored_ids, until


class Proxy:
    """Passes requests on to the catalog. While `lose` is set, a commit is passed on, and its answer thrown away for that status."""

    def __init__(self, target):
        self.host, self.lose, self.lost, self.down = target.removeprefix("http://"), None, 0, False
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def pass_on(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if proxy.down:
                    return self.answer(503, b'{"error": {"message": "closed for now", "type": "ServiceUnavailableException", "code": 503}}')
                connection = http.client.HTTPConnection(proxy.host, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection", "accept-encoding")}
                try:
                    connection.request(self.command, self.path, body or None, headers)
                    answer = connection.getresponse()
                    content = answer.read()
                except (OSError, http.client.HTTPException):
                    return self.answer(502, b'{"error": {"message": "the catalog is away", "type": "BadGateway", "code": 502}}')
                is_commit = self.command == "POST" and "/tables/" in self.path and not self.path.endswith("/metrics")
                if is_commit and proxy.lose and answer.status == 200:
                    proxy.lost += 1
                    if proxy.lose == "cut":
                        self.close_connection = True
                        return self.connection.close()
                    return self.answer(proxy.lose, b'{"error": {"message": "lost on the way", "type": "Lost", "code": 500}}')
                self.answer(answer.status, content)

            def answer(self, status, content):
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_DELETE = do_HEAD = pass_on

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Clients that are killed reset their connections.
        self.server.handle_error = lambda *_: None
        self.uri = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()


@pytest.fixture
def through_proxy(rest_catalog, make_server, tmp_path):
    warehouse = tmp_path / "warehouse"
    warehouse.mkdir()
    catalog = rest_catalog(REST_CATALOG_WAREHOUSE=f"file://{warehouse}")
    proxy = Proxy(catalog.address)
    server = make_server({"storage": {"warehouse": str(warehouse)}, "catalog": {"uri": proxy.uri}}).start()
    yield server, proxy, catalog
    proxy.close()


def test_an_external_catalog_takes_our_tables_and_others_read_them(through_proxy, stubs):
    server, _, catalog = through_proxy
    for start in range(0, 500, 100):
        send(server, stubs, "outside", range(start, start + 100))
        server.wait_absorbed()
    assert stored_ids(pyiceberg(catalog.address).load_table("default.outside")) == expected(range(500))
    assert server.sql('SELECT count(*) AS c FROM "default".outside')[0] == {"c": 500}
    assert requests.get(f"{server.http}/iceberg/v1/config").status_code == 404


@pytest.mark.parametrize("lost", [500, 502, 504, "cut"])
def test_f30_f31_commits_whose_answers_are_lost_are_found_and_never_repeated(through_proxy, stubs, lost):
    server, proxy, catalog = through_proxy
    send(server, stubs, "lost", range(50))
    server.wait_absorbed()
    table = pyiceberg(catalog.address).load_table("default.lost")
    before = len(table.metadata.snapshots)
    proxy.lose = lost
    sent = 50
    for _ in range(6):
        send(server, stubs, "lost", range(sent, sent + 50))
        sent += 50
        server.wait_absorbed()
    assert proxy.lost >= 6
    proxy.lose = None
    table = table.refresh()
    assert stored_ids(table) == expected(range(sent))
    assert len(table.metadata.snapshots) == before + 6
    assert server.sql('SELECT count(*) AS c FROM "default".lost')[0] == {"c": sent}


def test_f31_f41_killed_after_the_catalog_committed_and_before_its_answer_each_record_is_there_once(through_proxy, stubs):
    server, proxy, catalog = through_proxy
    sent = 0
    for _ in range(3):
        proxy.lose = 500
        send(server, stubs, "killed", range(sent, sent + 30))
        sent += 30
        lost = proxy.lost
        until(lambda: proxy.lost > lost or stored(catalog) >= sent, 30, 0.02)
        server.kill()
        proxy.lose = None
        server.start()
        server.wait_absorbed()
    assert stored_ids(pyiceberg(catalog.address).load_table("default.killed")) == expected(range(sent))


def stored(catalog):
    try:
        return pyiceberg(catalog.address).load_table("default.killed").scan().to_arrow().num_rows
    except Exception:
        return 0


def test_f39_an_external_catalog_that_goes_and_comes_back_around_a_restart(through_proxy, stubs):
    server, proxy, catalog = through_proxy
    send(server, stubs, "gone", range(50))
    server.wait_absorbed()
    proxy.down = True
    send(server, stubs, "gone", range(50, 100))
    until(lambda: last_errors(server), 60, what="an error")
    server.kill()
    server.start()
    send(server, stubs, "gone", range(100, 150))
    proxy.down = False
    server.wait_absorbed(60)
    assert stored_ids(pyiceberg(catalog.address).load_table("default.gone")) == expected(range(150))


def test_a_bucket_behind_an_external_catalog(rest_catalog, minio, make_server, stubs):
    catalog = rest_catalog(S3_WAREHOUSE="s3://warehouse/outside", S3_ENDPOINT=minio.address)
    settings = bucket_settings(minio, prefix="outside")
    settings["catalog"] = {"uri": catalog.address}
    server = make_server(settings).start()
    send(server, stubs, "both", range(200))
    server.wait_absorbed()
    properties = {"s3.endpoint": minio.address, "s3.region": "us-east-1", **own_key(minio)}
    assert stored_ids(pyiceberg(catalog.address, **properties).load_table("default.both")) == expected(range(200))
