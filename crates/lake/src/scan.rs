//! Reading a table's committed rows.
//!
//! Files are planned here, from manifests kept in memory, and read by the library's reader, which knows columns by their
//! Iceberg ids: renamed, added and reordered columns come out as the newest schema has them. Conditions leave out
//! files, row groups and rows that cannot match; what comes may still hold rows that do not, so the caller filters.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::datatypes::{Schema as ArrowSchema, SchemaRef as ArrowSchemaRef};
use futures::stream::{BoxStream, StreamExt};
use iceberg::Runtime;
use iceberg::arrow::ArrowReaderBuilder;
use iceberg::expr::{Bind, BoundPredicate, Predicate, Reference};
use iceberg::scan::FileScanTask;
use iceberg::spec::{
    DataFile, Datum, ManifestContentType, NameMapping, NestedFieldRef, PrimitiveLiteral, PrimitiveType, Type,
};

use crate::adopt::NAME_MAPPING;
use crate::error::LakeError;
use crate::view::TableView;
use crate::write::conform;

/// Rows as they are read.
pub type BatchStream = BoxStream<'static, Result<RecordBatch, LakeError>>;

/// What is to be read.
#[derive(Debug, Clone, Default)]
pub struct ScanRequest {
    /// The columns, in the order in which they are to come; none: all. May be empty: then only rows are counted.
    pub projection: Option<Vec<String>>,
    /// Conditions that all must hold. Rows for which one does not hold may come nevertheless.
    pub filter: Vec<Condition>,
    /// Rows per batch, at most; 0: 8192.
    pub batch_size: usize,
    /// How many streams, at most; 0: 1.
    pub concurrency: usize,
}

/// A condition on one column.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// The column.
    pub column: String,
    /// How it is compared.
    pub op: Op,
    /// With what; of no meaning for [`Op::IsNull`] and [`Op::NotNull`].
    pub value: Scalar,
}

/// A comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Equal.
    Eq,
    /// Not equal.
    NotEq,
    /// Less.
    Less,
    /// Less or equal.
    LessEq,
    /// Greater.
    Greater,
    /// Greater or equal.
    GreaterEq,
    /// Has no value.
    IsNull,
    /// Has a value.
    NotNull,
}

/// A value to compare with.
#[derive(Debug, Clone, PartialEq)]
pub enum Scalar {
    /// None.
    Null,
    /// True or false.
    Boolean(bool),
    /// An integer.
    Long(i64),
    /// A floating-point number.
    Double(f64),
    /// Text.
    Text(String),
    /// An instant, in microseconds since 1970.
    Micros(i64),
    /// A day, counted from 1970-01-01.
    Days(i32),
}

/// A condition whose value has the column's type.
struct Typed {
    field: NestedFieldRef,
    op: Op,
    datum: Option<Datum>,
}

impl TableView {
    /// Reads the rows of this view's snapshot, in up to `concurrency` streams of about the same size.
    ///
    /// # Errors
    /// A column is not there, a manifest cannot be read, or there is no tokio runtime.
    pub async fn scan(&self, request: ScanRequest) -> Result<Vec<BatchStream>, LakeError> {
        let schema = self.projected(request.projection.as_deref())?;
        let manifests = self.manifests().await?;
        if manifests
            .iter()
            .any(|m| m.content == ManifestContentType::Deletes && (m.has_added_files() || m.has_existing_files()))
        {
            return self.scan_with_deletes(&request, schema).await;
        }
        let typed: Vec<Typed> = request.filter.iter().filter_map(|c| self.typed(c)).collect();
        let predicate = self.bound(&typed)?;
        let mapping = self.name_mapping()?;
        let mut tasks = Vec::new();
        for manifest in manifests.iter() {
            let spec = self.metadata.partition_spec_by_id(manifest.partition_spec_id);
            let content = self.manifest_cache.load(&self.warehouse, manifest).await?;
            for entry in content.entries().iter().filter(|e| e.is_alive()) {
                let file = entry.data_file();
                if typed.iter().all(|t| may_match(file, t)) {
                    self.warehouse.check(file.file_path())?;
                    tasks.push(self.task(file, (spec.cloned(), mapping.clone()), &schema, predicate.clone()));
                }
            }
        }
        if schema.fields().is_empty() && predicate.is_none() {
            return Ok(vec![count_only(schema, &tasks)]);
        }
        self.read(tasks, &request, &schema)
    }

    /// The rows of one file of the table, with all columns. Delete files are not applied.
    pub(crate) fn read_file(&self, file: &DataFile, spec_id: i32) -> Result<BatchStream, LakeError> {
        self.warehouse.check(file.file_path())?;
        let schema = self.schema();
        let spec = self.metadata.partition_spec_by_id(spec_id).cloned();
        let task = self.task(file, (spec, self.name_mapping()?), &schema, None);
        let streams = self.read(vec![task], &ScanRequest::default(), &schema)?;
        Ok(streams.into_iter().next().unwrap_or_else(|| futures::stream::empty().boxed()))
    }

    /// Files whose counts and bounds leave room for a row that all conditions hold for, each with its partitioning.
    pub(crate) async fn files_that_may_match(
        &self,
        conditions: &[Condition],
    ) -> Result<Vec<(DataFile, i32)>, LakeError> {
        let typed: Vec<Typed> = conditions.iter().filter_map(|c| self.typed(c)).collect();
        let mut files = Vec::new();
        for manifest in self.manifests().await?.iter() {
            let content = self.manifest_cache.load(&self.warehouse, manifest).await?;
            let alive = content.entries().iter().filter(|e| e.is_alive()).map(|e| e.data_file());
            let matching = alive.filter(|file| typed.iter().all(|t| may_match(file, t)));
            files.extend(matching.map(|file| (file.clone(), manifest.partition_spec_id)));
        }
        Ok(files)
    }

    /// Which ids the columns of files without ids have.
    fn name_mapping(&self) -> Result<Option<Arc<NameMapping>>, LakeError> {
        let Some(text) = self.properties().get(NAME_MAPPING) else { return Ok(None) };
        serde_json::from_str(text).map(|m| Some(Arc::new(m))).map_err(|e| {
            LakeError::Invalid(format!("the property {NAME_MAPPING} of {} cannot be read: {e}", self.name()))
        })
    }

    fn projected(&self, projection: Option<&[String]>) -> Result<ArrowSchemaRef, LakeError> {
        let all = self.schema();
        let Some(names) = projection else { return Ok(all) };
        let mut fields = Vec::with_capacity(names.len());
        for name in names {
            let missing = || LakeError::Invalid(format!("the table {} has no column {name:?}", self.name()));
            let (_, field) = all.fields().find(name).ok_or_else(missing)?;
            fields.push(Arc::clone(field));
        }
        Ok(Arc::new(ArrowSchema::new(fields)))
    }

    fn typed(&self, condition: &Condition) -> Option<Typed> {
        let field = self.metadata.current_schema().field_by_name(&condition.column)?;
        let primitive = field.field_type.as_primitive_type()?;
        let (field, op) = (Arc::clone(field), condition.op);
        if matches!(op, Op::IsNull | Op::NotNull) {
            return Some(Typed { field, op, datum: None });
        }
        // NaN is greater than all numbers for SQL and outside all bounds for Iceberg: such columns are not pruned by it.
        if matches!(primitive, PrimitiveType::Float | PrimitiveType::Double)
            && !matches!(op, Op::Less | Op::LessEq | Op::Eq)
        {
            return None;
        }
        let datum = datum_of(primitive, &condition.value)?;
        Some(Typed { field, op, datum: Some(datum) })
    }

    fn bound(&self, typed: &[Typed]) -> Result<Option<BoundPredicate>, LakeError> {
        let mut all: Option<Predicate> = None;
        for Typed { field, op, datum } in typed {
            let column = Reference::new(&field.name);
            let one = match (op, datum) {
                (Op::IsNull, _) => column.is_null(),
                (Op::NotNull, _) => column.is_not_null(),
                (_, None) => continue,
                (Op::Eq, Some(datum)) => column.equal_to(datum.clone()),
                (Op::NotEq, Some(datum)) => column.not_equal_to(datum.clone()),
                (Op::Less, Some(datum)) => column.less_than(datum.clone()),
                (Op::LessEq, Some(datum)) => column.less_than_or_equal_to(datum.clone()),
                (Op::Greater, Some(datum)) => column.greater_than(datum.clone()),
                (Op::GreaterEq, Some(datum)) => column.greater_than_or_equal_to(datum.clone()),
            };
            all = Some(match all {
                Some(before) => before.and(one),
                None => one,
            });
        }
        let schema = Arc::clone(self.metadata.current_schema());
        all.map(|predicate| predicate.rewrite_not().bind(schema, true).map_err(LakeError::invalid)).transpose()
    }

    fn task(
        &self,
        file: &DataFile,
        (spec, mapping): (Option<iceberg::spec::PartitionSpecRef>, Option<Arc<NameMapping>>),
        schema: &ArrowSchemaRef,
        predicate: Option<BoundPredicate>,
    ) -> FileScanTask {
        let table_schema = self.metadata.current_schema();
        let fields = schema.fields().iter().filter_map(|f| table_schema.field_by_name(f.name()));
        let mut ids: Vec<i32> = fields.filter(|f| !lacks_nested(file, f)).map(|f| f.id).collect();
        if ids.is_empty() {
            ids.extend(table_schema.as_struct().fields().first().map(|f| f.id));
        }
        FileScanTask::builder()
            .with_file_size_in_bytes(file.file_size_in_bytes())
            .with_start(0)
            .with_length(file.file_size_in_bytes())
            .with_record_count(Some(file.record_count()))
            .with_data_file_path(file.file_path().to_owned())
            .with_data_file_format(file.file_format())
            .with_schema(Arc::clone(table_schema))
            .with_project_field_ids(ids)
            .with_predicate(predicate)
            .with_partition(Some(file.partition().clone()))
            .with_partition_spec(spec)
            .with_name_mapping(mapping)
            .with_case_sensitive(true)
            .build()
    }

    fn read(
        &self,
        tasks: Vec<FileScanTask>,
        request: &ScanRequest,
        schema: &ArrowSchemaRef,
    ) -> Result<Vec<BatchStream>, LakeError> {
        let runtime = Runtime::try_current().map_err(LakeError::invalid)?;
        let batch_size = if request.batch_size == 0 { 8192 } else { request.batch_size };
        let mut streams = Vec::new();
        for mut group in share_out(tasks, request.concurrency.max(1)) {
            if schema.fields().is_empty() {
                // The reader has no rows without columns: one is read, and dropped below.
                let first = self.metadata.current_schema().as_struct().fields().first().map(|f| f.id);
                group.iter_mut().for_each(|task| task.project_field_ids = first.into_iter().collect());
            }
            let reader = ArrowReaderBuilder::new(self.warehouse.io().clone(), runtime.clone())
                .with_data_file_concurrency_limit(1)
                .with_batch_size(batch_size)
                .build();
            let tasks = futures::stream::iter(group.into_iter().map(Ok)).boxed();
            let batches = reader.read(tasks).map_err(LakeError::invalid)?.stream();
            let schema = Arc::clone(schema);
            let fitted = batches
                .map(move |batch| conform(&batch.map_err(LakeError::invalid)?, &schema).map_err(LakeError::Invalid));
            streams.push(fitted.boxed());
        }
        Ok(streams)
    }

    /// A table from which another engine deleted rows: planned by the library, which applies the deletes.
    async fn scan_with_deletes(
        &self,
        request: &ScanRequest,
        schema: ArrowSchemaRef,
    ) -> Result<Vec<BatchStream>, LakeError> {
        let ident = iceberg::TableIdent::from_strs([self.name().namespace.as_str(), self.name().name.as_str()])
            .map_err(LakeError::invalid)?;
        let table = iceberg::table::Table::builder()
            .file_io(self.warehouse.io().clone())
            .metadata(Arc::clone(&self.metadata))
            .metadata_location(self.metadata_location())
            .identifier(ident)
            .runtime(Runtime::try_current().map_err(LakeError::invalid)?)
            .build()
            .map_err(LakeError::invalid)?;
        let names: Vec<String> = match schema.fields().first() {
            Some(_) => schema.fields().iter().map(|f| f.name().clone()).collect(),
            None => self.schema().fields().iter().take(1).map(|f| f.name().clone()).collect(),
        };
        let scan = table.scan().select(names).with_batch_size(Some(if request.batch_size == 0 {
            8192
        } else {
            request.batch_size
        }));
        let batches = scan.build().map_err(LakeError::invalid)?.to_arrow().await.map_err(LakeError::invalid)?;
        let fitted =
            batches.map(move |batch| conform(&batch.map_err(LakeError::invalid)?, &schema).map_err(LakeError::Invalid));
        Ok(vec![fitted.boxed()])
    }
}

/// Whether a nested column is younger than the file: the reader cannot make nulls of it, and [`conform`] does.
fn lacks_nested(file: &DataFile, field: &NestedFieldRef) -> bool {
    let known = file.column_sizes();
    !field.field_type.is_primitive() && !known.is_empty() && !has_leaf(&field.field_type, known)
}

fn has_leaf(nested: &Type, known: &HashMap<i32, u64>) -> bool {
    let one = |f: &NestedFieldRef| known.contains_key(&f.id) || has_leaf(&f.field_type, known);
    match nested {
        Type::Primitive(_) => false,
        Type::Struct(fields) => fields.fields().iter().any(one),
        Type::List(list) => one(&list.element_field),
        Type::Map(map) => one(&map.key_field) || one(&map.value_field),
    }
}

/// Rows without columns, by the counts that the manifests hold.
fn count_only(schema: ArrowSchemaRef, tasks: &[FileScanTask]) -> BatchStream {
    let counts: Vec<u64> = tasks.iter().filter_map(|t| t.record_count).collect();
    let batches = counts.into_iter().map(move |rows| {
        let options = RecordBatchOptions::new().with_row_count(usize::try_from(rows).ok());
        RecordBatch::try_new_with_options(Arc::clone(&schema), Vec::new(), &options).map_err(LakeError::invalid)
    });
    futures::stream::iter(batches).boxed()
}

/// Files into groups of about the same size, the largest files first.
fn share_out(mut tasks: Vec<FileScanTask>, groups: usize) -> Vec<Vec<FileScanTask>> {
    tasks.sort_by(|a, b| b.length.cmp(&a.length).then_with(|| a.data_file_path.cmp(&b.data_file_path)));
    let mut shares: Vec<(u64, Vec<FileScanTask>)> = (0..groups.min(tasks.len())).map(|_| (0, Vec::new())).collect();
    for task in tasks {
        if let Some((bytes, share)) = shares.iter_mut().min_by_key(|(bytes, _)| *bytes) {
            *bytes = bytes.saturating_add(task.length);
            share.push(task);
        }
    }
    shares.into_iter().map(|(_, share)| share).collect()
}

pub(crate) fn datum_of(primitive: &PrimitiveType, value: &Scalar) -> Option<Datum> {
    Some(match (primitive, value) {
        (PrimitiveType::Boolean, Scalar::Boolean(v)) => Datum::bool(*v),
        (PrimitiveType::Int, Scalar::Long(v)) => Datum::int(i32::try_from(*v).ok()?),
        (PrimitiveType::Long, Scalar::Long(v)) => Datum::long(*v),
        (PrimitiveType::Float, Scalar::Double(v)) => {
            #[allow(clippy::cast_possible_truncation, reason = "checked on the next line")]
            let narrow = *v as f32;
            if f64::from(narrow) != *v {
                return None;
            }
            Datum::float(narrow)
        }
        (PrimitiveType::Double, Scalar::Double(v)) if !v.is_nan() => Datum::double(*v),
        (PrimitiveType::String, Scalar::Text(v)) => Datum::string(v),
        (PrimitiveType::Timestamp, Scalar::Micros(v)) => Datum::timestamp_micros(*v),
        (PrimitiveType::Timestamptz, Scalar::Micros(v)) => Datum::timestamptz_micros(*v),
        (PrimitiveType::Date, Scalar::Days(v)) => Datum::date(*v),
        _ => return None,
    })
}

/// Whether the file's counts and bounds leave room for a row that the condition holds for.
fn may_match(file: &DataFile, typed: &Typed) -> bool {
    let id = typed.field.id;
    let nulls = file.null_value_counts().get(&id);
    let values = file.value_counts().get(&id);
    let Some(datum) = &typed.datum else {
        return match typed.op {
            Op::IsNull => nulls.is_none_or(|n| *n > 0),
            _ => nulls.is_none() || nulls != values,
        };
    };
    let lower = file.lower_bounds().get(&id).filter(|b| comparable(b, datum));
    let upper = file.upper_bounds().get(&id).filter(|b| comparable(b, datum));
    match typed.op {
        Op::Eq => lower.is_none_or(|l| l <= datum) && upper.is_none_or(|u| u >= datum),
        Op::Less => lower.is_none_or(|l| l < datum),
        Op::LessEq => lower.is_none_or(|l| l <= datum),
        Op::Greater => upper.is_none_or(|u| u > datum),
        Op::GreaterEq => upper.is_none_or(|u| u >= datum),
        Op::NotEq | Op::IsNull | Op::NotNull => true,
    }
}

fn comparable(bound: &Datum, datum: &Datum) -> bool {
    std::mem::discriminant::<PrimitiveLiteral>(bound.literal()) == std::mem::discriminant(datum.literal())
        && bound.data_type() == datum.data_type()
}
