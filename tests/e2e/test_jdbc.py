"""JDBC: Trino's driver on the HTTP port, Arrow Flight SQL's on the gRPC port; one Java program for both.

The drivers are 60 MB: this runs where `LAKEGATE_JDBC` is set, after `services.sh install clients`.
"""

import datetime
import decimal
import os
import pathlib
import shutil
import subprocess

import pytest

from conftest import ROOT

CLIENTS = pathlib.Path(os.environ.get("SERVICES_CACHE", pathlib.Path.home() / ".cache/lakegate/services")) / "clients"
pytestmark = pytest.mark.skipif(not os.environ.get("LAKEGATE_JDBC"), reason="LAKEGATE_JDBC is not set")


@pytest.fixture(scope="module")
def drivers():
    if not shutil.which("java"):
        pytest.skip("JDBC needs Java 17")
    done = subprocess.run(["bash", ROOT / "scripts/services/services.sh", "install", "clients"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return CLIENTS


@pytest.mark.parametrize("driver", ["trino", "flight"])
def test_a_java_program_makes_fills_reads_and_lists_tables(server, drivers, driver):
    if driver == "trino":
        url, more = f"jdbc:trino://localhost:{server.http_port}/iceberg/bronze", ["user=test"]
    else:
        url, more = f"jdbc:arrow-flight-sql://localhost:{server.grpc_port}/", ["useEncryption=false"]
    command = ["java", "--add-opens=java.base/java.nio=ALL-UNNAMED", "-cp", ":".join(str(jar) for jar in drivers.glob("*jdbc*.jar")), ROOT / "tests/e2e/clients/Trial.java", url, *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
    seen = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    said = dict(seen)
    assert (said["inserted"], said["prepared"], said["with null"], said["sum"]) == ("1", "1", "1", str(100_000 * 100_001 // 2))
    rows = [values.split("|") for what, values in seen if what == "row"]
    assert rows == [
        ["2", "größe, 'a' ?", "-12.30", "2024-02-29", "2024-02-29 23:59:59.5", "false", "false", "-0.00125"],
        ["3", "null", "null", "null", "null", "false", "true", "0.0"],
    ]
    assert said["types"] == "id BIGINT|name VARCHAR|price DECIMAL|day DATE|at TIMESTAMP|ok BOOLEAN|part DOUBLE"
    assert "nowhere" in said["error"]
    assert "iceberg" in said["catalogs"] and "lab" in said["schemas"].split("|") and "lab.jdbc" in said["tables"].split("|")
    named = dict(column.split(".", 1) for column in said["columns"].split("|"))
    assert list(named) == sorted(["id", "name", "price", "day", "at", "ok", "part"])
    # Another engine finds the same.
    server.wait_absorbed()
    found = sorted(server.catalog().load_table("lab.jdbc").scan().to_arrow().to_pylist(), key=lambda row: row["id"])
    assert [tuple(row.values()) for row in found[:2]] == [
        (1, "it's", decimal.Decimal("9.90"), datetime.date(2024, 12, 1), datetime.datetime(2024, 12, 1, 10), True, 0.5),
        (2, "größe, 'a' ?", decimal.Decimal("-12.30"), datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 23, 59, 59, 500_000), False, -1.25e-3),
    ]
    assert found[2]["id"] == 3 and set(list(found[2].values())[1:]) == {None}
