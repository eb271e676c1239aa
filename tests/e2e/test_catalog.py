"""The catalog that we serve, used by others: PyIceberg and DuckDB create, read, append to and drop tables."""

import threading

import pyarrow as pa
import pytest
import requests


def rows(start, count):
    return pa.table({"n": pa.array(range(start, start + count), pa.int64()), "text": [f"row {i}" for i in range(start, start + count)]})


def attach(duck, server):
    connection = duck()
    connection.execute(f"ATTACH 'lakegate' AS lake (TYPE iceberg, ENDPOINT '{server.http}/iceberg', AUTHORIZATION_TYPE 'none')")
    return connection


def test_pyiceberg_creates_appends_reads_evolves_renames_and_drops(server):
    catalog = server.catalog()
    catalog.create_namespace("other", {"owner": "me"})
    assert ("other",) in catalog.list_namespaces()
    assert catalog.load_namespace_properties("other")["owner"] == "me"
    table = catalog.create_table("other.made", schema=rows(0, 1).schema)
    for start in range(0, 50, 10):
        table.append(rows(start, 10))
    assert sorted(catalog.load_table("other.made").scan().to_arrow()["n"].to_pylist()) == list(range(50))
    assert server.sql("SELECT count(*) AS c, sum(n) AS s FROM other.made")[0] == {"c": 50, "s": 1225}
    with table.update_schema() as change:
        change.add_column("later", __import__("pyiceberg.types").types.StringType())
    assert server.sql("SELECT count(later) AS c FROM other.made")[0] == {"c": 0}
    table.delete("n < 10")
    assert server.sql("SELECT count(*) AS c FROM other.made")[0] == {"c": 40}
    catalog.rename_table("other.made", "other.named")
    assert catalog.list_tables("other") == [("other", "named")]
    catalog.drop_table("other.named")
    assert catalog.list_tables("other") == []
    catalog.drop_namespace("other")
    assert ("other",) not in catalog.list_namespaces()


def test_duckdb_creates_inserts_reads_and_drops(server, duck):
    connection = attach(duck, server)
    connection.execute("CREATE SCHEMA lake.ducks")
    connection.execute("CREATE TABLE lake.ducks.pond (n BIGINT, text VARCHAR)")
    connection.execute("INSERT INTO lake.ducks.pond SELECT i, 'd' || i FROM range(1000) t(i)")
    connection.execute("INSERT INTO lake.ducks.pond VALUES (1000, 'last')")
    assert connection.execute("SELECT count(*), sum(n) FROM lake.ducks.pond").fetchone() == (1001, 500500)
    assert server.sql("SELECT count(*) AS c, sum(n) AS s FROM ducks.pond")[0] == {"c": 1001, "s": 500500}
    table = server.catalog().load_table("ducks.pond")
    assert table.scan().to_arrow().num_rows == 1001
    connection.execute("DROP TABLE lake.ducks.pond")
    assert server.catalog().list_tables("ducks") == []


def test_several_writers_at_once_never_lose_a_commit(server, stubs):
    """PyIceberg from four threads and our own flushes into one table."""
    record = lambda n: stubs.common.DataRecord(endpoint_id="shared", event_id=f"ours-{n}", payload=b"{}")
    client = server.client()
    client.IngestBatch(stubs.ingestion.IngestBatchRequest(records=[record(-1)]))
    server.wait_absorbed()
    schema = server.catalog().load_table("default.shared").scan().to_arrow().schema
    made = server.catalog().load_table("default.shared").scan().to_arrow()

    def append(writer):
        catalog = server.catalog()
        for i in range(5):
            row = made.slice(0, 1).set_column(made.schema.get_field_index("event_id"), "event_id", [[f"theirs-{writer}-{i}"]])
            row = row.cast(schema)
            for attempt in range(50):
                try:
                    catalog.load_table("default.shared").append(row)
                    break
                except Exception as error:
                    assert "Commit" in type(error).__name__, error
            else:
                raise AssertionError("lost the race fifty times")

    writers = [threading.Thread(target=append, args=(w,)) for w in range(4)]
    [w.start() for w in writers]
    for n in range(200):
        client.IngestBatch(stubs.ingestion.IngestBatchRequest(records=[record(n)]))
    [w.join() for w in writers]
    server.wait_absorbed()
    ids = server.catalog().load_table("default.shared").scan().to_arrow()["event_id"].to_pylist()
    expected = {f"theirs-{w}-{i}" for w in range(4) for i in range(5)} | {f"ours-{n}" for n in range(-1, 200)}
    assert len(ids) == len(set(ids)) and set(ids) == expected


def test_errors_are_those_of_the_specification(server):
    base = f"{server.http}/iceberg/v1"
    assert requests.get(f"{base}/config").json()["defaults"] is not None
    missing = requests.get(f"{base}/namespaces/none/tables/none")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == 404
    assert requests.head(f"{base}/namespaces/none/tables/none").status_code == 404
    requests.post(f"{base}/namespaces", json={"namespace": ["twice"]})
    again = requests.post(f"{base}/namespaces", json={"namespace": ["twice"]})
    assert again.status_code == 409 and again.json()["error"]["type"] == "AlreadyExistsException"
    wild = requests.post(
        f"{base}/namespaces/twice/tables",
        json={"name": "out", "location": "file:///etc", "schema": {"type": "struct", "schema-id": 0, "fields": []}},
    )
    assert wild.status_code in (400, 403), "a table outside the warehouse was made"
