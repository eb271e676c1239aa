"""Brokers that ask for TLS and for credentials: each way in works, and each mistake is told with what to correct."""

import subprocess

import pytest

from conftest import free_port
from test_kafka import Broker, component, ids, skip_without_kafka, source, topic, until, value  # noqa: F401

USER, PASSWORD = "lakegate", "right-secret-of-tests"


@pytest.fixture(scope="module")
def secure(tmp_path_factory):
    """A broker with three more listeners: TLS with certificates of clients, and credentials with and without TLS."""
    skip_without_kafka()
    folder = tmp_path_factory.mktemp("kafka-secure")
    broker = Broker(folder)
    names = ("KAFKA_SSL_PORT", "KAFKA_SASL_PORT", "KAFKA_SASL_SSL_PORT")
    broker.env.update({name: str(free_port()) for name in names}, KAFKA_USER=USER, KAFKA_PASSWORD=PASSWORD)
    broker.tls = folder / "kafka" / "tls"
    broker.run("up")
    # An authority that signed nothing here.
    stranger = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=stranger"]
    subprocess.run(["openssl", *stranger, "-keyout", folder / "other.key", "-out", folder / "other.pem"], check=True, capture_output=True)
    broker.other_ca = folder / "other.pem"
    yield broker
    broker.run("down")


def settings_of(secure, topic, port, **security):  # noqa: F811
    settings = source(secure, topic, security={key: str(text) for key, text in security.items()})
    settings["kafka"]["sources"][0]["brokers"] = f"localhost:{secure.env[port]}"
    return settings


WAYS = {
    "tls-with-a-certificate": ("KAFKA_SSL_PORT", {"protocol": "ssl"}),
    "plain": ("KAFKA_SASL_PORT", {"protocol": "sasl_plaintext"}),
    "plain-over-tls": ("KAFKA_SASL_SSL_PORT", {"protocol": "sasl_ssl", "mechanism": "PLAIN"}),
    "scram-256-over-tls": ("KAFKA_SASL_SSL_PORT", {"protocol": "sasl_ssl", "mechanism": "SCRAM-SHA-256"}),
    "scram-512-over-tls": ("KAFKA_SASL_SSL_PORT", {"protocol": "sasl_ssl", "mechanism": "SCRAM-SHA-512"}),
}


def right(secure, protocol, **more):
    found = {"protocol": protocol, **more}
    if protocol.startswith("sasl"):
        found.update(user=USER, password=PASSWORD)
    if protocol.endswith("ssl"):
        found["ca_file"] = secure.tls / "ca.pem"
    if protocol == "ssl":
        found.update(certificate_file=secure.tls / "client.pem", key_file=secure.tls / "client.key")
    return found


def test_a_topic_is_read_over_tls_and_with_each_kind_of_credentials(secure, make_server, topic):  # noqa: F811
    secure.topic(topic)
    secure.send(topic, [value("a"), value("b")])
    for name, (port, security) in WAYS.items():
        server = make_server(settings_of(secure, topic, port, **right(secure, **security)), name).start()
        until(lambda: ids(server) == ["a", "b"])
        assert server.stop() == 0


@pytest.mark.parametrize(
    "port, change, says",
    [
        ("KAFKA_SASL_SSL_PORT", {"password": "wrong-secret-of-tests"}, ['the user "lakegate" is refused (SCRAM-SHA-512)', "security.password"]),
        ("KAFKA_SASL_PORT", {"protocol": "sasl_plaintext", "mechanism": "PLAIN", "user": "nobody"}, ['the user "nobody" is refused (PLAIN)', "security.user"]),
        ("KAFKA_SASL_SSL_PORT", {"ca_file": "other"}, ["certificate is not trusted", "security.ca_file"]),
        ("KAFKA_SASL_SSL_PORT", {"ca_file": ""}, ["certificate is not trusted", "security.ca_file"]),
        ("KAFKA_SASL_PORT", {}, ["SSL handshake failed", "PLAINTEXT broker listener?"]),
    ],
    ids=["password", "user", "authority", "no-authority", "tls-where-there-is-none"],
)
def test_f54_a_broker_that_refuses_is_told_in_health_and_log_with_the_setting_to_correct(secure, make_server, topic, port, change, says):  # noqa: F811
    secure.topic(topic)
    security = right(secure, "sasl_ssl", mechanism="SCRAM-SHA-512")
    security.update(change)
    if change.get("ca_file") == "other":
        security["ca_file"] = secure.other_ca
    server = make_server(settings_of(secure, topic, port, **security)).start()
    told = until(lambda: (component(server) or {}).get("error") or "")
    assert all(text in told for text in says), told
    log = server.log.read_text()
    assert says[-1] in log and PASSWORD not in log and "wrong-secret-of-tests" not in log, log
    assert component(server)["status"] == "degraded"
