//! Statements: what reads goes to the query engine, what writes through the gate, and tables are made and dropped.
//!
//! One way for all who bring SQL: `POST /api/sql`, Trino's client protocol, Arrow Flight SQL. Promises: rows of an
//! `INSERT` are durable when it answers, and were checked like any others; a bad row refuses its whole part, with its
//! number; reading, writing and changing tables each ask for their own permission. Refuses: rules about rows.

mod beside;
mod error;
mod external;
mod insert;
mod parameters;
mod show;
mod tables;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lakegate_access::{Action, Principal};
use lakegate_ingest::{Client, Gate};
use lakegate_model::{StreamKey, TableName, TenantId};
use lakegate_query::statement::{self, Execute, Statement};
use lakegate_query::{QueryEngine, QueryError, QueryRequest, QueryResult, Readable};
use lakegate_sources::files::Imports;
use serde_json::Value;

pub(crate) use self::error::{Kind, StatementError};
use self::external::ExternalTables;
pub(crate) use self::show::trino_type;

/// The tenant of statements while authentication is off.
const DEFAULT_TENANT: &str = "default";

/// Who asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asker {
    /// None while authentication is off.
    pub(crate) principal: Option<Arc<Principal>>,
    /// Whose tables are seen; none: those of all.
    pub(crate) scope: Option<TenantId>,
    pub(crate) client: Client,
    pub(crate) correlation_id: Option<String>,
}

impl Asker {
    /// Which of the tables it may read, where these are not all.
    pub(crate) fn readable(&self) -> Option<Readable> {
        let principal = self.principal.clone()?;
        let all = principal.is_operator() || principal.may_all(Action::Read);
        (!all).then(|| Readable::new(move |table| principal.may_name(Action::Read, &table.name)))
    }

    /// Whose rows it sends.
    fn tenant(&self) -> Result<TenantId, StatementError> {
        match &self.principal {
            Some(principal) => Ok(principal.tenant.clone()),
            None => TenantId::new(DEFAULT_TENANT).map_err(|error| StatementError::invalid(error.to_string())),
        }
    }

    /// Whether it may do this with the table. Whether there is one is not said to who may not.
    fn check(&self, action: Action, table: &TableName) -> Result<(), StatementError> {
        let Some(principal) = &self.principal else { return Ok(()) };
        let own = principal.is_operator() || table.namespace == principal.tenant.as_str();
        if own && (principal.is_operator() || principal.may_name(action, &table.name)) {
            return Ok(());
        }
        let what = match action {
            Action::Write => "writing to",
            Action::Read => "reading",
            Action::Admin => "making, changing or dropping",
        };
        Err(StatementError::denied(format!("the credentials do not allow {what} the table {table}")))
    }
}

/// A statement to run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Run {
    pub(crate) sql: String,
    /// Values of `?` or `$1`, `$2`, ….
    pub(crate) parameters: Vec<Value>,
    /// The namespace of names without one; none: the tenant's own.
    pub(crate) namespace: Option<String>,
    pub(crate) row_limit: Option<u64>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) query_id: Option<String>,
    /// Names are listed as Trino does, and its literals are taken.
    pub(crate) trino: bool,
    /// Statements that the client remembers, by name.
    pub(crate) prepared: BTreeMap<String, String>,
}

/// What a statement came to.
#[derive(Debug)]
pub(crate) enum Done {
    /// Rows.
    Rows(QueryResult),
    /// Rows were stored.
    Inserted(Inserted),
    /// Something else was done.
    Changed(Changed),
}

/// Rows that were stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Inserted {
    pub(crate) rows: u64,
    pub(crate) duplicates: u64,
    /// The offset of the last of them in the log.
    pub(crate) position: u64,
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Changed {
    /// A table was made or dropped, or there was nothing to do; the statement's first words.
    Done(&'static str),
    /// Rows were stored in a table that was made of them.
    Made(Inserted),
    /// From now on names without a namespace are of this one.
    Use { catalog: Option<String>, namespace: String },
    /// The client is to remember a statement.
    Prepared { name: String, sql: String },
    /// It may forget one.
    Forgotten { name: String },
}

/// Runs statements. Clones share everything.
#[derive(Clone)]
pub(crate) struct Statements {
    inner: Arc<Inner>,
}

struct Inner {
    engine: QueryEngine,
    gate: Gate,
    imports: Imports,
    external: ExternalTables,
    batch_rows_max: usize,
}

impl Statements {
    /// # Errors
    /// The list of external tables cannot be read.
    pub(crate) fn open(
        engine: QueryEngine,
        gate: Gate,
        imports: Imports,
        data_dir: &Path,
        batch_rows_max: usize,
    ) -> std::io::Result<Self> {
        let external = ExternalTables::open(data_dir.join("external_tables.json"))?;
        Ok(Self { inner: Arc::new(Inner { engine, gate, imports, external, batch_rows_max }) })
    }

    /// Runs one statement.
    ///
    /// # Errors
    /// See [`StatementError`].
    pub(crate) async fn run(&self, asker: &Asker, mut run: Run) -> Result<Done, StatementError> {
        if run.trino {
            run.sql = statement::prefer_engine_words(&run.sql)?;
        }
        match statement::read(&run.sql)? {
            Statement::Execute(execute) => {
                run.sql = executed(execute, &run.prepared)?;
                if run.trino {
                    run.sql = statement::prefer_engine_words(&run.sql)?;
                }
                match statement::read(&run.sql)? {
                    Statement::Execute(_) => Err(StatementError::invalid("EXECUTE of an EXECUTE".to_owned())),
                    statement => self.run_read(asker, run, statement).await,
                }
            }
            statement => self.run_read(asker, run, statement).await,
        }
    }

    async fn run_read(&self, asker: &Asker, run: Run, statement: Statement) -> Result<Done, StatementError> {
        Ok(match statement {
            Statement::Read | Statement::Show(_) if !may_read(asker) => {
                return Err(StatementError::denied("the credentials allow reading no table".to_owned()));
            }
            Statement::Read => Done::Rows(self.query(asker, &run, run.sql.clone(), false).await?),
            Statement::Insert(insert) => Done::Inserted(self.insert(asker, &run, insert).await?),
            Statement::CreateTable(create) => Done::Changed(self.create_table(asker, &run, create).await?),
            Statement::DropTable { table, if_exists } => {
                let table = table.name(&self.namespace(asker, &run))?;
                Done::Changed(self.drop_table(asker, &table, if_exists).await?)
            }
            Statement::CreateSchema => Done::Changed(Changed::Done("CREATE SCHEMA")),
            Statement::Show(show) => Done::Rows(self.show(asker, &run, show).await?),
            Statement::Use { catalog, namespace } => Done::Changed(Changed::Use { catalog, namespace }),
            Statement::Prepare { name, sql } => {
                // What cannot be read is better told now.
                statement::read(&sql)?;
                Done::Changed(Changed::Prepared { name, sql })
            }
            Statement::Deallocate { name } => Done::Changed(Changed::Forgotten { name }),
            Statement::Nothing(what) => Done::Changed(Changed::Done(what)),
            Statement::Execute(_) => return Err(StatementError::invalid("EXECUTE of an EXECUTE".to_owned())),
        })
    }

    /// The namespace of an asker's names that have none.
    pub(crate) fn own_namespace(&self, asker: &Asker) -> String {
        self.namespace(asker, &Run::default())
    }

    /// The stream of a table, which the asker may write to.
    pub(crate) async fn stream_of(&self, asker: &Asker, table: &TableName) -> Result<StreamKey, StatementError> {
        Ok(self.target(asker, table).await?.key)
    }

    /// The namespace of names that have none.
    fn namespace(&self, asker: &Asker, run: &Run) -> String {
        let own = asker.scope.as_ref().map_or(DEFAULT_TENANT, TenantId::as_str);
        run.namespace.as_deref().unwrap_or(own).to_owned()
    }

    /// Rows of a statement that reads; `is_source`: they are to be stored.
    async fn query(
        &self,
        asker: &Asker,
        run: &Run,
        sql: String,
        is_source: bool,
    ) -> Result<QueryResult, StatementError> {
        let (sql, parameters) = bound(sql, run, is_source)?;
        let mut limits = self.inner.engine.default_limits();
        if let Some(timeout) = run.timeout {
            limits.timeout = timeout;
        }
        let request = QueryRequest {
            sql,
            parameters,
            tenant: asker.scope.clone(),
            readable: asker.readable(),
            limits: Some(limits),
            row_limit: run.row_limit.filter(|_| !is_source),
            namespace: run.namespace.clone(),
            beside: Some(self.beside(asker)),
            is_source,
            query_id: run.query_id.clone(),
        };
        Ok(self.inner.engine.sql(request).await?)
    }
}

/// Whether the asker may read any table at all.
fn may_read(asker: &Asker) -> bool {
    lakegate_access::check_some(asker.principal.as_deref(), Action::Read).is_ok()
}

/// Values become literals, but for `$1`, `$2`, … of what only reads: these the engine takes with their types.
fn bound(sql: String, run: &Run, is_source: bool) -> Result<(String, Vec<Value>), QueryError> {
    if run.parameters.is_empty() || (!is_source && !sql.contains('?')) {
        return Ok((sql, run.parameters.clone()));
    }
    Ok((statement::bind(&sql, &statement::literals(&run.parameters)?)?, Vec::new()))
}

/// The statement that an `EXECUTE` means, with its values in it.
fn executed(execute: Execute, prepared: &BTreeMap<String, String>) -> Result<String, StatementError> {
    let sql = match execute.what {
        Err(sql) => sql,
        Ok(name) => prepared
            .get(&name)
            .cloned()
            .ok_or_else(|| StatementError::not_found(format!("there is no prepared statement {name}")))?,
    };
    Ok(statement::bind(&sql, &execute.values)?)
}
