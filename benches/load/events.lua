-- Cart events for wrk, each with an id of its own:
--   wrk -t1 -c64 -d8s --latency -s benches/load/events.lua http://127.0.0.1:3001/events
-- An API key or token in LAKEGATE_TOKEN is shown. What was not answered 2xx or 3xx is counted at the end.

local count, threads = 0, 0
local kinds = { "item_added", "item_removed", "cart_created", "cart_updated", "cart_abandoned", "purchase_completed" }

function setup(thread)
   thread:set("number", threads)
   thread:set("run", os.time())
   threads = threads + 1
end

function init()
   wrk.method = "POST"
   wrk.headers["content-type"] = "application/json"
   local token = os.getenv("LAKEGATE_TOKEN")
   if token then wrk.headers["authorization"] = "Bearer " .. token end
end

function request()
   count = count + 1
   return wrk.format(nil, nil, nil, string.format(
      '{"eventId":"%x-%x-%x","eventType":"%s","timestamp":"2026-03-01T12:%02d:%02d.000Z","userId":"u-%d","sessionId":"s-%d",' ..
      '"storeId":"store-%d","data":{"sku":"SKU-%d","quantity":%d,"price":%d.99}}',
      run, number, count, kinds[count % 6 + 1], count % 60, count % 59, count % 100000, count % 9000, count % 50,
      count % 5000, count % 9 + 1, count % 500))
end

function done(summary, latency)
   io.write(string.format("p50 %.2f ms, p99 %.2f ms; %d of %d answers were not 2xx\n",
      latency:percentile(50) / 1000, latency:percentile(99) / 1000, summary.errors.status, summary.requests))
end
