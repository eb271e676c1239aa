//! Cart events made ahead, whose ids alone change from one sending to the next: every event is new, and the load
//! generator's own cost stays small.

use std::sync::atomic::{AtomicU64, Ordering};

use super::load::Numbers;

/// Hexadecimal digits of an id that change.
const DIGITS: usize = 16;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// Bytes to send, and where the ids in them lie.
#[derive(Debug, Clone, Default)]
pub(crate) struct Template {
    pub(crate) bytes: Vec<u8>,
    places: Vec<usize>,
}

/// Gives each event of a process a number of its own.
#[derive(Debug, Default)]
pub(crate) struct Ids(AtomicU64);

impl Ids {
    pub(crate) fn take(&self, count: usize) -> u64 {
        self.0.fetch_add(count as u64, Ordering::Relaxed)
    }
}

impl Template {
    /// Events in it.
    pub(crate) fn events(&self) -> usize {
        self.places.len()
    }

    /// Gives each event an id of its own.
    pub(crate) fn renew(&mut self, ids: &Ids) {
        let first = ids.take(self.places.len());
        for (place, id) in self.places.iter().zip(first..) {
            if let Some(digits) = self.bytes.get_mut(*place..*place + DIGITS) {
                put_digits(digits, id);
            }
        }
    }

    fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
    }

    /// Writes an event; `run` tells this process's ids from another's.
    fn push_event(&mut self, run: u64, numbers: &mut Numbers) {
        self.push(&format!("{{\"eventId\":\"{run:016x}"));
        self.places.push(self.bytes.len());
        let kinds =
            ["item_added", "item_removed", "cart_created", "cart_updated", "cart_abandoned", "purchase_completed"];
        let kind = usize::try_from(numbers.next() % 6).ok().and_then(|at| kinds.get(at)).copied().unwrap_or_default();
        let user = numbers.next() % 100_000;
        self.push(&format!(
            "0000000000000000\",\"eventType\":\"{kind}\",\"timestamp\":\"2026-03-0{}T12:{:02}:{:02}.{:03}Z\",\"userId\":\"u-{user}\",\
             \"sessionId\":\"s-{:x}\",\"storeId\":\"store-{}\",\"data\":{{\"sku\":\"SKU-{}\",\"quantity\":{},\"price\":{}.{:02},\
             \"currency\":\"EUR\"}},\"metadata\":{{\"referrer\":\"https://shop.example/p/{}\"}}}}",
            numbers.next() % 9 + 1,
            numbers.next() % 60,
            numbers.next() % 60,
            numbers.next() % 1000,
            numbers.next(),
            numbers.next() % 50,
            numbers.next() % 5000,
            numbers.next() % 9 + 1,
            numbers.next() % 500,
            numbers.next() % 100,
            numbers.next() % 5000,
        ));
    }

    /// An HTTP/1.1 request of one event, or of a batch where there are more.
    pub(crate) fn request(host: &str, token: Option<&str>, events: usize, run: u64, numbers: &mut Numbers) -> Self {
        let mut body = Self::default();
        if events > 1 {
            body.push("{\"events\":[");
        }
        for event in 0..events.max(1) {
            if event > 0 {
                body.push(",");
            }
            body.push_event(run, numbers);
        }
        if events > 1 {
            body.push("]}");
        }
        let path = if events > 1 { "/events/batch" } else { "/events" };
        let token = token.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"));
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {host}\r\n{token}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.bytes.len()
        );
        body.behind(head.into_bytes())
    }

    /// A WebSocket message of one event, masked with zeros: masking is the server's work, and the same for any key.
    pub(crate) fn frame(run: u64, numbers: &mut Numbers) -> Self {
        let mut body = Self::default();
        body.push("{\"type\":\"cart_event\",\"payload\":");
        body.push_event(run, numbers);
        body.push("}");
        let length = u16::try_from(body.bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
        let mut head = vec![0x81, 0x80 | 126];
        head.extend_from_slice(&length);
        head.extend_from_slice(&[0; 4]);
        body.behind(head)
    }

    fn behind(mut self, mut head: Vec<u8>) -> Self {
        self.places.iter_mut().for_each(|place| *place += head.len());
        head.append(&mut self.bytes);
        Self { bytes: head, places: self.places }
    }
}

fn put_digits(digits: &mut [u8], mut id: u64) {
    for digit in digits.iter_mut().rev() {
        let at = usize::try_from(id & 15).unwrap_or_default();
        *digit = HEX.get(at).copied().unwrap_or(b'0');
        id >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sending_has_ids_of_its_own_and_is_json() {
        let (ids, mut seen) = (Ids::default(), std::collections::HashSet::new());
        let mut template = Template::request("h", None, 3, 7, &mut Numbers(1));
        for _ in 0..2 {
            template.renew(&ids);
            let text = String::from_utf8(template.bytes.clone()).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.ends_with(&format!("content-length: {}", body.len())));
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            for event in body["events"].as_array().unwrap() {
                assert!(seen.insert(event["eventId"].as_str().unwrap().to_owned()));
            }
        }
        assert_eq!((seen.len(), template.events()), (6, 3));
    }
}
