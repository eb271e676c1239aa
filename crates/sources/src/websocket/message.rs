//! The messages of cart events: what clients say, what they are answered.

use std::ops::Range;

use serde_json::Value;

use super::bus::{Filter, Told};
use crate::json::{Walk, put_text, text_value};
use crate::time::put_time;

/// What a message asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// An event, at this place of the message.
    Event(EventAt),
    Heartbeat,
    Subscribe(Filter),
    Unsubscribe,
}

/// Where the parts of an event are that the envelope may lend it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct EventAt {
    pub(crate) payload: Range<usize>,
    pub(crate) event_id: Option<Range<usize>>,
    pub(crate) timestamp: Option<Range<usize>>,
}

/// A message that asks for nothing that is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unknown {
    pub(crate) error: String,
    pub(crate) event_id: Option<String>,
}

/// Reads a message.
pub(crate) fn read(text: &[u8]) -> Result<Asked, Unknown> {
    let unreadable = |error: String| Unknown { error, event_id: None };
    let mut walk = Walk::new(text);
    let misplaced = |error| unreadable(format!("the message is not a JSON object: {error}"));
    walk.enter_object().map_err(misplaced)?;
    let (mut kind, mut payload, mut event_id, mut timestamp, mut first) = (None, None, None, None, true);
    while let Some(member) = walk.member(&mut first).map_err(misplaced)? {
        let place = match () {
            () if member.is("type") => &mut kind,
            () if member.is("payload") => &mut payload,
            () if member.is("eventId") => &mut event_id,
            () if member.is("timestamp") => &mut timestamp,
            () => continue,
        };
        *place = Some(member.value);
    }
    walk.end().map_err(misplaced)?;
    let of = |span: &Option<Range<usize>>| span.clone().and_then(|span| text.get(span)).unwrap_or_default();
    let unknown =
        |error: String| Unknown { error, event_id: text_value(of(&event_id)).map(std::borrow::Cow::into_owned) };
    match text_value(of(&kind)).as_deref() {
        Some("cart_event") => match payload {
            Some(payload) => Ok(Asked::Event(EventAt { payload, event_id, timestamp })),
            None => Err(unknown("payload: is missing".to_owned())),
        },
        Some("heartbeat") => Ok(Asked::Heartbeat),
        Some("subscribe") => read_filter(of(&payload)).map(Asked::Subscribe).map_err(unknown),
        Some("unsubscribe") => Ok(Asked::Unsubscribe),
        Some(other) => {
            let other: String = other.chars().take(80).collect();
            Err(unknown(format!("type: {other:?} is not known; use cart_event, heartbeat, subscribe or unsubscribe")))
        }
        None => Err(unknown("type: is missing; use cart_event, heartbeat, subscribe or unsubscribe".to_owned())),
    }
}

/// `{eventTypes, storeId}`, by itself or as `filter`; nothing means all.
fn read_filter(text: &[u8]) -> Result<Filter, String> {
    let mut value = match text {
        [] => Value::Null,
        text => serde_json::from_slice(text).map_err(|error| format!("payload: is not JSON: {error}"))?,
    };
    if let Some(inner) = value.get_mut("filter") {
        value = inner.take();
    }
    if value.is_null() {
        return Ok(Filter::default());
    }
    let filter = value.as_object().ok_or("filter: must be an object with eventTypes and storeId")?;
    let event_types = match filter.get("eventTypes") {
        None | Some(Value::Null) => None,
        Some(types) => {
            let types = types.as_array().filter(|types| types.len() <= 100 && types.iter().all(Value::is_string));
            let types = types.ok_or("filter.eventTypes: must be a list of at most 100 texts")?;
            Some(types.iter().filter_map(|text| text.as_str().map(str::to_owned)).collect())
        }
    };
    let store_id = match filter.get("storeId") {
        None | Some(Value::Null) => None,
        Some(Value::String(store)) => Some(store.clone()),
        Some(_) => return Err("filter.storeId: must be a text".to_owned()),
    };
    Ok(Filter { event_types, store_id })
}

/// Writes the event of a message, with what only its envelope says, and gives what is told of it.
pub(crate) fn put_event(out: &mut Vec<u8>, text: &[u8], at: &EventAt) -> Told {
    let payload = text.get(at.payload.clone()).unwrap_or_default();
    let Some(inside) = payload.strip_prefix(b"{") else {
        // The gate says what is wrong with it.
        out.extend_from_slice(payload);
        return Told { event_id: lent(text, &at.event_id).unwrap_or_default(), ..Told::default() };
    };
    let (mut has_time, mut told) = (at.timestamp.is_none(), Told::of(payload).unwrap_or_default());
    let lacks_id = told.event_id.is_empty() && at.event_id.is_some() && !has_member(payload, "eventId");
    if !has_time {
        has_time = has_member(payload, "timestamp");
    }
    if !lacks_id && has_time {
        out.extend_from_slice(payload);
        return told;
    }
    out.push(b'{');
    let mut put = |name: &[u8], span: &Option<Range<usize>>| {
        let value = span.clone().and_then(|span| text.get(span)).unwrap_or_default();
        out.extend_from_slice(name);
        out.extend_from_slice(value);
    };
    if lacks_id {
        put(b"\"eventId\":", &at.event_id);
        told.event_id = lent(text, &at.event_id).unwrap_or_default();
    }
    if !has_time {
        put(if lacks_id { b",\"timestamp\":" } else { b"\"timestamp\":" }, &at.timestamp);
    }
    if inside.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(inside);
    told
}

fn lent(text: &[u8], span: &Option<Range<usize>>) -> Option<String> {
    text_value(text.get(span.clone()?)?).map(std::borrow::Cow::into_owned)
}

fn has_member(object: &[u8], name: &str) -> bool {
    let (mut walk, mut first) = (Walk::new(object), true);
    if walk.enter_object().is_err() {
        return false;
    }
    while let Ok(Some(member)) = walk.member(&mut first) {
        if member.is(name) {
            return true;
        }
    }
    false
}

/// `event_ack`.
pub(crate) fn put_ack(out: &mut Vec<u8>, event_id: &str, message: Option<&str>, now_ms: u64) {
    out.extend_from_slice(b"{\"type\":\"event_ack\",\"eventId\":");
    put_text(out, event_id);
    out.extend_from_slice(b",\"status\":\"received\"");
    if let Some(message) = message {
        out.extend_from_slice(b",\"message\":");
        put_text(out, message);
    }
    put_end(out, now_ms);
}

/// `event_error`; the event's id where there was one.
pub(crate) fn put_error(out: &mut Vec<u8>, event_id: Option<&str>, error: &str, now_ms: u64) {
    out.extend_from_slice(b"{\"type\":\"event_error\"");
    if let Some(event_id) = event_id.filter(|id| !id.is_empty()) {
        out.extend_from_slice(b",\"eventId\":");
        put_text(out, event_id);
    }
    out.extend_from_slice(b",\"error\":");
    put_text(out, error);
    put_end(out, now_ms);
}

/// A message of a type alone.
pub(crate) fn put_plain(out: &mut Vec<u8>, kind: &str, now_ms: u64) {
    out.extend_from_slice(b"{\"type\":");
    put_text(out, kind);
    put_end(out, now_ms);
}

/// Some confirmations were dropped.
pub(crate) fn put_dropped(out: &mut Vec<u8>, dropped: u64, now_ms: u64) {
    out.extend_from_slice(format!("{{\"type\":\"confirmations_dropped\",\"dropped\":{dropped}").as_bytes());
    put_end(out, now_ms);
}

fn put_end(out: &mut Vec<u8>, now_ms: u64) {
    out.extend_from_slice(b",\"timestamp\":\"");
    put_time(out, now_ms);
    out.extend_from_slice(b"\"}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(text: &str) -> (String, String) {
        let Ok(Asked::Event(at)) = read(text.as_bytes()) else { panic!("{text}") };
        let mut out = Vec::new();
        let told = put_event(&mut out, text.as_bytes(), &at);
        (String::from_utf8(out).unwrap(), told.event_id)
    }

    #[test]
    fn an_event_keeps_its_bytes_and_borrows_what_only_the_envelope_says() {
        let with =
            |payload: &str| format!(r#"{{"type":"cart_event","eventId":"env","timestamp":"t","payload":{payload}}}"#);
        for (payload, event, id) in [
            (r#"{"eventId":"own","timestamp":1}"#, r#"{"eventId":"own","timestamp":1}"#, "own"),
            (r#"{ "a":1}"#, r#"{"eventId":"env","timestamp":"t", "a":1}"#, "env"),
            ("{}", r#"{"eventId":"env","timestamp":"t"}"#, "env"),
            (r#"{"eventId":"own"}"#, r#"{"timestamp":"t","eventId":"own"}"#, "own"),
            (r#"{"eventId":5,"timestamp":1}"#, r#"{"eventId":5,"timestamp":1}"#, ""),
            ("5", "5", "env"),
        ] {
            assert_eq!(taken(&with(payload)), (event.to_owned(), id.to_owned()), "{payload}");
        }
        let plain = r#"{"payload":{"eventId":"x"},"type":"cart_event"}"#;
        assert_eq!(taken(plain), (r#"{"eventId":"x"}"#.to_owned(), "x".to_owned()));
    }

    #[test]
    fn what_is_not_known_is_told_with_the_events_id_where_there_was_one() {
        let error = |text: &str| read(text.as_bytes()).unwrap_err();
        assert_eq!(error(r#"{"type":"cart_event","eventId":"e"}"#).event_id.as_deref(), Some("e"));
        assert!(error(r#"{"type":"shout"}"#).error.contains("shout"));
        assert!(error("{}").error.starts_with("type: is missing"));
        for broken in ["", "nope", "[]", "{", "{\"type\":\"heartbeat\"} x"] {
            assert!(error(broken).error.contains("not a JSON object"), "{broken}");
        }
    }

    #[test]
    fn filters_are_read_alone_or_by_name() {
        let read = |payload: &str| read(format!(r#"{{"type":"subscribe","payload":{payload}}}"#).as_bytes());
        let filter = Filter { event_types: Some(vec!["a".into()]), store_id: Some("s".into()) };
        assert_eq!(read(r#"{"eventTypes":["a"],"storeId":"s"}"#), Ok(Asked::Subscribe(filter.clone())));
        assert_eq!(read(r#"{"filter":{"eventTypes":["a"],"storeId":"s"}}"#), Ok(Asked::Subscribe(filter)));
        assert_eq!(read("null"), Ok(Asked::Subscribe(Filter::default())));
        assert!(read(r#"{"eventTypes":"a"}"#).is_err() && read("5").is_err());
    }
}
