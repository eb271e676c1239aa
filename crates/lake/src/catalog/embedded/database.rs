//! The catalog's database: SQLite in a file, or PostgreSQL, which several processes may share.
//!
//! The same statements on both; all values are texts. Promises: several changes are made all or none, serialisably; a
//! change whose answer was lost is `Unknown`, one that was never sent `Unavailable`. PostgreSQL may be away when it is
//! opened: what is asked of it waits [`WAIT_SECONDS`] for a connection at most, and errs then. Its address, which holds
//! a password, is in no message.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use tokio::sync::OnceCell;

use super::CatalogError;

/// How long a connection is waited for.
const WAIT_SECONDS: u64 = 3;
/// How long one exchange with PostgreSQL may take.
const EXCHANGE_SECONDS: u64 = 20;

const LOOK: &str = "SELECT COUNT(*) FROM iceberg_tables WHERE catalog_name IS NULL";
const SCHEMA: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS iceberg_tables (catalog_name VARCHAR(255) NOT NULL, table_namespace VARCHAR(255) NOT NULL, \
     table_name VARCHAR(255) NOT NULL, metadata_location VARCHAR(1000), previous_metadata_location VARCHAR(1000), \
     iceberg_type VARCHAR(5), PRIMARY KEY (catalog_name, table_namespace, table_name))",
    "CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (catalog_name VARCHAR(255) NOT NULL, namespace VARCHAR(255) NOT NULL, \
     property_key VARCHAR(255) NOT NULL, property_value VARCHAR(1000), PRIMARY KEY (catalog_name, namespace, property_key))",
];

/// Where the catalog's database is.
#[derive(Clone, PartialEq, Eq)]
pub enum DatabaseAddress {
    /// A SQLite file; made if it is not there.
    Sqlite(PathBuf),
    /// `postgres://user:password@host:port/database`.
    Postgres(String),
}

impl std::fmt::Debug for DatabaseAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sqlite(path) => f.debug_tuple("Sqlite").field(path).finish(),
            Self::Postgres(_) => f.write_str("Postgres"),
        }
    }
}

/// One change of several that are made together.
pub(super) struct Step {
    pub(super) sql: &'static str,
    pub(super) values: Vec<String>,
    /// It must change one row, or nothing is changed at all.
    pub(super) one_row: bool,
}

/// Why a change was not made.
pub(super) enum ChangeError {
    /// A row with that key is there.
    Taken,
    Other(CatalogError),
}

impl From<ChangeError> for CatalogError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Taken => Self::AlreadyExists("a row of that name".to_owned()),
            ChangeError::Other(error) => error,
        }
    }
}

enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

pub(super) struct Database {
    pool: Pool,
    ready: OnceCell<()>,
}

/// Binds the values to the statement, for either database.
macro_rules! bound {
    ($sql:expr, $values:expr) => {{
        let mut query = sqlx::query($sql);
        for value in $values {
            query = query.bind(value.to_string());
        }
        query
    }};
}

/// Makes the steps in one transaction; `false`, and nothing changed, where one that must change a row did not.
macro_rules! all_or_none {
    ($pool:expr, $begin:expr, $steps:expr) => {{
        let mut tx = $pool.begin_with($begin).await.map_err(not_sent)?;
        for step in $steps {
            let done = bound!(step.sql, &step.values).execute(&mut *tx).await.map_err(Failed::Before)?;
            if step.one_row && done.rows_affected() != 1 {
                return Ok(false);
            }
        }
        // A commit that errs may have reached the disk all the same.
        tx.commit().await.map_err(Failed::Commit)?;
        Ok(true)
    }};
}

/// Where several changes failed.
enum Failed {
    /// Nothing was changed.
    Before(sqlx::Error),
    /// It may have been.
    Commit(sqlx::Error),
}

fn not_sent(error: sqlx::Error) -> Failed {
    Failed::Before(error)
}

impl Database {
    /// Opens it, and makes its tables where they are missing. PostgreSQL that is away is asked again when it is needed.
    pub(super) async fn open(address: DatabaseAddress) -> Result<Self, CatalogError> {
        let pool = match address {
            DatabaseAddress::Sqlite(file) => Pool::Sqlite(open_file(file).await?),
            DatabaseAddress::Postgres(url) => Pool::Postgres(open_postgres(&url)?),
        };
        let database = Self { pool, ready: OnceCell::new() };
        match database.ready().await {
            Err(CatalogError::Unavailable(why)) if matches!(database.pool, Pool::Postgres(_)) => {
                tracing::warn!(%why, "the catalog's database is away; tables wait for it");
            }
            other => other?,
        }
        Ok(database)
    }

    pub(super) async fn close(&self) {
        match &self.pool {
            Pool::Sqlite(pool) => pool.close().await,
            Pool::Postgres(pool) => pool.close().await,
        }
    }

    /// Its tables are there.
    async fn ready(&self) -> Result<(), CatalogError> {
        let make = || async {
            if self.run_rows(LOOK, &[]).await.is_ok() {
                return Ok(());
            }
            for statement in SCHEMA {
                // Two who make it at once: one of them is told that it is there.
                if let Err(first) = self.run_change(statement, &[]).await
                    && self.run_change(statement, &[]).await.is_err()
                {
                    return Err(unavailable(&first));
                }
            }
            Ok(())
        };
        self.ready.get_or_try_init(make).await.map(drop)
    }

    /// The rows that a query finds, each its columns as text.
    pub(super) async fn rows(
        &self,
        sql: &'static str,
        values: &[&str],
    ) -> Result<Vec<Vec<Option<String>>>, CatalogError> {
        self.ready().await?;
        self.run_rows(sql, values).await.map_err(|e| unavailable(&e))
    }

    async fn run_rows(&self, sql: &'static str, values: &[&str]) -> Result<Vec<Vec<Option<String>>>, sqlx::Error> {
        macro_rules! texts {
            ($rows:expr) => {
                $rows.iter().map(|row| (0..row.len()).map(|i| row.try_get::<Option<String>, _>(i)).collect()).collect()
            };
        }
        match &self.pool {
            Pool::Sqlite(pool) if sql == LOOK => bound!(sql, values).fetch_all(pool).await.map(|_| Vec::new()),
            Pool::Sqlite(pool) => texts!(bound!(sql, values).fetch_all(pool).await?),
            Pool::Postgres(pool) => {
                let rows = in_time(bound!(sql, values).fetch_all(pool)).await?;
                if sql == LOOK { Ok(Vec::new()) } else { texts!(rows) }
            }
        }
    }

    /// Makes one change; gives the number of rows that it touched.
    pub(super) async fn change(&self, sql: &'static str, values: &[&str]) -> Result<u64, ChangeError> {
        self.ready().await.map_err(ChangeError::Other)?;
        self.run_change(sql, values).await.map_err(|e| meaning(&e, was_sent(&e)))
    }

    async fn run_change(&self, sql: &'static str, values: &[&str]) -> Result<u64, sqlx::Error> {
        match &self.pool {
            Pool::Sqlite(pool) => bound!(sql, values).execute(pool).await.map(|done| done.rows_affected()),
            Pool::Postgres(pool) => in_time(bound!(sql, values).execute(pool)).await.map(|done| done.rows_affected()),
        }
    }

    /// Makes several changes, all or none. `false`: one that was to change a row did not, or another came first.
    pub(super) async fn change_all(&self, steps: &[Step]) -> Result<bool, ChangeError> {
        self.ready().await.map_err(ChangeError::Other)?;
        let done = match &self.pool {
            Pool::Sqlite(pool) => async { all_or_none!(pool, "BEGIN IMMEDIATE", steps) }.await,
            Pool::Postgres(pool) => {
                let work = async { all_or_none!(pool, "BEGIN ISOLATION LEVEL SERIALIZABLE", steps) };
                let time = Duration::from_secs(EXCHANGE_SECONDS);
                tokio::time::timeout(time, work).await.unwrap_or_else(|_| Err(Failed::Commit(late())))
            }
        };
        match done {
            Ok(done) => Ok(done),
            // PostgreSQL took the other's side: serialization_failure, deadlock_detected.
            Err(Failed::Before(e) | Failed::Commit(e)) if matches!(code(&e).as_deref(), Some("40001" | "40P01")) => {
                Ok(false)
            }
            Err(Failed::Before(e)) => Err(meaning(&e, false)),
            Err(Failed::Commit(e)) => Err(meaning(&e, true)),
        }
    }
}

async fn open_file(database: PathBuf) -> Result<SqlitePool, CatalogError> {
    let folder = database.parent().filter(|f| !f.as_os_str().is_empty()).map(ToOwned::to_owned);
    if let Some(folder) = &folder {
        std::fs::create_dir_all(folder).map_err(|e| {
            CatalogError::Unavailable(format!("cannot make the catalog's folder {}: {e}", folder.display()))
        })?;
    }
    let connect = SqliteConnectOptions::new()
        .filename(&database)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(10));
    let opened = SqlitePoolOptions::new().max_connections(4).connect_with(connect).await;
    let pool = opened.map_err(|e| unavailable(&e))?;
    // The files were made just now, maybe: their folder's entries are to survive a power cut too.
    if let Some(folder) = folder {
        let synced = std::fs::File::open(folder).and_then(|f| f.sync_all());
        synced.map_err(|e| CatalogError::Unavailable(format!("cannot sync the catalog's folder: {e}")))?;
    }
    Ok(pool)
}

fn open_postgres(url: &str) -> Result<PgPool, CatalogError> {
    let connect = PgConnectOptions::from_str(url).map_err(|_| {
        CatalogError::Rejected(
            "the address of the catalog's database cannot be read; write postgres://user:password@host:port/database"
                .to_owned(),
        )
    })?;
    let pool = PgPoolOptions::new().max_connections(8).acquire_timeout(Duration::from_secs(WAIT_SECONDS));
    Ok(pool.connect_lazy_with(connect.application_name("lakegate")))
}

fn late() -> sqlx::Error {
    let message = format!("no answer within {EXCHANGE_SECONDS} s");
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, message))
}

async fn in_time<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, sqlx::Error> {
    tokio::time::timeout(Duration::from_secs(EXCHANGE_SECONDS), work).await.unwrap_or_else(|_| Err(late()))
}

fn code(error: &sqlx::Error) -> Option<String> {
    error.as_database_error().and_then(|e| e.code()).map(|code| code.into_owned())
}

/// Whether a change that erred may have reached the database.
fn was_sent(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Configuration(_) => false,
        // The server went away under it: admin_shutdown, crash_shutdown.
        sqlx::Error::Database(e) => matches!(e.code().as_deref(), Some("57P01" | "57P02")),
        _ => true,
    }
}

fn meaning(error: &sqlx::Error, may_be_done: bool) -> ChangeError {
    if error.as_database_error().is_some_and(|e| e.is_unique_violation()) {
        return ChangeError::Taken;
    }
    if may_be_done && !matches!(error, sqlx::Error::Database(e) if e.code().is_some_and(|c| !c.starts_with("57"))) {
        return ChangeError::Other(CatalogError::Unknown(format!(
            "the catalog's database did not confirm the change: {error}"
        )));
    }
    ChangeError::Other(unavailable(error))
}

/// What to do about it. The address is not told: it may hold a password.
fn unavailable(error: &sqlx::Error) -> CatalogError {
    let message = format!("the catalog's database: {error}");
    match code(error).as_deref() {
        // invalid_password, invalid_authorization, insufficient_privilege
        Some("28P01" | "28000" | "42501") => {
            CatalogError::Rejected(format!("{message}; correct the user, password or rights in catalog.database"))
        }
        Some("3D000") => CatalogError::Rejected(format!("{message}; make the database, or correct catalog.database")),
        Some(code) if code.len() == 5 && code.starts_with("22") => CatalogError::Rejected(message),
        _ => CatalogError::Unavailable(message),
    }
}
