"""HAProxy before several instances, as an operator would set it up: it asks /readyz, and tries nothing twice."""

import pathlib
import shutil
import subprocess

import requests

from conftest import free_port
from downstreams import until


class Balancer:
    def __init__(self, folder, servers):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.process = free_port(), None
        self.http = f"http://127.0.0.1:{self.port}"
        lines = [f"  server n{n} 127.0.0.1:{s.http_port} check inter 200ms fall 1 rise 1" for n, s in enumerate(servers)]
        self.config, self.log = folder / "haproxy.cfg", folder / "haproxy.log"
        # Nothing is tried twice: a request that meets a closed port or a cut connection is seen by its client.
        self.config.write_text(
            f"""global
  maxconn 2000
defaults
  mode http
  retries 0
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout tunnel 1h
  timeout check 20s
frontend front
  bind 127.0.0.1:{self.port}
  default_backend instances
backend instances
  balance roundrobin
  option httpchk GET /readyz
  default-server init-addr none
"""
            + "\n".join(lines)
            + "\n"
        )

    def start(self):
        haproxy = shutil.which("haproxy") or "/usr/sbin/haproxy"
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([haproxy, "-db", "-f", self.config], stdout=log, stderr=log)
        try:
            until(self.answers, 30, "the balancer")
        except AssertionError:
            self.stop()
            raise
        return self

    def answers(self):
        try:
            return requests.get(f"{self.http}/readyz", timeout=1).status_code == 200
        except requests.RequestException:
            return False

    def stop(self):
        if self.process:
            self.process.terminate()
            self.process.wait(10)
            self.process = None
