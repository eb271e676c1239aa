"""Columns over Arrow Flight: rows a second, CPU a row of the server alone, beside a floor in the same run (R6).

    python scripts/flight_speed.py --binary target/release/lakegate --rows 1500000 --rounds 5

A round is: the floor, then a burst of batches of the bronze table's 15 columns (about 290 bytes a row) by DoPut from this process,
until each is acknowledged, that is durable. Bursts come further apart than the table's commits, so that a burst finds memory and
segments that were used before; the first one is not counted. The floor is a process that receives the same bytes from a TCP
socket, sums them (CRC-32C) and decodes them (Arrow IPC; also with `validate(full=True)`, which looks at every offset and all text, as a
server must). With --tables the table is committed all the time, as by default, and CPU is counted until the last row is committed.

Needs pyarrow, requests and duckdb (tests/e2e/requirements.txt) and crc32c.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

import crc32c
import pyarrow as pa
import pyarrow.flight as flight
import requests

ROOT = pathlib.Path(__file__).resolve().parents[1]
STREAM = "service_events_raw"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def usage(pid):
    """CPU seconds so far, and the most memory that was resident, in MiB."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    peak = int(pathlib.Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), peak


def batch_of(first, count, days):
    numbers = range(first, first + count)
    begin = datetime.datetime(2024, 12, 1, 10)
    times = [begin + datetime.timedelta(days=n % days, seconds=n // days % 36000) for n in numbers]
    text = lambda name: [f"{name}_{n:09}" for n in numbers]  # noqa: E731
    same = lambda word: [word] * count  # noqa: E731
    return pa.record_batch({
        "event_date": pa.array([t.date() for t in times]), "event_time": pa.array(times, pa.timestamp("us")),
        "tenant_id": same("TENANT_001"), "service": same("PGR"), "entity_type": same("complaint"), "entity_id": text("CMP"),
        "event_type": same("CaseSubmitted"), "status": same("OPEN"), "actor_type": same("CITIZEN"), "actor_id": text("CIT"),
        "channel": same("WEB"), "ward_id": text("WARD"), "locality_id": text("LOC"),
        "attributes_json": same('{"complaint_type":"Water Supply","priority":"MEDIUM","sla_hours":72,"description":"No water in the lane since Monday"}'), "raw_payload": pa.nulls(count, pa.string()),
    })  # fmt: skip


def receiver(port_of, answers):
    """The floor: a message is its length and its bytes; a length of 0 ends a part."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port_of.put(listener.getsockname()[1])
        while True:
            connection, _ = listener.accept()
            schema, rows, check, crc, buffers = None, 0, False, 0, {}
            began = time.process_time()
            with connection:
                while True:
                    size = struct.unpack("<q", connection.recv(8, socket.MSG_WAITALL))[0]
                    if size <= 0:
                        break
                    # The same memory is used again, as a warm allocator would.
                    buffer = buffers.setdefault(size, bytearray(size))
                    view, at = memoryview(buffer), 0
                    while at < size:
                        at += connection.recv_into(view[at:])
                    if schema is None:
                        schema, check = pa.ipc.read_schema(pa.py_buffer(bytes(buffer[1:]))), buffer[0] == 1
                        continue
                    crc = crc32c.crc32c(buffer)
                    batch = pa.ipc.read_record_batch(pa.py_buffer(buffer), schema)
                    if check:
                        batch.validate(full=True)
                    rows += batch.num_rows
            answers.put((time.process_time() - began, rows, crc))
            if size < 0:
                return


def floor(port, answers, messages, schema, times, check):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = bytes([1 if check else 0]) + schema
        connection.sendall(struct.pack("<q", len(head)) + head)
        for n in range(times):
            message = messages[n % len(messages)]
            connection.sendall(struct.pack("<q", len(message)))
            connection.sendall(message)
        connection.sendall(struct.pack("<q", 0))
    cpu, rows, _ = answers.get(timeout=600)
    return cpu * 1e9 / rows


def put(port, batches, times, connections):
    """Sends so many batches over each connection; gives when the last was acknowledged and what was accepted."""
    accepted, broken = [], []

    def one():
        try:
            client = flight.FlightClient(f"grpc://127.0.0.1:{port}")
            writer, reader = client.do_put(flight.FlightDescriptor.for_path(STREAM), batches[0].schema)

            def answers():
                try:
                    for _ in range(times):
                        accepted.append(json.loads(reader.read().to_pybytes())["accepted"])
                except Exception as error:  # noqa: BLE001 - told by the main thread
                    broken.append(error)

            reading = threading.Thread(target=answers)
            reading.start()
            for n in range(times):
                writer.write_batch(batches[n % len(batches)])
            reading.join()
            writer.close()
        except Exception as error:  # noqa: BLE001
            broken.append(error)

    threads = [threading.Thread(target=one) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not broken, broken[0]
    return time.monotonic(), sum(accepted)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target/release/lakegate"))
    parser.add_argument("--rows", type=int, default=1_500_000, help="of a burst")
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=1)
    parser.add_argument("--days", type=int, default=1, help="partitions of the table")
    parser.add_argument("--tables", action="store_true", help="with the table's commits")
    parser.add_argument("--settings", default="{}", help="more of the server's configuration, as JSON")
    options = parser.parse_args()
    batches = [batch_of(n * options.batch, options.batch, options.days) for n in range(16)]
    messages = [batch.serialize().to_pybytes() for batch in batches]
    size = len(messages[0]) / options.batch
    times = options.rows // options.batch // options.connections
    rows = times * options.batch * options.connections
    port_of, answers = multiprocessing.Queue(), multiprocessing.Queue()
    process = multiprocessing.Process(target=receiver, args=(port_of, answers), daemon=True)
    process.start()
    floor_port = port_of.get(timeout=30)
    with tempfile.TemporaryDirectory(prefix="lakegate-flight-") as folder:
        port, http = free_port(), free_port()
        ingestion = {"port": port, "http_port": http}
        if not options.tables:
            ingestion.update(flush_interval="8s", commit_bytes="4GiB", memory_budget="6GiB")
        config = {"node": {"data_dir": folder}, **json.loads(options.settings)}
        config["ingestion"] = {**ingestion, **config.get("ingestion", {})}
        file = pathlib.Path(folder) / "lakegate.json"
        file.write_text(json.dumps(config))
        log = pathlib.Path(folder) / "log"
        server = subprocess.Popen([options.binary, "serve", "--config", file], stderr=log.open("wb"), stdout=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{http}"

        def committed():
            from pyiceberg.catalog import load_catalog

            try:
                snapshot = load_catalog("judge", type="rest", uri=f"{url}/iceberg").load_table("bronze.service_events_raw").current_snapshot()
                return int(snapshot.summary["total-records"])
            except Exception:  # noqa: BLE001 - not made yet
                return 0

        def wait_committed(count):
            deadline = time.monotonic() + 120
            while committed() < count:
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.2)

        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    if requests.get(f"{url}/livez", timeout=5).ok:
                        break
                except requests.ConnectionError:
                    assert time.monotonic() < deadline and server.poll() is None, log.read_text()[-3000:]
                    time.sleep(0.1)
            found, sent = [], 0
            for number in range(options.rounds + 1):
                bare = floor(floor_port, answers, messages, batches[0].schema.serialize().to_pybytes(), times * options.connections, False)
                checked = floor(floor_port, answers, messages, batches[0].schema.serialize().to_pybytes(), times * options.connections, True)
                before, mine = usage(server.pid)[0], time.process_time()
                began = time.monotonic()
                ended, accepted = put(port, batches, times, options.connections)
                mine, acknowledged = time.process_time() - mine, usage(server.pid)[0] - before
                assert accepted == rows, (accepted, rows)
                sent += accepted
                wait_committed(sent)
                whole, peak = usage(server.pid)[0] - before, usage(server.pid)[1]
                ours = (whole if options.tables else acknowledged) * 1e9 / rows
                line = (rows / (ended - began), ours, bare, checked, ours / bare, ours / checked)
                print(f"{'warm-up' if number == 0 else f'round {number}'} (load {os.getloadavg()[0]:.1f}): {line[0]:,.0f} rows/s acknowledged, server {acknowledged * 1e9 / rows:.0f} ns a row until then, "
                      f"{whole * 1e9 / rows:.0f} until committed, client {mine * 1e9 / rows:.0f}, floor {bare:.0f}, checked {checked:.0f}, ratio {line[4]:.1f}, {line[5]:.1f}; at most {peak:.0f} MiB", flush=True)  # fmt: skip
                if number:
                    found.append(line)
            import duckdb

            name = requests.get(f"{url}/iceberg/v1/namespaces/bronze/tables/service_events_raw", timeout=60).json()["metadata"]
            files = f"{name['location'].removeprefix('file://')}/data/**/*.parquet"
            stored = duckdb.sql(f"SELECT count(*), count(DISTINCT entity_id) FROM read_parquet('{files}')").fetchone()
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    process.terminate()
    middle = [statistics.median(column) for column in zip(*found)]
    print(f"{rows:,} rows of {len(batches[0].schema)} columns, {size:.0f} bytes each, {options.batch} a batch, {options.connections} connections: {middle[0]:,.0f} rows/s, server {middle[1]:.0f} ns a row, floor {middle[2]:.0f} ns "
          f"(checked {middle[3]:.0f}), R6 {middle[4]:.1f} ({min(r[4] for r in found):.1f} to {max(r[4] for r in found):.1f}), beside the checked floor {middle[5]:.1f}; stored (DuckDB): {stored[0]:,} rows of {sent:,} sent, {stored[1]:,} distinct ids")  # fmt: skip
    assert stored[0] == sent
    return 0


if __name__ == "__main__":
    sys.exit(main())
