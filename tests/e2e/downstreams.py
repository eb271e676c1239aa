"""Services that records are brought on to, run for tests: an HTTP service of changing moods, ClickHouse, Redis."""

import collections
import http.server
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import requests

from conftest import ROOT, free_port


class Downstream:
    """An HTTP service that keeps what it took. Its mood: well, failing, refusing, busy, hanging, slow, gone."""

    def __init__(self, port=None):
        self.port = port or free_port()
        self.mood = "well"
        self.refuses = lambda body: False
        self.taken, self.asked = [], 0
        self.lock = threading.Lock()
        self.server = None
        self.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def start(self):
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self):
                try:
                    super().handle()
                except (ConnectionError, TimeoutError):
                    pass

            def answer(self, status, **headers):
                self.send_response(status)
                for name, value in {"content-length": "2", **headers}.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(b"{}")

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                with service.lock:
                    service.asked += 1
                mood = service.mood
                if mood == "hanging":
                    time.sleep(5)
                    self.close_connection = True
                    return
                if mood == "slow":
                    time.sleep(0.3)
                if mood == "failing":
                    return self.answer(500)
                if mood == "busy":
                    return self.answer(429, retry_after="1")
                if mood == "elsewhere":
                    return self.answer(302, location=service.url + "/other")
                event = json.loads(body)
                if mood == "refusing" or service.refuses(event):
                    return self.answer(422)
                with service.lock:
                    service.taken.append((self.path, dict(self.headers.items()), event, body))
                self.answer(200)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self):
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def events(self):
        with self.lock:
            return [event for _, _, event, _ in self.taken]

    def keys(self):
        with self.lock:
            return collections.Counter(
                next(value for name, value in headers.items() if name.lower() == "idempotency-key")
                for _, headers, _, _ in self.taken
            )


def until(holds, seconds=60, what="it", every=0.05):
    """Waits for what another process does."""
    deadline = time.monotonic() + seconds
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come about in {seconds} s"
        time.sleep(every)


class ClickHouse:
    """A server of the distribution (18.16)."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self.tcp, self.internal = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None
        (self.folder / "config.xml").write_text(f"""<yandex>
  <logger><level>warning</level><log>{self.folder}/log</log><errorlog>{self.folder}/errors</errorlog></logger>
  <listen_host>127.0.0.1</listen_host><http_port>{self.port}</http_port><tcp_port>{self.tcp}</tcp_port>
  <interserver_http_port>{self.internal}</interserver_http_port><interserver_http_host>127.0.0.1</interserver_http_host>
  <path>{self.folder}/data/</path><tmp_path>{self.folder}/tmp/</tmp_path><users_config>{self.folder}/users.xml</users_config>
  <default_profile>default</default_profile><default_database>default</default_database>
  <mark_cache_size>268435456</mark_cache_size>
</yandex>""")
        (self.folder / "users.xml").write_text("""<yandex>
  <profiles><default><max_memory_usage>2000000000</max_memory_usage></default></profiles>
  <users><default><password></password><networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></default></users>
  <quotas><default><interval><duration>3600</duration><queries>0</queries><errors>0</errors><result_rows>0</result_rows><read_rows>0</read_rows><execution_time>0</execution_time></interval></default></quotas>
</yandex>""")

    def start(self):
        (self.folder / "data").mkdir(exist_ok=True)
        (self.folder / "tmp").mkdir(exist_ok=True)
        with open(self.folder / "out", "ab") as log:
            self.process = subprocess.Popen(
                [shutil.which("clickhouse-server") or "/usr/sbin/clickhouse-server", f"--config-file={self.folder}/config.xml"],
                stdout=log, stderr=log, cwd=self.folder,
            )
        until(self.answers, 60, "ClickHouse")
        return self

    def answers(self):
        try:
            return requests.get(f"{self.url}/ping", timeout=1).status_code == 200
        except requests.RequestException:
            return False

    def ask(self, sql):
        answer = requests.post(self.url, data=sql.encode(), timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.text.strip()

    def count(self, what="count()", table="raw_events", final=""):
        try:
            return int(self.ask(f"SELECT {what} FROM default.{table} {final}"))
        except AssertionError:
            return -1

    def kill(self):
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


def installed(name):
    """Installs a service of the distribution where it is missing."""
    path = {"clickhouse": "/usr/sbin/clickhouse-server", "redis": "/usr/bin/redis-server"}[name]
    if not pathlib.Path(path).exists():
        subprocess.run([ROOT / "scripts/services/services.sh", "install", name], check=True)


class CurrentClickHouse(ClickHouse):
    """The current engine, in a process of its own with its own packages."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None
        self.python = pathlib.Path.home() / ".cache/lakegate/chdb/bin/python"
        packages = ROOT / "tests/e2e/chdb-requirements.txt"
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", self.python.parents[1]], check=True)
        subprocess.run([self.python, "-m", "pip", "install", "-q", "-r", packages], check=True)

    def start(self):
        with open(self.folder / "out", "ab") as log:
            arguments = [self.python, ROOT / "tests/e2e/chdb_front.py", str(self.port), self.folder]
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log, cwd=self.folder)
        until(self.answers, 60, "the engine")
        return self

    def lose_next_answer(self):
        requests.get(f"{self.url}/lose", timeout=30)
