"""Rows in by SQL: INSERT, files, tables made and dropped; DuckDB and PyIceberg as judges."""

import datetime
import decimal
import json

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests

from test_files import minio  # noqa: F401
from test_security import api_key, guarded  # noqa: F401

BRONZE = {"streams": {"service_events_raw": {"contract": "service_events_raw"}}}

# The row of the ingestion guide, to the letter.
CSV = (
    "event_date,event_time,tenant_id,service,entity_type,entity_id,event_type,status,actor_type,actor_id,channel,ward_id,locality_id,attributes_json,raw_payload\n"
    '2024-12-01,2024-12-01 10:00:00,TENANT_001,PGR,complaint,CMP_001,CaseSubmitted,OPEN,CITIZEN,CIT_001,WEB,WARD_001,LOC_001,"{""complaint_type"":""Water Supply"",""priority"":""MEDIUM"",""sla_hours"":72}",NULL\n'
)
COLUMNS = CSV.split("\n")[0].split(",")
DECLARED = ", ".join(
    f"{name} {'DATE' if name == 'event_date' else 'TIMESTAMP' if name == 'event_time' else 'VARCHAR'}" for name in COLUMNS
)


def ask(server, sql, headers=None, **more):
    return requests.post(f"{server.http}/api/sql", json={"sql": sql, **more}, headers=headers or {}, timeout=60)


def refused(server, sql, status, code=None, **more):
    answer = ask(server, sql, **more)
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert code is None or problem["code"] == code, problem
    return problem["detail"]


@pytest.fixture
def staged(tmp_path, make_server):
    folder = tmp_path / "staging"
    folder.mkdir()
    (folder / "pgr.csv").write_text(CSV)
    settings = {**BRONZE, "imports": {"roots": [str(folder)]}}
    server = make_server(settings).start()
    server.staging = folder
    return server


def test_an_insert_is_durable_seen_at_once_and_read_by_others(server):
    server.sql(
        "CREATE TABLE iceberg.bronze.kinds (id BIGINT NOT NULL, price DECIMAL(12,2), day DATE, at TIMESTAMP, "
        "seen TIMESTAMP(6) WITH TIME ZONE, name VARCHAR, ok BOOLEAN, part DOUBLE, raw VARBINARY) "
        "WITH (format = 'PARQUET', partitioning = ARRAY['day', 'bucket(id, 4)'])"
    )
    done = server.sql(
        "INSERT INTO iceberg.bronze.kinds VALUES "
        "(1, 1234567890.12, DATE '2024-12-01', TIMESTAMP '2024-12-01 10:00:00.123456', TIMESTAMP '2024-12-01 10:00:00 UTC', 'it''s', true, 0.5, X'00ff'), "
        "(2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)"
    )
    assert done[0]["rows"] == 2 and done[0]["duplicates"] == 0
    assert server.sql("SELECT count(*) AS n FROM bronze.kinds")[0]["n"] == 2
    done = server.sql("INSERT INTO bronze.kinds (id, name, price) VALUES (?, ?, ?)", parameters=[3, "x'); DROP TABLE y; --", "7.5"])
    assert done[0]["rows"] == 1
    assert server.sql("SELECT name FROM bronze.kinds WHERE id = ?", parameters=[3]) == [{"name": "x'); DROP TABLE y; --"}]
    server.wait_absorbed()
    table = server.catalog().load_table("bronze.kinds")
    assert [f.name for f in table.spec().fields][0].startswith("day") and len(table.spec().fields) == 2
    rows = {row["id"]: row for row in table.scan().to_arrow().to_pylist()}
    one = rows[1]
    assert one["price"] == decimal.Decimal("1234567890.12") and one["day"] == datetime.date(2024, 12, 1)
    assert one["at"] == datetime.datetime(2024, 12, 1, 10, 0, 0, 123456) and one["raw"] == b"\x00\xff"
    assert one["seen"] == datetime.datetime(2024, 12, 1, 10, tzinfo=datetime.timezone.utc)
    assert (one["name"], one["ok"], one["part"]) == ("it's", True, 0.5)
    assert all(value is None for name, value in rows[2].items() if name != "id")
    assert rows[3]["price"] == decimal.Decimal("7.50")


def test_a_bad_row_refuses_the_whole_insert_with_row_column_found_and_expected(make_server):
    server = make_server(BRONZE).start()
    server.sql("CREATE TABLE bronze.n (id BIGINT NOT NULL, day DATE)")
    detail = refused(server, "INSERT INTO bronze.n VALUES (1, '2024-12-01'), (2, 'not a day')", 400)
    assert "row 2" in detail and "day" in detail and "not a day" in detail and "nothing was stored" in detail
    detail = refused(server, "INSERT INTO bronze.n VALUES (1, DATE '2024-12-01'), (NULL, NULL)", 400)
    assert "row 2" in detail and "id is required" in detail
    assert server.sql("SELECT count(*) AS n FROM bronze.n")[0]["n"] == 0
    detail = refused(server, "INSERT INTO bronze.n (id, nonsense) VALUES (1, 2)", 400)
    assert "nonsense" in detail and "id, day" in detail
    detail = refused(server, "INSERT INTO bronze.n VALUES (1)", 400)
    assert "1 values a row" in detail and "id, day" in detail
    detail = refused(server, "INSERT INTO bronze.missing VALUES (1)", 404)
    assert "bronze.missing" in detail


def test_the_guides_file_goes_in_by_its_place_and_by_an_external_table(staged):
    place = staged.staging / "pgr.csv"
    assert staged.sql(f"SELECT entity_id, attributes_json FROM '{place}'")[0]["entity_id"] == "CMP_001"
    done = staged.sql(f"INSERT INTO iceberg.bronze.service_events_raw SELECT * FROM '{place}'")
    assert done[0]["rows"] == 1
    staged.sql(
        f"CREATE TABLE iceberg.bronze.temp_pgr_events_staging ({DECLARED}) WITH (\n format = 'CSV',  -- or 'PARQUET'\n"
        f" external_location = '{place}',\n skip_header_line_count = 1  -- if CSV has header\n)"
    )
    assert "bronze.temp_pgr_events_staging" in json.dumps(staged.sql("SELECT table_schema || '.' || table_name AS t FROM information_schema.tables"))
    staged.kill()
    staged.start()
    done = staged.sql("INSERT INTO iceberg.bronze.service_events_raw SELECT * FROM iceberg.bronze.temp_pgr_events_staging")
    assert done[0]["rows"] == 1
    refused(staged, "INSERT INTO bronze.temp_pgr_events_staging SELECT * FROM bronze.temp_pgr_events_staging", 403)
    staged.sql("DROP TABLE iceberg.bronze.temp_pgr_events_staging")
    refused(staged, "SELECT * FROM bronze.temp_pgr_events_staging", 404)
    refused(staged, "DROP TABLE bronze.service_events_raw", 403, "declared")
    staged.wait_absorbed()
    found = staged.catalog().load_table("bronze.service_events_raw").scan().to_arrow().to_pylist()
    with duckdb.connect() as judge:
        names = ", ".join(COLUMNS)
        wanted = judge.execute(f"SELECT {names} FROM read_csv('{place}', nullstr='NULL')").fetchall()
    assert [tuple(row[name] for name in COLUMNS) for row in found] == wanted * 2
    assert json.loads(found[0]["attributes_json"])["sla_hours"] == 72 and found[0]["raw_payload"] is None


def test_files_of_every_kind_are_tables_and_those_outside_of_the_roots_name_the_setting(staged, tmp_path):
    table = pa.table({"id": pa.array([1, 2], pa.int64()), "name": ["007", None]})
    pq.write_table(table, staged.staging / "t.parquet")
    (staged.staging / "t.jsonl").write_text('{"id": 1, "name": "007"}\n{"id": 2, "name": null}\n')
    (staged.staging / "t.csv").write_text("1;007\n2;NULL\n")
    staged.sql("CREATE TABLE bronze.t (id BIGINT, name VARCHAR)")
    for name in ("t.parquet", "t.jsonl"):
        assert staged.sql(f"INSERT INTO bronze.t SELECT id, name FROM '{staged.staging / name}'")[0]["rows"] == 2
    staged.sql(
        "CREATE TABLE bronze.semi (id BIGINT, name VARCHAR) WITH (format='CSV', csv_separator=';', "
        f"skip_header_line_count=0, external_location='{staged.staging / 't.csv'}')"
    )
    assert staged.sql("INSERT INTO bronze.t SELECT * FROM bronze.semi")[0]["rows"] == 2
    assert staged.sql("SELECT id, name, count(*) AS n FROM bronze.t GROUP BY 1, 2 ORDER BY 1") == [
        {"id": 1, "name": "007", "n": 3},
        {"id": 2, "name": None, "n": 3},
    ]
    (staged.staging / "bad.csv").write_text("id,name\n1,a\nx,b\n")
    staged.sql(
        "CREATE TABLE bronze.bad (id BIGINT, name VARCHAR) WITH (format='CSV', skip_header_line_count=1, "
        f"external_location='{staged.staging / 'bad.csv'}')"
    )
    detail = refused(staged, "INSERT INTO bronze.t SELECT * FROM bronze.bad", 400)
    assert "row 2" in detail and "id" in detail and '"x"' in detail
    outside = tmp_path / "outside.csv"
    outside.write_text("a\n1\n")
    assert "imports.roots" in refused(staged, f"SELECT * FROM '{outside}'", 403)
    assert "imports.buckets" in refused(staged, "SELECT * FROM 's3://warehouse/staging/x.csv'", 403)
    refused(staged, f"SELECT * FROM '{staged.staging / 'none.csv'}'", 400)


def test_rows_of_a_query_large_and_small_make_tables_and_few_files(server):
    server.sql("CREATE TABLE lab.numbers AS SELECT value AS n, value * 1.5 AS m FROM generate_series(1, 250000)")
    found = server.sql("SELECT count(*) AS n, sum(n) AS s FROM lab.numbers")[0]
    assert (found["n"], found["s"]) == (250_000, 250_000 * 250_001 // 2)
    server.sql("CREATE TABLE lab.small (n BIGINT)")
    for n in range(50):
        server.sql("INSERT INTO lab.small VALUES (?)", parameters=[n])
    server.wait_absorbed()
    table = server.catalog().load_table("lab.small")
    assert sorted(table.scan().to_arrow()["n"].to_pylist()) == list(range(50))
    assert len(table.inspect.files()) < 25
    server.sql("INSERT INTO lab.small SELECT n FROM lab.small")
    assert server.sql("SELECT count(*) AS n FROM lab.small")[0]["n"] == 100


def test_a_table_of_another_engine_takes_inserts_and_a_dropped_one_stays_away(server):
    catalog = server.catalog()
    catalog.create_namespace("other")
    theirs = catalog.create_table("other.t", pa.schema([pa.field("id", pa.int64(), nullable=False), ("name", pa.string())]))
    theirs.append(pa.table({"id": pa.array([1], pa.int64()), "name": ["a"]}, schema=theirs.schema().as_arrow()))
    assert server.sql("INSERT INTO other.t VALUES (2, 'b')")[0]["rows"] == 1
    assert server.sql("SELECT id, name FROM other.t ORDER BY id") == [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    server.sql("DROP TABLE other.t")
    refused(server, "SELECT * FROM other.t", 404)
    server.kill()
    server.start()
    refused(server, "SELECT * FROM other.t", 404)
    assert refused(server, "DROP TABLE other.t", 404)
    server.sql("DROP TABLE IF EXISTS other.t")
    server.sql("CREATE TABLE other.t (only BIGINT)")
    server.sql("INSERT INTO other.t VALUES (7)")
    server.wait_absorbed()
    assert server.catalog().load_table("other.t").scan().to_arrow().to_pylist() == [{"only": 7}]


def test_acknowledged_inserts_survive_a_kill(server):
    server.sql("CREATE TABLE default.kept (n BIGINT)")
    for n in range(20):
        server.sql("INSERT INTO kept VALUES (?)", parameters=[n])
    server.kill()
    server.start()
    assert server.sql("SELECT count(*) AS n, sum(n) AS s FROM kept")[0] == {"n": 20, "s": 190}
    assert server.cli("audit", "--url", server.http).returncode == 0


def test_s04_reading_writing_and_changing_tables_each_take_their_permission(guarded):  # noqa: F811
    def status(name, sql):
        return ask(guarded, sql, headers=dict(api_key(guarded, name))).status_code

    assert status("a", "CREATE TABLE acme.t (n BIGINT)") == 403
    assert status("write_only", "SELECT * FROM carts") == 403
    # Another tenant's table is as one that is not there.
    assert status("a", "INSERT INTO umbrella.t VALUES (1)") in (403, 404)
    assert status("a", "DROP TABLE umbrella.t") == 403


def test_the_guides_second_method_with_a_real_bucket(make_server, minio):  # noqa: F811
    endpoint, client = minio
    if "warehouse" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket="warehouse")
    client.put_object(Bucket="warehouse", Key="staging/pgr_events_20241201.csv", Body=CSV.encode())
    s3 = {"endpoint": endpoint, "access_key": "minioadmin", "secret_key": "minioadmin"}
    server = make_server({**BRONZE, "storage": {"s3": s3}, "imports": {"buckets": ["warehouse/staging/"]}}).start()
    place = "s3://warehouse/staging/pgr_events_20241201.csv"
    server.sql(
        f"CREATE TABLE iceberg.bronze.temp_pgr ({DECLARED}) WITH (format = 'CSV', external_location = '{place}', skip_header_line_count = 1)"
    )
    assert server.sql("INSERT INTO iceberg.bronze.service_events_raw SELECT * FROM iceberg.bronze.temp_pgr")[0]["rows"] == 1
    assert server.sql(f"INSERT INTO iceberg.bronze.service_events_raw SELECT * FROM '{place}'")[0]["rows"] == 1
    server.sql("DROP TABLE iceberg.bronze.temp_pgr")
    assert server.sql("SELECT count(*) AS n FROM bronze.service_events_raw WHERE entity_id = 'CMP_001'")[0]["n"] == 2
    assert "imports.buckets" in refused(server, "SELECT * FROM 's3://warehouse/elsewhere/x.csv'", 403)
    assert "no" in refused(server, "SELECT * FROM 's3://warehouse/staging/none.csv'", 400)


def test_s04_files_are_read_by_who_may_import_them(guarded):  # noqa: F811
    answer = ask(guarded, "SELECT * FROM '/etc/hostname'", headers=dict(api_key(guarded, "read_cart")))
    assert answer.status_code == 403 and "permission to write" in answer.json()["detail"], answer.text
