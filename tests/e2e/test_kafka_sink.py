"""Records on a Kafka topic: a real broker, and messages that it refuses."""

import json
import uuid

from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from downstreams import until
from test_consumers import balanced, consumer, event, in_order, send
from test_kafka import broker  # noqa: F401


def read(address, topic, count):
    reader = Consumer({"bootstrap.servers": address, "group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest"})
    reader.subscribe([topic])
    found = []
    until(lambda: found.extend(reader.consume(1000, 0.5)) or len(found) >= count, 60, f"{count} messages")
    reader.close()
    return found


def test_messages_that_the_broker_refuses_are_set_aside_the_others_go_on_and_they_can_be_sent_again(make_server, broker):
    topic = f"small-{uuid.uuid4().hex[:8]}"
    admin = AdminClient({"bootstrap.servers": broker.address})
    # A batch of messages is larger than that too: each of it is tried alone.
    [made.result(30) for made in admin.create_topics([NewTopic(topic, 2, 1, config={"max.message.bytes": "3000"})]).values()]
    sink = {"from": {"streams": ["events"]}, "order_key": ["session_id"], "batch": {"wait": "50ms"}, "kafka": {"brokers": broker.address, "topic": topic}}
    server = make_server({"sinks": {"k": sink}}).start()
    large = [event(n, data={"n": n, "pad": uuid.uuid4().hex * 200}) for n in range(3)]
    small = [event(n) for n in range(200)]
    send(server, small[:100] + large + small[100:], at_once=203)
    status = until(lambda: (s := consumer(server, "k"))["delivered"] == 200 and s["dead"] == 3 and s, 60, "the large ones aside")
    assert balanced(status) and status["state"] == "running" and status["breaker"] == "closed"
    messages = read(broker.address, topic, 200)
    assert {json.loads(m.value())["eventId"] for m in messages} == {one["eventId"] for one in small}
    assert len({dict(m.headers())["idempotency-key"] for m in messages}) == 200
    assert all(m.key().decode().endswith(json.loads(m.value())["sessionId"]) for m in messages)
    entry = ConfigEntry("max.message.bytes", "1000000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    [done.result(30) for done in admin.incremental_alter_configs([resource]).values()]
    until(lambda: "3 delivered, 0 refused" in server.cli("consumers", "dead", "replay", "k", "--url", server.http).stdout or consumer(server, "k")["dead"] == 0, 30, "the replay", 1)
    found = {json.loads(m.value())["eventId"] for m in read(broker.address, topic, 203)}
    assert found == {one["eventId"] for one in small + large} and consumer(server, "k")["delivered"] == 203
    more = [event(n) for n in range(300)]
    send(server, more)
    until(lambda: consumer(server, "k")["delivered"] == 503, 60)
    wanted = {one["eventId"] for one in more}
    in_order([one for one in (json.loads(m.value()) for m in read(broker.address, topic, 503)) if one["eventId"] in wanted], more)
