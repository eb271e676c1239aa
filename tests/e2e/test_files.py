"""Files into tables through the real binary: folders, web servers, MinIO, watches, uploads; DuckDB as judge."""

import gzip
import http.server
import json
import os
import pathlib
import shutil
import socketserver
import subprocess
import threading
import time

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from conftest import free_port

MINIO = shutil.which("minio") or str(pathlib.Path.home() / ".cache/lakegate/bin/minio")


def rows(start, count):
    return pa.table({"n": pa.array(range(start, start + count), pa.int64()), "text": [f"row {i}" for i in range(start, start + count)]})


def post(server, path, body, **keywords):
    return requests.post(f"{server.http}{path}", json=body, timeout=120, **keywords)


def imported(server, body, path="/api/ingest/file"):
    answer = post(server, path, body)
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["state"] == "done", job
    return job


def count(server, table):
    return server.sql(f"SELECT count(*) AS c, sum(n) AS s FROM {table}")[0]


def until(check, seconds=30):
    deadline = time.monotonic() + seconds
    while True:
        found = check()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


@pytest.fixture
def drop(tmp_path):
    folder = tmp_path / "drop"
    folder.mkdir()
    return folder


@pytest.fixture
def reader(make_server, drop):
    """A server that may read the folder `drop`, and this machine's web servers."""

    def start(**imports):
        settings = {"imports": {"roots": [str(drop)], "watch": {"settle": "300ms", "poll": "300ms"}, **imports}}
        return make_server(settings).start()

    return start


def test_a_parquet_file_is_imported_once(reader, drop):
    server = reader()
    pq.write_table(rows(0, 50_000), drop / "numbers.parquet", row_group_size=10_000)
    job = imported(server, {"path": str(drop / "numbers.parquet"), "stream": "numbers"}, "/api/ingest/parquet")
    assert (job["files"], job["documents"], job["files_unchanged"]) == (1, 50_000, 0)
    expected = {"c": 50_000, "s": sum(range(50_000))}
    assert count(server, "default.numbers") == expected
    again = imported(server, {"path": str(drop / "numbers.parquet"), "stream": "numbers"})
    assert (again["documents"], again["files_unchanged"]) == (0, 1)
    assert count(server, "default.numbers") == expected
    judged = server.catalog().load_table("default.numbers").scan().to_arrow()
    assert duckdb.sql("SELECT count(*), sum(n) FROM judged").fetchone() == (50_000, sum(range(50_000)))


def test_csv_jsonl_and_their_packed_forms_are_told_by_their_contents(reader, drop):
    server = reader()
    (drop / "a.csv").write_text("n,text\n1,one\n2,two\n")
    with gzip.open(drop / "b.jsonl.gz", "wt") as out:
        out.writelines(json.dumps({"n": n, "text": str(n)}) + "\n" for n in (3, 4))
    first = imported(server, {"path": str(drop / "a.csv"), "stream": "mixed"}, "/api/ingest/csv")
    second = imported(server, {"path": str(drop), "pattern": "*.gz", "stream": "mixed"}, "/api/ingest/bulk")
    assert (first["documents"], second["documents"]) == (2, 2)
    assert [job["id"] for job in requests.get(f"{server.http}/api/jobs").json()["jobs"]] == [second["id"], first["id"]]
    assert count(server, "default.mixed")["c"] == 4


def test_a_file_larger_than_what_is_gathered_is_encoded_while_it_is_read(reader, drop):
    server = reader()
    source = drop / "large.csv"
    columns = "i AS n, md5(i::VARCHAR) AS id, i * 0.25 AS price, CASE WHEN i % 7 = 0 THEN NULL ELSE 'text ' || (i % 1000) END AS note"
    duckdb.sql(f"COPY (SELECT {columns} FROM range(400000) t(i)) TO '{source}' (HEADER)")
    with open(source, "a") as out:
        out.write("400000,short\n")
    job = imported(server, {"path": str(source), "stream": "large"}, "/api/ingest/csv")
    assert (job["documents"], job["skipped"]) == (400_000, 1), job
    facts = "count(*), sum(n), sum(price), count(note), bit_xor(hash(id, n, note))"
    files = [str(path) for path in pathlib.Path(server.data).rglob("*.parquet") if "/large/" in str(path)]
    assert len(files) == 1, files
    wanted = duckdb.sql(f"SELECT {facts} FROM read_csv('{source}', header=true, ignore_errors=true, nullstr='')").fetchone()
    assert duckdb.sql(f"SELECT {facts} FROM read_parquet('{files[0]}')").fetchone() == wanted
    assert count(server, "default.large") == {"c": 400_000, "s": wanted[1]}


def test_s17_places_that_are_not_allowed_are_refused_with_the_setting(reader, drop, tmp_path):
    server = reader()
    (tmp_path / "outside.csv").write_text("n\n1\n")
    os.symlink(tmp_path / "outside.csv", drop / "link.csv")
    for path in ("/etc/passwd", str(drop / "../outside.csv"), str(drop / "link.csv"), "/proc/self/environ", str(server.data / "catalog.db")):
        answer = post(server, "/api/ingest/file", {"path": path})
        assert answer.status_code == 403, (path, answer.text)
        assert answer.json()["setting"] == "imports.roots"
    for url in ("http://127.0.0.1:1/x", "http://169.254.169.254/latest/meta-data", "http://[::ffff:127.0.0.1]/", "http://2130706433/"):
        answer = post(server, "/api/ingest/file", {"url": url})
        assert answer.status_code == 403 and answer.json()["setting"] == "imports.hosts", (url, answer.text)
    assert post(server, "/api/ingest/file", {"url": "s3://other/x"}).json()["setting"] == "imports.buckets"
    assert post(server, "/api/ingest/file", {"path": str(drop / "absent.csv")}).status_code == 404
    assert post(server, "/api/ingest/file", {"url": "gopher://x/"}).status_code == 400


class Slow(http.server.BaseHTTPRequestHandler):
    """Serves one file by ranges, with whatever the test wants to go wrong."""

    protocol_version = "HTTP/1.1"
    latency, cut_every, etag, status, data, asked = 0.0, 0, '"1"', None, b"", 0

    def do_GET(self):
        kind = type(self)
        kind.asked += 1
        time.sleep(kind.latency)
        if kind.status:
            self.send_response(kind.status)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        start, end = 0, len(kind.data)
        if "range" in self.headers:
            first, last = self.headers["range"].removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1, len(kind.data))
        whole = "range" not in self.headers or self.headers.get("if-range", kind.etag) != kind.etag
        if whole:
            start, end = 0, len(kind.data)
        self.send_response(200 if whole else 206)
        self.send_header("etag", kind.etag)
        if not whole:
            self.send_header("content-range", f"bytes {start}-{end - 1}/{len(kind.data)}")
        self.send_header("content-length", str(end - start))
        self.end_headers()
        if kind.cut_every and kind.asked % kind.cut_every == 0:
            self.wfile.write(kind.data[start : start + (end - start) // 2])
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True
            return
        self.wfile.write(kind.data[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    class Handler(Slow):
        pass

    class Threads(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True

    httpd = Threads(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    Handler.port = httpd.server_port
    yield Handler
    httpd.shutdown()


def web_reader(reader, web):
    return reader(hosts=[{"host": "127.0.0.1", "ports": [web.port], "allow_private": True}], limits={"answer_timeout": "2s", "attempts": 4})


def test_the_event_type_is_the_row_s_own_in_the_column_that_the_stream_names(make_server, drop):
    columns = [{"name": "event_type", "type": "string", "envelope": "event_type"}, {"name": "n", "type": "long"}]
    kinds = {"event_type": ["kind"], "columns": columns, "payload": "json"}
    server = make_server({"imports": {"roots": [str(drop)]}, "streams": {"kinds": kinds}}).start()
    found = {n: ["Login", "API Error", "Refund"][n % 3] for n in range(300)}
    table = pa.table({"n": list(found), "kind": list(found.values())})
    pq.write_table(table.slice(0, 100), drop / "a.parquet")
    with open(drop / "b.csv", "w") as out:
        out.writelines(["n,kind\n"] + [f"{n},{found[n]}\n" for n in range(100, 200)])
    with open(drop / "c.jsonl", "w") as out:
        out.writelines(json.dumps({"n": n, "kind": found[n]}) + "\n" for n in range(200, 300))
    for name in ("a.parquet", "b.csv", "c.jsonl"):
        imported(server, {"path": str(drop / name), "stream": "kinds"})
    assert {row["n"]: row["event_type"] for row in server.sql("SELECT n, event_type FROM default.kinds")} == found
    (drop / "d.csv").write_text("n,kind\n300,Login\n")
    imported(server, {"path": str(drop / "d.csv"), "stream": "kinds", "event_type": "of the import"})
    assert server.sql("SELECT event_type FROM default.kinds WHERE n = 300") == [{"event_type": "of the import"}]


def test_a_remote_parquet_file_survives_cut_connections(reader, web, tmp_path):
    pq.write_table(rows(0, 200_000), tmp_path / "r.parquet", row_group_size=20_000, compression="none")
    web.data = (tmp_path / "r.parquet").read_bytes()
    web.cut_every = 3
    server = web_reader(reader, web)
    job = imported(server, {"url": f"http://127.0.0.1:{web.port}/r.parquet", "stream": "remote"})
    assert job["documents"] == 200_000
    assert count(server, "default.remote") == {"c": 200_000, "s": sum(range(200_000))}


def test_a_remote_file_that_changes_or_is_not_there_is_told(reader, web, tmp_path):
    pq.write_table(rows(0, 500_000), tmp_path / "r.parquet", row_group_size=50_000, compression="none")
    web.data = (tmp_path / "r.parquet").read_bytes()
    server = web_reader(reader, web)
    url = f"http://127.0.0.1:{web.port}/r.parquet"
    original = web.do_GET

    def changes(self):
        # Ranges are asked for side by side: from the fourth on, whichever thread sees it first.
        if type(self).asked >= 3:
            type(self).etag = '"2"'
        original(self)

    web.do_GET = changes
    job = post(server, "/api/ingest/file", {"url": url, "stream": "changing"}).json()
    assert job["state"] == "failed" and "changed while it was read" in job["errors"][0]["reason"], job
    web.do_GET = original
    for status, word in ((404, "not there"), (403, "refuses"), (503, "tried 4 times")):
        web.status = status
        job = post(server, "/api/ingest/file", {"url": url, "stream": "absent"}).json()
        assert job["state"] == "failed" and word in job["errors"][0]["reason"], job


def test_f54_a_watched_folder_takes_each_file_once_and_only_whole(reader, drop):
    server = reader()
    answer = post(server, "/api/ingest/watch", {"path": str(drop), "recursive": True, "pattern": "**/*.jsonl", "stream": "watched"})
    assert answer.status_code == 201, answer.text
    watch = answer.json()["id"]
    figures = lambda: requests.get(f"{server.http}/api/ingest/watches/{watch}").json()
    write = lambda path, numbers: path.write_text("".join(json.dumps({"n": n}) + "\n" for n in numbers))
    # By rename, from a name that nobody takes.
    (drop / "API Error").mkdir()
    write(drop / "API Error" / "a.jsonl.tmp", range(0, 10))
    (drop / "API Error" / "a.jsonl.tmp").rename(drop / "API Error" / "a.jsonl")
    # By slow appending: longer between two writes than any listing, shorter than the time to settle.
    with open(drop / "slow.jsonl", "w") as slow:
        for n in range(10, 20):
            slow.write(json.dumps({"n": n}) + "\n")
            slow.flush()
            time.sleep(0.1)
    assert until(lambda: figures()["documents"] == 20), figures()
    # The same contents under another name, a touched file, a renamed one: nothing new.
    shutil.copy(drop / "slow.jsonl", drop / "copy.jsonl")
    os.utime(drop / "slow.jsonl")
    (drop / "API Error" / "a.jsonl").rename(drop / "moved.jsonl")
    assert until(lambda: figures()["files_unchanged"] >= 3), figures()
    # Restarted, it goes on, and what it took stays taken.
    server.stop()
    write(drop / "later.jsonl", range(20, 30))
    server.start()
    assert until(lambda: figures()["documents"] >= 30), figures()
    time.sleep(1)
    assert figures()["documents"] == 30
    assert requests.delete(f"{server.http}/api/ingest/watches/{watch}").status_code == 204
    left = [w["id"] for w in requests.get(f"{server.http}/api/ingest/watches").json()["watches"]]
    assert watch not in left


def test_f54_a_thousand_files_at_once_by_folders_of_event_types(reader, drop):
    server = reader()
    for kind in ("Login", "GameOpened", "API Error"):
        (drop / kind).mkdir()
    for n in range(300):
        kind = ("Login", "GameOpened", "API Error")[n % 3]
        (drop / kind / f"{n}.jsonl").write_text(json.dumps({"n": n, "memberCode": f"m{n}", "@timestamp": "2025-06-12T23:59:58.997Z"}) + "\n")
    job = imported(server, {"path": str(drop), "recursive": True, "file_pattern": "*.jsonl", "event_type_from_dir": True, "parallel_files": 4, "stream": "many"}, "/api/ingest/bulk?wait=120s")
    assert (job["files"], job["documents"], job["files_failed"]) == (300, 300, 0)


def test_an_uploaded_file_is_imported_and_the_same_one_again_is_not(reader, tmp_path):
    server = reader()
    pq.write_table(rows(0, 1000), tmp_path / "u.parquet")
    put = lambda: requests.put(f"{server.http}/api/ingest/upload/sent?name=u.parquet", data=open(tmp_path / "u.parquet", "rb"), timeout=60)
    first, second = put(), put()
    assert first.status_code == 200 and first.json()["documents"] == 1000, first.text
    assert second.json()["files_unchanged"] == 1 and second.json()["documents"] == 0, second.text
    assert count(server, "default.sent")["c"] == 1000
    assert not list((server.data / "imports" / "spool").iterdir())


def test_staged_files_land_in_their_table_and_are_put_aside(reader):
    server = reader(staging={"stream": "staged"})
    staging = server.data / "warehouse" / "staging"
    assert until(staging.is_dir)
    (staging / "orders").mkdir()
    (staging / "orders" / "x.csv").write_text("n,text\n1,one\n2,two\n")
    (staging / "y.csv").write_text("n,text\n3,three\n")
    tables = lambda: {f"{t[0]}.{t[1]}" for t in server.catalog().list_tables("default")} if ("default",) in server.catalog().list_namespaces() else set()
    assert until(lambda: {"default.orders", "default.staged"} <= tables()), server.tail()
    assert until(lambda: (staging / "orders" / ".imported" / "x.csv").exists() and (staging / ".imported" / "y.csv").exists())
    assert count(server, "default.orders")["c"] == 2


def test_f53_a_job_goes_on_after_a_crash_and_loses_and_doubles_nothing(reader, drop):
    server = reader()
    for n in range(40):
        pq.write_table(rows(n * 5000, 5000), drop / f"{n:02}.parquet")
    job = post(server, "/api/ingest/bulk?wait=0", {"path": str(drop), "stream": "crashed", "parallel_files": 2}).json()
    assert until(lambda: requests.get(f"{server.http}/api/jobs/{job['id']}").json()["files"] >= 3)
    server.kill()
    server.start()
    ended = requests.get(f"{server.http}/api/jobs/{job['id']}?wait=120s", timeout=150).json()
    assert ended["state"] == "done" and ended["documents"] == 200_000, ended
    assert count(server, "default.crashed") == {"c": 200_000, "s": sum(range(200_000))}


def test_the_command_line_imports_with_a_server_and_without_one(reader, drop, tmp_path):
    server = reader()
    (drop / "a.csv").write_text("n,text\n1,one\n2,two\n")
    (tmp_path / "mine.csv").write_text("n,text\n3,three\n")
    url = ["--url", server.http]
    inside = server.cli("import", str(drop / "a.csv"), "--stream", "lines", *url)
    assert inside.returncode == 0 and "rows               2" in inside.stdout, inside
    sent = server.cli("import", str(tmp_path / "mine.csv"), "--stream", "lines", *url)
    assert sent.returncode == 0 and "sending" in sent.stderr, sent
    assert count(server, "default.lines")["c"] == 3
    server.stop()
    alone = server.cli("import", str(tmp_path / "mine.csv"), "--stream", "alone", "--config", str(server.config), *url)
    assert alone.returncode == 0 and "rows               1" in alone.stdout, alone
    dry = server.cli("import", str(tmp_path / "mine.csv"), "--stream", "dry", "--dry-run", "--config", str(server.config), *url)
    assert dry.returncode == 0, dry
    server.start()
    assert count(server, "default.alone")["c"] == 1


@pytest.fixture(scope="session")
def minio(tmp_path_factory):
    if not os.access(MINIO, os.X_OK):
        pytest.skip("minio is not here")
    boto3 = pytest.importorskip("boto3")

    folder, port = tmp_path_factory.mktemp("minio"), free_port()
    env = dict(os.environ, MINIO_ROOT_USER="minioadmin", MINIO_ROOT_PASSWORD="minioadmin", MINIO_BROWSER="off", MINIO_UPDATE="off")
    process = subprocess.Popen([MINIO, "server", "--quiet", "--address", f"127.0.0.1:{port}", str(folder)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"

    def ready():
        try:
            return requests.get(f"{endpoint}/minio/health/ready", timeout=1).status_code == 200
        except requests.ConnectionError:
            return False

    assert until(ready, 60)
    client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="minioadmin", aws_secret_access_key="minioadmin", region_name="us-east-1")
    client.create_bucket(Bucket="drop")
    yield endpoint, client
    process.terminate()
    process.wait()


def test_files_of_a_real_bucket(make_server, minio, tmp_path):
    endpoint, client = minio
    pq.write_table(rows(0, 100_000), tmp_path / "r.parquet", row_group_size=10_000)
    client.upload_file(str(tmp_path / "r.parquet"), "drop", "in/API Error/r.parquet")
    client.put_object(Bucket="drop", Key="in/Login/a&b é.csv", Body=b"n,text\n100000,last\n")
    s3 = {"endpoint": endpoint, "access_key": "minioadmin", "secret_key": "minioadmin"}
    settings = {"storage": {"s3": s3}, "imports": {"buckets": ["drop/in/"], "watch": {"poll": "300ms"}}}
    server = make_server(settings).start()
    job = imported(server, {"path": "s3://drop/in/", "recursive": True, "stream": "bucket"}, "/api/ingest/bulk")
    assert (job["files"], job["documents"]) == (2, 100_001)
    assert count(server, "default.bucket") == {"c": 100_001, "s": sum(range(100_001))}
    assert imported(server, {"path": "s3://drop/in/*/*.parquet", "stream": "bucket"})["files_unchanged"] == 1
    assert post(server, "/api/ingest/file", {"path": "s3://drop/elsewhere/x.csv"}).status_code == 403
    assert post(server, "/api/ingest/file", {"path": "s3://drop/in/absent.csv"}).status_code == 404
    watch = post(server, "/api/ingest/watch", {"path": "s3://drop/in/new/", "stream": "fresh", "after": "move"}).json()
    client.put_object(Bucket="drop", Key="in/new/x.csv", Body=b"n,text\n1,one\n")
    keys = lambda: {o["Key"] for o in client.list_objects_v2(Bucket="drop", Prefix="in/new/").get("Contents", [])}
    assert until(lambda: keys() == {"in/new/.imported/x.csv"}), (keys(), requests.get(f"{server.http}/api/ingest/watches/{watch['id']}").json())
    assert count(server, "default.fresh")["c"] == 1
    log = server.log.read_text()
    assert "minioadmin" not in log


def test_a_text_file_is_read_as_the_contract_has_it_and_nothing_of_a_value_is_lost(make_server, drop):
    path = lambda name, column_type: {"name": name, "type": column_type, "path": name}
    columns = [path("id", "string"), path("price", "decimal(17,4)"), path("ratio", "double"), path("label", "string"), path("n", "long")]
    streams = {"exact": {"columns": columns, "payload": "json"}}
    server = make_server({"streams": streams, "imports": {"roots": [str(drop)]}}).start()
    texts = ["1.50", "1e5", "TRUE", "2024-12-01 10:00:00", "007", "A12"]
    lines = [f"{text},1234567890123.4567,{at},{text},{at}" for at, text in enumerate(texts)]
    # What a sample shows is whole numbers; what comes after it is not.
    lines = [f"{n},{n}.0001,{n},{n},{n}" for n in range(60_000)] + [*lines, "late,0.5,0.25,text,7"]
    (drop / "exact.csv").write_text("id,price,ratio,label,n\n" + "\n".join(lines) + "\n")
    job = imported(server, {"path": str(drop / "exact.csv"), "stream": "exact"}, "/api/ingest/csv")
    assert (job["documents"], job["skipped"]) == (len(lines), 0), job
    judged = server.catalog().load_table("default.exact").scan().to_arrow()
    source = duckdb.sql(f"SELECT * FROM read_csv('{drop}/exact.csv', header=true, all_varchar=true)")
    wanted = duckdb.sql("SELECT count(*), bit_xor(hash(id, price::DECIMAL(17,4), ratio::DOUBLE, label, n::BIGINT)) FROM source").fetchone()
    assert duckdb.sql("SELECT count(*), bit_xor(hash(id, price, ratio, label, n)) FROM judged").fetchone() == wanted


def test_rows_that_the_contract_refuses_are_told_with_their_number_and_reason(make_server, drop):
    columns = [{"name": "n", "type": "long", "path": "n", "required": True}, {"name": "text", "type": "string", "path": "text"}]
    server = make_server({"streams": {"strict": {"columns": columns, "payload": "json"}}, "imports": {"roots": [str(drop)]}}).start()
    (drop / "some.jsonl").write_text('{"n": 1}\n{"n": "two"}\n{"text": "three"}\n{"n": 4}\nnone\n')
    job = imported(server, {"path": str(drop / "some.jsonl"), "stream": "strict"}, "/api/ingest/jsonl")
    assert (job["documents"], job["skipped"]) == (2, 3), job
    assert [problem["row"] for problem in job["errors"]] == [2, 3, 5], job["errors"]
    assert "n must be" in job["errors"][0]["reason"] and "n is required" in job["errors"][1]["reason"], job["errors"]


def test_of_a_file_that_breaks_only_what_is_committed_counts(reader, drop):
    server = reader()
    text = "n,text\n" + "".join(f"{n},row {n}\n" for n in range(200_000))
    (drop / "cut.csv.gz").write_bytes(gzip.compress(text.encode())[:-200_000])
    answer = post(server, "/api/ingest/csv", {"path": str(drop / "cut.csv.gz"), "stream": "cut"})
    job = answer.json()
    assert (job["state"], job["documents"], job["files_failed"]) == ("failed", 0, 1), job
    tables = {name[-1] for name in server.catalog().list_tables("default")}
    assert "cut" not in tables or server.catalog().load_table("default.cut").scan().to_arrow().num_rows == 0
