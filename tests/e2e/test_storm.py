"""The cart service whole, as examples/cart ships it: a storm of events over REST and WebSocket into ClickHouse, Redis and
three services that are slow, failing, hanging and gone by turns, with kills of servers and of the gateway.

6,000 events by default; `scripts/cart_storm.py` runs it with more (LAKEGATE_STORM_EVENTS), and with the two Kafka topics of the
example (LAKEGATE_STORM_KAFKA).
"""

import collections
import itertools
import json
import os
import random
import re
import statistics
import threading
import time
import uuid

import requests
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from conftest import ROOT
from downstreams import Downstream, until
from test_clickhouse import clickhouse  # noqa: F401
from test_consumers import balanced, consumer, event, in_order
from test_duplicates import redis  # noqa: F401

EVENTS = int(os.environ.get("LAKEGATE_STORM_EVENTS", "6000"))
KAFKA = os.environ.get("LAKEGATE_STORM_KAFKA", "")
RUN = uuid.uuid4().hex[:8]
KINDS = ["cart_created", "cart_updated", "cart_abandoned", "item_added", "item_removed", "purchase_completed"]
SERVICES = {"prediction": "cart_abandoned", "analytics": "cart_updated", "completion": "purchase_completed"}


def example():
    text = (ROOT / "examples/cart/lakegate.json").read_text()
    return json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.M))


def settings(clickhouse, redis, services):
    config = example()
    del config["node"], config["ingestion"]
    config["duplicates"]["redis"].update(url=redis.url, when_away="wait")
    config["sinks"]["raw"]["clickhouse"].update(url=clickhouse.url, timeout="5s")
    config["sinks"]["recent"]["redis"]["url"] = redis.url
    config["sinks"]["recent"]["redis"]["entries_max"] = 10 * EVENTS
    for name in ("events-topic", "notices"):
        if KAFKA:
            config["sinks"][name]["kafka"].update(brokers=KAFKA, topic=f"{config['sinks'][name]['kafka']['topic']}-{RUN}")
        else:
            del config["sinks"][name]
    for route in config["routes"]:
        service = services[route["name"]]
        route["url"] = f"{service.url}/{route['url'].split('/', 3)[3]}"
        route.update(timeout="2s", retry={"pause_min": "20ms", "pause_max": "500ms", "attempts": 50}, breaker={"open_for": "200ms"})
    config["limits"]["downstream"]["hosts"][0]["ports"] = [service.port for service in services.values()]
    return config


class Shop:
    """Sends its share over one way, each event until it is acknowledged, the events of a session in order."""

    def __init__(self, server, events, socket):
        self.server, self.events, self.socket = server, events, socket
        self.thread = threading.Thread(target=self.run)
        self.error, self.taken = None, 0
        self.thread.start()

    def run(self):
        try:
            for at in range(0, len(self.events), 50):
                self.send(self.events[at : at + 50])
        except Exception as error:
            self.error = error

    def send(self, some):
        deadline = time.monotonic() + 120
        while some:
            assert time.monotonic() < deadline, "not taken in two minutes"
            try:
                if not self.socket:
                    answer = requests.post(f"{self.server.http}/events/batch", json={"events": some}, timeout=30)
                    if answer.status_code in (200, 202) and answer.json()["successful"] == len(some):
                        self.taken += len(some)
                        return
                else:
                    with connect(self.server.http.replace("http", "ws") + "/events/stream") as ws:
                        for one in some:
                            ws.send(json.dumps({"type": "cart_event", "payload": one}))
                        for _ in range(len(some)):
                            answer = json.loads(ws.recv(timeout=30))
                            if answer["type"] != "event_ack":
                                break
                            assert answer["eventId"] == some[0]["eventId"]
                            some = some[1:]
                            self.taken += 1
            except (requests.RequestException, WebSocketException, OSError, TimeoutError):
                pass
            time.sleep(0.05)


def of_topic(topic, wanted):
    """The events of a topic, each as often as it is there, from when the wanted ones are."""
    from confluent_kafka import Consumer

    reader = Consumer({"bootstrap.servers": KAFKA, "group.id": RUN, "auto.offset.reset": "earliest"})
    reader.subscribe([topic])
    found, left, until_time = [], set(wanted), time.monotonic() + 120
    while left:
        assert time.monotonic() < until_time, f"{len(left)} events are not in the topic"
        for message in reader.consume(10000, 1.0):
            found.append(json.loads(message.value()))
            left.discard(found[-1]["eventId"])
    reader.close()
    return found


def test_f57_f63_f65_a_storm_reaches_everything_once_or_in_order_whatever_fails(make_server, clickhouse, redis):
    chance = random.Random(3)
    services = {name: Downstream() for name in SERVICES}
    server = make_server(settings(clickhouse, redis, services)).start()
    shops = []
    for number in range(6):
        share = [event(n, chance.choice(KINDS), sessionId=f"shop-{number}-{n % 5}") for n in range(EVENTS // 6)]
        shops.append(Shop(server, share, socket=number % 3 == 0))
    moods = itertools.cycle(["well", "slow", "failing", "hanging", "busy", "gone"])
    seen, rates = set(), collections.defaultdict(list)
    began = time.monotonic()
    for turn in itertools.count():
        sick = list(services.values())[turn % 3]
        mood = next(moods)
        sick.stop() if mood == "gone" else setattr(sick, "mood", mood)
        before, started = sum(shop.taken for shop in shops), time.monotonic()
        time.sleep(1)
        if all(shop.thread.is_alive() for shop in shops):
            away = mood if clickhouse.process else "ClickHouse"
            rates[away].append((sum(shop.taken for shop in shops) - before) / (time.monotonic() - started))
        seen |= {one["breaker"] for one in requests.get(f"{server.http}/api/consumers", timeout=10).json()["consumers"]}
        if turn % 5 == 1:
            clickhouse.kill()
        if turn % 5 == 2:
            server.kill()
            server.start()
        if turn % 5 == 3:
            clickhouse.start()
        if turn % 5 == 4:
            redis.kill()
            redis.start()
        sick.mood = "well"
        if sick.server is None:
            sick.start()
        if turn >= 4 and not any(shop.thread.is_alive() for shop in shops):
            break
    if clickhouse.process is None:
        clickhouse.start()
    took = time.monotonic() - began
    assert not any(shop.error for shop in shops), [shop.error for shop in shops]
    sent = [one for shop in shops for one in shop.events]
    names = [name for name in ("prediction", "analytics", "completion", "raw", "recent", "events-topic") if KAFKA or name != "events-topic"]
    for name in names:
        until(lambda name=name: consumer(server, name)["lag_records"] == 0, 120 + EVENTS / 500, name)
        status = consumer(server, name)
        assert balanced(status) and status["dead"] == status["skipped"] == 0, status
    assert server.sql("SELECT count(*) AS n, count(DISTINCT event_id) AS d FROM default.events") == [{"n": len(sent), "d": len(sent)}]
    delivered = time.monotonic() - began
    assert clickhouse.count("uniqExact(_key)") == clickhouse.count(final="FINAL") == len(sent)
    for name, kind in SERVICES.items():
        wanted = [one for one in sent if one["eventType"] == kind]
        taken = services[name].events()
        if name == "completion":
            by_id = {one["eventId"]: one for one in wanted}
            taken = [by_id[one["eventId"]] for one in taken]
        in_order(taken, wanted)
        keys = services[name].keys()
        assert len(keys) == len(wanted), "a key for each event, the same each time"
    assert "open" in seen
    if KAFKA:
        in_order(of_topic(f"cart-events-{RUN}", {one["eventId"] for one in sent}), sent)
    assert collections.Counter(line["level"] for line in map(json.loads, server.log.read_text().splitlines()))["ERROR"] == 0
    [service.stop() for service in services.values()]
    print(f"{len(sent)} events taken in {took:.0f} s, all delivered after {delivered:.0f} s, {turn + 1} turns of a second and what was killed")
    for away, some in rates.items():
        print(f"  events/s taken while {away:<10} median {statistics.median(some):,.0f} of {len(some)} turns")
    for service in services.values():
        print(f"  requests {service.asked}, taken {len(service.taken)}, keys {len(service.keys())}")
