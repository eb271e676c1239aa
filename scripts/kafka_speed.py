"""Topic to table: rows a second, CPU a row and memory of the server alone. The topic is filled before it starts.

    python scripts/kafka_speed.py --brokers 127.0.0.1:9092 --binary target/release/lakegate --messages 1500000

Needs confluent-kafka and requests (tests/e2e/requirements.txt) and a broker (scripts/services/services.sh up kafka). The events are
those of the bronze table, about 380 bytes each; --days spreads them over so many partitions of the table.
"""

import argparse
import datetime
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import uuid

import requests
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def fill(brokers, topic, messages, partitions, days):
    admin = AdminClient({"bootstrap.servers": brokers, "log_level": 0})
    for future in admin.create_topics([NewTopic(topic, partitions, 1)]).values():
        future.result(30)
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 50, "batch.num.messages": 10000, "compression.type": "lz4",
                         "queue.buffering.max.messages": 200000})  # fmt: skip
    first = datetime.date(2024, 1, 1)
    dates = [(first + datetime.timedelta(days=n)).isoformat() for n in range(days)]
    attributes = {"complaint_type": "Water Supply", "priority": "MEDIUM", "sla_hours": 72}
    for n in range(messages):
        day = dates[n % days]
        event = {
            "event_date": day, "event_time": f"{day} 10:{n // 60 % 60:02}:{n % 60:02}", "tenant_id": "TENANT_001", "service": "PGR",
            "entity_type": "complaint", "entity_id": f"CMP_{n:09}", "event_type": "CaseSubmitted", "status": "OPEN",
            "actor_type": "CITIZEN", "actor_id": f"CIT_{n % 5000:05}", "channel": "WEB", "ward_id": f"WARD_{n % 100:03}",
            "locality_id": f"LOC_{n % 500:03}", "attributes_json": attributes, "raw_payload": None,
        }  # fmt: skip
        value = json.dumps(event, separators=(",", ":")).encode()
        while True:
            try:
                producer.produce(topic, value, partition=n % partitions)
                break
            except BufferError:
                producer.poll(0.1)
        if n % 1000 == 0:
            producer.poll(0)
    assert producer.flush(600) == 0
    return len(value)


def usage(pid):
    """CPU seconds so far, and the most memory that was resident, in MiB."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), peak


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--brokers", default="127.0.0.1:9092")
    parser.add_argument("--binary", default="target/release/lakegate")
    parser.add_argument("--messages", type=int, default=1_500_000)
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--days", type=int, default=1)
    parser.add_argument("--settings", default="{}", help="more of the server's configuration, as JSON")
    options = parser.parse_args()
    topic = f"speed-{uuid.uuid4().hex[:8]}"
    size = fill(options.brokers, topic, options.messages, options.partitions, options.days)
    with tempfile.TemporaryDirectory() as folder:
        http = free_port()
        config = {
            "node": {"data_dir": folder},
            "kafka": {"sources": [{"brokers": options.brokers, "topic": topic, "group_id": topic}]},
            **json.loads(options.settings),
        }
        config.setdefault("ingestion", {}).update({"port": free_port(), "http_port": http})
        file = pathlib.Path(folder) / "lakegate.json"
        file.write_text(json.dumps(config))
        log = pathlib.Path(folder) / "log"
        process = subprocess.Popen([options.binary, "serve", "--config", file], stderr=log.open("wb"))
        try:
            began = time.monotonic()
            done, first = 0, None
            while done < options.messages:
                assert process.poll() is None, log.read_text()
                lines = log.read_text().splitlines()
                done = sum(json.loads(line).get("rows", 0) for line in lines if "Inserted" in line)
                if first is None and any("read here from now on" in line for line in lines):
                    first = time.monotonic()
                time.sleep(0.2)
            seconds = time.monotonic() - (first or began)
            cpu, peak = usage(process.pid)
            sql = {"sql": "SELECT count(*) AS n, count(DISTINCT entity_id) AS d FROM bronze.service_events_raw"}
            headers = {"accept": "application/json"}
            answer = requests.post(f"http://127.0.0.1:{http}/api/sql", json=sql, headers=headers, timeout=300).json()
        finally:
            process.terminate()
            process.wait(60)
    print(
        f"{options.messages} messages of {size} bytes, {options.partitions} partitions, {options.days} days: {seconds:.1f} s, "
        f"{options.messages / seconds:,.0f} rows/s, {cpu * 1e6 / options.messages:.2f} µs of CPU a row, at most {peak:.0f} MiB; stored: {answer}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
