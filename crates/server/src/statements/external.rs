//! External tables: a name for a file and how it is read. One JSON file holds them all.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use lakegate_env::{Disk, RealDisk};
use lakegate_formats::Format;
use lakegate_model::{ColumnType, TableName};
use lakegate_sources::files::FileOptions;
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

/// One external table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ExternalTable {
    /// Where the file lies.
    pub(super) location: String,
    /// Its format's name; none: by its content.
    pub(super) format: Option<String>,
    /// Whether a first line names the columns.
    pub(super) header: Option<bool>,
    /// What stands between fields.
    pub(super) delimiter: Option<char>,
    /// Its columns.
    pub(super) columns: Vec<ExternalColumn>,
}

/// A column of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ExternalColumn {
    pub(super) name: String,
    pub(super) column_type: ColumnType,
}

impl ExternalTable {
    pub(super) fn options(&self) -> FileOptions {
        FileOptions {
            format: self.format.as_deref().and_then(Format::parse),
            header: self.header,
            delimiter: self.delimiter.and_then(|delimiter| u8::try_from(delimiter).ok()),
            columns: Some(self.schema()),
        }
    }

    pub(super) fn schema(&self) -> SchemaRef {
        let field =
            |column: &ExternalColumn| Field::new(&column.name, lakegate_memtable::arrow_type(column.column_type), true);
        Arc::new(Schema::new(self.columns.iter().map(field).collect::<Vec<_>>()))
    }
}

/// All of them.
pub(super) struct ExternalTables {
    path: PathBuf,
    known: RwLock<BTreeMap<String, ExternalTable>>,
}

impl ExternalTables {
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let known = match std::fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json).map_err(|error| {
                io::Error::new(io::ErrorKind::InvalidData, format!("{} cannot be read: {error}", path.display()))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, known: RwLock::new(known) })
    }

    pub(super) fn get(&self, table: &TableName) -> Option<ExternalTable> {
        self.known.read().get(&table.to_string()).cloned()
    }

    pub(super) fn names(&self) -> Vec<TableName> {
        let known = self.known.read();
        known.keys().filter_map(|name| name.split_once('.')).filter_map(|(n, t)| TableName::new(n, t).ok()).collect()
    }

    /// Notes it, or its end, durably. Blocks.
    pub(super) fn set(&self, table: &TableName, external: Option<ExternalTable>) -> io::Result<()> {
        let mut known = self.known.write();
        let mut changed = known.clone();
        match external {
            Some(external) => changed.insert(table.to_string(), external),
            None => changed.remove(&table.to_string()),
        };
        let json = serde_json::to_vec_pretty(&changed)?;
        RealDisk.write_atomic(&self.path, &json)?;
        *known = changed;
        Ok(())
    }
}
