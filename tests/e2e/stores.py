"""Buckets, databases and catalogs beside the server, each on its own port, stopped and started as a test says."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import boto3
import pytest
import requests

from conftest import ROOT, free_port

MINIO = shutil.which("minio") or str(pathlib.Path.home() / ".cache/lakegate/bin/minio")
REST_JARS = pathlib.Path(os.environ.get("SERVICES_CACHE", pathlib.Path.home() / ".cache/lakegate/services")) / "rest-catalog/list"
KEY, SECRET = "minio-user-for-tests", "minio-secret-for-tests"


def until(condition, seconds=60, every=0.1, what="it"):
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = condition()
            if found:
                return found
        except (requests.ConnectionError, requests.Timeout):
            pass
        assert time.monotonic() < deadline, f"{what} did not come in {seconds} s"
        time.sleep(every)


class Services:
    """`scripts/services/services.sh` in a folder of its own, which every user can reach."""

    def __init__(self, names, **environment):
        self.names, self.folder, self.port = names, pathlib.Path(tempfile.mkdtemp(prefix="lakegate-services-")), free_port()
        self.folder.chmod(0o755)
        ports = {f"{name.upper().replace('-', '_')}_PORT": str(self.port) for name in names}
        self.environment = dict(os.environ, SERVICES_DIR=str(self.folder), S3_ACCESS_KEY=KEY, S3_SECRET_KEY=SECRET, **ports)
        self.environment.pop("S3_ENDPOINT", None)
        self.environment.update(environment)

    def run(self, command):
        done = subprocess.run(["bash", ROOT / "scripts/services/services.sh", command, *self.names], env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()[-1] if done.stdout else ""

    def up(self):
        self.address = self.run("up")
        return self

    def down(self):
        self.run("down")

    def pid(self):
        return int((self.folder / self.names[0] / "pid").read_text().split()[0])

    def remove(self):
        self.down()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def minio():
    if not os.access(MINIO, os.X_OK):
        pytest.skip("minio is not here; `cargo xtask services install minio` builds it")
    service = Services(["minio"]).up()
    service.s3 = {"endpoint": service.address, "access_key": KEY, "secret_key": SECRET}
    service.client = boto3.client("s3", endpoint_url=service.address, aws_access_key_id=KEY, aws_secret_access_key=SECRET, region_name="us-east-1")
    yield service
    service.remove()


@pytest.fixture
def postgres():
    service = Services(["postgres"]).up()
    yield service
    service.remove()


@pytest.fixture
def rest_catalog():
    if not REST_JARS.exists() and not os.environ.get("LAKEGATE_HEAVY"):
        pytest.skip("the REST catalog is not here; `cargo xtask services install rest-catalog` fetches it")
    made = []

    def make(**environment):
        made.append(Services(["rest-catalog"], **environment).up())
        return made[-1]

    yield make
    for service in made:
        service.remove()


def bucket_settings(minio, database=None, prefix="lake", **more):
    settings = {"storage": {"warehouse": f"s3://warehouse/{prefix}", "s3": dict(minio.s3)}}
    settings["storage"]["s3"].update(more)
    if database:
        settings["catalog"] = {"database": database}
    return settings


def lent(minio):
    """The settings by which the catalog gives engines a key."""
    return {"engine_access_key": minio.s3["access_key"], "engine_secret_key": minio.s3["secret_key"]}


def own_key(minio):
    """What an engine says that brings its own key."""
    return {"s3.access-key-id": minio.s3["access_key"], "s3.secret-access-key": minio.s3["secret_key"]}


def pyiceberg(uri, **properties):
    from pyiceberg.catalog import load_catalog

    return load_catalog("judge", type="rest", uri=uri, **properties)


def health(server):
    return requests.get(f"{server.http}/health", timeout=10).json()


def last_errors(server):
    status = requests.get(f"{server.http}/api/status", timeout=10).json()
    return [s["last_error"] for s in status["streams"] if s.get("last_error")]


def records(stubs, stream, ids, pad=20):
    payload = lambda i: json.dumps({"n": i, "pad": "x" * pad}).encode()
    return [stubs.common.DataRecord(endpoint_id=stream, event_id=f"e-{i}", payload=payload(i)) for i in ids]


def send(server, stubs, stream, ids, pad=20):
    request = stubs.ingestion.IngestBatchRequest(records=records(stubs, stream, ids, pad))
    assert server.client().IngestBatch(request, timeout=60).accepted == len(ids)


def stored_ids(table, **catalog):
    """What PyIceberg finds, each as often as it is there."""
    return sorted(table.scan(selected_fields=("event_id",)).to_arrow()["event_id"].to_pylist())


def expected(ids):
    return sorted(f"e-{i}" for i in ids)


def stop_hard(service):
    os.kill(service.pid(), signal.SIGKILL)
