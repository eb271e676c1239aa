"""Parquet files of other writers: taken as they are where that is right, written anew where not, and read back equal."""

import datetime
import decimal
import hashlib
import pathlib

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import requests

from test_files import drop, imported, post, reader, until  # noqa: F401


def events(count, start=0):
    numbers = range(start, start + count)
    day = datetime.datetime(2026, 11, 21, tzinfo=datetime.timezone.utc)
    return pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "small": pa.array([n % 100 for n in numbers], pa.int32()),
            "text": [f"row {n} é" if n % 7 else None for n in numbers],
            "at": pa.array([day + datetime.timedelta(seconds=n) for n in numbers], pa.timestamp("us", tz="UTC")),
            "local": pa.array([datetime.datetime(2026, 1, 1) + datetime.timedelta(seconds=n) for n in numbers], pa.timestamp("us")),
            "day": pa.array([datetime.date(2026, 1, 1 + n % 28) for n in numbers], pa.date32()),
            "price": pa.array([decimal.Decimal(n) / 4 for n in numbers], pa.decimal128(12, 2)),
            "score": pa.array([n / 3 for n in numbers], pa.float64()),
            "ok": pa.array([n % 2 == 0 for n in numbers], pa.bool_()),
            "raw": pa.array([bytes([n % 256, 0, 255]) for n in numbers], pa.binary()),
        }
    )


def judged(server, duck, table):
    """The table's rows as PyIceberg and DuckDB read them, which must agree; and the names of its data files."""
    loaded = server.catalog().load_table(table)
    rows = sorted(loaded.scan().to_arrow().to_pylist(), key=lambda row: row["id"])
    location = loaded.metadata_location.removeprefix("file://")
    seen = duck()
    seen.execute("SET TimeZone = 'UTC'")
    assert seen.execute(f"SELECT * FROM iceberg_scan('{location}') ORDER BY id").to_arrow_table().to_pylist() == rows
    return rows, [task.file.file_path.removeprefix("file://") for task in loaded.scan().plan_files()]


def digest(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def test_a_file_that_fits_is_taken_byte_for_byte_and_read_by_other_engines(reader, drop, duck):
    server = reader()
    first, second = events(3000), events(2000, 3000)
    pq.write_table(first, drop / "pyarrow.parquet", row_group_size=1000, write_page_checksum=True)
    duckdb.sql("SELECT * FROM second").write_parquet(str(drop / "duckdb.parquet"), compression="zstd")
    for name, rows in (("pyarrow", 3000), ("duckdb", 2000)):
        job = imported(server, {"path": str(drop / f"{name}.parquet"), "stream": "facts"})
        assert (job["documents"], job["files_adopted"], job["skipped"]) == (rows, 1, 0), job
        assert job["choices"][0]["adopted"] and "fit the table" in job["choices"][0]["reason"], job
    rows, files = judged(server, duck, "default.facts")
    assert rows == first.to_pylist() + second.to_pylist()
    assert {digest(f) for f in files} == {digest(drop / "pyarrow.parquet"), digest(drop / "duckdb.parquet")}
    again = imported(server, {"path": str(drop / "pyarrow.parquet"), "stream": "facts"})
    assert (again["files_unchanged"], again["files_adopted"], again["documents"]) == (1, 0, 0)
    assert server.sql("SELECT count(*) AS c, sum(price) AS p FROM default.facts")[0]["c"] == 5000
    server.kill()
    server.start()
    assert server.sql("SELECT count(*) AS c FROM default.facts")[0]["c"] == 5000
    audit = requests.get(f"{server.http}/api/audit", timeout=60).json()
    assert audit.get("closes", audit.get("balanced", True)), audit


def test_rewrite_forces_the_other_way_and_the_choice_says_why(reader, drop, duck):
    server = reader()
    source = events(1000)
    pq.write_table(source, drop / "a.parquet")
    job = imported(server, {"path": str(drop / "a.parquet"), "stream": "facts", "rewrite": True})
    assert (job["files_adopted"], job["choices"][0]["adopted"]) == (0, False)
    assert "as was asked" in job["choices"][0]["reason"]
    rows, files = judged(server, duck, "default.facts")
    assert rows == source.to_pylist() and digest(files[0]) != digest(drop / "a.parquet")
    shown = server.cli("import", str(drop / "a.parquet"), "--stream", "facts", "--again", "--rewrite", "--url", server.http)
    assert "a.parquet: written anew: the rows are to be written anew, as was asked" in shown.stderr, shown
    shown = server.cli("import", str(drop / "a.parquet"), "--stream", "other", "--url", server.http)
    assert "a.parquet: taken as it is" in shown.stderr and "taken as is      1" in shown.stdout, shown


def test_files_as_spark_wrote_them_are_written_anew_and_equal_the_source(reader, drop, duck):
    server = reader()
    source = events(500).append_column("list", pa.array([[n, None, n + 1] if n % 3 else None for n in range(500)], pa.list_(pa.int64())))
    pq.write_table(source, drop / "spark.parquet", use_deprecated_int96_timestamps=True, use_compliant_nested_type=False, version="1.0", flavor="spark")
    job = imported(server, {"path": str(drop / "spark.parquet"), "stream": "spark"})
    assert (job["documents"], job["files_adopted"]) == (500, 0)
    rows, _ = judged(server, duck, "default.spark")
    # INT96 has no zone: its times are UTC.
    for found, expected in zip(rows, source.to_pylist(), strict=True):
        for name in ("id", "small", "text", "day", "price", "score", "ok", "raw"):
            assert found[name] == expected[name], name
        for name in ("at", "local"):
            assert found[name].replace(tzinfo=None) == expected[name].replace(tzinfo=None), name


def test_s29_f53_a_damaged_file_is_not_taken_and_nothing_of_it_is_in_the_table(reader, drop, duck):
    server = reader()
    source = events(20_000)
    pq.write_table(source, drop / "good.parquet", compression="none", use_dictionary=False, write_page_checksum=True)
    imported(server, {"path": str(drop / "good.parquet"), "stream": "facts"})
    flipped = bytearray((drop / "good.parquet").read_bytes())
    place = pq.ParquetFile(drop / "good.parquet").metadata.row_group(0).column(0).data_page_offset + 4000
    flipped[place] ^= 1
    (drop / "flipped.parquet").write_bytes(flipped)
    job = post(server, "/api/ingest/file", {"path": str(drop / "flipped.parquet"), "stream": "facts"}).json()
    assert (job["state"], job["documents"], job["files_failed"]) == ("failed", 0, 1), job
    assert "row group 0, column \"id\"" in job["errors"][0]["reason"] and "checksum" in job["errors"][0]["reason"], job
    zeroed = bytearray((drop / "good.parquet").read_bytes())
    zeroed[place - 4000 : place - 3900] = bytes(100)
    (drop / "zeroed.parquet").write_bytes(zeroed)
    job = post(server, "/api/ingest/file", {"path": str(drop / "zeroed.parquet"), "stream": "facts"}).json()
    assert (job["state"], job["documents"]) == ("failed", 0), job
    assert server.sql("SELECT count(*) AS c FROM default.facts")[0]["c"] == 20_000
    rows, files = judged(server, duck, "default.facts")
    assert len(rows) == 20_000 and len(files) == 1


def test_what_the_stream_asks_for_decides_and_sent_watched_and_staged_files_are_taken_as_they_are_too(make_server, drop, duck):
    keyed = {"columns": [{"name": "id", "type": "long"}, {"name": "text", "type": "string"}], "event_key": ["id"], "undeclared": "reject"}
    settings = {"imports": {"roots": [str(drop)], "watch": {"settle": "300ms", "poll": "300ms"}}, "streams": {"keyed": keyed}}
    server = make_server(settings).start()
    rows = events(100).select(["id", "text"])
    pq.write_table(rows, drop / "keyed.parquet")
    job = imported(server, {"path": str(drop / "keyed.parquet"), "stream": "keyed"})
    assert job["documents"] == 100 and not job["choices"][0]["adopted"] and "duplicates" in job["choices"][0]["reason"], job
    with open(drop / "keyed.parquet", "rb") as body:
        sent = requests.put(f"{server.http}/api/ingest/upload/sent?name=x.parquet", data=body, timeout=60).json()
    assert (sent["files_adopted"], sent["documents"]) == (1, 100), sent
    watch = post(server, "/api/ingest/watch", {"path": str(drop), "stream": "watched"}).json()
    figures = lambda: requests.get(f"{server.http}/api/ingest/watches/{watch['id']}").json()  # noqa: E731
    assert until(lambda: figures()["files_adopted"] == 1), figures()
    staging = server.data / "warehouse" / "staging" / "staged"
    staging.mkdir(parents=True)
    pq.write_table(rows, staging / "s.parquet")
    assert until(lambda: ("default", "staged") in server.catalog().list_tables("default")), server.tail()
    for stream in ("sent", "watched", "staged"):
        assert until(lambda: judged(server, duck, f"default.{stream}")[0] == rows.to_pylist()), stream
        assert digest(judged(server, duck, f"default.{stream}")[1][0]) == digest(drop / "keyed.parquet") or stream == "staged"


def nested(count):
    numbers = range(count)
    day = datetime.datetime(2026, 11, 21, tzinfo=datetime.timezone.utc)
    person = pa.struct([("name", pa.string()), ("born", pa.date32()), ("tags", pa.list_(pa.string()))])
    people = [None if n % 5 == 0 else {"name": f"p{n}", "born": datetime.date(2000, 1, 1 + n % 28), "tags": ["a", None] if n % 2 else None} for n in numbers]
    return pa.table(
        {
            "id": pa.array(numbers, pa.int64()),
            "person": pa.array(people, person),
            "scores": pa.array([[n / 2, None] if n % 3 else [] for n in numbers], pa.list_(pa.float64())),
            "counts": pa.array([[(f"k{n}", n), ("z", None)] if n % 4 else None for n in numbers], pa.map_(pa.string(), pa.int64())),
            "stays": pa.array([[{"at": day + datetime.timedelta(hours=n), "price": decimal.Decimal("1.25")}] for n in numbers], pa.list_(pa.struct([("at", pa.timestamp("us", tz="UTC")), ("price", pa.decimal128(10, 2))]))),
        }
    )


def test_nested_columns_stay_structs_lists_and_maps(reader, drop, duck):
    server = reader()
    source = nested(400)
    pq.write_table(source, drop / "compliant.parquet")
    pq.write_table(nested(400).slice(0, 100), drop / "legacy.parquet", use_compliant_nested_type=False, flavor="spark")
    job = imported(server, {"path": str(drop / "compliant.parquet"), "stream": "nested"})
    assert (job["documents"], job["skipped"]) == (400, 0), job
    loaded = server.catalog().load_table("default.nested")
    types = {field.name: str(field.field_type) for field in loaded.schema().fields}
    assert types["scores"] == "list<double>" and types["counts"] == "map<string, long>" and types["person"].startswith("struct<"), types
    rows, _ = judged(server, duck, "default.nested")
    assert rows == source.to_pylist()
    job = imported(server, {"path": str(drop / "legacy.parquet"), "stream": "nested"})
    assert (job["documents"], job["skipped"]) == (100, 0), job
    rows, _ = judged(server, duck, "default.nested")
    assert len(rows) == 500
    found = server.sql("SELECT person['name'] AS name, scores[1] AS first FROM default.nested WHERE id = 7")
    assert {(row["name"], row["first"]) for row in found} == {("p7", 3.5)}


def test_records_of_nested_columns_are_held_to_their_types_hot_and_cold(reader, drop, duck, stubs):
    import json

    server = reader()
    pq.write_table(nested(10), drop / "n.parquet")
    imported(server, {"path": str(drop / "n.parquet"), "stream": "nested"})
    payloads = [{"id": 10, "person": {"name": "x", "tags": ["t"]}, "scores": [1.5, None], "stays": []}, {"id": 11, "person": {"nobody": 1}}, {"id": 12, "scores": ["a"]}]
    records = [stubs.common.DataRecord(endpoint_id="nested", payload=json.dumps(p).encode()) for p in payloads]
    answer = server.client().IngestBatch(stubs.ingestion.IngestBatchRequest(records=records))
    assert (answer.accepted, answer.rejected) == (1, 2), answer
    assert server.sql("SELECT person['name'] AS name, scores[1] AS first FROM default.nested WHERE id = 10") == [{"name": "x", "first": 1.5}]
    server.kill()
    server.start()
    assert server.sql("SELECT person['name'] AS name FROM default.nested WHERE id = 10") == [{"name": "x"}]
    server.wait_absorbed()
    rows, _ = judged(server, duck, "default.nested")
    assert rows[10]["person"] == {"name": "x", "born": None, "tags": ["t"]} and rows[10]["scores"] == [1.5, None] and len(rows) == 11


def test_a_table_grows_by_the_columns_that_a_file_brings_and_the_file_is_then_taken_as_it_is(make_server, drop, duck):
    growing = {"columns": [{"name": "id", "type": "int"}], "payload": "json", "undeclared": "evolve", "conflicts": "widen"}
    server = make_server({"imports": {"roots": [str(drop)]}, "streams": {"growing": growing}}).start()
    pq.write_table(pa.table({"id": pa.array([1, 2], pa.int32())}), drop / "a.parquet")
    pq.write_table(pa.table({"id": pa.array([3_000_000_000], pa.int64()), "colour": ["red"], "sizes": pa.array([[1, 2]], pa.list_(pa.int64()))}), drop / "b.parquet")
    (drop / "c.jsonl").write_text('{"id": 4, "colour": "blue", "late": true}\n{"id": 5, "weight": 1.5}\n')
    (drop / "d.csv").write_text("id,code\n6,007\n")
    for name, rows in (("a.parquet", 2), ("b.parquet", 1), ("c.jsonl", 2), ("d.csv", 1)):
        job = imported(server, {"path": str(drop / name), "stream": "growing"})
        assert (job["documents"], job["skipped"]) == (rows, 0), job
    loaded = server.catalog().load_table("default.growing")
    types = {field.name: str(field.field_type) for field in loaded.schema().fields}
    assert (types["id"], types["colour"], types["sizes"], types["late"], types["weight"]) == ("long", "string", "list<long>", "boolean", "double"), types
    rows, _ = judged(server, duck, "default.growing")
    found = [(row["id"], row["colour"], row["sizes"], row["late"], row["weight"]) for row in rows]
    assert found == [(1, None, None, None, None), (2, None, None, None, None), (4, "blue", None, True, None), (5, None, None, None, 1.5), (6, None, None, None, None), (3_000_000_000, "red", [1, 2], None, None)]
    assert rows[4]["code"] in (7, "007")
