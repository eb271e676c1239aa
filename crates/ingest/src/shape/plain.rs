//! Many payloads of a plain contract, column by column: what is found in a few hundred of them is read one column after
//! the other, straight into the column's builder, without a row in between.
//!
//! Plain is a contract whose columns take what they take without rules, from the payload's own members. Of a plain
//! contract this gives the rows that shaping one by one gives, or declines: where any payload is not as the contract has
//! it, all are shaped one by one, which tells what is wrong with which.

use std::sync::atomic::Ordering;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use lakegate_memtable::{ColumnBuilder, RowBuilder, Value};
use lakegate_model::{Column, ColumnSource, ColumnType, Contract, Field, PayloadFormat, Undeclared};
use uuid::Uuid;

use super::envelope::{RecordContext, time_value};
use super::leaf::{integer, number, string, timestamp};
use super::payload::{Found, Node, find_plain_members};
use super::record::Shaper;
use super::rules::SlotRules;

/// So many payloads are looked through before their columns are read: what is noted of them stays in the nearest cache.
const CHUNK: usize = 64;

/// After payloads that were declined so many times others are shaped one by one without a try.
const PAUSE: u32 = 15;

/// Whether rows of the contract can be shaped column by column.
pub(super) fn is_plain(contract: &Contract, tree: &Node, rules: &[Option<SlotRules>]) -> bool {
    let takes = |column: &Column| match &column.source {
        ColumnSource::Path(_) => contract.rules_of(&column.name).is_none_or(|rules| rules.or_paths.is_empty()),
        ColumnSource::Envelope(field) => !matches!(field, Field::Payload | Field::Attributes | Field::Undeclared),
    };
    contract.payload == PayloadFormat::Json
        && matches!(contract.undeclared, Undeclared::Ignore | Undeclared::Reject)
        && contract.objects.is_empty()
        && contract.event_types.is_empty()
        && tree.is_flat()
        && contract.columns.iter().all(takes)
        && rules.iter().flatten().all(SlotRules::only_say_how_to_read)
}

/// Payloads of one plain contract on their way into columns.
struct PlainRows<'s, 'a> {
    shaper: &'s Shaper,
    context: &'s RecordContext<'a>,
    /// Of all of them; empty: each brings its own.
    event_type: &'a str,
    rows: RowBuilder,
    /// Of the payloads of a chunk, one after the other.
    found: Found<'a>,
    ids: Vec<Uuid>,
}

/// Rows of these payloads, each with the id that it gets; none where the contract is not plain, or one of them is declined.
///
/// # Errors
/// A required column holds a null; none is let in.
pub(crate) fn shape_plain<'a>(
    shaper: &Shaper,
    context: &RecordContext<'a>,
    event_type: &'a str,
    payloads: impl ExactSizeIterator<Item = (Option<&'a [u8]>, Uuid)>,
) -> Option<Result<RecordBatch, ArrowError>> {
    let pause = shaper.plain_pause.as_ref()?;
    if pause.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        return None;
    }
    let found = Found { slots: vec![None; shaper.slots.count * CHUNK], ..Found::default() };
    let (rows, ids) = (shaper.rows(payloads.len()), Vec::with_capacity(CHUNK));
    let mut plain = PlainRows { shaper, context, event_type, rows, found, ids };
    let done = payloads.into_iter().try_for_each(|(payload, id)| plain.push(payload?, id));
    let done = done.and_then(|()| plain.finish());
    if done.is_none() {
        pause.store(PAUSE, Ordering::Relaxed);
    }
    done
}

impl<'a> PlainRows<'_, 'a> {
    /// Takes one payload; none where it is declined.
    #[inline]
    fn push(&mut self, payload: &'a [u8], id: Uuid) -> Option<()> {
        if payload.len() > self.context.payload_bytes_max {
            return None;
        }
        let text = simdutf8::basic::from_utf8(payload).ok()?;
        self.found.base = self.ids.len() * self.shaper.slots.count;
        find_plain_members(text, &self.shaper.tree, &mut self.found)?;
        if self.found.first_other.is_some() && self.shaper.contract.undeclared == Undeclared::Reject {
            return None;
        }
        self.ids.push(id);
        if self.ids.len() == CHUNK { self.read_columns() } else { Some(()) }
    }

    /// The rows; none where a payload is declined.
    ///
    /// # Errors
    /// A required column holds a null; none is let in.
    fn finish(mut self) -> Option<Result<RecordBatch, ArrowError>> {
        self.read_columns()?;
        self.shaper.learn(&self.rows);
        Some(self.rows.finish())
    }

    fn read_columns(&mut self) -> Option<()> {
        let times = self.times()?;
        let Self { shaper, context, event_type, rows, found, ids } = self;
        let of_payloads = || found.slots.chunks(shaper.slots.count).take(ids.len());
        let builders = rows.columns_mut(ids.len());
        for ((slot, column), builder) in shaper.contract.columns.iter().enumerate().zip(builders) {
            let push = |value: &Value<'_>, builder: &mut ColumnBuilder| {
                let is_missing = column.required && matches!(value, Value::Null);
                if is_missing { None } else { builder.push(value).ok() }
            };
            match &column.source {
                ColumnSource::Path(_) => {
                    let raws = of_payloads().map(|found| found.get(slot).copied().flatten());
                    read_column(shaper, (slot, column), raws, builder)?;
                }
                ColumnSource::Envelope(Field::EventId) => {
                    ids.iter().try_for_each(|id| push(&Value::Id(*id), builder))?;
                }
                ColumnSource::Envelope(Field::EventType) if event_type.is_empty() => {
                    let taken = &shaper.slots.event_type;
                    for found in of_payloads() {
                        let first = taken.iter().find_map(|slot| found.get(*slot).copied().flatten().filter(is_there));
                        push(&first.and_then(string).unwrap_or(Value::Null), builder)?;
                    }
                }
                ColumnSource::Envelope(Field::EventTime) => {
                    times.iter().try_for_each(|(us, _)| push(&time_value(*us, column.column_type), builder))?;
                }
                ColumnSource::Envelope(Field::TimeSource) => {
                    times.iter().try_for_each(|(_, source)| push(&Value::Text(source), builder))?;
                }
                ColumnSource::Envelope(field) => {
                    let value = constant(*field, column.column_type, context, event_type)?;
                    ids.iter().try_for_each(|_| push(&value, builder))?;
                }
            }
        }
        self.found.slots.fill(None);
        self.ids.clear();
        Some(())
    }

    /// When each of the chunk's events was, and who says so.
    fn times(&self) -> Option<Vec<(i64, &'static str)>> {
        let received = (self.context.received_us, "received");
        let Some(time) = &self.shaper.contract.time else { return Some(vec![received; self.ids.len()]) };
        let name = time.path.join(".");
        let of_payloads = self.found.slots.chunks(self.shaper.slots.count).take(self.ids.len());
        of_payloads
            .map(|found| {
                let taken = self.shaper.slots.time.iter();
                let first = taken.filter_map(|slot| found.get(*slot).copied().flatten()).find(is_there);
                let Some(raw) = first else { return Some(received) };
                let us = timestamp(raw, &name, ColumnType::Timestamptz, self.shaper.time.as_ref()).ok()?;
                let is_far = self.shaper.contract.clock.is_far(us, received.0).is_some();
                (!is_far).then_some((us, "payload"))
            })
            .collect()
    }
}

fn is_there(raw: &&str) -> bool {
    *raw != "null"
}

/// A field of the envelope that is the same for all payloads of a file.
fn constant<'a>(
    field: Field,
    column_type: ColumnType,
    context: &RecordContext<'a>,
    event_type: &'a str,
) -> Option<Value<'a>> {
    Some(match field {
        Field::TenantId => context.tenant.clone(),
        Field::EndpointId => context.stream.clone(),
        Field::EventType => Value::Text(event_type),
        Field::ReceivedAt => time_value(context.received_us, column_type),
        Field::Version => Value::Long(0),
        Field::Rescued => Value::Null,
        Field::Source => Value::Text(context.source),
        Field::UserAgent => context.origin.user_agent.clone(),
        Field::ClientAddress => context.origin.client_address.clone(),
        Field::CorrelationId => context.origin.correlation_id.clone(),
        Field::EventId
        | Field::EventTime
        | Field::TimeSource
        | Field::Payload
        | Field::Attributes
        | Field::Undeclared => {
            return None;
        }
    })
}

/// Reads one column of a chunk; none where a value is not of its type, or a required one is not there.
fn read_column<'a>(
    shaper: &Shaper,
    (slot, column): (usize, &Column),
    raws: impl Iterator<Item = Option<&'a str>>,
    builder: &mut ColumnBuilder,
) -> Option<()> {
    for raw in raws {
        let Some(raw) = raw.filter(is_there) else {
            if column.required {
                return None;
            }
            builder.push(&Value::Null).ok()?;
            continue;
        };
        // The common types by themselves, for speed; [`Shaper::leaf`] reads them as all others.
        match (&mut *builder, column.column_type) {
            (ColumnBuilder::Text(texts), ColumnType::String) => match string(raw)? {
                Value::Text(text) => texts.append_value(text),
                value => builder.push(&value).ok()?,
            },
            (ColumnBuilder::Long(numbers), ColumnType::Long) => numbers.append_value(integer(raw)?),
            (ColumnBuilder::Double(numbers), ColumnType::Double) => {
                numbers.append_value(number(raw).filter(|value| value.is_finite())?);
            }
            (builder, _) => builder.push(&shaper.leaf(slot, column, raw).ok()?).ok()?,
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lakegate_model::TimeFormat;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use serde_json::{Map, json};

    use super::super::{ClientOf, Envelope, Marks};
    use super::*;
    use crate::wire::WireRecord;

    fn shaper() -> Shaper {
        let path = |name: &str, column_type: &str, required: bool| json!({ "name": name, "column_type": column_type, "source": { "path": [name] }, "required": required });
        let field = |name: &str, column_type: &str, field: &str| json!({ "name": name, "column_type": column_type, "source": { "envelope": field }, "required": false });
        let contract = json!({
            "columns": [
                path("text", "string", true), path("long", "long", false), path("int", "int", false),
                path("double", "double", false), path("flag", "boolean", false), path("day", "date", false),
                path("at", "timestamptz", false), path("any", "json", false),
                field("id", "string", "event_id"), field("kind", "string", "event_type"),
                field("time", "timestamptz", "event_time"), field("who_says", "string", "time_source"),
                field("received", "timestamptz", "received_at"), field("tenant", "string", "tenant_id"),
                field("stream", "string", "endpoint_id"), field("version", "long", "version"),
                field("source", "string", "source"),
            ],
            "payload": "json", "malformed": "skip", "undeclared": "ignore", "table": "{tenant}.{endpoint}",
            "partitions": [], "sort": [], "event_key": [], "duplicate_window_ms": 1000,
            "time": { "path": ["at"], "or_paths": [["then"]] }, "event_type_paths": [["type"], ["kind"]],
        });
        Shaper::new(Arc::new(serde_json::from_value(contract).unwrap()))
    }

    fn context<'a>() -> RecordContext<'a> {
        RecordContext {
            tenant: Value::Text("acme"),
            stream: Value::Text("orders"),
            received_us: 1_700_000_000_000_000,
            assigned_id: Uuid::nil(),
            payload_bytes_max: 500,
            source: "file",
            origin: ClientOf { client_address: Value::Null, user_agent: Value::Null, correlation_id: Value::Null },
            may_grow: false,
            marks: Marks::default(),
            found: Found::default(),
        }
    }

    fn document(rng: &mut StdRng) -> String {
        let texts = [
            "",
            "plain",
            "Zoë \u{1d11e}",
            "a \"quoted\" \\ one",
            "2024-02-29T12:00:00Z",
            "null",
            "a longer text of several words",
        ];
        let mut members = Map::new();
        for name in ["text", "long", "int", "double", "flag", "day", "at", "any", "type", "kind", "then", "more"] {
            let value = match (name, rng.random_range(0..12)) {
                (_, 0) if name != "text" => continue,
                (_, 1) if name != "text" => json!(null),
                ("text" | "type" | "kind", _) => json!(texts[rng.random_range(0..texts.len())]),
                ("long", _) => json!(rng.random::<i64>()),
                ("int", _) => json!(rng.random::<i32>()),
                ("double", _) => json!(rng.random::<f64>() * 1e6),
                ("flag", _) => json!(rng.random::<bool>()),
                ("day", _) => json!("2024-02-29"),
                ("at" | "then", 2..6) => json!(1_700_000_000 + rng.random_range(0..100_000)),
                ("at" | "then", _) => json!("2026-01-31T10:20:30.123456+02:00"),
                (_, _) => json!({ "a": [1, texts[rng.random_range(0..texts.len())]] }),
            };
            members.insert(name.to_owned(), value);
        }
        serde_json::Value::Object(members).to_string()
    }

    fn one_by_one(shaper: &Shaper, documents: &[String], event_type: &str) -> Option<RecordBatch> {
        let mut rows = shaper.rows(documents.len());
        let (mut context, mut row) = (context(), Vec::new());
        for (place, document) in documents.iter().enumerate() {
            let record =
                WireRecord { payload: document.as_bytes(), event_type: event_type.as_bytes(), ..WireRecord::default() };
            context.assigned_id = Uuid::from_u128(place as u128);
            shaper.shape(&record, &Envelope::read(&record).unwrap(), &mut context, &mut row).ok()?;
            rows.push(&row).unwrap();
        }
        Some(rows.finish().unwrap())
    }

    fn at_once(shaper: &Shaper, documents: &[String], event_type: &str) -> Option<RecordBatch> {
        let payloads = documents.iter().enumerate();
        let payloads = payloads.map(|(place, document)| (Some(document.as_bytes()), Uuid::from_u128(place as u128)));
        shape_plain(shaper, &context(), event_type, payloads).map(Result::unwrap)
    }

    #[test]
    fn column_by_column_gives_the_rows_that_one_by_one_gives() {
        let (shaper, mut rng) = (shaper(), StdRng::seed_from_u64(5));
        for count in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7] {
            for event_type in ["", "purchase"] {
                let documents: Vec<String> = (0..count).map(|_| document(&mut rng)).collect();
                let rows = at_once(&shaper, &documents, event_type).expect("all are plain");
                assert_eq!(rows.num_rows(), count);
                assert_eq!(Some(rows), one_by_one(&shaper, &documents, event_type));
            }
        }
    }

    #[test]
    fn where_one_is_not_as_the_contract_has_it_all_are_declined_and_so_are_the_next_without_a_try() {
        let shaper = shaper();
        let good = "{\"text\":\"a\"}";
        let long = format!("{{\"text\":\"{}\"}}", "x".repeat(600));
        let bad = [
            "{}",
            "{\"text\":null}",
            "{\"text\":1}",
            "{\"text\":\"a\",\"long\":\"1\"}",
            "{\"text\":\"a\",\"int\":3000000000}",
            "{\"text\":\"\\ud800\"}",
            "{\"text\":\"a\",\"at\":\"soon\"}",
            "{\"text\":\"a\"",
            "[]",
            "",
            &long,
        ];
        for bad in bad {
            let documents = [good, bad, good].map(str::to_owned);
            assert!(at_once(&shaper, &documents, "").is_none(), "{bad}");
            assert!(one_by_one(&shaper, &documents, "").is_none(), "{bad}");
            for _ in 0..PAUSE {
                assert!(at_once(&shaper, &[good.to_owned()], "").is_none(), "not tried");
            }
            assert!(at_once(&shaper, &[good.to_owned()], "").is_some());
        }
    }

    #[test]
    fn a_member_that_the_contract_does_not_know_is_declined_where_it_breaks_the_contract() {
        let mut contract = Contract::clone(&shaper().contract);
        contract.undeclared = Undeclared::Reject;
        let shaper = Shaper::new(Arc::new(contract));
        let known = "{\"text\":\"a\",\"type\":\"b\"}".to_owned();
        assert!(at_once(&shaper, &[known.clone(), known.clone()], "").is_some());
        assert!(at_once(&shaper, &[known, "{\"text\":\"a\",\"more\":1}".to_owned()], "").is_none());
    }

    #[test]
    fn a_contract_that_looks_at_values_or_keeps_more_than_its_columns_is_not_plain() {
        let plain = |change: &dyn Fn(&mut Contract)| {
            let mut contract = Contract::clone(&shaper().contract);
            change(&mut contract);
            Shaper::new(Arc::new(contract)).plain_pause.is_some()
        };
        assert!(plain(&|_| {}));
        assert!(!plain(&|contract| contract.undeclared = Undeclared::Keep));
        assert!(!plain(&|contract| contract.payload = PayloadFormat::Any));
        assert!(!plain(&|contract| contract.event_types = vec!["a".to_owned()]));
        assert!(!plain(
            &|contract| contract.columns[0].source = ColumnSource::Path(vec!["a".to_owned(), "b".to_owned()])
        ));
        let ruled = |rules: &lakegate_model::ColumnRules| {
            plain(&|contract| drop(contract.rules.insert("text".to_owned(), rules.clone())))
        };
        let rules = lakegate_model::ColumnRules::default;
        assert!(ruled(&lakegate_model::ColumnRules { json_text: true, ..rules() }));
        assert!(!ruled(&lakegate_model::ColumnRules { or_envelope: Some(Field::EventId), ..rules() }));
        assert!(!ruled(&lakegate_model::ColumnRules { or_paths: vec![vec!["other".to_owned()]], ..rules() }));
        assert!(plain(&|contract| contract.time.as_mut().unwrap().notation.formats = vec![TimeFormat::Auto]));
    }
}
