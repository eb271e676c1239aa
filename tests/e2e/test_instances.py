"""Several instances behind a balancer: one warehouse, one catalog, one Redis, the configuration of the cart service."""

import json
import shutil
import threading
import time

import pytest
import requests
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from balancer import Balancer
from downstreams import Downstream, until
from stores import postgres  # noqa: F401
from test_consumers import consumer, event
from test_duplicates import redis  # noqa: F401
from test_storm import example


def settings(node, tmp_path, redis, postgres, service):
    config = example()
    del config["ingestion"], config["sinks"]
    config["node"] = {"id": node}
    config["storage"] = {"warehouse": str(tmp_path / "warehouse")}
    config["catalog"] = {"database": postgres.address}
    config["duplicates"]["redis"].update(url=redis.url, when_away="wait")
    config["routes"] = [route for route in config["routes"] if route["name"] == "prediction"]
    config["routes"][0]["url"] = f"{service.url}/api/predict/analyze"
    config["limits"]["downstream"]["hosts"][0]["ports"] = [service.port]
    # Longer than the balancer takes to notice, also on a machine that has other things to do.
    config["limits"]["drain_notice"] = "3s"
    return config


class Client:
    """Sends without mercy: whatever is not a 202 or 200 is kept, and nothing is sent again but what has no answer."""

    def __init__(self, http, number, stop):
        self.http, self.number, self.stop = http, number, stop
        self.sent, self.bad, self.twice = [], [], 0
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        session, n = requests.Session(), 0
        while not self.stop.is_set():
            n += 1
            one = event(n, "cart_abandoned" if n % 3 == 0 else "cart_updated", sessionId=f"c{self.number}")
            try:
                answer = session.post(f"{self.http}/events", json=one, timeout=30)
            except requests.RequestException as error:
                self.bad.append(repr(error))
                continue
            if answer.status_code != 202:
                self.bad.append((answer.status_code, answer.text[:200]))
                continue
            self.sent.append(one)
            if n % 5 == 0:
                # The same again, at once, to whichever instance is next: a duplicate everywhere.
                again = session.post(f"{self.http}/events", json=one, timeout=30)
                self.twice += again.status_code == 200
                if again.status_code != 200:
                    self.bad.append(("duplicate", again.status_code, again.text[:200]))


class Listener:
    """Subscribes over the balancer, and again where the instance goes; keeps what it was told of and when it listened."""

    def __init__(self, http, stop):
        self.address, self.stop = http.replace("http", "ws") + "/events/stream", stop
        self.heard, self.times = set(), []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stop.is_set():
            try:
                with connect(self.address) as ws:
                    ws.send(json.dumps({"type": "subscribe", "payload": {"filter": {"eventTypes": ["cart_abandoned"]}}}))
                    self.times.append(time.monotonic())
                    while not self.stop.is_set():
                        try:
                            told = json.loads(ws.recv(timeout=0.2))
                        except TimeoutError:
                            continue
                        if told.get("confirmation"):
                            self.heard.add(told["eventId"])
            except (WebSocketException, OSError):
                time.sleep(0.05)


@pytest.mark.skipif(not (shutil.which("haproxy") or shutil.which("/usr/sbin/haproxy")), reason="haproxy is not here (apt install haproxy)")
def test_instances_are_restarted_one_after_the_other_and_no_request_is_lost_or_refused(make_server, tmp_path, redis, postgres):
    service = Downstream()
    names = ["n0", "n1", "n2"]
    servers = [make_server(settings(name, tmp_path, redis, postgres, service), name).start() for name in names]
    balancer = Balancer(tmp_path / "balancer", servers).start()
    stop = threading.Event()
    clients = [Client(balancer.http, n, stop) for n in range(4)]
    listener = Listener(balancer.http, stop)
    try:
        until(lambda: listener.heard, what="a confirmation")
        for server in servers:
            before = sum(len(client.sent) for client in clients)
            assert server.stop() == 0
            until(lambda: sum(len(client.sent) for client in clients) > before + 50, 60, "requests while one is away")
            server.start()
            until(lambda: requests.get(f"{server.http}/health", timeout=10).json()["status"] == "healthy")
            until(lambda: sum(len(client.sent) for client in clients) > before + 150, 60, "requests with it again")
        at = len(listener.heard)
        until(lambda: len(listener.heard) > at + 20, what="confirmations over the instances")
    finally:
        stop.set()
        [client.thread.join() for client in clients]
        listener.thread.join()
        balancer.stop()
    assert not any(client.bad for client in clients), [client.bad[:3] for client in clients]
    assert sum(client.twice for client in clients) > 20
    sent = [one for client in clients for one in client.sent]
    for server in servers:
        server.wait_absorbed(60)
        until(lambda: consumer(server, "prediction")["lag_records"] == 0, 60)
    for server in servers:
        rows = server.sql("SELECT count(*) AS n, count(DISTINCT event_id) AS d FROM default.events")
        assert rows == [{"n": len(sent), "d": len(sent)}]
    abandoned = [one for one in sent if one["eventType"] == "cart_abandoned"]
    # What was under way when an instance ended came again, under its key.
    assert {one["eventId"] for one in service.events()} == {one["eventId"] for one in abandoned}
    assert len(service.keys()) == len(abandoned)
    own = [requests.get(f"{server.http}/api/consumers/prediction", timeout=10).json()["delivered"] for server in servers]
    assert sum(own) == len(abandoned) and all(own), own
    assert listener.heard <= {one["eventId"] for one in abandoned} and len(listener.times) <= 4, listener.times
    service.stop()
