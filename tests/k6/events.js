// Cart events under load by k6: single events and batches over HTTP, and one WebSocket a virtual user.
//
//     k6 run -e URL=http://127.0.0.1:3001 -e SECONDS=20 tests/k6/events.js
//
// Each event has an id of its own, and each answer is checked: the run fails where one is not as it should be. What was
// acknowledged is told at the end as `acknowledged`, for who counts the rows afterwards.

import http from "k6/http";
import ws from "k6/ws";
import exec from "k6/execution";
import { check } from "k6";
import { Counter } from "k6/metrics";

const url = __ENV.URL || "http://127.0.0.1:3001";
const duration = `${__ENV.SECONDS || 20}s`;
const acknowledged = new Counter("acknowledged");
const json = { headers: { "content-type": "application/json" } };

export const options = {
  scenarios: {
    single: { executor: "constant-vus", vus: 32, duration, exec: "single" },
    batch: { executor: "constant-vus", vus: 4, duration, exec: "batch" },
    sockets: { executor: "per-vu-iterations", vus: 16, iterations: 1, maxDuration: "10m", exec: "socket" },
  },
  thresholds: { checks: ["rate==1"] },
};

function hex(number, digits) {
  return number.toString(16).padStart(digits, "0");
}

// The number of the virtual user and of its event make the id: none comes twice in a run.
let made = 0;
function event() {
  made += 1;
  const id = `${hex(exec.vu.idInTest, 8)}-${hex((made >> 16) & 0xffff, 4)}-4${hex(made & 0xfff, 3)}-8000-${hex((made >> 12) & 0xf, 12)}`;
  return {
    eventId: id,
    eventType: "item_added",
    timestamp: new Date().toISOString(),
    userId: `user-${exec.vu.idInTest}`,
    sessionId: `session-${exec.vu.idInTest}`,
    storeId: "store-1",
    data: { sku: "A-1", quantity: 2 },
  };
}

export function single() {
  const answer = http.post(`${url}/events`, JSON.stringify(event()), json);
  if (check(answer, { "an event is taken": (r) => r.status === 202 })) acknowledged.add(1);
}

export function batch() {
  const events = Array.from({ length: 200 }, event);
  const answer = http.post(`${url}/events/batch`, JSON.stringify({ events }), json);
  if (check(answer, { "a batch is taken": (r) => r.status === 202 || r.status === 200 })) acknowledged.add(events.length);
}

export function socket() {
  const sent = 500;
  let answered = 0;
  const opened = ws.connect(`${url.replace("http", "ws")}/events/stream`, {}, (s) => {
    s.on("open", () => {
      for (let n = 0; n < sent; n += 1) s.send(JSON.stringify({ type: "cart_event", payload: event() }));
    });
    s.on("message", (text) => {
      const message = JSON.parse(text);
      if (message.type !== "event_ack") return;
      answered += 1;
      if (answered === sent) s.close();
    });
    s.setTimeout(() => s.close(), 60000);
  });
  check(opened, { "a socket is opened": (r) => r && r.status === 101 });
  if (check(answered, { "each event of a socket is acknowledged": (n) => n === sent })) acknowledged.add(sent);
}
