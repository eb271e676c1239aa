//! Rows of one partition into Parquet files, with the counts and bounds that Iceberg keeps of them.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::io::Write;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, Datum, PartitionSpec, PrimitiveType, SchemaRef, Struct,
    TableMetadata, Type,
};
use lakegate_env::hit_failpoint;
use lakegate_model::{ColumnSource, ColumnType, Contract, Field};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as Codec, Encoding, GzipLevel, ZstdLevel};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnPath;

use super::{EncodedFile, Run, WritePlan};
use crate::error::LakeError;
use crate::options::Compression;
use crate::warehouse::{Finished, Sink, WarehouseError};

/// A row group ends at so many rows or bytes.
const ROW_GROUP_ROWS: usize = 1 << 20;
const ROW_GROUP_BYTES: usize = 128 << 20;
/// Bounds of texts and bytes are cut to so many bytes.
const BOUND_BYTES: usize = 32;

/// How a table's files are written. User-set table properties win over `compression`.
pub(crate) fn writer_properties(
    metadata: &TableMetadata,
    schema: &SchemaRef,
    contract: Option<&Contract>,
    compression: Compression,
) -> WriterProperties {
    let properties = metadata.properties();
    let mut builder = WriterProperties::builder()
        .set_created_by(concat!("lakegate ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(codec(properties, compression))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_statistics_truncate_length(Some(BOUND_BYTES))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES));
    for field in schema.as_struct().fields() {
        let path = ColumnPath::from(field.name.as_str());
        let Type::Primitive(primitive) = field.field_type.as_ref() else { continue };
        let declared = contract.and_then(|c| c.column(&field.name));
        let unique = is_unique(primitive, declared.map(|c| (&c.source, c.column_type)));
        if unique {
            builder = builder.set_column_dictionary_enabled(path.clone(), false);
        }
        if matches!(primitive, PrimitiveType::Timestamp | PrimitiveType::Timestamptz) {
            builder = builder.set_column_encoding(path.clone(), Encoding::DELTA_BINARY_PACKED);
        }
        if declared
            .is_some_and(|c| c.column_type == ColumnType::Json || c.source == ColumnSource::Envelope(Field::Payload))
        {
            // Bounds of documents prune nothing and would put parts of them into the metadata.
            builder = builder.set_column_statistics_enabled(path.clone(), EnabledStatistics::None);
        }
        if properties
            .get(&format!("write.parquet.bloom-filter-enabled.column.{}", field.name))
            .is_some_and(|v| v == "true")
        {
            builder = builder.set_column_bloom_filter_enabled(path, true);
        }
    }
    builder.build()
}

/// Columns whose values hardly ever repeat: a dictionary of them costs time and saves nothing.
fn is_unique(primitive: &PrimitiveType, declared: Option<(&ColumnSource, ColumnType)>) -> bool {
    let by_type = matches!(
        primitive,
        PrimitiveType::Timestamp
            | PrimitiveType::Timestamptz
            | PrimitiveType::Double
            | PrimitiveType::Float
            | PrimitiveType::Binary
    );
    by_type
        || declared.is_some_and(|(source, column_type)| {
            column_type == ColumnType::Json
                || matches!(source, ColumnSource::Envelope(Field::EventId | Field::Payload | Field::Undeclared))
        })
}

fn codec(properties: &HashMap<String, String>, compression: Compression) -> Codec {
    let named = properties.get("write.parquet.compression-codec").and_then(|name| name.parse().ok());
    let level: Option<i32> = properties.get("write.parquet.compression-level").and_then(|level| level.parse().ok());
    match named.unwrap_or(compression) {
        Compression::Snappy => Codec::SNAPPY,
        Compression::Zstd => Codec::ZSTD(level.and_then(|l| ZstdLevel::try_new(l).ok()).unwrap_or_default()),
        Compression::Lz4 => Codec::LZ4_RAW,
        Compression::Gzip => Codec::GZIP(
            level.and_then(|l| u32::try_from(l).ok()).and_then(|l| GzipLevel::try_new(l).ok()).unwrap_or_default(),
        ),
        Compression::None => Codec::UNCOMPRESSED,
    }
}

/// The folder of a partition, for people: readers go by the metadata alone.
pub(crate) fn partition_path(spec: &PartitionSpec, schema: &SchemaRef, partition: &Struct) -> String {
    if spec.fields().is_empty() {
        return String::new();
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '=' | '/') { c } else { '_' };
    let Ok(types) = spec.partition_type(schema) else { return String::new() };
    let parts = spec.fields().iter().zip(types.fields()).zip(partition.iter()).map(|((field, field_type), value)| {
        let text = field.transform.to_human_string(&field_type.field_type, value);
        let value: String = text.chars().take(80).map(|c| if c == '/' { '_' } else { plain(c) }).collect();
        let name: String = field.name.chars().map(|c| if c == '/' { '_' } else { plain(c) }).collect();
        format!("{name}={value}")
    });
    parts.collect::<Vec<_>>().join("/")
}

/// Writes the run's rows to as many files as the target size asks for.
pub(crate) fn encode_run(plan: &WritePlan, run: Run<'_>, files: &mut Vec<EncodedFile>) -> Result<(), LakeError> {
    let mut left = run.batches.peekable();
    while left.peek().is_some() {
        let location = plan.location(&run.partition, files.len());
        // A file that was there already is not ours to remove: only what was created here is.
        let sink = plan.warehouse.create(&location)?;
        let encoded = encode_file(plan, &location, sink, &run.partition, &mut left);
        if encoded.is_err() {
            Sink::abandon(&location);
        }
        files.push(encoded?);
    }
    Ok(())
}

/// Writes one file with as many of the batches as it takes.
fn encode_file(
    plan: &WritePlan,
    location: &str,
    sink: Sink,
    partition: &Struct,
    batches: &mut impl Iterator<Item = Result<RecordBatch, LakeError>>,
) -> Result<EncodedFile, LakeError> {
    let mut sink = Counted { sink, bytes: 0 };
    let failed = |e: parquet::errors::ParquetError| {
        LakeError::Warehouse(WarehouseError::Store {
            action: "encode",
            location: location.to_owned(),
            message: e.to_string(),
        })
    };
    let armed =
        |source| LakeError::Warehouse(WarehouseError::Io { action: "write", location: location.to_owned(), source });
    let mut writer = ArrowWriter::try_new(&mut sink, std::sync::Arc::clone(&plan.arrow), Some(plan.properties.clone()))
        .map_err(failed)?;
    let mut nans = HashMap::new();
    for batch in batches {
        let batch = batch?;
        writer.write(&batch).map_err(failed)?;
        count_nans(plan, &batch, &mut nans);
        hit_failpoint("lake.write.half").map_err(armed)?;
        let size = writer.bytes_written().saturating_add(writer.in_progress_size());
        if u64::try_from(size).unwrap_or(u64::MAX) >= plan.target_file_bytes {
            break;
        }
    }
    let metadata = writer.close().map_err(failed)?;
    hit_failpoint("lake.write.before_sync").map_err(armed)?;
    let Counted { sink, bytes } = sink;
    let finished: Finished = sink.sync()?;
    let data_file = describe(plan, location, partition, &metadata, bytes, nans)?;
    Ok(EncodedFile { data_file, finished })
}

/// Counts what passes.
struct Counted {
    sink: Sink,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.sink.write(bytes)?;
        self.bytes += u64::try_from(written).unwrap_or_default();
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.sink.flush()
    }
}

fn count_nans(plan: &WritePlan, batch: &RecordBatch, nans: &mut HashMap<i32, u64>) {
    for (field, column) in plan.schema.as_struct().fields().iter().zip(batch.columns()) {
        let count = match column.data_type() {
            DataType::Float32 => column.as_primitive::<Float32Type>().iter().flatten().filter(|v| v.is_nan()).count(),
            DataType::Float64 => column.as_primitive::<Float64Type>().iter().flatten().filter(|v| v.is_nan()).count(),
            _ => continue,
        };
        *nans.entry(field.id).or_default() += u64::try_from(count).unwrap_or_default();
    }
}

/// The file as a manifest names it.
fn describe(
    plan: &WritePlan,
    location: &str,
    partition: &Struct,
    metadata: &ParquetMetaData,
    bytes: u64,
    nans: HashMap<i32, u64>,
) -> Result<DataFile, LakeError> {
    let mut columns = ColumnFacts::default();
    for group in metadata.row_groups() {
        for chunk in group.columns() {
            let basic = chunk.column_descr().self_type().get_basic_info();
            if !basic.has_id() {
                continue;
            }
            let primitive = plan.schema.field_by_id(basic.id()).and_then(|f| f.field_type.as_primitive_type().cloned());
            columns.add(basic.id(), primitive, chunk.compressed_size(), chunk.num_values(), chunk.statistics());
        }
    }
    let offsets = metadata.row_groups().iter().filter_map(|g| g.columns().first()).map(|c| c.byte_range().0);
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_path(location.to_owned())
        .file_format(DataFileFormat::Parquet)
        .partition(partition.clone())
        .partition_spec_id(plan.spec.spec_id())
        .record_count(u64::try_from(metadata.file_metadata().num_rows()).unwrap_or_default())
        .file_size_in_bytes(bytes)
        .nan_value_counts(nans)
        .split_offsets(Some(offsets.filter_map(|o| i64::try_from(o).ok()).collect()));
    columns.describe(&mut builder);
    if let Some(id) = plan.sort_order_id {
        builder.sort_order_id(id);
    }
    builder.build().map_err(LakeError::invalid)
}

/// What a footer says of each column.
#[derive(Default)]
pub(crate) struct ColumnFacts {
    sizes: HashMap<i32, u64>,
    values: HashMap<i32, u64>,
    nulls: HashMap<i32, u64>,
    lower: Bounds,
    upper: Bounds,
    uncounted: HashSet<i32>,
}

impl ColumnFacts {
    /// A column chunk without bounds: the column has none.
    pub(crate) fn leave_unbounded(&mut self, id: i32) {
        self.lower.unbounded.insert(id);
        self.upper.unbounded.insert(id);
    }

    /// A column chunk whose nulls are not counted: the column's are not.
    pub(crate) fn leave_uncounted(&mut self, id: i32) {
        self.uncounted.insert(id);
    }

    pub(crate) fn describe(mut self, builder: &mut DataFileBuilder) {
        self.nulls.retain(|id, _| !self.uncounted.contains(id));
        builder
            .column_sizes(self.sizes)
            .value_counts(self.values)
            .null_value_counts(self.nulls)
            .lower_bounds(self.lower.finish())
            .upper_bounds(self.upper.finish());
    }

    pub(crate) fn add(
        &mut self,
        id: i32,
        primitive: Option<PrimitiveType>,
        size: i64,
        values: i64,
        statistics: Option<&Statistics>,
    ) {
        *self.sizes.entry(id).or_default() += u64::try_from(size).unwrap_or_default();
        *self.values.entry(id).or_default() += u64::try_from(values).unwrap_or_default();
        let Some(statistics) = statistics else { return };
        if let Some(nulls) = statistics.null_count_opt() {
            *self.nulls.entry(id).or_default() += nulls;
        }
        let Some(primitive) = primitive else { return };
        let has_values = u64::try_from(values).unwrap_or_default() > statistics.null_count_opt().unwrap_or_default();
        // A column of nothing but NaN has values and no bounds; any other without bounds is not bounded as a whole.
        let may_lack = !has_values || matches!(primitive, PrimitiveType::Float | PrimitiveType::Double);
        self.lower.widen(id, bound(&primitive, statistics, statistics.min_bytes_opt()), may_lack, Ordering::Less);
        self.upper.widen(id, bound(&primitive, statistics, statistics.max_bytes_opt()), may_lack, Ordering::Greater);
    }
}

/// Bounds over all row groups of a file.
#[derive(Default)]
struct Bounds {
    known: HashMap<i32, Datum>,
    unbounded: HashSet<i32>,
}

impl Bounds {
    /// Takes in one row group's bound; the one that is `outer` to the other stays.
    fn widen(&mut self, id: i32, found: Option<Datum>, may_lack: bool, outer: Ordering) {
        let Some(found) = found else {
            if !may_lack {
                self.unbounded.insert(id);
            }
            return;
        };
        match self.known.get(&id).map(|known| known.partial_cmp(&found)) {
            Some(None) => {
                self.unbounded.insert(id);
            }
            Some(Some(order)) if order == outer || order == Ordering::Equal => {}
            _ => {
                self.known.insert(id, found);
            }
        }
    }

    fn finish(mut self) -> HashMap<i32, Datum> {
        self.known.retain(|id, _| !self.unbounded.contains(id));
        self.known
    }
}

/// A bound as Iceberg keeps it. Parquet keeps small decimals as little-endian integers, Iceberg all as big-endian bytes.
pub(crate) fn bound(primitive: &PrimitiveType, statistics: &Statistics, bytes: Option<&[u8]>) -> Option<Datum> {
    let bytes = bytes?;
    if let (PrimitiveType::Decimal { .. }, Statistics::Int32(_) | Statistics::Int64(_)) = (primitive, statistics) {
        let reversed: Vec<u8> = bytes.iter().rev().copied().collect();
        return Datum::try_from_bytes(&reversed, primitive.clone()).ok();
    }
    Datum::try_from_bytes(bytes, primitive.clone()).ok()
}
