"""Dumps as databases really write them: Chinook by MySQL's notation, sqlite3 and pg_dump; SQLite judges every row."""

import datetime
import decimal
import glob
import os
import pathlib
import re
import shutil
import sqlite3
import subprocess
import tempfile

import pytest

from conftest import free_port
from test_files import drop, imported, reader  # noqa: F401

POSTGRES = pathlib.Path(next(iter(sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True)), "/usr/lib/postgresql/bin"))


class Chinook:
    """The dump, loaded by SQLite."""

    def __init__(self, path):
        text = path.read_text(encoding="utf-8-sig")
        self.database = sqlite3.connect(":memory:")
        self.creates = re.findall(r"CREATE TABLE `\w+`\s*\(.*?\n\);", text, re.S)
        self.keys = re.findall(r"ALTER TABLE `(\w+)` ADD CONSTRAINT `\w+`\s*FOREIGN KEY \(`(\w+)`\) REFERENCES `(\w+)` \(`(\w+)`\)", text)
        for create in self.creates:
            self.database.execute(create)
        for insert in re.findall(r"INSERT INTO `\w+` \(.*?\) VALUES\s*.*?;\s*\n", text, re.S):
            head, values = insert.split(" VALUES", 1)
            values = re.sub(r"N?'((?:[^'\\]|''|\\.)*)'", lambda m: "'" + re.sub(r"\\(.)", lambda e: "''" if e[1] == "'" else e[1], m[1]) + "'", values)
            self.database.execute(f"{head} VALUES{values.rstrip().rstrip(';')}")
        self.database.commit()
        self.tables = {name: [column[1:3] for column in self.database.execute(f"PRAGMA table_info(`{name}`)")] for name in re.findall(r"CREATE TABLE `(\w+)`", text)}

    def rows(self, table):
        """Its rows, with the values that the declared types give."""
        columns = self.tables[table]

        def value(found, kind):
            if found is None:
                return None
            if kind.startswith("NUMERIC"):
                return decimal.Decimal(str(found)).quantize(decimal.Decimal("0.01"))
            if kind == "DATETIME":
                return datetime.datetime(*map(int, re.findall(r"\d+", found)))
            return found

        found = self.database.execute(f"SELECT * FROM `{table}`")
        return sorted((tuple(value(v, kind) for v, (_, kind) in zip(row, columns)) for row in found), key=repr)


@pytest.fixture(scope="session")
def chinook(shared_data):
    return Chinook(shared_data / "Chinook_MySql.sql")


def agrees(server, chinook, tenant):
    """Every row of every table, and every foreign key."""
    catalog = server.catalog()
    total = 0
    for table, columns in chinook.tables.items():
        loaded = catalog.load_table(f"{tenant}.{table.lower()}").scan().to_arrow()
        names = {name.lower(): name for name in loaded.column_names}
        picked = [loaded.column(names[column.lower()]).to_pylist() for column, _ in columns]
        found = sorted(zip(*picked), key=repr)
        assert found == chinook.rows(table), table
        total += len(found)
    assert total == 15_607
    sums = server.sql(f"SELECT count(*) AS n, sum({column(catalog, tenant, 'Invoice', 'Total')}) AS total FROM {tenant}.invoice")[0]
    expected = chinook.database.execute("SELECT count(*), round(sum(Total), 2) FROM Invoice").fetchone()
    assert (sums["n"], float(sums["total"])) == expected
    assert len(chinook.keys) == 11
    for child, own, parent, key in chinook.keys:
        own, key = column(catalog, tenant, child, own), column(catalog, tenant, parent, key)
        joined = server.sql(f"SELECT count(*) AS n, count(p.{key}) AS met FROM {tenant}.{child.lower()} c LEFT JOIN {tenant}.{parent.lower()} p ON c.{own} = p.{key} WHERE c.{own} IS NOT NULL")[0]
        assert joined["n"] == joined["met"] > 0, (child, parent, joined)


def column(catalog, tenant, table, name):
    fields = catalog.load_table(f"{tenant}.{table.lower()}").schema().fields
    return '"' + next(field.name for field in fields if field.name.lower() == name.lower()) + '"'


def test_chinook_in_mysqls_notation_is_as_sqlite_loads_it(reader, drop, shared_data, chinook):
    server = reader()
    shutil.copy(shared_data / "Chinook_MySql.sql", drop)
    job = imported(server, {"path": str(drop / "Chinook_MySql.sql"), "tenant": "mysql"}, "/api/ingest/sql")
    assert (job["documents"], job["skipped"], len(job["streams"])) == (15_607, 0, 11), job
    agrees(server, chinook, "mysql")
    again = imported(server, {"path": str(drop / "Chinook_MySql.sql"), "tenant": "mysql"}, "/api/ingest/sql")
    assert (again["documents"], again["files_unchanged"]) == (0, 1), again


@pytest.mark.parametrize("by", ["python", "sqlite3"])
def test_chinook_as_sqlites_own_dump(reader, drop, chinook, tmp_path, by):
    server = reader()
    if by == "python":
        (drop / "chinook.sql").write_text("\n".join(chinook.database.iterdump()), encoding="utf-8")
    else:
        tool = shutil.which("sqlite3") or pytest.skip("sqlite3 is not installed")
        with sqlite3.connect(tmp_path / "chinook.db") as copy:
            chinook.database.backup(copy)
        (drop / "chinook.sql").write_bytes(subprocess.run([tool, str(tmp_path / "chinook.db"), ".dump"], check=True, capture_output=True).stdout)
    job = imported(server, {"path": str(drop / "chinook.sql"), "tenant": "sqlite"}, "/api/ingest/sql")
    assert (job["documents"], job["skipped"]) == (15_607, 0), job
    agrees(server, chinook, "sqlite")


@pytest.fixture(scope="session")
def postgres():
    if not (POSTGRES / "initdb").exists():
        pytest.skip("postgresql is not installed")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="lakegate-pg-", dir="/tmp"))
    shutil.chown(folder, "postgres", "postgres")
    port = free_port()
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []

    def run(*command, **keywords):
        return subprocess.run([*as_postgres, *map(str, command)], check=True, capture_output=True, text=True, cwd="/tmp", **keywords)

    run(POSTGRES / "initdb", "-D", folder / "data", "-A", "trust", "-E", "UTF8", "--no-sync")
    run(POSTGRES / "pg_ctl", "-D", folder / "data", "-l", folder / "log", "-w", "-o", f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off", "start")
    yield lambda name, *arguments, **keywords: run(POSTGRES / name, "-h", "127.0.0.1", "-p", port, "-U", "postgres", *arguments, **keywords)
    run(POSTGRES / "pg_ctl", "-D", folder / "data", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.mark.parametrize("way", [[], ["--inserts"], ["--column-inserts", "--rows-per-insert=100"]], ids=["copy", "inserts", "column-inserts"])
def test_chinook_as_pg_dump_writes_it(reader, drop, chinook, postgres, way):
    name = "chinook_" + re.sub(r"\W", "", "".join(way))
    postgres("createdb", name)
    script = ["BEGIN;"]
    for create in chinook.creates:
        script.append(create.replace("`", '"').replace("NVARCHAR", "VARCHAR").replace("DATETIME", "TIMESTAMP"))
    for table in chinook.tables:
        for row in chinook.rows(table):
            values = ["NULL" if v is None else f"'{v}'" if not isinstance(v, str) else "'" + v.replace("'", "''") + "'" for v in row]
            script.append(f'INSERT INTO "{table}" VALUES ({", ".join(values)});')
    script += [f'ALTER TABLE "{child}" ADD FOREIGN KEY ("{own}") REFERENCES "{parent}" ("{key}");' for child, own, parent, key in chinook.keys]
    script.append("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$ SELECT 1; /* INSERT INTO Album VALUES (1); */ $$; COMMIT;")
    postgres("psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", name, input="\n".join(script))
    (drop / "pg.sql").write_text(postgres("pg_dump", *way, name).stdout)
    server = reader()
    job = imported(server, {"path": str(drop / "pg.sql"), "tenant": "pg"}, "/api/ingest/sql")
    assert (job["documents"], job["skipped"], len(job["streams"])) == (15_607, 0, 11), job
    assert any("FUNCTION" in what.upper() for what in job["passed_over"]), job["passed_over"]
    agrees(server, chinook, "pg")
