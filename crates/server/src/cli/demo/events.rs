//! The demo's events: what a shop's pages and orders send, in the proportions that one sees.

use serde_json::json;

/// One event to send.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) id: String,
    pub(super) kind: &'static str,
    pub(super) payload: String,
}

/// The two streams of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    PageViews,
    Orders,
}

impl Stream {
    pub(super) const ALL: [Self; 2] = [Self::PageViews, Self::Orders];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::PageViews => "page_views",
            Self::Orders => "orders",
        }
    }

    /// The table, as SQL names it.
    pub(super) fn table(self) -> &'static str {
        match self {
            Self::PageViews => "shop.page_views",
            Self::Orders => "shop.orders",
        }
    }
}

/// The configuration that declares both streams: columns out of JSON, one table each.
pub(super) fn configuration(data_dir: &str) -> String {
    let envelope = |name: &str, kind: &str| json!({ "name": name, "type": kind, "envelope": name, "required": true });
    let path = |name: &str, kind: &str, path: &str| json!({ "name": name, "type": kind, "path": path });
    let stream = |table: &str, columns: Vec<serde_json::Value>, layout: &str| {
        let mut all = vec![
            envelope("event_id", "string"),
            envelope("event_type", "string"),
            envelope("event_time", "timestamptz"),
        ];
        all.extend(columns);
        json!({ "columns": all, "payload": "json", "table": table, "partitions": ["day(event_time)"], "sort": [layout] })
    };
    let settings = json!({
        "node": { "id": "demo", "data_dir": data_dir },
        "ingestion": { "flush_interval": "1s" },
        "streams": {
            "orders": stream("shop.orders", vec![
                path("order_id", "long", "order.id"), path("customer", "string", "customer.id"),
                path("country", "string", "customer.country"), path("amount", "decimal(12,2)", "order.amount"),
                path("items", "int", "order.items"),
            ], "country"),
            "page_views": stream("shop.page_views", vec![
                path("session", "string", "session"), path("page", "string", "page"),
                path("country", "string", "country"), path("load_ms", "int", "timing.load_ms"),
            ], "page"),
        }
    });
    format!("// What `lakegate demo` runs with. `lakegate serve --config` takes it up again.\n{settings:#}\n")
}

const COUNTRIES: [&str; 8] = ["DE", "FR", "US", "BR", "IN", "JP", "KE", "SE"];
const PAGES: [&str; 6] = ["/", "/search", "/product", "/cart", "/checkout", "/account"];
const VIEWS: [&str; 4] = ["page_view", "page_view", "product_view", "add_to_cart"];
const ORDERS: [&str; 6] =
    ["order_placed", "order_placed", "order_paid", "order_paid", "order_shipped", "order_cancelled"];

/// Makes events; the same seed makes the same ones.
#[derive(Debug)]
pub(super) struct Generator {
    state: u64,
    run: String,
    next: u64,
}

impl Generator {
    pub(super) fn new(run: &str, seed: u64) -> Self {
        Self { state: seed | 1, run: format!("{run}-{seed}"), next: 0 }
    }

    /// A number below `bound` (splitmix64: fast, and good enough to look like life).
    fn below(&mut self, bound: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }

    fn pick(&mut self, choices: &[&'static str]) -> &'static str {
        let index = usize::try_from(self.below(choices.len() as u64)).unwrap_or(0);
        choices.get(index).copied().unwrap_or_default()
    }

    pub(super) fn next(&mut self, stream: Stream) -> Event {
        self.next += 1;
        let id = format!("{}-{}", self.run, self.next);
        let country = self.pick(&COUNTRIES);
        let who = self.below(50_000);
        match stream {
            Stream::PageViews => {
                let (kind, page, load) = (self.pick(&VIEWS), self.pick(&PAGES), 20 + self.below(900));
                let payload = format!(
                    r#"{{"session":"s{who}","page":"{page}","country":"{country}","timing":{{"load_ms":{load}}},"agent":"Mozilla/5.0"}}"#
                );
                Event { id, kind, payload }
            }
            Stream::Orders => {
                let (kind, items, cents) = (self.pick(&ORDERS), 1 + self.below(7), 500 + self.below(50_000));
                let order = self.next;
                let payload = format!(
                    r#"{{"order":{{"id":{order},"amount":{}.{:02},"items":{items}}},"customer":{{"id":"c{who}","country":"{country}"}}}}"#,
                    cents / 100,
                    cents % 100
                );
                Event { id, kind, payload }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Inputs};

    #[test]
    fn the_demos_configuration_can_be_used_and_its_events_fit_it() {
        let file = Some(("lakegate.json".to_owned(), configuration("./x")));
        let config = Config::load(Inputs { file, ..Inputs::default() }).unwrap();
        assert_eq!(config.streams.len(), Stream::ALL.len() + lakegate_model::Shipped::ALL.len());
        let mut generator = Generator::new("run", 7);
        for stream in Stream::ALL {
            let (_, contract) = config.streams.iter().find(|(n, _)| n.as_str() == stream.name()).unwrap();
            for _ in 0..100 {
                let payload: serde_json::Value = serde_json::from_str(&generator.next(stream).payload).unwrap();
                for column in &contract.columns {
                    if let lakegate_model::ColumnSource::Path(path) = &column.source {
                        let found = path.iter().try_fold(&payload, |v, member| v.get(member));
                        assert!(found.is_some(), "{} is not in {payload}", column.name);
                    }
                }
            }
        }
    }
}
