"""The real binary, started and killed as a user's would be; other engines as judges of what it stored."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import duckdb
import grpc
import pytest
import requests
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("LAKEGATE_BIN", ROOT / "target/debug/lakegate"))
DATA = ROOT.parent / "shared" / "data"


HANDED_OUT = set()


def free_port():
    """One that nobody has, nor was given before: the system may name the same one twice."""
    while True:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        if port not in HANDED_OUT:
            HANDED_OUT.add(port)
            return port


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    """Python stubs made from our .proto files by grpc_tools, as a client's team would."""
    out = tmp_path_factory.mktemp("stubs")
    include = pathlib.Path(sys.modules["grpc_tools"].__file__).parent / "_proto"
    files = [str(p) for p in sorted((ROOT / "proto").rglob("*.proto"))]
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{include}", f"--python_out={out}", f"--grpc_python_out={out}"]
    assert protoc.main(arguments + files) == 0
    sys.path.insert(0, str(out))
    from storage import common_pb2, ingestion_pb2, ingestion_pb2_grpc

    class Stubs:
        common = common_pb2
        ingestion = ingestion_pb2
        rpc = ingestion_pb2_grpc

    return Stubs


class Server:
    """One `lakegate serve`, its folder and its ports."""

    def __init__(self, folder, stubs, settings=None):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.stubs = stubs
        self.grpc_port, self.http_port = free_port(), free_port()
        self.http = f"http://127.0.0.1:{self.http_port}"
        self.data = self.folder / "data"
        self.process = None
        config = {
            "node": {"data_dir": str(self.data)},
            "ingestion": {"port": self.grpc_port, "http_port": self.http_port, "flush_interval": "500ms"},
            "storage": {"warehouse": str(self.data / "warehouse")},
            "catalog": {"database": f"sqlite://{self.data / 'catalog.db'}"},
        }
        merge(config, settings or {})
        self.config = self.folder / "lakegate.json"
        self.config.write_text(json.dumps(config, indent=2))
        self.log = self.folder / "server.log"

    def start(self, wait=True, **environment):
        env = dict(os.environ, **environment)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([BINARY, "serve", "--config", self.config], stdout=log, stderr=log, env=env)
        if wait:
            self.wait_ready()
        return self

    def wait_ready(self, seconds=30):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}:\n{self.tail()}")
            try:
                if requests.get(f"{self.http}/readyz", timeout=1).status_code == 200:
                    return
            except (requests.ConnectionError, requests.Timeout):
                pass
            time.sleep(0.02)
        raise AssertionError(f"not ready after {seconds} s:\n{self.tail()}")

    def tail(self, lines=40):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"did not stop in 30 s:\n{self.tail()}")
        return self.process.returncode if self.process else None

    def channel(self):
        options = [("grpc.max_send_message_length", 64 << 20), ("grpc.max_receive_message_length", 64 << 20)]
        return grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}", options=options)

    def client(self):
        return self.stubs.rpc.IngestionServiceStub(self.channel())

    def sql(self, sql, **more):
        answer = requests.post(f"{self.http}/api/sql", json={"sql": sql, **more}, headers={"accept": "application/json"}, timeout=60)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        return body["rows"] if isinstance(body, dict) else body

    def cli(self, *arguments, **keywords):
        return subprocess.run([BINARY, *arguments], capture_output=True, text=True, timeout=120, **keywords)

    def catalog(self):
        from pyiceberg.catalog import load_catalog

        return load_catalog("lakegate", type="rest", uri=f"{self.http}/iceberg")

    def wait_absorbed(self, seconds=30):
        """Until the lake has all that is durable."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = requests.get(f"{self.http}/api/status", timeout=10).json()
            if all(s["memtable_records"] == 0 for s in status["streams"]):
                return status
            time.sleep(0.05)
        raise AssertionError(f"rows are still not in the lake:\n{json.dumps(status, indent=2)}\n{self.tail()}")


def merge(into, more):
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


@pytest.fixture
def make_server(tmp_path, stubs):
    """Makes servers; what still runs at the end of the test is killed."""
    made = []

    def make(settings=None, name="one"):
        server = Server(tmp_path / name, stubs, settings)
        made.append(server)
        return server

    yield make
    for server in made:
        if server.process and server.process.poll() is None:
            server.kill()


@pytest.fixture
def server(make_server):
    return make_server().start()


@pytest.fixture(scope="session")
def duck():
    """DuckDB with its Iceberg extension, from the packages beside it; no network."""

    def connect():
        connection = duckdb.connect()
        for name in ("avro", "httpfs", "iceberg"):
            module = __import__(f"duckdb_extension_{name}")
            found = next(pathlib.Path(module.__file__).parent.rglob("*.duckdb_extension"))
            connection.execute(f"LOAD '{found}'")
        return connection

    return connect


@pytest.fixture(scope="session")
def shared_data():
    if not DATA.exists():
        pytest.skip(f"{DATA} is not here")
    return DATA


@pytest.fixture(scope="session")
def grpcurl():
    found = shutil.which("grpcurl") or shutil.which("grpcurl", path=str(pathlib.Path.home() / ".cache/lakegate/bin"))
    if found:
        return found
    if not shutil.which("go"):
        pytest.skip("neither grpcurl nor go is here")
    env = dict(os.environ, GOBIN=str(pathlib.Path.home() / ".cache/lakegate/bin"))
    subprocess.run(["go", "install", "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"], env=env, check=True)
    return str(pathlib.Path.home() / ".cache/lakegate/bin/grpcurl")
