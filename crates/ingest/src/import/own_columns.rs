//! Streams that nobody declared and whose table has a file's own columns.
//!
//! The first file that is imported into such a stream gives the contract: its columns, their types as Iceberg has them,
//! no partitions, nothing required. It is kept under the stream's name, durable before the first row, and holds for every
//! record from then on, however it comes. A dump's table gives its own, with the primary key as the event key where
//! that is asked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use lakegate_env::Disk;
use lakegate_formats::SqlTable;
use lakegate_model::{
    Column, ColumnSource, ColumnType, Contract, PayloadFormat, StreamKey, StreamName, TenantId, Undeclared,
};
use parking_lot::RwLock;

use crate::contracts::{ContractStore, ContractStoreError};
use crate::shape::Shaper;

/// The most bytes of a column's name.
const NAME_BYTES: usize = 128;

/// What a file says of its columns before its first row.
#[derive(Debug, Clone)]
pub enum OwnColumns {
    /// A file's schema.
    Schema(SchemaRef),
    /// A dump's table; with its primary key as the event key, if so asked.
    Table {
        /// The table.
        table: SqlTable,
        /// Whether rows of one primary key are one row.
        keyed: bool,
    },
}

impl OwnColumns {
    /// The contract of a stream that has exactly these columns.
    ///
    /// # Errors
    /// They cannot be a table's columns; the reason is for people.
    pub fn contract(&self) -> Result<Contract, String> {
        let (columns, event_key) = match self {
            Self::Schema(schema) => (columns_of(schema)?, Vec::new()),
            Self::Table { table, keyed } => {
                let named = table.columns.iter().map(|column| (column.name.as_str(), column.column_type));
                let key = if *keyed { table.primary_key.clone() } else { Vec::new() };
                (named_columns(named)?, key)
            }
        };
        let contract = Contract {
            columns,
            payload: PayloadFormat::Json,
            event_key,
            undeclared: Undeclared::Reject,
            partitions: Vec::new(),
            sort: Vec::new(),
            ..Contract::undeclared_default()
        };
        contract.check().map_err(|error| format!("the file's columns cannot be a table's: {error}"))?;
        Ok(contract)
    }
}

fn columns_of(schema: &Schema) -> Result<Vec<Column>, String> {
    named_columns(schema.fields().iter().map(|field| (field.name().as_str(), column_type(field.data_type()))))
}

fn named_columns<'a>(found: impl Iterator<Item = (&'a str, ColumnType)>) -> Result<Vec<Column>, String> {
    let mut columns: Vec<Column> = Vec::new();
    for (place, (name, column_type)) in found.enumerate() {
        let source = ColumnSource::Path(vec![name.to_owned()]);
        if columns.iter().any(|column| column.source == source) {
            return Err(format!("the file has two columns of the name {name:?}; give them names of their own"));
        }
        let mut own = table_name(name, place);
        if columns.iter().any(|column| column.name.eq_ignore_ascii_case(&own)) {
            own = format!("{own}_{}", place + 1);
        }
        columns.push(Column { name: own, column_type, source, required: false });
    }
    Ok(columns)
}

/// A name that a table's column may have.
fn table_name(name: &str, place: usize) -> String {
    if name.is_empty() {
        return format!("column_{}", place + 1);
    }
    let mut own = String::new();
    // Room is left for what tells two such names apart.
    for letter in name.chars() {
        if own.len() + letter.len_utf8() > NAME_BYTES - 8 {
            break;
        }
        own.push(if letter.is_control() { '_' } else { letter });
    }
    own
}

/// The type that holds every value of a file's type, as near to it as there is.
fn column_type(found: &DataType) -> ColumnType {
    match found {
        DataType::Boolean => ColumnType::Boolean,
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => ColumnType::Int,
        DataType::Int64 | DataType::UInt32 => ColumnType::Long,
        DataType::UInt64 => ColumnType::Decimal { precision: 20, scale: 0 },
        DataType::Float16 | DataType::Float32 => ColumnType::Float,
        DataType::Float64 => ColumnType::Double,
        DataType::Decimal32(p, s)
        | DataType::Decimal64(p, s)
        | DataType::Decimal128(p, s)
        | DataType::Decimal256(p, s) => match (u8::try_from(*s), *p) {
            (Ok(scale), precision @ 1..=38) if scale <= precision => ColumnType::Decimal { precision, scale },
            _ => ColumnType::String,
        },
        DataType::Date32 => ColumnType::Date,
        DataType::Date64 | DataType::Timestamp(_, None) => ColumnType::Timestamp,
        DataType::Timestamp(_, Some(_)) => ColumnType::Timestamptz,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            ColumnType::Binary
        }
        DataType::Dictionary(_, values) => column_type(values),
        DataType::RunEndEncoded(_, values) => column_type(values.data_type()),
        found if found.is_nested() => ColumnType::Json,
        _ => ColumnType::String,
    }
}

/// The contracts of such streams: one JSON file each, `<tenant>.<stream>.json`.
pub(crate) struct OwnContracts {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    known: RwLock<BTreeMap<StreamKey, (u64, Arc<Shaper>)>>,
}

impl OwnContracts {
    /// Opens the folder and reads all.
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        dir: &Path,
        contracts: &ContractStore,
    ) -> Result<Self, ContractStoreError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ContractStoreError::Write { path, source }
        };
        disk.create_dir_all(dir).map_err(failed(dir))?;
        let mut known = BTreeMap::new();
        for name in disk.list(dir).map_err(failed(dir))? {
            let parts = name.strip_suffix(".json").and_then(|name| name.split_once('.'));
            let Some((tenant, stream)) = parts else { continue };
            let (Ok(tenant), Ok(stream)) = (TenantId::new(tenant), StreamName::new(stream)) else { continue };
            let path = dir.join(&name);
            let json = disk.read(&path).map_err(failed(&path))?;
            let contract: Contract = serde_json::from_slice(&json)
                .map_err(|_| ContractStoreError::Damaged { fingerprint: 0, path: path.clone() })?;
            known.insert(StreamKey { tenant, stream }, contracts.keep(&contract)?);
        }
        Ok(Self { disk: disk.clone(), dir: dir.to_owned(), known: RwLock::new(known) })
    }

    pub(crate) fn get(&self, key: &StreamKey) -> Option<(u64, Arc<Shaper>)> {
        self.known.read().get(key).cloned()
    }

    /// The tenant's stream whose contract is as asked.
    pub(crate) fn find(&self, tenant: &TenantId, is_it: impl Fn(&StreamKey, &Contract) -> bool) -> Option<StreamKey> {
        let known = self.known.read();
        let own = known.iter().filter(|(key, _)| key.tenant == *tenant);
        let mut found = own.filter(|(key, (_, shaper))| is_it(key, &shaper.contract));
        found.next().map(|(key, _)| key.clone())
    }

    /// Forgets a stream's contract; what the log holds of it keeps its own.
    pub(crate) fn remove(&self, key: &StreamKey) -> Result<(), ContractStoreError> {
        let mut known = self.known.write();
        if known.remove(key).is_none() {
            return Ok(());
        }
        let path = self.dir.join(format!("{}.{}.json", key.tenant, key.stream));
        self.disk.remove(&path).map_err(|source| ContractStoreError::Write { path, source })
    }

    /// Keeps a stream's contract durably; one that came first stays.
    pub(crate) fn keep(
        &self,
        key: &StreamKey,
        contract: &Contract,
        contracts: &ContractStore,
    ) -> Result<(), ContractStoreError> {
        let mut known = self.known.write();
        if known.contains_key(key) {
            return Ok(());
        }
        let shaped = contracts.keep(contract)?;
        let path = self.dir.join(format!("{}.{}.json", key.tenant, key.stream));
        let json = serde_json::to_vec_pretty(contract).unwrap_or_default();
        self.disk.write_atomic(&path, &json).map_err(|source| ContractStoreError::Write { path, source })?;
        known.insert(key.clone(), shaped);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, Fields, TimeUnit};
    use lakegate_formats::SqlColumn;

    use super::*;

    #[test]
    fn a_files_schema_gives_columns_that_hold_its_values() {
        let fields: Fields = [
            ("a", DataType::Int16),
            ("b", DataType::UInt32),
            ("c", DataType::UInt64),
            ("d", DataType::Float32),
            ("e", DataType::Decimal128(12, 2)),
            ("f", DataType::Decimal256(60, 2)),
            ("g", DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()))),
            ("h", DataType::Date32),
            ("i", DataType::Struct(Fields::empty())),
            ("", DataType::Utf8View),
            ("A", DataType::Time64(TimeUnit::Microsecond)),
        ]
        .into_iter()
        .map(|(name, found)| Field::new(name, found, true))
        .collect();
        let contract = OwnColumns::Schema(Arc::new(Schema::new(fields))).contract().unwrap();
        let found: Vec<String> =
            contract.columns.iter().map(|c| format!("{} {}", c.name, c.column_type.name())).collect();
        assert_eq!(
            found,
            [
                "a int",
                "b long",
                "c decimal(20,0)",
                "d float",
                "e decimal(12,2)",
                "f string",
                "g timestamptz",
                "h date",
                "i json",
                "column_10 string",
                "A_11 string"
            ]
        );
    }

    #[test]
    fn a_dumps_table_gives_its_columns_and_if_asked_its_key() {
        let column = |name: &str, column_type| SqlColumn { name: name.to_owned(), column_type, nullable: false };
        let table = SqlTable {
            name: "Album".to_owned(),
            columns: vec![column("AlbumId", ColumnType::Long), column("Title", ColumnType::String)],
            primary_key: vec!["AlbumId".to_owned()],
        };
        let contract = |keyed| OwnColumns::Table { table: table.clone(), keyed }.contract().unwrap();
        assert!(contract(false).event_key.is_empty());
        assert_eq!(contract(true).event_key, ["AlbumId"]);
        assert_eq!(contract(true).columns.len(), 2);
        let mut twice = table.clone();
        twice.columns.push(column("Title", ColumnType::Long));
        let message = OwnColumns::Table { table: twice, keyed: false }.contract().unwrap_err();
        assert!(message.contains("two columns of the name \"Title\""), "{message}");
    }
}
