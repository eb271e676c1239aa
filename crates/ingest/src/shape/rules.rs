//! A column's rules, made ready: places, times, checks, cleaning. A contract without rules has none of these, and its
//! values pass none.

use std::sync::Arc;

use lakegate_memtable::Value;
use lakegate_model::{Column, ColumnCheck, ColumnRules, ColumnType, Contract, Field, Refusal, Scalar};

use super::clean::Cleaner;
use crate::time::TimeReader;

/// What is done with one column's values.
#[derive(Debug, Default)]
pub(crate) struct SlotRules {
    check: Option<ColumnCheck>,
    cleaner: Option<Cleaner>,
    pub(crate) times: Option<TimeReader>,
    pub(crate) or_envelope: Option<Field>,
    pub(crate) json_text: bool,
}

impl SlotRules {
    /// One for each column, none at all where no column has rules.
    pub(crate) fn of(contract: &Contract) -> Vec<Option<Self>> {
        if contract.rules.is_empty() {
            return Vec::new();
        }
        let one = |column: &Column| contract.rules_of(&column.name).map(|rules| Self::new(rules, column.column_type));
        contract.columns.iter().map(one).collect()
    }

    fn new(rules: &ColumnRules, column_type: ColumnType) -> Self {
        let has_checks = !rules.checks.is_empty();
        // The configuration was checked by compiling the same; what does not compile checks nothing.
        let check = has_checks.then(|| ColumnCheck::compile(&rules.checks, column_type).ok()).flatten();
        let default_times = rules.times == lakegate_model::TimeNotation::default();
        Self {
            check,
            cleaner: Cleaner::new(&rules.sanitise),
            times: (!default_times).then(|| TimeReader::new(&rules.times)),
            or_envelope: rules.or_envelope,
            json_text: rules.json_text,
        }
    }

    /// Whether values are neither looked for elsewhere, nor checked, nor changed.
    pub(crate) fn only_say_how_to_read(&self) -> bool {
        self.check.is_none() && self.cleaner.is_none() && self.or_envelope.is_none()
    }

    /// Whether values are checked.
    pub(crate) fn checks(&self) -> bool {
        self.check.is_some()
    }

    /// Whether text is made harmless.
    pub(crate) fn cleans(&self) -> bool {
        self.cleaner.is_some()
    }

    /// Checks a value.
    pub(crate) fn check(&self, value: &Value<'_>, column: &Column) -> Result<(), Refusal> {
        let (Some(check), Some(scalar)) = (&self.check, scalar(value, column.column_type)) else { return Ok(()) };
        check.check(scalar).map_err(|breach| Refusal {
            code: breach.code,
            field: Some(column.name.clone()),
            message: format!("{} {}", column.name, breach.message),
        })
    }

    /// Makes a value harmless; whether that changed it.
    pub(crate) fn clean(&self, value: &mut Value<'_>, column: &Column) -> bool {
        let clean = self.cleaner.as_ref().and_then(|cleaner| cleaner.value(value, column.column_type));
        let changed = clean.is_some();
        if let Some(clean) = clean {
            *value = clean;
        }
        changed
    }
}

/// A value as checks look at it; none of null.
fn scalar<'v>(value: &'v Value<'_>, column_type: ColumnType) -> Option<Scalar<'v>> {
    let text = |text: &'v str| if column_type == ColumnType::Json { Scalar::Json(text) } else { Scalar::Text(text) };
    Some(match value {
        // An id of ours stands only where nothing is asked of it.
        Value::Null | Value::Id(_) => return None,
        Value::Boolean(value) => Scalar::Boolean(*value),
        Value::Long(value) => Scalar::Long(*value),
        Value::Double(value) => Scalar::Double(*value),
        Value::Decimal(value) => match column_type {
            ColumnType::Decimal { scale, .. } => Scalar::Decimal(*value, scale),
            _ => return None,
        },
        Value::Text(value) => text(value),
        Value::Owned(value) => text(value),
        Value::Bytes(bytes) => Scalar::Bytes(bytes.len()),
        Value::OwnedBytes(bytes) => Scalar::Bytes(bytes.len()),
        Value::Map(entries) => Scalar::Entries(entries.len()),
        Value::OwnedMap(entries) => Scalar::Entries(entries.len()),
    })
}

/// What a record brought that is worth counting, and what its stream could grow by.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    /// Columns whose values were made harmless.
    pub(crate) sanitised: Vec<usize>,
    /// Values that were put beside the row.
    pub(crate) rescued: u32,
    /// The event's time lay too far from the time of receipt and was taken or replaced.
    pub(crate) skewed: bool,
    /// Columns that would be needed to take all of the record.
    pub(crate) wanted: Vec<Wanted>,
}

impl Marks {
    /// Whether the column is null only until it is wider.
    pub(crate) fn wants_wider(&self, slot: usize) -> bool {
        self.wanted.iter().any(|wanted| matches!(wanted, Wanted::Wider { column, .. } if *column == slot))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.sanitised.is_empty() && self.rescued == 0 && !self.skewed && self.wanted.is_empty()
    }
}

/// A column that a record would need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A new one, for the payload's member at this path.
    Column { path: Arc<[String]>, column_type: ColumnType },
    /// One that is there, as this type.
    Wider { column: usize, column_type: ColumnType },
}
