//! Dumps of MySQL, MariaDB, PostgreSQL and SQLite: `CREATE TABLE`, `INSERT`, `COPY … FROM stdin`.
//!
//! A dump is read as data: nothing in it is executed, no file it names is opened. Statements are read token by token and
//! rows are given as they come, so a statement may be of any length. What holds no rows is passed over and counted. A row
//! whose values don't fit its table is a bad row. Rows are numbered through the whole dump. After a mark the dump is read
//! again from its beginning, since that is where its tables are declared.

mod ddl;
mod lex;
mod rows;

use std::collections::{BTreeMap, HashMap};
use std::io;

use self::lex::{Dialect, Lexer, Token};
use self::rows::{Batch, Row};
use crate::open::Source;
use crate::{Mark, Piece, Pieces, ReadError, ReadOptions, Rows, SqlColumn, SqlTable};

/// The most tables of one dump.
const TABLES: usize = 100_000;

/// What is being read.
enum Stage {
    Statement,
    /// The rows of an `INSERT`.
    Values {
        table: String,
        columns: Option<Vec<String>>,
    },
    /// The lines of a `COPY`.
    Copy {
        table: String,
        columns: Option<Vec<String>>,
    },
    End,
}

/// Reads one dump.
pub(crate) struct SqlReader {
    source: Source,
    lexer: Lexer,
    stage: Stage,
    tables: HashMap<String, SqlTable>,
    /// Tables that are not told of yet, as they are now.
    untold: BTreeMap<String, ()>,
    passed: BTreeMap<String, u64>,
    batch: Option<Batch>,
    row: u64,
    skip: u64,
    options: ReadOptions,
    broken: Option<ReadError>,
}

fn find_dialect(head: &[u8]) -> Dialect {
    let has = |text: &[u8]| memchr::memmem::find(head, text).is_some();
    // SQLite's tools begin so; its statements keep the quotes that they were typed with, also those of MySQL.
    let first = head.trim_ascii_start();
    if first.starts_with(b"PRAGMA") || first.starts_with(b"BEGIN TRANSACTION;") {
        return Dialect::Sqlite;
    }
    if has(b"PostgreSQL database dump") || has(b"standard_conforming_strings") || has(b"FROM stdin") {
        Dialect::Postgres
    } else if has(b"MySQL") || has(b"MariaDB") || has(b"`") || has(b"ENGINE=") || has(b"MySql") {
        Dialect::MySql
    } else if has(b"PRAGMA") || has(b"BEGIN TRANSACTION;") || has(b"sqlite_sequence") {
        Dialect::Sqlite
    } else {
        Dialect::Postgres
    }
}

impl SqlReader {
    pub(crate) fn new(mut source: Source, options: &ReadOptions, resume: Option<Mark>) -> Result<Self, ReadError> {
        let dialect = find_dialect(&source.head);
        let (feed, _) = source.feed(None)?;
        Ok(Self {
            lexer: Lexer::new(feed, dialect, options.limits.row_bytes),
            source,
            stage: Stage::Statement,
            tables: HashMap::new(),
            untold: BTreeMap::new(),
            passed: BTreeMap::new(),
            batch: None,
            row: 0,
            skip: resume.map_or(0, |m| m.row),
            options: options.clone(),
            broken: None,
        })
    }

    fn pass(&mut self, kind: &str) {
        *self.passed.entry(kind.to_owned()).or_default() += 1;
    }

    fn declare(&mut self, table: SqlTable) {
        if self.tables.len() < TABLES {
            self.untold.insert(table.name.clone(), ());
            self.tables.insert(table.name.clone(), table);
        }
    }

    /// Passes over the rest of a statement. Bodies with statements of their own end with theirs.
    fn skip_statement(&mut self, body: bool) -> io::Result<()> {
        let mut depth = 0_usize;
        loop {
            let token = self.lexer.next()?;
            match token {
                Token::Sign(b';') if depth == 0 => return Ok(()),
                Token::End => return Ok(()),
                Token::Word if body && (self.lexer.is_word(token, "BEGIN") || self.lexer.is_word(token, "CASE")) => {
                    depth += 1
                }
                Token::Word if body && self.lexer.is_word(token, "END") => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    /// One statement's beginning. Rows are left to the next stage.
    fn statement(&mut self) -> io::Result<()> {
        let token = self.lexer.next()?;
        match token {
            Token::End => {
                self.stage = Stage::End;
                return Ok(());
            }
            Token::Sign(b';') => return Ok(()),
            Token::Sign(b'\\') => {
                self.pass("psql command");
                return self.lexer.skip_line();
            }
            Token::Word => {}
            _ => {
                self.pass("unknown statement");
                return self.skip_statement(false);
            }
        }
        let word = String::from_utf8_lossy(&self.lexer.text).to_ascii_uppercase();
        match word.as_str() {
            "CREATE" => self.create(),
            "INSERT" | "REPLACE" => self.insert(),
            "COPY" => self.copy(),
            "ALTER" => self.alter(),
            "DELIMITER" => self.delimiter(),
            _ => {
                self.pass(&word);
                self.skip_statement(false)
            }
        }
    }

    /// What stands between two `DELIMITER` lines are bodies of procedures and triggers.
    fn delimiter(&mut self) -> io::Result<()> {
        self.pass("DELIMITER block");
        self.lexer.skip_line()?;
        loop {
            let token = self.lexer.next();
            match token {
                Ok(Token::End) => return Ok(()),
                Ok(token) if self.lexer.is_word(token, "DELIMITER") => {
                    if self.lexer.next()? == Token::Sign(b';') {
                        return Ok(());
                    }
                }
                Ok(_) => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn create(&mut self) -> io::Result<()> {
        let mut kind = "CREATE".to_owned();
        for _ in 0..8 {
            let token = self.lexer.next()?;
            if token != Token::Word {
                self.lexer.put_back(token);
                break;
            }
            let word = String::from_utf8_lossy(&self.lexer.text).to_ascii_uppercase();
            match word.as_str() {
                "TABLE" => return self.create_table(),
                "TEMP" | "TEMPORARY" | "UNLOGGED" | "GLOBAL" | "LOCAL" | "OR" | "REPLACE" | "UNIQUE" | "DEFINER" => {}
                _ => {
                    kind = format!("CREATE {word}");
                    break;
                }
            }
        }
        let body = ["CREATE TRIGGER", "CREATE FUNCTION", "CREATE PROCEDURE", "CREATE EVENT"].contains(&kind.as_str());
        self.pass(&kind);
        self.skip_statement(body)
    }

    fn create_table(&mut self) -> io::Result<()> {
        for word in ["IF", "NOT", "EXISTS"] {
            let token = self.lexer.next()?;
            if !self.lexer.is_word(token, word) {
                self.lexer.put_back(token);
                break;
            }
        }
        let Some(name) = ddl::table_name(&mut self.lexer)? else {
            self.pass("CREATE TABLE");
            return self.skip_statement(false);
        };
        let mut table = SqlTable { name, ..SqlTable::default() };
        let token = self.lexer.next()?;
        if token == Token::Sign(b'(') {
            ddl::columns(&mut self.lexer, &mut table)?;
        } else {
            self.lexer.put_back(token);
        }
        if table.columns.is_empty() {
            self.pass("CREATE TABLE without columns");
        } else {
            self.declare(table);
        }
        self.skip_statement(false)
    }

    /// Only `ADD … PRIMARY KEY` says something about rows.
    fn alter(&mut self) -> io::Result<()> {
        let token = self.lexer.next()?;
        if !self.lexer.is_word(token, "TABLE") {
            let word = String::from_utf8_lossy(&self.lexer.text).to_ascii_uppercase();
            self.pass(&format!("ALTER {word}"));
            self.lexer.put_back(token);
            return self.skip_statement(false);
        }
        for word in ["ONLY", "IF", "EXISTS", "ONLY"] {
            let token = self.lexer.next()?;
            if !self.lexer.is_word(token, word) {
                self.lexer.put_back(token);
            }
        }
        let name = ddl::table_name(&mut self.lexer)?.unwrap_or_default();
        let mut primary = false;
        loop {
            let token = self.lexer.next()?;
            match token {
                Token::Sign(b';') | Token::End => break,
                _ if self.lexer.is_word(token, "PRIMARY") => primary = true,
                Token::Sign(b'(') if primary => {
                    primary = false;
                    let key = ddl::names(&mut self.lexer)?;
                    if let Some(table) = self.tables.get_mut(&name) {
                        for column in table.columns.iter_mut().filter(|c| key.contains(&c.name)) {
                            column.nullable = false;
                        }
                        table.primary_key = key;
                        self.untold.insert(name.clone(), ());
                    }
                }
                _ => {}
            }
        }
        self.pass("ALTER TABLE");
        Ok(())
    }

    /// Names in parentheses, where there are some.
    fn column_list(&mut self) -> io::Result<Option<Vec<String>>> {
        let token = self.lexer.next()?;
        if token == Token::Sign(b'(') {
            return ddl::names(&mut self.lexer).map(Some);
        }
        self.lexer.put_back(token);
        Ok(None)
    }

    fn insert(&mut self) -> io::Result<()> {
        let mut table = None;
        for _ in 0..5 {
            let token = self.lexer.next()?;
            if self.lexer.is_word(token, "INTO") {
                table = ddl::table_name(&mut self.lexer)?;
                break;
            }
            if token != Token::Word {
                self.lexer.put_back(token);
                break;
            }
        }
        let Some(table) = table else {
            self.pass("INSERT");
            return self.skip_statement(false);
        };
        let columns = self.column_list()?;
        loop {
            let token = self.lexer.next()?;
            if self.lexer.is_word(token, "VALUES") || self.lexer.is_word(token, "VALUE") {
                self.stage = Stage::Values { table, columns };
                return Ok(());
            }
            let overriding = ["OVERRIDING", "SYSTEM", "USER"].iter().any(|w| self.lexer.is_word(token, w));
            if !overriding {
                self.lexer.put_back(token);
                self.pass("INSERT without VALUES");
                return self.skip_statement(false);
            }
        }
    }

    fn copy(&mut self) -> io::Result<()> {
        let table = ddl::table_name(&mut self.lexer)?;
        let columns = self.column_list()?;
        let from = self.lexer.next()?;
        let from = self.lexer.is_word(from, "FROM");
        let stdin = self.lexer.next()?;
        let stdin = self.lexer.is_word(stdin, "STDIN");
        let after = self.lexer.next()?;
        let (Some(table), true, true) = (table, from && stdin, after == Token::Sign(b';')) else {
            self.lexer.put_back(after);
            self.pass("COPY that is not FROM stdin in the text format");
            self.skip_statement(false)?;
            if from && stdin {
                self.lexer.skip_line()?;
                while rows::copy_line(&mut self.lexer, self.options.limits.row_bytes)?.is_some() {}
            }
            return Ok(());
        };
        self.lexer.skip_line()?;
        self.stage = Stage::Copy { table, columns };
        Ok(())
    }

    /// The next row of the stage. None: its rows are over.
    fn next_row(&mut self) -> io::Result<Option<Row>> {
        if matches!(self.stage, Stage::Copy { .. }) {
            return rows::copy_line(&mut self.lexer, self.options.limits.row_bytes);
        }
        match self.lexer.next()? {
            Token::Sign(b'(') => rows::values(&mut self.lexer, self.options.limits.row_bytes).map(Some),
            Token::Sign(b',') => self.next_row(),
            Token::Sign(b';') | Token::End => Ok(None),
            // ON DUPLICATE KEY …, RETURNING … and the like.
            _ => self.skip_statement(false).map(|()| None),
        }
    }

    /// Takes one row into the batch. True: the batch is to be given first.
    fn take(&mut self, row: &Row) -> bool {
        let (Stage::Values { table, columns } | Stage::Copy { table, columns }) = &self.stage else { return false };
        if !self.tables.contains_key(table) {
            let names = columns.clone().unwrap_or_else(|| (1..=row.len()).map(|i| format!("column_{i}")).collect());
            let column = |name| SqlColumn { name, column_type: lakegate_model::ColumnType::String, nullable: true };
            let columns = names.into_iter().map(column).collect();
            let declared = SqlTable { name: table.clone(), columns, primary_key: Vec::new() };
            self.tables.insert(table.clone(), declared);
        }
        let Some(declared) = self.tables.get(table) else { return false };
        let fits = self.batch.as_ref().is_some_and(|b| b.is_of(table, columns.as_deref()));
        if !fits {
            self.batch = Some(Batch::new(declared, columns.as_deref(), self.row, self.lexer.dialect));
        }
        if let Some(batch) = &mut self.batch {
            batch.push(self.row, row);
            self.row += 1;
            return batch.is_full(self.options.batch_rows, self.options.batch_bytes);
        }
        false
    }

    /// Reads until a batch is full, a statement's rows are over for another table, or the dump ends.
    fn read(&mut self) -> io::Result<()> {
        loop {
            match &self.stage {
                Stage::End => return Ok(()),
                Stage::Statement => {
                    self.statement()?;
                    let (Stage::Values { table, columns } | Stage::Copy { table, columns }) = &self.stage else {
                        continue;
                    };
                    if self.batch.as_ref().is_some_and(|b| !b.is_of(table, columns.as_deref())) {
                        return Ok(());
                    }
                }
                Stage::Values { .. } | Stage::Copy { .. } => match self.next_row()? {
                    None => self.stage = Stage::Statement,
                    Some(_) if self.row < self.skip => {
                        self.row += 1;
                        if let Stage::Values { table, .. } | Stage::Copy { table, .. } = &self.stage {
                            self.untold.remove(table);
                        }
                    }
                    Some(row) => {
                        if self.take(&row) {
                            return Ok(());
                        }
                    }
                },
            }
        }
    }

    fn piece(&mut self, batch: Batch) -> Result<Piece, ReadError> {
        let table = self.tables.get(batch.table()).cloned().unwrap_or_default();
        self.untold.remove(&table.name);
        let first_row = batch.first_row();
        let offset = self.lexer.feed.offset();
        let (batch, bad) = batch.finish(&table).map_err(|e| self.source.damaged(offset, e.to_string()))?;
        let next = Mark { row: self.row, at: offset, ..Mark::default() };
        Ok(Piece { member: None, table: Some(table), first_row, next, rows: Rows::Columns(batch), bad })
    }
}

impl Pieces for SqlReader {
    fn next(&mut self) -> Result<Option<Piece>, ReadError> {
        if let Some(broken) = self.broken.take() {
            self.stage = Stage::End;
            self.untold.clear();
            return Err(broken);
        }
        if let Err(e) = self.read() {
            let error = self.source.io(self.lexer.feed.offset(), e);
            self.stage = Stage::End;
            match self.batch.take() {
                // The rows before the break are whole.
                Some(batch) => {
                    self.broken = Some(error);
                    return self.piece(batch).map(Some);
                }
                None => {
                    self.untold.clear();
                    return Err(error);
                }
            }
        }
        if let Some(batch) = self.batch.take() {
            return self.piece(batch).map(Some);
        }
        // At the end: tables without rows, and those whose keys were told after their rows.
        let Some((name, ())) = self.untold.pop_first() else { return Ok(None) };
        let table = self.tables.get(&name).cloned().unwrap_or_default();
        let batch = Batch::new(&table, None, self.row, self.lexer.dialect);
        self.piece(batch).map(Some)
    }

    fn progress(&self) -> (u64, Option<u64>) {
        self.source.progress()
    }

    fn passed_over(&self) -> Vec<(String, u64)> {
        self.passed.iter().map(|(kind, count)| (kind.clone(), *count)).collect()
    }
}
