"""Power cut on a real file system: what was not synced is gone, and kill alone does not show that.

The server's folder lies on ext4 in a loop device. What the device has at an instant is what a disk would have after a
power cut: pages that were written and not synced are in the file system's cache alone. That image is copied while the
server works, put in the place of the device, and the server starts on it.
"""

import os
import shutil
import subprocess
import threading
import time
import uuid

import grpc
import pytest
import requests

from journal import Journal, check, digest

SIZE_MIB = 320


class Device:
    """A file system in a file."""

    def __init__(self, folder):
        self.image, self.place = folder / "device.img", folder / "disk"
        self.place.mkdir()
        with open(self.image, "wb") as image:
            image.truncate(SIZE_MIB << 20)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self.image)], check=True)

    def mount(self):
        return subprocess.run(["mount", "-o", "loop", str(self.image), str(self.place)], capture_output=True).returncode == 0

    def unmount(self):
        subprocess.run(["umount", str(self.place)], check=True)

    def copy(self, to):
        subprocess.run(["cp", "--sparse=always", str(self.image), str(to)], check=True)


class Sender(threading.Thread):
    """Sends batches until it is told to end, and keeps a journal."""

    def __init__(self, server, stubs, journal):
        super().__init__(daemon=True)
        self.client, self.stubs, self.journal = server.client(), stubs, journal
        self.ended, self.count, self.acknowledged = threading.Event(), 0, []

    def run(self):
        while not self.ended.is_set():
            payloads = {str(uuid.uuid4()): f'{{"pad":"{os.urandom(200).hex()}"}}' for _ in range(20)}
            self.journal.sent(payloads, {one: digest(payload) for one, payload in payloads.items()})
            records = [self.stubs.common.DataRecord(endpoint_id="cut", event_id=one, payload=payload.encode()) for one, payload in payloads.items()]
            try:
                answer = self.client.IngestBatch(self.stubs.ingestion.IngestBatchRequest(records=records), timeout=30)
            except grpc.RpcError:
                continue
            assert answer.accepted == len(payloads)
            self.acknowledged.append(list(payloads))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mkfs.ext4"), reason="needs to mount a file system of its own")
def test_f07_what_was_acknowledged_outlives_a_power_cut_on_a_real_file_system(make_server, stubs, tmp_path):
    device = Device(tmp_path)
    if not device.mount():
        pytest.skip("no loop device here")
    data = device.place / "data"
    server = make_server({
        "node": {"data_dir": str(data)},
        "ingestion": {"flush_interval": "300ms"},
        "storage": {"warehouse": str(data / "warehouse"), "wal": {"segment_bytes": "4MiB", "quota": "64MiB"}},
        "catalog": {"database": f"sqlite://{data}/catalog.db"},
    })
    server.data = data
    journal = Journal(tmp_path / "journal")
    known = 0
    try:
        for cut in range(3):
            server.start()
            sender = Sender(server, stubs, journal)
            sender.start()
            until = time.monotonic() + 60
            while len(sender.acknowledged) < 60 + 30 * cut and time.monotonic() < until:
                time.sleep(0.02)
            # Acknowledged before the copy begins: only these can the image be asked for.
            before = len(sender.acknowledged)
            device.copy(tmp_path / "after.img")
            server.kill()
            sender.ended.set()
            sender.join()
            for ids in sender.acknowledged[:before]:
                journal.acknowledged(ids)
            device.unmount()
            os.replace(tmp_path / "after.img", device.image)
            assert device.mount(), "the file system cannot be mounted after the cut"
            server.start()
            rows = server.sql('SELECT event_id, payload FROM "default".cut')
            stored, acknowledged, _ = check(journal, [(row["event_id"], row["payload"]) for row in rows])
            assert acknowledged > known and stored >= acknowledged, "each round adds"
            known = acknowledged
            server.wait_absorbed(60)
            lake = server.catalog().load_table("default.cut").scan(selected_fields=("event_id", "payload")).to_arrow()
            assert lake.num_rows == stored
            check(journal, list(zip(lake["event_id"].to_pylist(), lake["payload"].to_pylist())))
            audit = requests.get(f"{server.http}/api/audit", timeout=60).json()
            assert audit["closes"], audit
            server.stop()
    finally:
        if server.process and server.process.poll() is None:
            server.kill()
        subprocess.run(["umount", "-l", str(device.place)])
