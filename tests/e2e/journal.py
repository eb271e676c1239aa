"""The one checker of all faults: what the client was told, against what an independent reader finds.

acknowledged ⊆ stored ⊆ sent, each id once, payloads as they were sent. The journal is written before a request is sent
and after its answer, each line synced by the system's page cache of another process than the server's.
"""

import collections
import hashlib
import json


class Journal:
    def __init__(self, path):
        self.path = path
        self.file = open(path, "a", buffering=1)

    def sent(self, ids, digest):
        for event_id in ids:
            self.file.write(json.dumps({"sent": event_id, "sha": digest[event_id]}) + "\n")

    def acknowledged(self, ids):
        for event_id in ids:
            self.file.write(json.dumps({"ack": event_id}) + "\n")

    def read(self):
        sent, acknowledged = {}, set()
        with open(self.path) as lines:
            for line in lines:
                entry = json.loads(line)
                if "sent" in entry:
                    sent[entry["sent"]] = entry["sha"]
                else:
                    acknowledged.add(entry["ack"])
        return sent, acknowledged


def digest(payload):
    return hashlib.sha256(payload if isinstance(payload, bytes) else payload.encode()).hexdigest()


def check(journal, rows):
    """`rows`: (event_id, payload) of every row that the reader found."""
    sent, acknowledged = journal.read()
    counts = collections.Counter(event_id for event_id, _ in rows)
    doubled = {event_id: n for event_id, n in counts.items() if n > 1}
    lost = acknowledged - counts.keys()
    strange = counts.keys() - sent.keys()
    changed = [event_id for event_id, payload in rows if event_id in sent and digest(payload) != sent[event_id]]
    assert not lost, f"{len(lost)} acknowledged records are lost, such as {sorted(lost)[:5]}"
    assert not doubled, f"{len(doubled)} records are stored more than once, such as {sorted(doubled.items())[:5]}"
    assert not strange, f"{len(strange)} records were never sent, such as {sorted(strange)[:5]}"
    assert not changed, f"{len(changed)} payloads differ, such as {changed[:5]}"
    return len(counts), len(acknowledged), len(sent)
