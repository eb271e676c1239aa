//! Rows into partitions, and inside each into the table's order.
//!
//! One permutation does both: rows are ordered by (partition, sort columns, arrival). Where that is the order in which
//! they lie, nothing is moved and batches are only cut. Otherwise each output batch is gathered from the input once.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{SortOptions, concat, interleave_record_batch};
use arrow::datatypes::{DataType, Int64Type, SchemaRef as ArrowSchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::row::{RowConverter, Rows, SortField};
use iceberg::arrow::arrow_primitive_to_literal;
use iceberg::spec::{Struct, StructType, Transform};
use iceberg::transform::create_transform_function;

use super::align::joined;
use super::{Run, WritePlan};
use crate::error::LakeError;

/// How many rows are gathered at a time.
const GATHER_ROWS: usize = 8192;

/// One column of the order of rows inside a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SortKey {
    /// The column's place in the table's schema.
    pub(crate) column: usize,
    pub(crate) options: SortOptions,
}

/// Which partition each row belongs to.
struct Partitions {
    /// For each row the number of its partition, in order of first appearance; empty when there is one partition.
    numbers: Vec<u32>,
    values: Vec<Struct>,
}

/// Rows in partitions and order. Nothing is moved before it is asked for, so that what is gathered takes no more memory
/// than one batch.
pub(crate) struct Arrangement<'a> {
    schema: &'a ArrowSchemaRef,
    batches: &'a [RecordBatch],
    /// Which row each batch begins with.
    starts: Vec<usize>,
    /// None where the rows lie in order.
    order: Option<Vec<u32>>,
    partitions: Vec<(Struct, Range<usize>)>,
}

/// Finds the order of the rows. `batches` is not empty.
pub(crate) fn arrange<'a>(plan: &'a WritePlan, batches: &'a [RecordBatch]) -> Result<Arrangement<'a>, LakeError> {
    let partitions = partition(plan, batches)?;
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let order = permutation(plan, batches, &partitions.numbers, rows)?;
    let begin = |next: &mut usize, batch: &RecordBatch| {
        let start = *next;
        *next += batch.num_rows();
        Some(start)
    };
    let starts = batches.iter().scan(0, begin).collect();
    let partitions = ranges(&partitions, order.as_deref(), rows);
    Ok(Arrangement { schema: &plan.arrow, batches, starts, order, partitions })
}

impl Arrangement<'_> {
    /// The rows of each partition.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        self.partitions.iter().map(|(partition, range)| Run {
            partition: partition.clone(),
            batches: match &self.order {
                None => Box::new(joined(slice(self.batches, range.clone()), self.schema)),
                Some(order) => Box::new(self.gathered(order.get(range.clone()).unwrap_or_default())),
            },
        })
    }

    fn gathered<'o>(&'o self, order: &'o [u32]) -> impl Iterator<Item = Result<RecordBatch, LakeError>> + 'o {
        let mut sources = Sources::new(self.batches);
        order.chunks(GATHER_ROWS).map(move |chunk| {
            let places: Vec<(usize, usize)> = chunk
                .iter()
                .map(|at| {
                    let at = usize::try_from(*at).unwrap_or(usize::MAX);
                    let batch = self.starts.partition_point(|start| *start <= at).saturating_sub(1);
                    (sources.place(batch), at - self.starts.get(batch).copied().unwrap_or_default())
                })
                .collect();
            let gathered = interleave_record_batch(&sources.taken, &places).map_err(LakeError::invalid);
            sources.clear();
            gathered
        })
    }
}

/// The batches that a gathered one takes from: of many, some.
struct Sources<'b> {
    batches: &'b [RecordBatch],
    taken: Vec<&'b RecordBatch>,
    numbers: Vec<usize>,
    /// For each batch its place among those that are taken.
    places: Vec<usize>,
}

impl<'b> Sources<'b> {
    fn new(batches: &'b [RecordBatch]) -> Self {
        Self { batches, taken: Vec::new(), numbers: Vec::new(), places: vec![usize::MAX; batches.len()] }
    }

    fn place(&mut self, batch: usize) -> usize {
        let (Some(place), Some(source)) = (self.places.get_mut(batch), self.batches.get(batch)) else { return 0 };
        if *place == usize::MAX {
            *place = self.taken.len();
            self.taken.push(source);
            self.numbers.push(batch);
        }
        *place
    }

    fn clear(&mut self) {
        for number in self.numbers.drain(..) {
            if let Some(place) = self.places.get_mut(number) {
                *place = usize::MAX;
            }
        }
        self.taken.clear();
    }
}

fn key_column(batches: &[RecordBatch], column: usize) -> Result<ArrayRef, LakeError> {
    let parts: Vec<&ArrayRef> = batches.iter().filter_map(|b| b.columns().get(column)).collect();
    match parts.as_slice() {
        [one] => Ok(Arc::clone(one)),
        many => concat(&many.iter().map(|a| a.as_ref()).collect::<Vec<&dyn Array>>()).map_err(LakeError::invalid),
    }
}

fn partition(plan: &WritePlan, batches: &[RecordBatch]) -> Result<Partitions, LakeError> {
    let spec = &plan.spec;
    if spec.fields().is_empty() {
        return Ok(Partitions { numbers: Vec::new(), values: vec![Struct::empty()] });
    }
    let types = spec.partition_type(&plan.schema).map_err(LakeError::invalid)?;
    let mut columns = Vec::with_capacity(spec.fields().len());
    let mut is_one = true;
    for field in spec.fields() {
        let place = plan.schema.as_struct().fields().iter().position(|f| f.id == field.source_id);
        let place =
            place.ok_or_else(|| plan.misfit(format!("the partition field {} is of a nested column", field.name)))?;
        let transform = create_transform_function(&field.transform).map_err(LakeError::invalid)?;
        let source = key_column(batches, place)?;
        if let Some(ends) = ends_of(&source, field.transform) {
            let ends = transform.transform(ends).map_err(LakeError::invalid)?;
            if ends.slice(0, 1).to_data() == ends.slice(1, 1).to_data() {
                // All rows lie between two that agree: one value stands for all.
                columns.push(ends);
                continue;
            }
        }
        is_one = false;
        columns.push(transform.transform(source).map_err(LakeError::invalid)?);
    }
    if is_one {
        return Ok(Partitions { numbers: Vec::new(), values: vec![partition_value(&columns, &types, 0)?] });
    }
    let all: usize = batches.iter().map(RecordBatch::num_rows).sum();
    for column in &mut columns {
        if column.len() != all {
            let first = arrow::array::UInt64Array::from(vec![0; all]);
            *column = arrow::compute::take(column, &first, None).map_err(LakeError::invalid)?;
        }
    }
    let rows = to_rows(&columns, &vec![SortOptions::default(); columns.len()])?;
    let (numbers, firsts) = number_rows(&rows);
    let mut values = Vec::with_capacity(firsts.len());
    for first in firsts {
        values.push(partition_value(&columns, &types, first)?);
    }
    Ok(Partitions { numbers: if values.len() > 1 { numbers } else { Vec::new() }, values })
}

/// The partition of one row.
fn partition_value(columns: &[ArrayRef], types: &StructType, row: usize) -> Result<Struct, LakeError> {
    let mut fields = Vec::with_capacity(columns.len());
    for (column, field) in columns.iter().zip(types.fields()) {
        let literal =
            arrow_primitive_to_literal(&column.slice(row, 1), &field.field_type).map_err(LakeError::invalid)?;
        fields.push(literal.into_iter().next().flatten());
    }
    Ok(Struct::from_iter(fields))
}

/// Two values of the column between which all others lie, where the transform keeps their order: the least and the
/// greatest time, or a text that all rows share, twice.
fn ends_of(column: &ArrayRef, transform: Transform) -> Option<ArrayRef> {
    let is_temporal = matches!(transform, Transform::Year | Transform::Month | Transform::Day | Transform::Hour);
    let (low, high) = match (plain_values(column), column.as_string_opt::<i32>()) {
        (Some(values), _) if is_temporal => {
            let at = |wanted: i64| values.iter().position(|v| *v == wanted);
            (at(*values.iter().min()?)?, at(*values.iter().max()?)?)
        }
        (_, Some(texts)) if texts.null_count() == 0 && !texts.is_empty() => {
            let first = texts.value(0);
            if !texts.iter().all(|text| text == Some(first)) {
                return None;
            }
            (0, 0)
        }
        _ => return None,
    };
    concat(&[column.slice(low, 1).as_ref(), column.slice(high, 1).as_ref()]).ok()
}

fn to_rows(columns: &[ArrayRef], options: &[SortOptions]) -> Result<Rows, LakeError> {
    let fields =
        columns.iter().zip(options).map(|(c, o)| SortField::new_with_options(c.data_type().clone(), *o)).collect();
    RowConverter::new(fields).and_then(|converter| converter.convert_columns(columns)).map_err(LakeError::invalid)
}

/// Numbers equal rows alike, in order of first appearance; and where each number appeared first.
fn number_rows(rows: &Rows) -> (Vec<u32>, Vec<usize>) {
    let mut known: HashMap<&[u8], u32> = HashMap::new();
    let (mut numbers, mut firsts) = (Vec::with_capacity(rows.num_rows()), Vec::new());
    let mut last: Option<(&[u8], u32)> = None;
    for (at, row) in rows.iter().enumerate() {
        let bytes: &[u8] = row.data();
        let number = match last {
            Some((same, number)) if same == bytes => number,
            _ => *known.entry(bytes).or_insert_with(|| {
                firsts.push(at);
                u32::try_from(firsts.len() - 1).unwrap_or(u32::MAX)
            }),
        };
        last = Some((bytes, number));
        numbers.push(number);
    }
    (numbers, firsts)
}

/// The order in which rows are to be written; none when they lie in it already.
fn permutation(
    plan: &WritePlan,
    batches: &[RecordBatch],
    numbers: &[u32],
    rows: usize,
) -> Result<Option<Vec<u32>>, LakeError> {
    u32::try_from(rows)
        .map_err(|_| plan.misfit(format!("{rows} rows at once are more than the 4294967295 that are taken")))?;
    let mut keys = Vec::with_capacity(plan.sort.len());
    for key in &plan.sort {
        keys.push(key_column(batches, key.column)?);
    }
    if let ([key], [sort]) = (keys.as_slice(), plan.sort.as_slice())
        && let Some(values) = plain_values(key)
    {
        return Ok(match sort.options.descending {
            false => sorted_by(rows, numbers, |at| at_or_default(values, at)),
            true => sorted_by(rows, numbers, |at| std::cmp::Reverse(at_or_default(values, at))),
        });
    }
    if keys.is_empty() {
        return Ok(sorted_by(rows, numbers, |_| ()));
    }
    let options: Vec<SortOptions> = plan.sort.iter().map(|s| s.options).collect();
    let converted = to_rows(&keys, &options)?;
    Ok(sorted_by(rows, numbers, |at| converted.row(at)))
}

fn at_or_default(values: &[i64], at: usize) -> i64 {
    values.get(at).copied().unwrap_or_default()
}

/// The 64-bit values of a column without nulls.
fn plain_values(array: &ArrayRef) -> Option<&[i64]> {
    if array.null_count() > 0 {
        return None;
    }
    match array.data_type() {
        DataType::Int64 => Some(array.as_primitive::<Int64Type>().values()),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            Some(array.as_primitive::<TimestampMicrosecondType>().values())
        }
        _ => None,
    }
}

fn sorted_by<K: Ord>(rows: usize, numbers: &[u32], key: impl Fn(usize) -> K) -> Option<Vec<u32>> {
    let full = |at: usize| (numbers.get(at).copied().unwrap_or_default(), key(at));
    if (1..rows).all(|at| full(at - 1) <= full(at)) {
        return None;
    }
    let mut order: Vec<(u32, K, u32)> = (0..rows)
        .map(|at| {
            let (number, key) = full(at);
            (number, key, u32::try_from(at).unwrap_or(u32::MAX))
        })
        .collect();
    order.sort_unstable();
    Some(order.into_iter().map(|(_, _, at)| at).collect())
}

/// Where each partition's rows lie in the order.
fn ranges(partitions: &Partitions, order: Option<&[u32]>, rows: usize) -> Vec<(Struct, Range<usize>)> {
    if let ([], [only]) = (partitions.numbers.as_slice(), partitions.values.as_slice()) {
        return vec![(only.clone(), 0..rows)];
    }
    let mut counts = vec![0usize; partitions.values.len()];
    for number in &partitions.numbers {
        if let Some(count) = usize::try_from(*number).ok().and_then(|n| counts.get_mut(n)) {
            *count += 1;
        }
    }
    debug_assert!(order.is_none_or(|o| o.len() == rows), "a permutation has all rows");
    let mut next = 0;
    let cut = |(value, count): (&Struct, usize)| {
        let range = next..next + count;
        next += count;
        (value.clone(), range)
    };
    partitions.values.iter().zip(counts).map(cut).collect()
}

/// The rows of a range, without a copy.
fn slice(batches: &[RecordBatch], range: Range<usize>) -> Vec<RecordBatch> {
    let (mut out, mut start) = (Vec::new(), 0);
    for batch in batches {
        let end = start + batch.num_rows();
        let (from, to) = (range.start.max(start), range.end.min(end));
        if from < to {
            out.push(batch.slice(from - start, to - from));
        }
        start = end;
    }
    out
}
