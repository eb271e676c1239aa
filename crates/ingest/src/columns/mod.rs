//! Rows that come in columns: Arrow IPC from Flight and from SQL, brought to the contract's columns.
//!
//! The same rules as for payloads, whole columns at a time (`import/conform`). The log holds the stream as it came, and
//! replay reads it again. Refuses: streams whose table depends on the event type; columns never make a table grow.

mod ipc;

use std::collections::{BTreeMap, HashMap};
use std::ptr::NonNull;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayRef, BooleanArray, MutableArrayData, RecordBatch, RecordBatchOptions, make_array,
};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use bytes::Bytes;
use lakegate_memtable::Value;
use lakegate_model::{Malformed, OnConflict, ReasonCode, RecordError, Refusal, StreamKey, Tally, Verdict};

pub(crate) use self::ipc::{IpcError, read_stream};
use crate::batch::{ERRORS_LISTED_MAX, NotAllowed, Route, RowKey, Rules, Shaped, Wanted, index_number};
use crate::dead_letters::{self, Origin};
use crate::duplicates::with_content;
use crate::frame::{Exception, ExceptionKind, assigned_id};
use crate::import::conform::json::{JsonOptions, row_text};
use crate::import::conform::{Conformer, Names, RowContext, RowOrigin};
use crate::import::keys::row_keys;
use crate::import::write::bytes_of;
use crate::streams::{DEAD_LETTERS, Stream};
use crate::wire::{BatchRequest, RecordKind};

/// The most bytes of a row's text in its dead letter.
const LETTER_BYTES: usize = 1 << 20;
/// Rows are copied off the request's bytes unless they take up this share, one in so many, of what they hold on to.
const OWN_SHARE: usize = 2;

/// Rows in columns, read and checked.
pub(crate) struct Columns {
    pub(crate) schema: SchemaRef,
    pub(crate) batches: Vec<RecordBatch>,
}

impl Columns {
    /// # Errors
    /// The bytes are no such stream.
    pub(crate) fn read(body: &Bytes, decoded_bytes_max: usize) -> Result<Self, IpcError> {
        let (schema, batches) = read_stream(body, decoded_bytes_max)?;
        Ok(Self { schema, batches })
    }

    pub(crate) fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// The batches of an Arrow IPC stream from a stranger, validated whole.
///
/// # Errors
/// The bytes are no such stream, or unpack to more than `decoded_bytes_max`; the reason is for people.
pub fn read_columns(body: &Bytes, decoded_bytes_max: usize) -> Result<Vec<RecordBatch>, String> {
    read_stream(body, decoded_bytes_max).map(|(_, batches)| batches).map_err(|error| error.to_string())
}

/// Why rows in columns are refused as a whole.
pub(crate) enum ColumnsRefused {
    NotAllowed(NotAllowed),
    Refusal(Refusal),
}

fn refused(field: &str, message: String) -> ColumnsRefused {
    let (code, field) = (ReasonCode::WrongType, Some(field.to_owned()));
    ColumnsRefused::Refusal(Refusal { code, field, message })
}

/// Brings all rows to the columns of their stream's contract.
pub(crate) async fn shape_columns(
    request: &BatchRequest<'_>,
    columns: &Columns,
    names: Names,
    rules: &Rules<'_>,
) -> Result<Shaped<'static>, ColumnsRefused> {
    let stream = match Route::of(request, None).resolve(rules, 0).map_err(ColumnsRefused::NotAllowed)? {
        Ok(stream) => stream,
        Err(refusal) => return Err(ColumnsRefused::Refusal(refusal)),
    };
    if stream.shaper.splits_by_event_type() {
        let name = &stream.key.stream;
        let message =
            format!("the stream {name} has a table for each event type, and takes records one by one, not columns");
        return Err(refused("stream", message));
    }
    let conformer = Conformer::new(&stream.shaper, &columns.schema, names);
    let conformer = conformer.map_err(|mismatch| refused("schema", mismatch.0.replace("the file", "the request")))?;
    let mut shaped = Shaped { few: true, capacity: 1, ..Shaped::default() };
    shaped.note_first(rules, "", Verdict::Accepted);
    let group = shaped.group_of(&stream);
    let (mut first_row, mut parts) = (0, Vec::with_capacity(columns.batches.len()));
    for batch in &columns.batches {
        let context = context_of(&stream, rules, first_row);
        let conformed = conformer.conform(batch, &context);
        let conformed = conformed.map_err(|error| refused("schema", error.to_string()))?;
        for (place, refusal) in &conformed.bad {
            shaped.refuse_row(first_row + place, group, batch, *place, rules, refusal);
        }
        let kept = (0..batch.num_rows()).filter(|place| !conformed.bad.contains_key(place));
        shaped.keep_rows(group, &conformed.rows, first_row, kept, batch);
        parts.push(conformed.rows);
        first_row += batch.num_rows();
        if !rules.in_order {
            tokio::task::yield_now().await;
        }
    }
    let rows = one_of(&stream, parts).map_err(|error| refused("schema", error.to_string()))?;
    if let Some(group) = shaped.groups.get_mut(group) {
        group.columns = rows;
    }
    Ok(shaped)
}

/// The same for what the log holds, with the decisions that were made when it came.
///
/// # Errors
/// A row that was accepted cannot be read under its contract: the log and the contracts beside it do not fit.
pub(crate) fn shape_columns_again(
    request: &BatchRequest<'_>,
    columns: &Columns,
    names: Names,
    rules: &Rules<'_>,
    wanted: &Wanted,
    decided: &HashMap<u32, (ExceptionKind, Refusal)>,
) -> Result<Shaped<'static>, String> {
    let mut shaped = Shaped { few: true, capacity: 1, ..Shaped::default() };
    let Some(key) = Route::of(request, None).key(rules) else { return Ok(shaped) };
    let stream = wanted.get(&key).and_then(|parts| parts.first()).cloned();
    let conformer = stream.as_ref().map(|stream| Conformer::new(&stream.shaper, &columns.schema, names));
    let conformer = conformer.transpose().map_err(|mismatch| mismatch.0)?;
    let (mut first_row, mut parts) = (0, Vec::new());
    for batch in &columns.batches {
        let places = 0..batch.num_rows();
        for place in places.clone() {
            if let Some((ExceptionKind::DeadLettered, refusal)) = decided.get(&index_number(first_row + place)) {
                shaped.set_row_aside_again(first_row + place, &key, batch, place, rules, wanted, refusal);
            }
        }
        if let (Some(stream), Some(conformer)) = (&stream, &conformer) {
            let conformed = conformer.conform(batch, &context_of(stream, rules, first_row));
            let conformed = conformed.map_err(|error| error.to_string())?;
            let is_decided = |place: &usize| decided.contains_key(&index_number(first_row + place));
            if let Some((place, refusal)) = conformed.bad.iter().find(|(place, _)| !is_decided(place)) {
                return Err(format!("record {} was accepted, but now: {}", first_row + place, refusal.message));
            }
            let keep: BooleanArray =
                places.filter(|place| !conformed.bad.contains_key(place)).map(|at| Some(!is_decided(&at))).collect();
            let rows = filter_record_batch(&conformed.rows, &keep).map_err(|error| error.to_string())?;
            parts.push(rows);
        }
        first_row += batch.num_rows();
    }
    if let Some(stream) = &stream {
        let rows = one_of(stream, parts).map_err(|error| error.to_string())?;
        let group = shaped.group_of(stream);
        if let Some(group) = shaped.groups.get_mut(group) {
            group.columns = rows;
        }
    }
    Ok(shaped)
}

fn context_of<'r>(stream: &'r Stream, rules: &'r Rules<'_>, first_row: usize) -> RowContext<'r> {
    RowContext {
        tenant: stream.key.tenant.as_str(),
        stream: stream.key.stream.as_str(),
        event_type: None,
        received_us: rules.received_us,
        file: 0,
        first_row: first_row as u64,
        payload_bytes_max: rules.payload_bytes_max,
        origin: RowOrigin::Request {
            source: rules.source,
            id_base: rules.id_base,
            client_address: &rules.client_address,
            user_agent: rules.user_agent,
            correlation_id: rules.correlation_id,
        },
    }
}

/// All rows as one batch that holds on to no more than its own bytes.
fn one_of(stream: &Stream, parts: Vec<RecordBatch>) -> Result<Option<RecordBatch>, ArrowError> {
    let rows = match parts.as_slice() {
        [only] => only.clone(),
        parts => concat_batches(&stream.shaper.schema, parts)?,
    };
    if rows.num_rows() == 0 {
        return Ok(None);
    }
    if holds_little_else(&rows) {
        return Ok(Some(rows));
    }
    let columns = rows.columns().iter().map(own).collect();
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(rows.schema(), columns, &options).map(Some)
}

/// Whether the rows take up their share of what they hold on to, which columns of one request have in common.
fn holds_little_else(rows: &RecordBatch) -> bool {
    fn note(data: &ArrayData, held: &mut BTreeMap<NonNull<u8>, usize>) {
        let nulls = data.nulls().map(|nulls| nulls.buffer());
        for buffer in data.buffers().iter().chain(nulls) {
            held.insert(buffer.data_ptr(), buffer.capacity());
        }
        data.child_data().iter().for_each(|child| note(child, held));
    }
    let (mut held, mut needed) = (BTreeMap::new(), 0);
    for column in rows.columns() {
        let data = column.to_data();
        needed += data.get_slice_memory_size().unwrap_or(0);
        note(&data, &mut held);
    }
    held.values().sum::<usize>() <= needed * OWN_SHARE
}

fn own(array: &ArrayRef) -> ArrayRef {
    let data = array.to_data();
    let needed = data.get_slice_memory_size().unwrap_or(0);
    if array.get_array_memory_size() <= needed.saturating_mul(OWN_SHARE) + 256 {
        return Arc::clone(array);
    }
    let mut copy = MutableArrayData::new(vec![&data], false, array.len());
    copy.extend(0, 0, array.len());
    make_array(copy.freeze())
}

impl Shaped<'static> {
    /// Counts the rows that fit, and notes their keys.
    fn keep_rows(
        &mut self,
        group: usize,
        rows: &RecordBatch,
        first_row: usize,
        kept: impl Iterator<Item = usize>,
        raw: &RecordBatch,
    ) {
        let Some(group) = self.groups.get_mut(group) else { return };
        let count = rows.num_rows() as u64;
        let row_bytes = (bytes_of(rows) as u64).checked_div(count).unwrap_or(0);
        let one = Tally { received: count, accepted: count, bytes: row_bytes * count, ..Tally::default() };
        group.tally.add(&one);
        self.total.add(&one);
        let contract = &group.stream.shaper.contract;
        if group.stream.shaper.key_columns.is_empty() {
            return;
        }
        let told = contract.on_conflict == OnConflict::Reject;
        for (key, place) in row_keys(rows, &group.stream.shaper.key_columns).into_iter().zip(kept) {
            let content = |key| with_content(key, &row_text(raw, place, LETTER_BYTES, &JsonOptions::default()));
            let key = if told { key.map(content) } else { key };
            group.keys.push(RowKey { index: index_number(first_row + place), payload_bytes: row_bytes, key });
        }
    }

    /// Gives a row back, or sets it aside, as the contract says.
    fn refuse_row(
        &mut self,
        index: usize,
        group: usize,
        raw: &RecordBatch,
        place: usize,
        rules: &Rules<'_>,
        refusal: &Refusal,
    ) {
        let Some(found) = self.groups.get_mut(group) else { return };
        let set_aside = found.stream.shaper.contract.malformed == Malformed::Skip && !rules.atomic;
        let (rejected, dead_lettered) = if set_aside { (0, 1) } else { (1, 0) };
        let one = Tally { received: 1, rejected, dead_lettered, ..Tally::default() };
        found.tally.add(&one);
        let key = found.stream.key.clone();
        self.total.add(&one);
        let kind = if set_aside { ExceptionKind::DeadLettered } else { ExceptionKind::Rejected };
        self.exceptions.push(Exception { index: index_number(index), kind, reason: refusal.code as u8 });
        if set_aside {
            self.set_row_aside(index, &key, raw, place, rules, refusal);
        }
        if index == 0 {
            let verdict = if set_aside { Verdict::DeadLettered } else { Verdict::Rejected };
            self.first_verdict = Some(verdict(refusal.clone()));
        }
        if self.errors.len() < ERRORS_LISTED_MAX {
            let (index, refusal) = (index_number(index), refusal.clone());
            self.errors.push(RecordError { index, event_id: String::new(), dead_lettered: set_aside, refusal });
        }
    }

    /// Puts a row among its tenant's dead letters, as the JSON payload that says the same.
    fn set_row_aside(
        &mut self,
        index: usize,
        key: &StreamKey,
        raw: &RecordBatch,
        place: usize,
        rules: &Rules<'_>,
        refusal: &Refusal,
    ) {
        let Ok(letters) = rules.streams.dead_letters_of(&key.tenant) else { return };
        let text = row_text(raw, place, LETTER_BYTES, &JsonOptions::default());
        let letter_id = assigned_id(rules.received_us, rules.id_base, index_number(index));
        let (tenant, stream) = (key.tenant.as_str(), key.stream.as_str());
        let origin = Origin { tenant, stream, source: rules.source, received_us: rules.received_us, letter_id };
        let row = dead_letters::row(RecordKind::Payload, &text, &origin, refusal);
        let row: Vec<Value<'static>> = row.into_iter().map(owned).collect();
        let group = self.group_of(&letters);
        if let Some(group) = self.groups.get_mut(group) {
            group.few.push(row);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "a row, where it lies, and what was decided about it")]
    fn set_row_aside_again(
        &mut self,
        index: usize,
        key: &StreamKey,
        raw: &RecordBatch,
        place: usize,
        rules: &Rules<'_>,
        wanted: &Wanted,
        refusal: &Refusal,
    ) {
        if wanted.keys().any(|wanted| wanted.tenant == key.tenant && wanted.stream.as_str() == DEAD_LETTERS) {
            self.set_row_aside(index, key, raw, place, rules, refusal);
        }
    }
}

/// The value, for rows that outlive the text they were made of.
fn owned(value: Value<'_>) -> Value<'static> {
    match value {
        Value::Null => Value::Null,
        Value::Boolean(value) => Value::Boolean(value),
        Value::Long(value) => Value::Long(value),
        Value::Double(value) => Value::Double(value),
        Value::Decimal(value) => Value::Decimal(value),
        Value::Text(text) => Value::Owned(text.into()),
        Value::Owned(text) => Value::Owned(text),
        Value::Id(id) => Value::Id(id),
        Value::Bytes(bytes) => Value::OwnedBytes(bytes.into()),
        Value::OwnedBytes(bytes) => Value::OwnedBytes(bytes),
        Value::Map(entries) => {
            Value::OwnedMap(entries.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
        }
        Value::OwnedMap(entries) => Value::OwnedMap(entries),
    }
}

#[cfg(test)]
mod tests;
