"""Topic to table beside Kafka Connect with the Iceberg sink: the same topic, the same machine, the same run, both warm.

    python scripts/kafka_peer.py --binary target/release/lakegate --messages 1000000 --rounds 3

Both read one topic of JSON events (15 columns, about 400 bytes) into a table of those columns, partitioned by `event_date` and
`service`, in one warehouse (a bucket of MinIO, or with --folder a local folder), named by one catalog, the Iceberg project's own REST
catalog. In each round both begin with a new process and read the first part of the topic, so that they are warm; then Connect is
paused, and all the rest of the messages comes at once, by the end of a transaction. Lakegate takes them; then Connect goes on and takes
the same. Counted is the processor time (user and system) of the one process from that moment to the commit with the last row, as the
catalog shows it, and its peak resident memory. Then both take --steady seconds of --rate messages a second at the same time, for the
lag from the sending of a message to its commit. At the end of a round DuckDB counts the rows of both tables and compares their contents.

Needs what tests/e2e needs (requirements.txt), Java 17 and MinIO (`cargo xtask services install kafka minio rest-catalog connect`).
Broker, bucket, catalog and Connect are started on free ports, and stopped at the end.
"""

import argparse
import datetime
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import pyarrow.parquet as parquet
import requests
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

ROOT = pathlib.Path(__file__).resolve().parents[1]
KEY, SECRET = "kafka-peer", "kafka-peer-secret"
OURS, PEER = "bronze.service_events_raw", "peer.service_events_raw"


def note(*words):
    print(time.strftime("%H:%M:%S"), f"(load {os.getloadavg()[0]:.1f})", *words, file=sys.stderr, flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def usage(pid):
    """CPU seconds so far, what is resident and the most that was, in MiB."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    resident, peak = (int(status.split(f"{name}:")[1].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), resident, peak


def of_the_machine(pid):
    """CPU seconds so far of the threads that compile (C1, C2) and collect garbage in a Java process."""
    seconds = {"compiling": 0.0, "collecting": 0.0}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        name, rest = (task / "stat").read_text().split("(", 1)[1].rsplit(") ", 1)
        kind = "compiling" if "Compil" in name else "collecting" if name.startswith(("GC Thread", "G1 ")) else None
        if kind:
            fields = rest.split()
            seconds[kind] += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


class Services:
    """`services.sh` in a folder of its own, every service on a free port."""

    def __init__(self, script, folder, in_bucket, heap):
        self.script, self.folder = script, folder
        ports = {f"{name}_PORT": str(free_port()) for name in ("KAFKA", "KAFKA_CONTROLLER", "MINIO", "REST_CATALOG", "CONNECT")}
        self.broker = f"127.0.0.1:{ports['KAFKA_PORT']}"
        self.catalog = f"http://127.0.0.1:{ports['REST_CATALOG_PORT']}"
        self.connect = f"http://127.0.0.1:{ports['CONNECT_PORT']}"
        self.s3 = f"http://127.0.0.1:{ports['MINIO_PORT']}" if in_bucket else None
        self.warehouse = "s3://warehouse/lake" if in_bucket else str(folder / "lake")
        self.environment = dict(os.environ, SERVICES_DIR=str(folder), S3_ACCESS_KEY=KEY, S3_SECRET_KEY=SECRET, CONNECT_HEAP=heap, **ports)
        self.environment["REST_CATALOG_WAREHOUSE"] = self.warehouse if in_bucket else f"file://{self.warehouse}"
        self.environment.pop("S3_ENDPOINT", None)
        self.names = ["kafka", *(["minio"] if in_bucket else []), "rest-catalog"]

    def run(self, command, *names):
        done = subprocess.run(["bash", self.script, command, *names], env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def pid(self, name):
        return int((self.folder / name / "pid").read_text().split()[0])

    def file_settings(self):
        """How an Iceberg client reaches the bucket."""
        if not self.s3:
            return {}
        return {"s3.endpoint": self.s3, "s3.access-key-id": KEY, "s3.secret-access-key": SECRET, "s3.path-style-access": "true"}

    def pyiceberg(self):
        from pyiceberg.catalog import load_catalog

        return load_catalog("judge", type="rest", uri=self.catalog, **{"s3.region": "us-east-1"}, **self.file_settings())

    def table(self, name):
        """What the catalog says of a table."""
        space, table = name.split(".")
        answer = requests.get(f"{self.catalog}/v1/namespaces/{space}/tables/{table}", timeout=60)
        return answer.json() if answer.ok else None

    def rows(self, name):
        """The rows of the newest snapshot and their distance to the table's first one."""
        metadata = (self.table(name) or {"metadata": {}})["metadata"]
        now = [s for s in metadata.get("snapshots", []) if s["snapshot-id"] == metadata.get("current-snapshot-id")]
        return (int(now[0]["summary"]["total-records"]), len(metadata["snapshots"])) if now else (0, 0)

    def until(self, name, rows, seconds, alive):
        """When the table had so many rows, and how many snapshots."""
        deadline = time.monotonic() + seconds
        while True:
            found, snapshots = self.rows(name)
            if found >= rows:
                assert found == rows, f"{name} has {found} rows, {rows} were sent"
                return time.monotonic(), snapshots
            alive()
            assert time.monotonic() < deadline, f"{name} has {found} of {rows} rows after {seconds} s"
            time.sleep(0.1)


class Load:
    """The events, the same in every round."""

    def __init__(self, broker, topic, partitions, days):
        self.topic, self.partitions, self.sent = topic, partitions, 0
        first = datetime.date(2024, 1, 1)
        self.dates = [(first + datetime.timedelta(days=n)).isoformat() for n in range(days)]
        admin = AdminClient({"bootstrap.servers": broker, "log_level": 0})
        for future in admin.create_topics([NewTopic(topic, partitions, 1)]).values():
            future.result(30)
        settings = {"bootstrap.servers": broker, "compression.type": "lz4", "log_level": 0}
        self.whole = Producer({**settings, "transactional.id": topic, "transaction.timeout.ms": 900_000, "linger.ms": 50, "batch.num.messages": 10000})
        self.whole.init_transactions(60)
        self.steady = Producer({**settings, "linger.ms": 5, "acks": "all"})

    def event(self, n, sent=None):
        day = self.dates[n % len(self.dates)]
        attributes = {"complaint_type": "Water Supply", "priority": "MEDIUM", "sla_hours": 72}
        event = {
            "event_date": day, "event_time": f"{day} 10:{n // 60 % 60:02}:{n % 60:02}", "tenant_id": "TENANT_001", "service": "PGR",
            "entity_type": "complaint", "entity_id": f"CMP_{n:09}", "event_type": "CaseSubmitted", "status": "OPEN",
            "actor_type": "CITIZEN", "actor_id": f"CIT_{n % 5000:05}", "channel": "WEB", "ward_id": f"WARD_{n % 100:03}",
            "locality_id": f"LOC_{n % 500:03}", "attributes_json": attributes, "raw_payload": sent,
        }  # fmt: skip
        return json.dumps(event, separators=(",", ":")).encode()

    def put(self, producer, value):
        while True:
            try:
                # Not by the number itself, which the day follows.
                return producer.produce(self.topic, value, partition=self.sent // 1000 % self.partitions)
            except BufferError:
                producer.poll(0.1)

    def prepare(self, messages):
        """Messages that nobody sees until `show`."""
        self.whole.begin_transaction()
        for n in range(self.sent, self.sent + messages):
            value = self.event(n)
            self.put(self.whole, value)
            self.sent += 1
            if n % 1000 == 0:
                self.whole.poll(0)
        assert self.whole.flush(600) == 0
        return len(value)

    def show(self):
        self.whole.commit_transaction(60)

    def at_rate(self, rate, seconds):
        began = time.monotonic()
        for n in range(rate * seconds):
            ahead = n / rate - (time.monotonic() - began)
            if ahead > 0.002:
                self.steady.poll(0)
                time.sleep(ahead)
            self.put(self.steady, self.event(self.sent, sent=f"{time.time():.6f}"))
            self.sent += 1
        assert self.steady.flush(60) == 0
        return time.monotonic() - began


class Lakegate:
    name, table = "Lakegate", OURS

    def __init__(self, services, binary, folder, topic, interval, settings):
        self.services, self.log = services, folder / "lakegate.log"
        shutil.rmtree(folder / "data", ignore_errors=True)
        config = {
            "node": {"data_dir": str(folder / "data")},
            "kafka": {"sources": [{"brokers": services.broker, "topic": topic, "group_id": topic}]},
            "catalog": {"uri": services.catalog},
            "storage": {"warehouse": services.warehouse},
            **settings,
        }
        if services.s3:
            config["storage"]["s3"] = {"endpoint": services.s3, "access_key": KEY, "secret_key": SECRET}
        config["ingestion"] = {"port": free_port(), "http_port": free_port(), "flush_interval": f"{interval}s", **config.get("ingestion", {})}
        file = folder / "lakegate.json"
        file.write_text(json.dumps(config))
        self.process = subprocess.Popen([binary, "serve", "--config", file], stderr=self.log.open("wb"), stdout=subprocess.DEVNULL)
        self.pid = self.process.pid

    def alive(self):
        assert self.process.poll() is None, self.log.read_text()[-3000:]

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


class Connect:
    name, table = "Connect", PEER

    def __init__(self, services, topic, partitions, interval, settings):
        self.services, self.url = services, f"{services.connect}/connectors/{topic}"
        services.run("up", "connect")
        self.pid = services.pid("connect")
        config = {
            "connector.class": "org.apache.iceberg.connect.IcebergSinkConnector", "tasks.max": str(partitions), "topics": topic,
            "iceberg.tables": PEER, "iceberg.control.topic": f"control-{topic}", "iceberg.control.commit.interval-ms": str(interval * 1000),
            "consumer.override.auto.offset.reset": "earliest", "consumer.override.isolation.level": "read_committed",
            "iceberg.catalog.type": "rest", "iceberg.catalog.uri": services.catalog,
            **{f"iceberg.catalog.{key}": value for key, value in services.file_settings().items()},
            **({"iceberg.catalog.io-impl": "org.apache.iceberg.aws.s3.S3FileIO", "iceberg.catalog.client.region": "us-east-1"} if services.s3 else {}),
            **settings,
        }  # fmt: skip
        requests.put(f"{self.url}/config", json=config, timeout=60).raise_for_status()

    def state(self):
        return requests.get(f"{self.url}/status", timeout=30).json()

    def alive(self):
        state = self.state()
        broken = [task["trace"] for task in state.get("tasks", []) if task["state"] == "FAILED"]
        assert not broken, broken[0]

    def turn(self, command, state):
        requests.put(f"{self.url}/{command}", timeout=30).raise_for_status()
        while command == "pause" and {task["state"] for task in self.state()["tasks"]} != {state}:
            time.sleep(0.1)

    def end(self):
        requests.delete(self.url, timeout=30)
        self.services.run("down", "connect")


class Watch(threading.Thread):
    """When each snapshot of a table was first seen in the catalog."""

    def __init__(self, services, table):
        super().__init__(daemon=True)
        self.services, self.table, self.seen, self.ending = services, table, {}, threading.Event()
        self.look()
        self.old = set(self.seen)
        self.start()

    def look(self):
        metadata = self.services.table(self.table)["metadata"]
        now = time.time()
        for snapshot in metadata["snapshots"]:
            self.seen.setdefault(snapshot["snapshot-id"], now)

    def run(self):
        while not self.ending.wait(0.1):
            self.look()

    def lags(self):
        """Of every message: from its sending to when its snapshot was seen."""
        self.ending.set()
        self.join()
        self.look()
        table = self.services.pyiceberg().load_table(self.table)
        lags = []
        for snapshot in table.metadata.snapshots:
            if snapshot.snapshot_id in self.old or snapshot.summary.operation.value != "append":
                continue
            for manifest in snapshot.manifests(table.io):
                if manifest.added_snapshot_id != snapshot.snapshot_id:
                    continue
                for entry in manifest.fetch_manifest_entry(table.io):
                    if entry.snapshot_id == snapshot.snapshot_id:
                        with table.io.new_input(entry.data_file.file_path).open() as file:
                            sent = parquet.read_table(file, columns=["raw_payload"])["raw_payload"].to_pylist()
                        lags += [self.seen[snapshot.snapshot_id] - float(at) for at in sent if at]
        return sorted(lags), len(set(self.seen) - self.old)


def count(services):
    """What DuckDB finds in both tables, and whether it is the same."""
    import duckdb

    connection = duckdb.connect()
    for name in ("avro", "httpfs", "iceberg"):
        module = __import__(f"duckdb_extension_{name}")
        connection.execute(f"LOAD '{next(pathlib.Path(module.__file__).parent.rglob('*.duckdb_extension'))}'")
    if services.s3:
        host = services.s3.removeprefix("http://")
        connection.execute(f"CREATE SECRET (TYPE s3, KEY_ID '{KEY}', SECRET '{SECRET}', ENDPOINT '{host}', URL_STYLE 'path', USE_SSL false)")
    found = []
    for table in (OURS, PEER):
        location = services.table(table)["metadata-location"].removeprefix("file://")
        # The peer writes the members of an object in an order of its own.
        columns = "* REPLACE (json_extract_string(attributes_json, ['$.complaint_type', '$.priority', '$.sla_hours', '$.none']) AS attributes_json)"
        question = f"""SELECT count(*), count(DISTINCT entity_id), min(entity_id), max(entity_id), sum(hash(t)::hugeint)
            FROM (SELECT {columns} FROM iceberg_scan('{location}')) t"""
        found.append(connection.execute(question).fetchone())
    return found


def prepare_tables(services):
    catalog = services.pyiceberg()
    for table in (OURS, PEER):
        if catalog.table_exists(table):
            catalog.drop_table(table)


def copy_table(services):
    """The peer's table is made as ours is; it would make one without partitions by itself."""
    from pyiceberg.partitioning import PartitionSpec

    catalog = services.pyiceberg()
    ours = catalog.load_table(OURS)
    catalog.create_namespace_if_not_exists(PEER.split(".")[0])
    catalog.create_table(PEER, ours.schema(), partition_spec=PartitionSpec(*ours.spec().fields))
    return [f"{field.name}" for field in ours.spec().fields]


def measured(side, began, before, rows, snapshots):
    ended, after = side.services.until(side.table, rows[1], 900, side.alive)
    cpu, resident, peak = usage(side.pid)
    messages, seconds, cpu = rows[1] - rows[0], ended - began, cpu - before[0]
    found = {"rows_s": messages / seconds, "seconds": seconds, "cpu_s": cpu, "cpu_us_row": cpu * 1e6 / messages, "rss": resident, "peak": peak, "commits": after - snapshots}
    note(f"{side.name}: {messages:,} rows in {seconds:.1f} s, {cpu:.2f} s of CPU, {found['cpu_us_row']:.2f} µs a row, {resident:.0f} MiB resident, at most {peak:.0f}")
    return found


def one_round(options, services, folder, number):
    topic = f"peer-{number}-{os.getpid()}"
    load = Load(services.broker, topic, options.partitions, options.days)
    load.prepare(options.warm)
    load.show()
    prepare_tables(services)
    sides = []
    try:
        ours = Lakegate(services, options.binary, folder, topic, options.interval, json.loads(options.settings))
        sides.append(ours)
        services.until(OURS, options.warm, 300, ours.alive)
        note(f"round {number}: Lakegate is warm; partitioned by {copy_table(services)}")
        peer = Connect(services, topic, options.partitions, options.interval, json.loads(options.connect))
        sides.append(peer)
        services.until(PEER, options.warm, 600, peer.alive)
        time.sleep(3)
        peer.turn("pause", "PAUSED")
        size = load.prepare(options.messages)
        note(f"round {number}: Connect is warm, and paused; {options.messages:,} messages of {size} bytes are there")
        time.sleep(3)
        rows = (options.warm, options.warm + options.messages)
        result = {}
        before, snapshots = usage(ours.pid), services.rows(OURS)[1]
        load.show()
        result["Lakegate"] = measured(ours, time.monotonic(), before, rows, snapshots)
        before, snapshots, machine = usage(peer.pid), services.rows(PEER)[1], of_the_machine(peer.pid)
        began = time.monotonic()
        peer.turn("resume", "RUNNING")
        result["Connect"] = measured(peer, began, before, rows, snapshots)
        result["Connect"]["machine_s"] = {kind: seconds - machine[kind] for kind, seconds in of_the_machine(peer.pid).items()}
        note("of Connect's CPU: " + ", ".join(f"{seconds:.1f} s {kind}" for kind, seconds in result["Connect"]["machine_s"].items()))
        if options.steady:
            steady(options, services, load, sides, result)
        mine, theirs = count(services)
        note(f"round {number}: DuckDB counts (rows, distinct, first, last): Lakegate {mine[:4]}, Connect {theirs[:4]}, contents {'the same' if mine == theirs else 'DIFFER'}")
        assert mine == theirs and mine[:2] == (load.sent, load.sent), (mine, theirs, load.sent)
        return result
    finally:
        for side in sides:
            side.end()


def steady(options, services, load, sides, result):
    time.sleep(3)
    watches = [Watch(services, side.table) for side in sides]
    before = [usage(side.pid) for side in sides]
    took = load.at_rate(options.rate, options.steady)
    messages = options.rate * options.steady
    for side in sides:
        services.until(side.table, load.sent, 300, side.alive)
    for side, watch, was in zip(sides, watches, before):
        cpu, resident, _ = usage(side.pid)
        lags, commits = watch.lags()
        assert len(lags) == messages, f"{side.name}: {len(lags)} of {messages} lags"
        p50, p99, most = lags[len(lags) // 2], lags[len(lags) * 99 // 100], lags[-1]
        result[side.name].update(lag_p50=p50, lag_p99=p99, lag_max=most, steady_us_row=(cpu - was[0]) * 1e6 / messages, steady_rss=resident)
        note(f"{side.name}: {messages / took:,.0f} messages/s for {took:.0f} s, {commits} commits, lag p50 {p50:.2f} s, p99 {p99:.2f} s, at most {most:.2f} s, "
             f"{(cpu - was[0]) * 1e6 / messages:.2f} µs a row, {resident:.0f} MiB resident")  # fmt: skip


def show(options, results):
    where = "a folder" if options.folder else "a bucket (MinIO)"
    print(f"{options.messages:,} messages after {options.warm:,} to warm up, {options.partitions} partitions, {options.days} days, warehouse in {where}, commits every {options.interval} s\n")
    print("| round | side | rows/s | CPU µs/row | rows per CPU second | resident, peak (MiB) | commits | CPU ratio | memory ratio |\n|---|---|---|---|---|---|---|---|---|")
    for number, result in enumerate(results, 1):
        mine, theirs = result["Lakegate"], result["Connect"]
        for name, r in result.items():
            ratios = f"{theirs['cpu_us_row'] / mine['cpu_us_row']:.2f} | {theirs['peak'] / mine['peak']:.2f}" if name == "Connect" else "|"
            print(f"| {number} | {name} | {r['rows_s']:,.0f} | {r['cpu_us_row']:.2f} | {1e6 / r['cpu_us_row']:,.0f} | {r['rss']:.0f}, {r['peak']:.0f} | {r['commits']} | {ratios} |")
    middle = lambda what: statistics.median(what(r["Connect"], r["Lakegate"]) for r in results)  # noqa: E731
    print(f"\nmedians, Connect / Lakegate: CPU a row {middle(lambda a, b: a['cpu_us_row'] / b['cpu_us_row']):.2f}, peak memory {middle(lambda a, b: a['peak'] / b['peak']):.2f}, "
          f"seconds {middle(lambda a, b: a['seconds'] / b['seconds']):.2f}")  # fmt: skip
    if options.steady:
        print(f"\n| round | side | lag p50, p99, most (s) at {options.rate}/s | CPU µs/row | resident (MiB) |\n|---|---|---|---|---|")
        for number, result in enumerate(results, 1):
            for name, r in result.items():
                print(f"| {number} | {name} | {r['lag_p50']:.2f}, {r['lag_p99']:.2f}, {r['lag_max']:.2f} | {r['steady_us_row']:.2f} | {r['steady_rss']:.0f} |")
    print(json.dumps(results))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target/release/lakegate"))
    parser.add_argument("--services", default=str(ROOT / "scripts/services/services.sh"))
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--warm", type=int, default=300_000, help="messages before those that are measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--partitions", type=int, default=2, help="of the topic, and tasks of Connect")
    parser.add_argument("--days", type=int, default=28, help="partitions of the table")
    parser.add_argument("--interval", type=int, default=5, help="seconds between commits, for both")
    parser.add_argument("--folder", action="store_true", help="the warehouse is a local folder, no bucket")
    parser.add_argument("--steady", type=int, default=60, help="seconds of a steady rate, for the lag; 0: none")
    parser.add_argument("--rate", type=int, default=5000, help="messages a second of it")
    parser.add_argument("--heap", default="1g", help="Connect's heap")
    parser.add_argument("--settings", default="{}", help="more of Lakegate's configuration, as JSON")
    parser.add_argument("--connect", default="{}", help="more of the sink's configuration, as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lakegate-peer-") as temporary:
        folder = pathlib.Path(temporary)
        services = Services(options.services, folder, not options.folder, options.heap)
        try:
            services.run("up", *services.names)
            results = [one_round(options, services, folder, number) for number in range(1, options.rounds + 1)]
        finally:
            services.run("down", "connect", *services.names)
    show(options, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
