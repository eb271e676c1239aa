"""Trino's own clients against the server itself: the Python client of the ingestion guide, and the command line."""

import datetime
import decimal
import pathlib
import shutil
import subprocess

import pytest
import requests

trino = pytest.importorskip("trino")

BRONZE = {"streams": {"service_events_raw": {"contract": "service_events_raw"}}}
EVENT = (
    datetime.date(2024, 12, 1), datetime.datetime(2024, 12, 1, 10, 0), "TENANT_001", "PGR", "complaint", "CMP_001",
    "CaseSubmitted", "OPEN", "CITIZEN", "CIT_001", "WEB", "WARD_001", "LOC_001", '{"priority": "MEDIUM"}', None,
)


def connect(server, **more):
    return trino.dbapi.connect(host="localhost", port=server.http_port, user="trino", catalog="iceberg", schema="bronze", **more)


@pytest.fixture
def bronze(make_server):
    return make_server(BRONZE).start()


def test_the_guides_script_inserts_with_parameters_and_reads_back(bronze):
    conn = connect(bronze)
    cur = conn.cursor()
    cur.execute(
        """
        INSERT INTO iceberg.bronze.service_events_raw VALUES
        (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
        """,
        EVENT,
    )
    assert cur.fetchall() == [[1]]
    conn.commit()
    cur.execute("SELECT event_date, event_time, entity_id, event_type, status, raw_payload FROM service_events_raw WHERE entity_id = ?", ("CMP_001",))
    assert cur.fetchall() == [[EVENT[0], EVENT[1], "CMP_001", "CaseSubmitted", "OPEN", None]]
    cur.execute("SELECT count(*) FROM iceberg.bronze.service_events_raw WHERE event_date = CURRENT_DATE ORDER BY 1 DESC LIMIT 10")
    assert cur.fetchall() == [[0]]
    bronze.wait_absorbed()
    found = bronze.catalog().load_table("bronze.service_events_raw").scan().to_arrow().to_pylist()
    assert tuple(found[0].values()) == EVENT


def test_older_clients_prepare_by_headers(bronze):
    conn = connect(bronze, legacy_prepared_statements=True)
    cur = conn.cursor()
    cur.execute("SELECT ?, ?", (5, "it's, a = %"))
    assert cur.fetchall() == [[5, "it's, a = %"]]


def test_every_type_comes_back_as_the_clients_own(bronze):
    cur = connect(bronze).cursor()
    cur.execute(
        "SELECT true, CAST(1 AS integer), CAST(2 AS bigint), CAST(0.5 AS double), CAST(0.25 AS real), CAST('12.30' AS decimal(10,2)), 'größe', "
        "DATE '2024-12-01', TIMESTAMP '2024-12-01 10:00:00.123456', TIMESTAMP '2024-12-01 10:00:00 UTC', X'00ff', ARRAY[1, 2], NULL, "
        "map(ARRAY['k'], ARRAY[7])"
    )
    row = cur.fetchall()[0]
    assert row[:7] == [True, 1, 2, 0.5, 0.25, decimal.Decimal("12.30"), "größe"]
    assert row[7] == datetime.date(2024, 12, 1)
    assert row[8] == datetime.datetime(2024, 12, 1, 10, 0, 0, 123456)
    assert row[9] == datetime.datetime(2024, 12, 1, 10, tzinfo=row[9].tzinfo) and row[9].utcoffset() == datetime.timedelta(0)
    assert row[10] == b"\x00\xff" and row[11] == [1, 2] and row[12] is None and row[13] == {"k": 7}
    types = [column[1] for column in cur.description]
    assert types[5] == "decimal(10,2)" and types[9] == "timestamp(6) with time zone"


def test_values_of_every_type_go_in_as_parameters(bronze):
    cur = connect(bronze).cursor()
    cur.execute(
        "CREATE TABLE kinds (a BOOLEAN, b BIGINT, c DOUBLE, d DECIMAL(10,2), e VARCHAR, f DATE, g TIMESTAMP(6), h TIMESTAMP(6) WITH TIME ZONE, i VARBINARY)"
    )
    cur.fetchall()
    zone = datetime.timezone.utc
    values = (True, -5, -1.25e-3, decimal.Decimal("-12.30"), "it's", datetime.date(2024, 2, 29),
              datetime.datetime(2024, 12, 1, 10, 0, 0, 5), datetime.datetime(2024, 12, 1, 10, tzinfo=zone), b"\x00\xff")
    cur.execute("INSERT INTO kinds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    cur.fetchall()
    cur.execute("SELECT * FROM kinds")
    assert tuple(cur.fetchall()[0]) == values
    bronze.wait_absorbed()
    assert tuple(bronze.catalog().load_table("bronze.kinds").scan().to_arrow().to_pylist()[0].values()) == values


def test_names_are_listed_and_errors_tell_their_place(bronze):
    cur = connect(bronze).cursor()
    ask = lambda sql: cur.execute(sql).fetchall()
    assert ask("SHOW CATALOGS") == [["iceberg"]]
    ask("CREATE TABLE iceberg.silver.t (n BIGINT, m DECIMAL(5,1), s VARCHAR)")
    assert ["silver"] in ask("SHOW SCHEMAS FROM iceberg")
    assert ask("SHOW TABLES FROM iceberg.silver") == [["t"]]
    assert ask("DESCRIBE iceberg.silver.t") == [["n", "bigint", "", ""], ["m", "decimal(5,1)", "", ""], ["s", "varchar", "", ""]]
    ask("USE iceberg.silver")
    assert ask("SELECT count(*) FROM t") == [[0]]
    with pytest.raises(trino.exceptions.TrinoUserError) as error:
        ask("SELECT * FROM nowhere")
    assert error.value.error_name == "TABLE_NOT_FOUND"
    with pytest.raises(trino.exceptions.TrinoUserError) as error:
        ask("SELEC 1")
    assert error.value.error_name == "SYNTAX_ERROR" and error.value.error_exception is not None
    with pytest.raises(trino.exceptions.TrinoUserError) as error:
        ask("INSERT INTO t VALUES ('1', 2, 'a'), ('x', 2, 'a')")
    assert "row 2" in error.value.message and "x" in error.value.message


def test_large_results_come_page_by_page_and_a_lost_page_is_given_again(bronze):
    cur = connect(bronze).cursor()
    cur.execute("SELECT value FROM generate_series(1, 100000)")
    assert sum(row[0] for row in cur.fetchall()) == 100_000 * 100_001 // 2
    headers = {"X-Trino-User": "t"}
    first = requests.post(f"{bronze.http}/v1/statement", data="SELECT value FROM generate_series(1, 100000)", headers=headers).json()
    one = requests.get(first["nextUri"], headers=headers)
    again = requests.get(first["nextUri"], headers=headers)
    while "data" not in one.json():
        one, again = (requests.get(one.json()["nextUri"], headers=headers) for _ in range(2))
    assert requests.get(first["nextUri"], headers=headers).status_code in (200, 410)
    second = one.json()["nextUri"]
    assert requests.get(second, headers=headers).json()["data"] == requests.get(second, headers=headers).json()["data"]
    assert requests.delete(second, headers=headers).status_code == 204
    assert requests.get(second, headers=headers).status_code == 404
    assert requests.post(f"{bronze.http}/v1/statement", data="SELECT 1").status_code == 400


def test_the_command_line_of_trino_works(bronze, tmp_path):
    jars = sorted((pathlib.Path.home() / ".cache/lakegate").rglob("trino-cli*.jar"))
    if not jars or not shutil.which("java"):
        pytest.skip("the Trino command line or Java is not here; services.sh trino installs them")
    run = lambda sql: subprocess.run(
        ["java", "-jar", str(jars[-1]), "--server", f"http://localhost:{bronze.http_port}", "--catalog", "iceberg", "--schema", "bronze", "--execute", sql],
        capture_output=True, text=True, timeout=120,
    )
    made = run("CREATE TABLE t (n BIGINT, s VARCHAR); INSERT INTO t VALUES (1, 'a'), (2, NULL); SELECT * FROM t ORDER BY n")
    assert made.returncode == 0, made.stderr
    assert '"1","a"\n"2",""' in made.stdout and "INSERT: 2 rows" in made.stderr
    assert run("SHOW SCHEMAS").stdout.count('"') >= 2
