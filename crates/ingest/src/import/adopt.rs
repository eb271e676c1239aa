//! A Parquet file that is taken into the table as it is.
//!
//! Its footer has to prove that the rows fit the table ([`LakeTable::adopt_check`](lakegate_lake::LakeTable::adopt_check)),
//! and the contract must ask for nothing that takes a look at each row. What stands in the way is said in words for
//! people; then the rows are written anew.

use std::collections::HashMap;
use std::io;

use lakegate_formats::ParquetFile;
use lakegate_lake::{AdoptHow, AdoptPlan, Footer, LakeError, Obstacle, Scalar, WarehouseError};
use lakegate_model::{ClockPolicy, ColumnSource, ColumnType, Contract, Field, Tally, Transform, Undeclared};

use super::{Import, ImportError, PieceCounts};

impl Import {
    /// Takes the file as it is, if it can be: a copy of its bytes is made durable among the table's files, and
    /// [`Import::finish`] commits it. Constant values that the contract takes from the import, such as the event type of a
    /// table partitioned by it, become those of the partition. `Err` inside: what stands in the way; then nothing was
    /// taken, and the file's rows are to be given to [`Import::take`].
    ///
    /// # Errors
    /// See [`ImportError`]; nothing of the file was taken.
    pub async fn adopt(&mut self, file: &ParquetFile) -> Result<Result<PieceCounts, Obstacle>, ImportError> {
        let plan = match self.adopt_check(file) {
            Ok(plan) => plan,
            Err(obstacle) => return Ok(Err(obstacle)),
        };
        let rows = plan.rows();
        let bytes = match file.checked_bytes() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(Err(Obstacle(error.to_string()))),
            Err(error) if has_changed(&error) => return Err(ImportError::Rows(error.to_string())),
            Err(error) => return Err(ImportError::Lake(error.to_string())),
        };
        let copied = match self.table.adopt_file(plan, AdoptHow::Copy(bytes)).await {
            Ok(copied) => copied,
            Err(error) => return refused(error).map(Err),
        };
        let bytes = copied.bytes();
        self.files.take_written(copied);
        self.tally.add(&Tally { received: rows, accepted: rows, bytes, ..Tally::default() });
        self.rows = rows;
        self.summary.adopted = true;
        let counts = PieceCounts { rows, accepted: rows, bytes, ..PieceCounts::default() };
        self.summary.add(&counts);
        Ok(Ok(counts))
    }

    fn adopt_check(&self, file: &ParquetFile) -> Result<AdoptPlan, Obstacle> {
        let mut footer = Footer { metadata: &file.metadata, bytes: file.bytes, constants: HashMap::new() };
        if self.target.rewrite {
            return Err(Obstacle("the rows are to be written anew, as was asked".to_owned()));
        }
        if self.summary.rows_before > 0 {
            return Err(Obstacle(format!("{} rows of it are in the table already", self.summary.rows_before)));
        }
        let contract = &self.stream.shaper.contract;
        if let Some(why) = row_work(contract, |column| self.constant(contract, column).is_some()) {
            return Err(Obstacle(why));
        }
        for column in &contract.columns {
            if let Some(value) = self.constant(contract, &column.name) {
                footer.constants.insert(column.name.clone(), value);
            }
        }
        self.table.adopt_check(&footer)
    }

    /// The value that all rows have of a column which the table is partitioned by as it is.
    fn constant(&self, contract: &Contract, name: &str) -> Option<Scalar> {
        let by_itself = |field: &&lakegate_model::PartitionField| field.transform == Transform::Identity;
        contract.partitions.iter().filter(by_itself).find(|field| field.column == name)?;
        let text = match contract.column(name)?.source {
            ColumnSource::Envelope(Field::EventType) => self.target.event_type.clone()?,
            ColumnSource::Envelope(Field::TenantId) => self.stream.key.tenant.as_str().to_owned(),
            ColumnSource::Envelope(Field::EndpointId) => self.stream.key.stream.as_str().to_owned(),
            _ => return None,
        };
        Some(Scalar::Text(text))
    }
}

/// The file is another one than when it was opened: to begin anew would be to import what nobody has asked for.
fn has_changed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::StaleNetworkFileHandle
}

/// Bytes that are not as the footer says stand in the way of a copy; a wrong checksum is damage, whoever reads it.
fn refused(error: LakeError) -> Result<Obstacle, ImportError> {
    match &error {
        LakeError::Warehouse(WarehouseError::Io { source, .. }) => match source.kind() {
            io::ErrorKind::InvalidInput => Ok(Obstacle(format!("its pages are not as its footer says: {source}"))),
            io::ErrorKind::InvalidData => Err(ImportError::Rows(source.to_string())),
            _ if has_changed(source) => Err(ImportError::Rows(source.to_string())),
            _ => Err(ImportError::Lake(error.to_string())),
        },
        _ => Err(ImportError::Lake(error.to_string())),
    }
}

/// What of the contract asks for a look at each row; `is_constant` tells columns that all rows have alike.
fn row_work(contract: &Contract, is_constant: impl Fn(&str) -> bool) -> Option<String> {
    if !contract.event_key.is_empty() {
        return Some(format!(
            "the stream tells duplicates by {:?}, which needs a look at each row",
            contract.event_key
        ));
    }
    if let Some(column) = contract.rules.keys().next() {
        return Some(format!("the stream has rules for the column {column:?}, which need a look at each row"));
    }
    if !contract.event_types.is_empty() || contract.clock != ClockPolicy::default() {
        return Some("the stream checks event types or times, which needs a look at each row".to_owned());
    }
    for column in contract.columns.iter().filter(|column| !is_constant(&column.name)) {
        let name = &column.name;
        match &column.source {
            ColumnSource::Envelope(Field::Undeclared)
                if matches!(contract.undeclared, Undeclared::Keep | Undeclared::Evolve) => {}
            ColumnSource::Envelope(Field::Rescued) => {}
            ColumnSource::Envelope(_) => return Some(format!("the stream fills the column {name:?} itself")),
            ColumnSource::Path(path) if path.as_slice() != std::slice::from_ref(name) => {
                return Some(format!("the stream takes the column {name:?} from {:?}", path.join(".")));
            }
            ColumnSource::Path(_) if column.column_type == ColumnType::Json => {
                return Some(format!("the column {name:?} holds JSON, which has to be checked"));
            }
            ColumnSource::Path(_) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use lakegate_model::Column;

    use super::*;

    fn contract() -> Contract {
        let column = |name: &str, column_type, path: &str| Column {
            name: name.to_owned(),
            column_type,
            source: ColumnSource::Path(vec![path.to_owned()]),
            required: false,
        };
        let columns = vec![column("id", ColumnType::String, "id"), column("n", ColumnType::Long, "n")];
        Contract { columns, ..Contract::undeclared_default() }
    }

    #[test]
    fn what_needs_a_look_at_each_row_is_named() {
        let never = |_: &str| false;
        assert_eq!(row_work(&contract(), never), None);
        let work = |change: &dyn Fn(&mut Contract)| {
            let mut changed = contract();
            change(&mut changed);
            row_work(&changed, never).unwrap()
        };
        assert!(work(&|c| c.event_key = vec!["id".to_owned()]).contains("duplicates"));
        assert!(work(&|c| c.columns[0].source = ColumnSource::Path(vec!["key".to_owned()])).contains("from \"key\""));
        assert!(work(&|c| c.columns[0].column_type = ColumnType::Json).contains("JSON"));
        let by_type = |c: &mut Contract| c.columns[0].source = ColumnSource::Envelope(Field::EventType);
        assert!(work(&by_type).contains("fills the column \"id\""));
        let mut constant = contract();
        by_type(&mut constant);
        assert_eq!(row_work(&constant, |name| name == "id"), None);
    }
}
