//! Rows of a file, column by column, as rows of a stream's table.
//!
//! Columns are found by the paths of the contract (`a.b` is the member `b` of the struct `a`, or a column of that very
//! name), else by the names of the contract's columns. What comes out is what the same rows, sent as JSON payloads,
//! would have become; a row that breaks the contract is taken out with its reason, and its neighbours go on. Of the
//! envelope, a file may bring the event's id, type, time and version in columns of the contract's names; whose records
//! these are it cannot say.
//!
//! A file of which no row could fit is refused as a whole, before any row is looked at: [`Mismatch`].

pub(crate) mod cast;
mod envelope;
pub(crate) mod json;
mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, make_array};
use arrow::buffer::NullBuffer;
use arrow::compute::filter;
use arrow::datatypes::{DataType, FieldRef, Fields, SchemaRef};
use arrow::error::ArrowError;
use lakegate_model::{Column, ColumnRules, ColumnSource, Field, ReasonCode, Refusal, Undeclared};

use self::cast::{Refused, Wanted, cast_column, may_fit};
pub(crate) use self::envelope::row_id;
use self::json::JsonOptions;
use crate::shape::Shaper;

/// Why a file's columns are not those of the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Mismatch(pub(crate) String);

/// Where a column's values come from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// From a column of the file: its place, then places inside structs.
    File(Vec<usize>),
    /// From what is known of the import.
    Envelope(Field),
    /// From nowhere: all null.
    Absent,
}

/// What holds for all rows of a piece.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowContext<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) stream: &'a str,
    pub(crate) event_type: Option<&'a str>,
    pub(crate) received_us: i64,
    /// The file's identity; with a row's number it makes the row's id.
    pub(crate) file: u128,
    pub(crate) first_row: u64,
    pub(crate) payload_bytes_max: usize,
    pub(crate) origin: RowOrigin<'a>,
}

/// Where rows come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RowOrigin<'a> {
    /// A file.
    File,
    /// A request, with what is known of it; empty: not known.
    Request { source: &'a str, id_base: u128, client_address: &'a str, user_agent: &'a str, correlation_id: &'a str },
}

/// How a contract's columns are found among those of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// By what the contract reads them from, else by their own names.
    Payload,
    /// By their own names alone.
    Own,
}

/// Rows that fit, and those that do not.
#[derive(Debug)]
pub(crate) struct Conformed {
    pub(crate) rows: RecordBatch,
    /// By place in the piece.
    pub(crate) bad: Refused,
}

/// A contract and a file's schema, put together.
#[derive(Debug)]
pub(crate) struct Conformer {
    shaper: Arc<Shaper>,
    schema: SchemaRef,
    places: Vec<Place>,
    time: Option<Vec<usize>>,
    /// Columns that no column of the contract takes, and the members of structs that are looked into, as the paths of
    /// places that lead to them.
    kept: Vec<Vec<usize>>,
    json: JsonOptions,
}

impl Conformer {
    /// # Errors
    /// No row of such a file could fit the contract.
    pub(crate) fn new(shaper: &Arc<Shaper>, schema: &SchemaRef, names: Names) -> Result<Self, Mismatch> {
        let contract = &shaper.contract;
        let fields = schema.fields();
        let mut places = Vec::with_capacity(contract.columns.len());
        for column in &contract.columns {
            places.push(place_of(column, contract.rules_of(&column.name), fields, names)?);
        }
        let time_paths = contract.time.iter().flat_map(|time| std::iter::once(&time.path).chain(&time.or_paths));
        let time = time_paths.into_iter().find_map(|path| find_path(fields, path));
        if let Some(found) = time.as_ref().and_then(|path| type_at(fields, path))
            && !may_fit(found, lakegate_model::ColumnType::Timestamptz)
        {
            let name = contract.time.as_ref().map_or_else(String::new, |time| time.path.join("."));
            return Err(Mismatch(format!("the stream takes its time from {name:?}, which is {found} in the file")));
        }
        let taken = |place: &usize| {
            let paths = places.iter().filter_map(|p| if let Place::File(path) = p { Some(path) } else { None });
            let further = contract.rules.values().flat_map(|rules| &rules.or_paths).chain(&contract.event_type_paths);
            let further = further.filter_map(|path| find_path(fields, path));
            paths.chain(&time).any(|path| path.first() == Some(place))
                || further.into_iter().any(|path| path.first() == Some(place))
        };
        let mut kept = Vec::new();
        let paths = places.iter().filter_map(|place| if let Place::File(path) = place { Some(path) } else { None });
        untaken(fields, &mut Vec::new(), &paths.chain(&time).cloned().collect::<Vec<_>>(), &mut kept);
        kept.retain(|path| path.len() > 1 || path.first().is_some_and(|place| !taken(place)));
        let others: Vec<usize> = (0..fields.len()).filter(|place| !taken(place)).collect();
        let names = |places: &[usize]| {
            let names: Vec<&str> = places.iter().filter_map(|at| fields.get(*at)).map(|f| f.name().as_str()).collect();
            format!("{names:?}")
        };
        if contract.undeclared == Undeclared::Reject && !others.is_empty() {
            let message = "the file has columns that the stream does not declare, and its contract rejects such:";
            return Err(Mismatch(format!("{message} {}; declare them or leave them out", names(&others))));
        }
        let wants_columns = contract.columns.iter().any(|c| matches!(c.source, ColumnSource::Path(_)));
        if wants_columns
            && others.len() == fields.len()
            && !matches!(contract.undeclared, Undeclared::Keep | Undeclared::Evolve)
        {
            let wanted: Vec<&str> = contract.columns.iter().map(|c| c.name.as_str()).collect();
            let found = names(&others);
            return Err(Mismatch(format!("none of the stream's columns {wanted:?} is in the file, which has {found}")));
        }
        let (shaper, schema, json) = (shaper.clone(), schema.clone(), JsonOptions::default());
        Ok(Self { shaper, schema, places, time, kept, json })
    }

    /// The file's schema that this was made for.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn wanted<'c>(&'c self, slot: usize, column: &'c Column) -> Wanted<'c> {
        let times = self.shaper.slot_rules(slot).and_then(|rules| rules.times.as_ref());
        Wanted { name: &column.name, column_type: column.column_type, times }
    }

    /// The rows as rows of the table.
    ///
    /// # Errors
    /// The rows are not of the schema that this was made for.
    pub(crate) fn conform(&self, rows: &RecordBatch, context: &RowContext<'_>) -> Result<Conformed, ArrowError> {
        let contract = &self.shaper.contract;
        let rows = &json::in_utc(rows)?;
        let mut bad = Refused::new();
        let times = envelope::Times::read(self, rows, context, &mut bad)?;
        let mut columns = Vec::with_capacity(self.places.len());
        self.check_event_types(rows, context, &mut bad)?;
        for (slot, (column, place)) in contract.columns.iter().zip(&self.places).enumerate() {
            let array = match (&column.source, place) {
                (ColumnSource::Envelope(Field::EventTime), _) => times.column(column.column_type),
                (ColumnSource::Envelope(field), Place::File(path)) => {
                    let found = array_at(rows, path)?;
                    let found = cast_column(&found, self.wanted(slot, column), &mut bad)?;
                    self.filled(found, *field, column, rows, context)?
                }
                (_, Place::File(path)) => cast_column(&array_at(rows, path)?, self.wanted(slot, column), &mut bad)?,
                (ColumnSource::Envelope(Field::TimeSource), _) => times.source(),
                (ColumnSource::Envelope(field), _) => self.envelope_column(*field, column, rows, context, &mut bad)?,
                (ColumnSource::Path(_), _) => {
                    arrow::array::new_null_array(&lakegate_memtable::arrow_type(column.column_type), rows.num_rows())
                }
            };
            let piece = rules::Rows { rows, times: &times, context };
            let array = self.by_rules(slot, column, array, &piece, &mut bad)?;
            if column.required && array.null_count() > 0 {
                require(column, &array, &mut bad);
            }
            columns.push(array);
        }
        let columns = without(columns, &bad, rows.num_rows())?;
        let kept = rows.num_rows() - bad.len();
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(kept));
        let rows = RecordBatch::try_new_with_options(self.shaper.schema.clone(), columns, &options)?;
        Ok(Conformed { rows, bad })
    }
}

fn require(column: &Column, array: &ArrayRef, bad: &mut Refused) {
    for row in (0..array.len()).filter(|row| array.is_null(*row)) {
        bad.entry(row).or_insert_with(|| Refusal {
            code: ReasonCode::MissingField,
            field: Some(column.name.clone()),
            message: format!("{} is required", column.name),
        });
    }
}

/// The arrays without the rows that are bad.
fn without(columns: Vec<ArrayRef>, bad: &Refused, rows: usize) -> Result<Vec<ArrayRef>, ArrowError> {
    if bad.is_empty() {
        return Ok(columns);
    }
    let keep: BooleanArray = (0..rows).map(|row| Some(!bad.contains_key(&row))).collect();
    columns.iter().map(|column| filter(column, &keep)).collect()
}

fn place_of(column: &Column, rules: Option<&ColumnRules>, fields: &Fields, names: Names) -> Result<Place, Mismatch> {
    let own_name = || find_path(fields, std::slice::from_ref(&column.name));
    let path = match &column.source {
        ColumnSource::Path(_) if names == Names::Own => own_name(),
        ColumnSource::Path(path) => find_path(fields, path).or_else(own_name),
        // What the server alone knows is never taken from a file.
        ColumnSource::Envelope(
            field @ (Field::TenantId
            | Field::EndpointId
            | Field::ReceivedAt
            | Field::TimeSource
            | Field::Undeclared
            | Field::Rescued
            | Field::Source
            | Field::UserAgent
            | Field::ClientAddress
            | Field::CorrelationId),
        ) => return Ok(Place::Envelope(*field)),
        ColumnSource::Envelope(field) => match own_name() {
            Some(path) if type_at(fields, &path).is_some_and(|found| may_fit(found, column.column_type)) => {
                return Ok(Place::File(path));
            }
            _ => return Ok(Place::Envelope(*field)),
        },
    };
    match path {
        Some(path) => {
            let found = type_at(fields, &path).unwrap_or(&DataType::Null);
            if may_fit(found, column.column_type) {
                return Ok(Place::File(path));
            }
            let (name, wanted) = (&column.name, column.column_type.name());
            Err(Mismatch(format!(
                "the column {name:?} is {found} in the file and {wanted} in the stream's contract; change the contract, or \
                 convert the column before the import"
            )))
        }
        None if rules.is_some_and(|rules| rules.or_envelope.is_some() || !rules.or_paths.is_empty()) => {
            Ok(Place::Absent)
        }
        None if column.required => {
            let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
            let name = &column.name;
            Err(Mismatch(format!("the stream requires the column {name:?}, and the file has {names:?}")))
        }
        None => Ok(Place::Absent),
    }
}

/// The fields that no path takes, in their order: of a struct that a path leads into, its members one by one.
fn untaken(fields: &Fields, at: &mut Vec<usize>, taken: &[Vec<usize>], found: &mut Vec<Vec<usize>>) {
    for (place, field) in fields.iter().enumerate() {
        at.push(place);
        let into = taken.iter().any(|path| path.starts_with(at));
        match field.data_type() {
            _ if taken.contains(at) => {}
            DataType::Struct(inner) if into => untaken(inner, at, taken, found),
            _ => found.push(at.clone()),
        }
        at.pop();
    }
}

/// The places that a path of names leads through: structs, or one column named like the whole path.
fn find_path(fields: &Fields, path: &[String]) -> Option<Vec<usize>> {
    let dotted = path.join(".");
    if let Some(at) = place_named(fields, &dotted) {
        return Some(vec![at]);
    }
    let (first, rest) = path.split_first()?;
    let at = place_named(fields, first)?;
    if rest.is_empty() {
        return Some(vec![at]);
    }
    match fields.get(at).map(|field| field.data_type()) {
        Some(DataType::Struct(inner)) => {
            let mut places = vec![at];
            places.extend(find_path(inner, rest)?);
            Some(places)
        }
        _ => None,
    }
}

fn place_named(fields: &Fields, name: &str) -> Option<usize> {
    fields.iter().position(|field| field.name() == name)
}

fn type_at<'f>(fields: &'f Fields, path: &[usize]) -> Option<&'f DataType> {
    let (first, rest) = path.split_first()?;
    let found = fields.get(*first)?.data_type();
    match (rest.is_empty(), found) {
        (true, _) => Some(found),
        (false, DataType::Struct(inner)) => type_at(inner, rest),
        _ => None,
    }
}

/// The array at a path; null where a struct around it is.
fn array_at(rows: &RecordBatch, path: &[usize]) -> Result<ArrayRef, ArrowError> {
    let wrong = || ArrowError::SchemaError("a piece of the file has other columns than the ones before".to_owned());
    let (first, rest) = path.split_first().ok_or_else(wrong)?;
    let mut array = Arc::clone(rows.columns().get(*first).ok_or_else(wrong)?);
    for place in rest {
        let outer = array.as_struct_opt().ok_or_else(wrong)?;
        let inner = outer.columns().get(*place).ok_or_else(wrong)?;
        array = match outer.nulls() {
            None => Arc::clone(inner),
            Some(nulls) => {
                let nulls = NullBuffer::union(inner.nulls(), Some(nulls));
                make_array(inner.to_data().into_builder().nulls(nulls).build()?)
            }
        };
    }
    Ok(array)
}

/// The fields of a schema as a slice's worth of handles.
fn handles(schema: &SchemaRef) -> Vec<FieldRef> {
    schema.fields().iter().cloned().collect()
}
