#!/usr/bin/env python3
"""DuckDB's COPY of the same files to Parquet with zstd, to set beside `import_bench run`.

    cargo run --release -p lakegate-ingest --example import_bench -- generate DIR 5000000
    cargo run --release -p lakegate-ingest --example import_bench -- run DIR events.parquet events.csv events.ndjson
    python3 benches/peers/duckdb_copy.py DIR

Prints rows a second and rows a second of processor time, with two threads and with one.
"""

import os
import resource
import sys
import time

import duckdb


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def copy(directory: str, name: str, threads: int) -> None:
    source = os.path.join(directory, name)
    target = os.path.join(directory, "duckdb.parquet")
    reader = {"parquet": "read_parquet", "csv": "read_csv", "ndjson": "read_json"}[name.rsplit(".", 1)[1]]
    connection = duckdb.connect(config={"threads": threads})
    began, cpu = time.monotonic(), cpu_seconds()
    rows = connection.execute(
        f"COPY (SELECT * FROM {reader}('{source}')) TO '{target}' (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
    ).fetchone()[0]
    wall, used = time.monotonic() - began, cpu_seconds() - cpu
    print(
        f"{name:16} duckdb COPY, {threads} thread(s) {rows:9} rows  {wall:6.2f} s  {rows / wall:9.0f} rows/s"
        f"  {used:6.2f} cpu s  {rows / used:9.0f} rows/cpu s"
    )
    os.remove(target)


if __name__ == "__main__":
    for file in ("events.parquet", "events.csv", "events.ndjson"):
        if os.path.exists(os.path.join(sys.argv[1], file)):
            for count in (2, 1):
                copy(sys.argv[1], file, count)
