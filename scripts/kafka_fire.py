"""A topic into the bronze table while everything around it fails in turn; at the end each (partition, offset) is counted once.

    python scripts/kafka_fire.py --binary target/release/lakegate --messages 2000000 --trino

Two Lakegate processes of one group read six partitions; their tables lie in MinIO, their catalog is a third Lakegate behind a
proxy. One after another, by chance: a process is killed or frozen, the second comes and goes, the broker is restarted, MinIO and
the catalog are stopped and started, and commits stand whose answer was 500, 502, 504 or nothing. That goes on until all is sent.
DuckDB counts, and with --trino Trino too. The same --seed draws the same failures, though not at the same instants.

Needs what tests/e2e needs (requirements.txt), MinIO and Java 17 (`cargo xtask services install minio kafka`).
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARTITIONS = 6


def note(*words):
    print(f"{time.strftime('%H:%M:%S')}", *words, file=sys.stderr, flush=True)


class Load(threading.Thread):
    """Sends records; each says in `entity_id` the partition and the offset that it gets."""

    def __init__(self, broker, topic, messages, rate, event):
        super().__init__(daemon=True)
        self.producer = broker.producer(**{"delivery.timeout.ms": 1_800_000, "linger.ms": 10, "compression.type": "lz4"})
        self.topic, self.messages, self.rate, self.ending = topic, messages, rate, threading.Event()
        # The text of an event is made once, so that making records takes little of the machine.
        self.days = [json.dumps({**event("@@"), "event_date": f"2024-12-{1 + day:02}"}).split("@@") for day in range(20)]
        self.next, self.delivered, self.wrong = [0] * PARTITIONS, 0, []

    def done(self, error, message):
        self.delivered += 1
        if error or f'"{message.partition()}-{message.offset()}"'.encode() not in message.value():
            self.wrong.append((str(error), message.partition(), message.offset()))

    def run(self):
        number, began = 0, time.monotonic()
        while number < self.messages or not self.ending.is_set():
            partition = number % PARTITIONS
            before, after = self.days[number // 1000 % len(self.days)]
            value = f"{before}{partition}-{self.next[partition]}{after}"
            while True:
                try:
                    self.producer.produce(self.topic, value, partition=partition, on_delivery=self.done)
                    break
                except BufferError:
                    self.producer.poll(0.1)
            self.next[partition] += 1
            number += 1
            if number % 200 == 0:
                self.producer.poll(0)
                ahead = number / self.rate - (time.monotonic() - began) if self.rate else 0
                if ahead > 0:
                    time.sleep(min(ahead, 1.0))
        assert self.producer.flush(1800) == 0

    def end(self):
        self.ending.set()
        self.join()
        assert not self.wrong and self.delivered == sum(self.next), (self.wrong[:3], self.delivered, sum(self.next))
        return self.delivered


class Fire:
    """All processes, and what is done to them."""

    def __init__(self, folder, seed):
        from conftest import Server
        from stores import Services, bucket_settings
        from test_kafka import Broker, source
        from test_rest_catalog import Proxy

        self.chance, self.counts = random.Random(seed), collections.Counter()
        self.broker = Broker(folder / "kafka")
        (folder / "kafka").mkdir()
        self.broker.run("up")
        self.broker.topic("fire", PARTITIONS)
        from stores import KEY, SECRET

        self.minio = Services(["minio"]).up()
        self.minio.s3 = {"endpoint": self.minio.address, "access_key": KEY, "secret_key": SECRET}
        shared = bucket_settings(self.minio)
        self.catalog = Server(folder / "catalog", None, shared).start()
        self.proxy = Proxy(self.catalog.http)
        properties = {"session.timeout.ms": "6000", "partition.assignment.strategy": self.chance.choice(["range", "cooperative-sticky"])}
        reading = {**shared, "catalog": {"uri": f"{self.proxy.uri}/iceberg"}, **source(self.broker, "fire", properties=properties)}
        self.one = Server(folder / "one", None, {**reading, "node": {"id": "one"}}).start()
        self.two = Server(folder / "two", None, {**reading, "node": {"id": "two"}})

    def check(self):
        """Nobody ends by itself."""
        for server in (self.catalog, self.one, self.two):
            ended = server.process and server.process.poll()
            assert ended is None or ended == 0 or ended == -signal.SIGKILL, f"{server.folder.name} ended with {ended}:\n{server.tail()}"

    def is_up(self, server):
        return bool(server.process) and server.process.poll() is None

    def wait(self, least, most):
        time.sleep(self.chance.uniform(least, most))

    def kill(self):
        self.one.kill()
        self.one.start(wait=False)

    def second(self):
        if not self.is_up(self.two):
            self.two.start(wait=False)
        elif self.chance.random() < 0.5:
            self.two.kill()
        else:
            self.two.process.send_signal(signal.SIGTERM)
            self.two.process.wait(60)

    def freeze(self):
        self.one.process.send_signal(signal.SIGSTOP)
        self.wait(1, 9)
        self.one.process.send_signal(signal.SIGCONT)

    def restart_broker(self):
        self.broker.run("down")
        self.wait(0, 2)
        self.broker.run("up")

    def store_away(self):
        if self.chance.random() < 0.5:
            self.minio.down()
        else:
            os.kill(self.minio.pid(), signal.SIGKILL)
        self.wait(0.5, 4)
        self.minio.up()

    def catalog_away(self):
        self.catalog.kill()
        self.wait(0.5, 3)
        self.catalog.start()

    def lose_answers(self):
        self.proxy.lose = self.chance.choice([500, 502, 504, "cut"])
        self.wait(1, 4)
        self.proxy.lose = None

    def burn(self, turns, is_sent):
        """Every failure in a shuffled order, again and again; at least so many turns."""
        failures = [self.kill, self.second, self.store_away, self.lose_answers, self.catalog_away, self.restart_broker, self.freeze, self.second]
        done = 0
        while done < turns or not is_sent():
            self.chance.shuffle(failures)
            for failure in failures:
                if done >= turns and is_sent():
                    break
                self.wait(0.5, 3)
                failure()
                self.check()
                self.counts[failure.__name__] += 1
                done += 1
        self.proxy.lose = None

    def table(self):
        from stores import own_key, pyiceberg

        return pyiceberg(f"{self.catalog.http}/iceberg", **own_key(self.minio)).load_table("bronze.service_events_raw")

    def drain(self, sent, seconds):
        """Until the table has as many rows as were sent."""
        if not self.is_up(self.one):
            self.one.start(wait=False)
        deadline, said, rows = time.monotonic() + seconds, 0, 0
        while rows < sent:
            try:
                rows = int(self.table().current_snapshot().summary["total-records"])
            except Exception as error:  # noqa: BLE001 - not made yet, or the catalog has just been started
                said = error
            self.check()
            assert time.monotonic() < deadline, f"{rows} of {sent} after {seconds} s ({said}):\n{self.one.tail()}"
            time.sleep(0.5)
        # Whoever has something left commits it now.
        for server in (self.one, self.two):
            if self.is_up(server):
                assert server.stop() == 0, server.tail()

    def end(self):
        for server in (self.one, self.two, self.catalog):
            if self.is_up(server):
                server.process.send_signal(signal.SIGCONT)
                server.kill()
        self.proxy.close()
        self.broker.run("down")
        self.minio.remove()


QUESTION = """
    SELECT part, count(*) AS n, count(DISTINCT place) AS distinct_n, min(place) AS first, max(place) AS last
    FROM (SELECT CAST(split_part(entity_id, '-', 1) AS bigint) AS part, CAST(split_part(entity_id, '-', 2) AS bigint) AS place FROM {table})
    GROUP BY part ORDER BY part"""


def count_by_duckdb(fire):
    import duckdb

    connection = duckdb.connect()
    for name in ("avro", "httpfs", "iceberg"):
        module = __import__(f"duckdb_extension_{name}")
        found = next(pathlib.Path(module.__file__).parent.rglob("*.duckdb_extension"))
        connection.execute(f"LOAD '{found}'")
    s3 = fire.minio.s3
    host = s3["endpoint"].removeprefix("http://")
    connection.execute(f"CREATE SECRET (TYPE s3, KEY_ID '{s3['access_key']}', SECRET '{s3['secret_key']}', ENDPOINT '{host}', URL_STYLE 'path', USE_SSL false)")
    connection.execute(f"ATTACH 'lakegate' AS lake (TYPE iceberg, ENDPOINT '{fire.catalog.http}/iceberg', AUTHORIZATION_TYPE 'none')")
    return connection.execute(QUESTION.format(table="lake.bronze.service_events_raw")).fetchall()


def count_by_trino(fire):
    import trino
    from stores import Services

    service = Services(["trino"], CATALOG_URI=f"{fire.catalog.http}/iceberg", S3_ENDPOINT=fire.minio.address).up()
    try:
        connection = trino.dbapi.connect(host="127.0.0.1", port=service.port, user="judge", catalog="iceberg")
        return [tuple(row) for row in connection.cursor().execute(QUESTION.format(table="iceberg.bronze.service_events_raw")).fetchall()]
    finally:
        service.remove()


def run(folder, messages, turns, rate=0, seed=None, judges=(count_by_duckdb,), patience=600):
    """Gives what was counted; fails where anything is missing or there twice."""
    from test_kafka import event

    seed = seed if seed is not None else random.randrange(1 << 32)
    note(f"seed {seed}")
    fire, began = Fire(folder, seed), time.monotonic()
    try:
        load = Load(fire.broker, "fire", messages, rate, event)
        load.start()
        fire.burn(turns, lambda: sum(load.next) >= messages)
        sent = load.end()
        note(f"{sent} sent in {time.monotonic() - began:.0f} s, {dict(fire.counts)}, {fire.proxy.lost} answers lost")
        fire.drain(sent, patience)
        note(f"in the table after {time.monotonic() - began:.0f} s")
        wanted = [(number, next, next, 0, next - 1) for number, next in enumerate(load.next)]
        for judge in judges:
            found = judge(fire)
            assert found == wanted, f"{judge.__name__}: (partition, rows, distinct, first, last) {found}, expected {wanted}"
            note(f"{judge.__name__}: {sum(row[1] for row in found)} rows, each (partition, offset) once")
        return {"seed": seed, "records": sent, "failures": dict(fire.counts), "answers_lost": fire.proxy.lost}
    finally:
        fire.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default=str(ROOT / "target/debug/lakegate"))
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--rate", type=int, default=0, help="records a second; 0: as many as the broker takes")
    parser.add_argument("--turns", type=int, default=16, help="failures, at least")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trino", action="store_true", help="let Trino count too")
    parser.add_argument("--patience", type=int, default=1800, help="seconds for the rest, once all is sent")
    asked = parser.parse_args()
    os.environ["LAKEGATE_BIN"] = asked.binary
    sys.path.insert(0, str(ROOT / "tests/e2e"))
    judges = [count_by_duckdb] + ([count_by_trino] if asked.trino else [])
    with tempfile.TemporaryDirectory(prefix="lakegate-fire-") as folder:
        print(json.dumps(run(pathlib.Path(folder), asked.messages, asked.turns, asked.rate, asked.seed, judges, asked.patience)))


if __name__ == "__main__":
    main()
