//! A record's envelope and payload to one row.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use arrow::datatypes::SchemaRef;
use lakegate_memtable::{RowBuilder, Value, arrow_schema};
use lakegate_model::{
    ClockSkew, Column, ColumnSource, ColumnType, Conflicts, Contract, Field, PayloadFormat, ReasonCode, Refusal,
    TimeNotation, Undeclared,
};
use parking_lot::Mutex;

use super::envelope::{Envelope, Parts, Payload, RecordContext, json_object};
use super::infer::{infer, widened};
use super::leaf::{read_leaf, shown, string, timestamp};
use super::payload::{Found, Node, Slots, find_members, is_json};
use super::plain;
use super::rules::{Marks, SlotRules, Wanted};
use crate::time::TimeReader;
use crate::wire::{WireRecord, text};

/// A contract made ready for shaping.
#[derive(Debug)]
pub(crate) struct Shaper {
    pub(crate) contract: Arc<Contract>,
    pub(crate) schema: SchemaRef,
    pub(super) tree: Node,
    pub(super) slots: Slots,
    /// Where rows can be shaped column by column: how many times that is not tried now.
    pub(super) plain_pause: Option<AtomicU32>,
    /// The tree of the event type alone, where the table depends on it.
    event_type_tree: Option<(Node, Slots)>,
    rules: Vec<Option<SlotRules>>,
    /// How the contract's time field is written, where that is not as anywhere else.
    pub(crate) time: Option<TimeReader>,
    keeps_others: bool,
    evolves: bool,
    has_payload_column: bool,
    payload_is_text: bool,
    rescue_column: Option<usize>,
    /// Bytes of text in a row of each column, as the last large request had them.
    row_bytes: Mutex<Vec<usize>>,
    /// The columns that together tell one event from another.
    pub(crate) key_columns: Vec<usize>,
}

impl Shaper {
    pub(crate) fn new(contract: Arc<Contract>) -> Self {
        let takes = |field: Field| contract.columns.iter().position(|c| c.source == ColumnSource::Envelope(field));
        let payload_column = takes(Field::Payload).and_then(|at| contract.columns.get(at));
        let own_times = contract.time.as_ref().filter(|time| time.notation != TimeNotation::default());
        let (tree, slots) = Node::of(&contract);
        let rules = SlotRules::of(&contract);
        Self {
            schema: arrow_schema(&contract),
            plain_pause: plain::is_plain(&contract, &tree, &rules).then(AtomicU32::default),
            tree,
            slots,
            event_type_tree: contract.table.takes_event_type().then(|| Node::of_event_type(&contract)),
            rules,
            time: own_times.map(|time| TimeReader::new(&time.notation)),
            keeps_others: takes(Field::Undeclared).is_some(),
            evolves: contract.undeclared == Undeclared::Evolve,
            has_payload_column: payload_column.is_some(),
            row_bytes: Mutex::default(),
            key_columns: key_columns(&contract),
            payload_is_text: payload_column.is_none_or(|c| c.column_type != ColumnType::Binary),
            rescue_column: takes(Field::Rescued),
            contract,
        }
    }

    /// An empty builder for rows of this contract.
    pub(crate) fn rows(&self, rows: usize) -> RowBuilder {
        let row_bytes = self.row_bytes.lock().clone();
        RowBuilder::with_row_bytes(&self.contract, self.schema.clone(), rows, &row_bytes)
    }

    /// Takes the size of these rows for that of the ones to come, with a little to spare.
    pub(crate) fn learn(&self, rows: &RowBuilder) {
        let expected = rows.row_bytes().into_iter().map(|bytes| bytes + bytes.div_ceil(16)).collect();
        *self.row_bytes.lock() = expected;
    }

    /// The rules of a column, where it has any.
    pub(crate) fn slot_rules(&self, slot: usize) -> Option<&SlotRules> {
        self.rules.get(slot).and_then(Option::as_ref)
    }

    /// Whether rows of one stream go into tables by their event type.
    pub(crate) fn splits_by_event_type(&self) -> bool {
        self.event_type_tree.is_some()
    }

    /// The event type that decides on the record's table; none where it cannot be told.
    pub(crate) fn event_type_of<'a>(&self, record: &WireRecord<'a>) -> Option<Box<str>> {
        let (tree, slots) = self.event_type_tree.as_ref()?;
        if !record.event_type.is_empty() {
            return std::str::from_utf8(record.event_type).ok().map(Into::into);
        }
        let json = simdutf8::basic::from_utf8(record.payload).ok()?;
        let mut found = Found { slots: vec![None; slots.count], ..Found::default() };
        find_members(json, tree, &mut found).ok()?;
        match string(found.first_of(&slots.event_type)?)? {
            Value::Text(text) => Some(text.into()),
            Value::Owned(text) => Some(text),
            _ => None,
        }
    }

    /// Reads one record into `row`: as many values as the contract has columns.
    pub(crate) fn shape<'a>(
        &self,
        record: &WireRecord<'a>,
        envelope: &Envelope<'a>,
        context: &mut RecordContext<'a>,
        row: &mut Vec<Value<'a>>,
    ) -> Result<(), Refusal> {
        row.clear();
        let mut marks = Marks::default();
        if record.payload.len() > context.payload_bytes_max {
            return Err(too_large(record.payload.len(), context.payload_bytes_max));
        }
        let payload = self.payload_text(record, envelope)?;
        let mut found = std::mem::take(&mut context.found);
        found.clear();
        if let Payload::Json(json) = &payload {
            self.find(json, &mut found)?;
        } else if !self.tree.is_empty() {
            let message = format!("this stream takes application/json; found content type {:?}", envelope.content_type);
            return Err(Refusal {
                code: ReasonCode::UnsupportedContentType,
                field: Some("content_type".to_owned()),
                message,
            });
        }
        let event_type = self.event_type(envelope, &found)?;
        let (time_us, time_source) = self.event_time(record, &found, context.received_us, &mut marks)?;
        let parts = Parts {
            record,
            envelope,
            context,
            payload: &payload,
            found: &found,
            slots: &self.slots,
            event_type: &event_type,
            time_us,
            time_source,
            marks_base64: self.payload_is_text && self.has_payload_column,
        };
        let mut rescued = Vec::new();
        for (slot, column) in self.contract.columns.iter().enumerate() {
            let mut value = match &column.source {
                ColumnSource::Envelope(Field::EventId) if envelope.event_id.is_empty() && self.has_no_rules(slot) => {
                    Value::Id(context.assigned_id)
                }
                ColumnSource::Envelope(field) => parts.envelope_value(*field, column.column_type)?,
                ColumnSource::Path(_) => match found.slots.get(slot).copied().flatten() {
                    Some(raw) => match self.leaf(slot, column, raw) {
                        Ok(value) => value,
                        Err(refusal) => {
                            let misfit = Misfit { slot, column, raw, refusal, may_grow: context.may_grow };
                            self.settle(misfit, &mut rescued, &mut marks)?
                        }
                    },
                    None => Value::Null,
                },
            };
            if let Some(Some(rules)) = self.rules.get(slot) {
                self.apply(rules, slot, column, &mut value, &parts, &mut marks)?;
            }
            if column.required && matches!(value, Value::Null) && !marks.wants_wider(slot) {
                let message = format!("{} is required", column.name);
                return Err(Refusal { code: ReasonCode::MissingField, field: Some(column.name.clone()), message });
            }
            row.push(value);
        }
        self.put_rescued(&rescued, row, &mut marks);
        if self.evolves && context.may_grow {
            self.note_wanted(&found, &mut marks);
        }
        (context.marks, context.found) = (marks, found);
        Ok(())
    }

    /// Whether nothing looks at the column's values before they are stored.
    fn has_no_rules(&self, slot: usize) -> bool {
        self.slot_rules(slot).is_none()
    }

    #[inline]
    pub(super) fn leaf<'a>(&self, slot: usize, column: &Column, raw: &'a str) -> Result<Value<'a>, Refusal> {
        let rules = self.rules.get(slot).and_then(Option::as_ref);
        if rules.is_some_and(|rules| rules.json_text)
            && let Some(text) = string(raw)
        {
            return Ok(text);
        }
        read_leaf(raw, &column.name, column.column_type, rules.and_then(|rules| rules.times.as_ref()))
    }

    /// A value that does not fit its column: by the contract's policy.
    fn settle<'a>(
        &self,
        misfit: Misfit<'_, 'a>,
        rescued: &mut Vec<(usize, &'a str)>,
        marks: &mut Marks,
    ) -> Result<Value<'a>, Refusal> {
        let Misfit { slot, column, raw, refusal, may_grow } = misfit;
        let widens = self.contract.conflicts == Conflicts::Widen && may_grow;
        match widens.then(|| widened(column.column_type, raw)).flatten() {
            Some(column_type) => {
                marks.wanted.push(Wanted::Wider { column: slot, column_type });
                // Only for this reading; the record is read again.
                Ok(Value::Null)
            }
            None if self.contract.conflicts == Conflicts::Reject || column.required => Err(refusal),
            None => {
                rescued.push((slot, raw));
                Ok(Value::Null)
            }
        }
    }

    fn put_rescued(&self, rescued: &[(usize, &str)], row: &mut [Value<'_>], marks: &mut Marks) {
        let place = self.rescue_column.and_then(|at| row.get_mut(at));
        if let (Some(place), false) = (place, rescued.is_empty()) {
            let name = |slot: usize| self.contract.columns.get(slot).map_or("", |column| column.name.as_str());
            *place = Value::Owned(json_object(rescued.iter().map(|(slot, raw)| (name(*slot), *raw))).into_boxed_str());
            marks.rescued = u32::try_from(rescued.len()).unwrap_or(u32::MAX);
        }
    }

    /// Further places, checks and cleaning of one column.
    fn apply<'a>(
        &self,
        rules: &SlotRules,
        slot: usize,
        column: &Column,
        value: &mut Value<'a>,
        parts: &Parts<'_, 'a>,
        marks: &mut Marks,
    ) -> Result<(), Refusal> {
        if *value == Value::Null {
            let further = self.slots.further.iter().find(|(of, _)| *of == slot);
            if let Some(raw) = further.and_then(|(_, slots)| parts.found.first_of(slots)) {
                *value = self.leaf(slot, column, raw)?;
            }
        }
        if *value == Value::Null
            && let Some(field) = rules.or_envelope
        {
            *value = parts.envelope_value(field, column.column_type)?;
        }
        rules.check(value, column)?;
        if rules.clean(value, column) {
            marks.sanitised.push(slot);
        }
        Ok(())
    }

    /// Notes the columns that the members would need that have none.
    fn note_wanted(&self, found: &Found<'_>, marks: &mut Marks) {
        for other in found.others.iter().flatten() {
            let Some(column_type) = infer(other.raw, self.contract.evolution.times) else { continue };
            let parent = self.slots.objects.get(other.object).map(|(path, _)| path.as_slice()).unwrap_or_default();
            let path = parent.iter().cloned().chain([other.name.clone().into_owned()]).collect();
            marks.wanted.push(Wanted::Column { path, column_type });
        }
    }

    fn payload_text<'a>(&self, record: &WireRecord<'a>, envelope: &Envelope<'a>) -> Result<Payload<'a>, Refusal> {
        let json = match self.contract.payload {
            PayloadFormat::Opaque => false,
            PayloadFormat::Json => true,
            PayloadFormat::Any => envelope.is_json(),
        };
        if json && record.payload.is_empty() && self.tree.is_empty() {
            return Ok(Payload::Empty);
        }
        if json {
            return Ok(Payload::Json(text("payload", record.payload)?));
        }
        if self.has_payload_column && self.payload_is_text {
            return Ok(simdutf8::basic::from_utf8(record.payload).map_or(Payload::Bytes(record.payload), Payload::Text));
        }
        Ok(Payload::Bytes(record.payload))
    }

    fn find<'a>(&self, json: &'a str, found: &mut Found<'a>) -> Result<(), Refusal> {
        if self.tree.is_empty() && !self.keeps_others {
            // Nothing is taken out of it, yet what is stored as JSON must be JSON; any kind of value will do.
            return is_json(json);
        }
        found.slots.resize(self.slots.count, None);
        if self.keeps_others {
            found.others.get_or_insert_default();
        }
        find_members(json, &self.tree, found)?;
        let undeclared = found.first_other.as_ref().filter(|_| self.contract.undeclared == Undeclared::Reject);
        if let Some(name) = found.forbidden.as_ref().or(undeclared) {
            let message = format!("the contract declares no field {:?}", shown(name));
            let field = Some(name.chars().take(80).collect());
            return Err(Refusal { code: ReasonCode::UndeclaredField, field, message });
        }
        self.check_objects(found)
    }

    fn check_objects(&self, found: &Found<'_>) -> Result<(), Refusal> {
        for (rule, slot, needs) in &self.slots.ruled {
            let Some(rule) = self.contract.objects.get(*rule) else { continue };
            let name = || rule.path.join(".");
            match found.slots.get(*slot).copied().flatten() {
                Some(raw) if raw.starts_with('{') => {
                    let missing = rule.needs.iter().zip(needs).find(|(_, slot)| found.first_of(&[**slot]).is_none());
                    if let Some((member, _)) = missing {
                        let field = format!("{}.{member}", name());
                        let message = format!("{field} is required");
                        return Err(Refusal { code: ReasonCode::MissingField, field: Some(field), message });
                    }
                }
                None | Some("null") if !rule.required => {}
                None | Some("null") => {
                    let message = format!("{} is required", name());
                    return Err(Refusal { code: ReasonCode::MissingField, field: Some(name()), message });
                }
                Some(raw) => {
                    let message = format!("{} must be an object; found {}", name(), shown(raw));
                    return Err(Refusal { code: ReasonCode::WrongType, field: Some(name()), message });
                }
            }
        }
        Ok(())
    }

    fn event_type<'a>(&self, envelope: &Envelope<'a>, found: &Found<'a>) -> Result<Value<'a>, Refusal> {
        let value = match envelope.event_type {
            "" => found.first_of(&self.slots.event_type).and_then(string).unwrap_or(Value::Null),
            named => Value::Text(named),
        };
        if self.contract.event_types.is_empty() {
            return Ok(value);
        }
        let name = match &value {
            Value::Text(text) => text,
            Value::Owned(text) => &**text,
            _ => "",
        };
        if self.contract.event_types.iter().any(|allowed| allowed == name) {
            return Ok(value);
        }
        let allowed = self.contract.event_types.join(", ");
        let message = format!("the event type must be one of {allowed}; found {:?}", shown(name));
        Err(Refusal { code: ReasonCode::NotAllowed, field: Some("event_type".to_owned()), message })
    }

    fn event_time(
        &self,
        record: &WireRecord<'_>,
        found: &Found<'_>,
        received_us: i64,
        marks: &mut Marks,
    ) -> Result<(i64, &'static str), Refusal> {
        let time = match (record.event_time_us, &self.contract.time) {
            (Some(us), _) => (us, "envelope"),
            (None, Some(time)) => match found.first_of(&self.slots.time) {
                Some(raw) => {
                    let name = time.path.join(".");
                    let us = timestamp(raw, &name, ColumnType::Timestamptz, self.time.as_ref())?;
                    (us, "payload")
                }
                None => return Ok((received_us, "received")),
            },
            (None, None) => return Ok((received_us, "received")),
        };
        self.check_clock(time, received_us, marks)
    }

    /// Holds the event's time against the time of receipt.
    fn check_clock(
        &self,
        time: (i64, &'static str),
        received_us: i64,
        marks: &mut Marks,
    ) -> Result<(i64, &'static str), Refusal> {
        let clock = &self.contract.clock;
        let Some(message) = clock.is_far(time.0, received_us) else { return Ok(time) };
        marks.skewed = true;
        match clock.skew {
            ClockSkew::Accept => Ok(time),
            ClockSkew::Clamp => Ok((received_us, "clamped")),
            ClockSkew::Reject => {
                let (code, field) = (ReasonCode::ClockSkew, Some("event_time".to_owned()));
                Err(Refusal { code, field, message })
            }
        }
    }
}

/// A value that does not fit its column.
struct Misfit<'m, 'a> {
    slot: usize,
    column: &'m Column,
    raw: &'a str,
    refusal: Refusal,
    may_grow: bool,
}

fn too_large(found: usize, limit: usize) -> Refusal {
    let message = format!("the payload has {found} bytes; at most {limit} are taken (ingestion.payload_bytes_max)");
    Refusal { code: ReasonCode::TooLarge, field: Some("payload".to_owned()), message }
}

fn key_columns(contract: &Contract) -> Vec<usize> {
    contract.event_key.iter().filter_map(|name| contract.columns.iter().position(|c| c.name == *name)).collect()
}
