//! What may not even be planned.
//!
//! Promises: only reading statements pass; text, nesting and the number of tables after the expansion of `WITH` are
//! bounded before anything recurses over them, so that neither parsing, planning nor dropping a query can exhaust the
//! stack or run away. Refuses: everything that writes, declares, sets or loads.

use std::collections::HashMap;
use std::ops::ControlFlow;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{ObjectName, Query, Statement as SqlStatement, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use crate::error::QueryError;
use crate::pace::JOIN_BATCH_ROWS;

/// The longest text of a query.
pub(crate) const MAX_TEXT_BYTES: usize = 1024 * 1024;
/// The most words, numbers and signs. Room for a list of twelve thousand values; planning a list of so many columns
/// takes about a second, and twice as many take four times as long.
const MAX_TOKENS: usize = 25_000;
/// The same for what gives the rows of an `INSERT`: rows of values are wide, not deep.
const MAX_SOURCE_BYTES: usize = 8 * 1024 * 1024;
const MAX_SOURCE_TOKENS: usize = 500_000;
/// The most operators, each of which can make the tree one level deeper. What walks the tree without growing its stack
/// (dropping it, above all) needs less than 10 KiB a level, and query threads have 32 MiB; planning takes time by the
/// square of the depth.
const MAX_OPERATORS: usize = 1_000;
/// The most bytes of a batch that copies of constants may take.
const MAX_CONSTANT_BATCH_BYTES: usize = 8 * 1024 * 1024;
/// The deepest nesting of brackets. The parser tries several readings of an opening bracket.
const MAX_BRACKETS: usize = 32;
/// The parser's own bound on how deep it calls itself.
pub(crate) const MAX_RECURSION: usize = 64;
/// The most tables and subqueries after each name of a `WITH` stands for its content, as often as it is named.
const MAX_RELATIONS: u64 = 256;
/// The deepest nesting of queries within queries; planning takes almost twice the time for each level.
const MAX_QUERY_DEPTH: usize = 10;
/// The deepest nesting of `WITH` within `WITH`; finding the tables of a query takes twice the time for each level.
const MAX_WITH_DEPTH: usize = 6;

/// Reads one statement that may run.
pub(crate) fn parse(sql: &str, is_source: bool) -> Result<Statement, QueryError> {
    let (text_max, tokens_max) =
        if is_source { (MAX_SOURCE_BYTES, MAX_SOURCE_TOKENS) } else { (MAX_TEXT_BYTES, MAX_TOKENS) };
    if sql.len() > text_max {
        return Err(too_complex(format!("its text has {} bytes, the most is {text_max}", sql.len())));
    }
    let tokens = Tokenizer::new(&GenericDialect {}, sql)
        .tokenize_with_location()
        .map_err(|e| QueryError::Syntax(e.to_string()))?;
    if tokens.len() > tokens_max {
        let found = tokens.len();
        return Err(too_complex(format!("it has {found} words, numbers and signs, the most is {tokens_max}")));
    }
    check_tokens(&tokens)?;
    let mut statements = DFParserBuilder::new(tokens)
        .with_dialect(&GenericDialect {})
        .with_recursion_limit(MAX_RECURSION)
        .build()
        .and_then(|mut parser| parser.parse_statements())
        .map_err(|e| match e.to_string() {
            text if text.contains("recursion limit") => too_complex("its expressions are nested too deeply".to_owned()),
            _ => QueryError::from_engine(&e, 0),
        })?;
    if statements.len() > 1 {
        return Err(QueryError::Syntax("it holds more than one statement; send them one by one".to_owned()));
    }
    let statement = statements.pop_front().ok_or_else(|| QueryError::Syntax("it holds no statement".to_owned()))?;
    check_statement(&statement)?;
    Ok(statement)
}

/// Whether the statement gives rows of tables, so that a row limit can be put on it.
pub(crate) fn is_query(statement: &Statement) -> bool {
    matches!(statement, Statement::Statement(s) if matches!(**s, SqlStatement::Query(_)))
}

/// Whether the statement lists names, which the engine does by its own schema of names.
pub(crate) fn is_show(statement: &Statement) -> bool {
    let shows = |s: &SqlStatement| {
        matches!(
            s,
            SqlStatement::ShowTables { .. } | SqlStatement::ShowColumns { .. } | SqlStatement::ShowFunctions { .. }
        )
    };
    matches!(statement, Statement::Statement(s) if shows(s))
}

/// How many rows a batch of this plan may have: a constant is copied for each row where an expression needs it, and a
/// row for each that it is joined with, all of that uncounted by the memory limit.
pub(crate) fn batch_rows(plan: &LogicalPlan, most: usize) -> Result<usize, QueryError> {
    let (mut bytes, mut multiplies) = (0_usize, false);
    let mut count = |expr: &Expr| {
        expr.apply(|inner| match inner {
            // A list is looked up, not copied.
            Expr::InList(_) => Ok(TreeNodeRecursion::Jump),
            Expr::Literal(value, _) => {
                bytes = bytes.saturating_add(value.size().saturating_sub(size_of_val(value)));
                Ok(TreeNodeRecursion::Continue)
            }
            _ => Ok(TreeNodeRecursion::Continue),
        })
    };
    let visited = plan.apply_with_subqueries(|node| {
        multiplies |= matches!(node, LogicalPlan::Join(_) | LogicalPlan::Unnest(_) | LogicalPlan::RecursiveQuery(_));
        if matches!(node, LogicalPlan::Values(_)) {
            Ok(TreeNodeRecursion::Continue)
        } else {
            node.apply_expressions(&mut count)
        }
    });
    visited.map_err(|e| QueryError::from_engine(&e, 0))?;
    let most = if multiplies { most.min(JOIN_BATCH_ROWS) } else { most };
    Ok((MAX_CONSTANT_BATCH_BYTES / bytes.max(1)).clamp(1, most.max(1)))
}

/// A second look, at what the planner made of it.
pub(crate) fn check_plan(plan: &LogicalPlan) -> Result<(), QueryError> {
    let (mut refused, mut gathers) = (None, None);
    let visited = plan.apply_with_subqueries(|node| {
        refused = match node {
            LogicalPlan::Ddl(ddl) => Some(ddl.name().to_owned()),
            LogicalPlan::Dml(dml) => Some(dml.op.to_string()),
            LogicalPlan::Copy(_) => Some("COPY".to_owned()),
            LogicalPlan::Statement(statement) => Some(statement.name().to_owned()),
            _ => None,
        };
        if let LogicalPlan::Window(window) = node
            && let Some(found) = window.window_expr.iter().find_map(gathering_window)
        {
            gathers = Some(found);
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    if let Some(name) = gathers {
        let why = format!("{name} OVER … would hold all rows once for each row; group in a subquery, and join");
        return Err(QueryError::TooComplex(why));
    }
    match (visited, refused) {
        (Err(e), _) => Err(QueryError::from_engine(&e, 0)),
        (Ok(_), Some(what)) => Err(refuse(&what)),
        (Ok(_), None) => Ok(()),
    }
}

/// The name of a function that gives every row of its window for each of them.
fn gathering_window(expr: &Expr) -> Option<String> {
    let mut found = None;
    let visited = expr.apply(|inner| {
        if let Expr::WindowFunction(function) = inner
            && GATHERING.contains(&function.fun.name())
        {
            found = Some(function.fun.name().to_owned());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    visited.ok().and(found)
}

const GATHERING: [&str; 2] = ["array_agg", "string_agg"];

fn too_complex(why: String) -> QueryError {
    QueryError::TooComplex(why)
}

fn refuse(what: &str) -> QueryError {
    QueryError::NotAllowed(format!(
        "{what} does not read; here only SELECT, WITH, VALUES, EXPLAIN, SHOW and DESCRIBE run"
    ))
}

pub(crate) fn check_tokens(tokens: &[TokenWithSpan]) -> Result<(), QueryError> {
    let (mut operators, mut depth, mut before) = (0_usize, 0_usize, &Token::EOF);
    for token in tokens.iter().map(|t| &t.token).filter(|t| !matches!(t, Token::Whitespace(_))) {
        match token {
            Token::LParen | Token::LBracket | Token::LBrace => depth += 1,
            Token::RParen | Token::RBracket | Token::RBrace => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_BRACKETS {
            return Err(too_complex(format!("its brackets are nested more than {MAX_BRACKETS} deep")));
        }
        operators += usize::from(may_deepen(token, before));
        before = token;
    }
    if operators > MAX_OPERATORS {
        return Err(too_complex(format!("it has {operators} operators, the most is {MAX_OPERATORS}")));
    }
    Ok(())
}

/// Names and lists are wide, not deep: words, values, commas, brackets (counted apart) and the signs of numbers do not
/// make a tree deeper. Of the words, those do that stand between or behind expressions, tables or queries; what stands
/// before them makes the parser call itself, and is bounded by [`MAX_RECURSION`].
fn may_deepen(token: &Token, before: &Token) -> bool {
    match token {
        Token::Word(word) => word.quote_style.is_none() && DEEPENING.contains(&word.keyword),
        Token::Minus | Token::Plus => !matches!(before, Token::Comma | Token::LParen),
        Token::Comma | Token::Period | Token::LParen | Token::RParen | Token::SemiColon | Token::EOF => false,
        Token::Number(..)
        | Token::SingleQuotedString(_)
        | Token::DoubleQuotedString(_)
        | Token::HexStringLiteral(_)
        | Token::Placeholder(_) => false,
        _ => true,
    }
}

const DEEPENING: [Keyword; 27] = [
    Keyword::AND,
    Keyword::OR,
    Keyword::XOR,
    Keyword::NOT,
    Keyword::IS,
    Keyword::NOTNULL,
    Keyword::IN,
    Keyword::LIKE,
    Keyword::ILIKE,
    Keyword::RLIKE,
    Keyword::REGEXP,
    Keyword::SIMILAR,
    Keyword::BETWEEN,
    Keyword::COLLATE,
    Keyword::AT,
    Keyword::OPERATOR,
    Keyword::OVERLAPS,
    Keyword::DIV,
    Keyword::MEMBER,
    Keyword::UNION,
    Keyword::EXCEPT,
    Keyword::INTERSECT,
    Keyword::MINUS,
    Keyword::JOIN,
    Keyword::PIVOT,
    Keyword::UNPIVOT,
    Keyword::MATCH_RECOGNIZE,
];

fn check_statement(statement: &Statement) -> Result<(), QueryError> {
    match statement {
        Statement::Statement(inner) => check_sql_statement(inner),
        Statement::Explain(explain) => match explain.statement.as_ref() {
            Statement::Statement(inner) => check_sql_statement(inner),
            other => Err(refuse(&first_words(&other.to_string()))),
        },
        Statement::CreateExternalTable(_) => Err(refuse("CREATE EXTERNAL TABLE")),
        Statement::CopyTo(_) => Err(refuse("COPY")),
        Statement::Reset(_) => Err(refuse("RESET")),
    }
}

fn check_sql_statement(statement: &SqlStatement) -> Result<(), QueryError> {
    match statement {
        SqlStatement::Query(_)
        | SqlStatement::ShowTables { .. }
        | SqlStatement::ShowColumns { .. }
        | SqlStatement::ShowFunctions { .. }
        | SqlStatement::ExplainTable { .. } => {}
        SqlStatement::Explain { statement, .. } if matches!(**statement, SqlStatement::Query(_)) => {}
        other => return Err(refuse(&first_words(&other.to_string()))),
    }
    let mut relations = Relations::default();
    match statement.visit(&mut relations) {
        ControlFlow::Break(error) => Err(error),
        ControlFlow::Continue(()) if relations.outermost > MAX_RELATIONS => Err(too_many_relations()),
        ControlFlow::Continue(()) => Ok(()),
    }
}

fn too_many_relations() -> QueryError {
    too_complex(format!("it reads more than {MAX_RELATIONS} tables, counting each WITH as often as it is named"))
}

fn first_words(text: &str) -> String {
    text.split_whitespace().take(2).collect::<Vec<_>>().join(" ").chars().take(40).collect()
}

/// Counts the tables of a query as they will be planned: every mention of a `WITH` name is planned anew, so that a
/// chain of doublings would grow without end.
#[derive(Default)]
struct Relations {
    /// Of each `WITH` name, what one mention of it costs. A name that is used twice keeps its highest cost.
    named: HashMap<String, u64>,
    /// The queries that are being read, outermost first.
    open: Vec<OpenQuery>,
    outermost: u64,
}

struct OpenQuery {
    /// Where each `WITH` query lies, and its name.
    with: HashMap<*const Query, String>,
    cost: u64,
}

impl Relations {
    fn add(&mut self, cost: u64) {
        let sum = match self.open.last_mut() {
            Some(query) => &mut query.cost,
            None => &mut self.outermost,
        };
        *sum = sum.saturating_add(cost);
    }
}

impl Visitor for Relations {
    type Break = QueryError;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<QueryError> {
        let ctes = query.with.iter().flat_map(|with| &with.cte_tables);
        let with =
            ctes.map(|cte| (std::ptr::from_ref(cte.query.as_ref()), cte.alias.name.value.to_lowercase())).collect();
        self.open.push(OpenQuery { with, cost: 1 });
        if self.open.len() > MAX_QUERY_DEPTH {
            return ControlFlow::Break(too_complex(format!("its queries are nested more than {MAX_QUERY_DEPTH} deep")));
        }
        if self.open.iter().filter(|q| !q.with.is_empty()).count() > MAX_WITH_DEPTH {
            return ControlFlow::Break(too_complex(format!(
                "WITH within WITH is nested more than {MAX_WITH_DEPTH} deep"
            )));
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<QueryError> {
        let Some(closed) = self.open.pop() else { return ControlFlow::Continue(()) };
        if closed.cost > MAX_RELATIONS {
            return ControlFlow::Break(too_many_relations());
        }
        let name = self.open.last().and_then(|outer| outer.with.get(&std::ptr::from_ref(query)).cloned());
        match name {
            Some(name) => {
                let known = self.named.entry(name).or_insert(0);
                *known = closed.cost.max(*known);
            }
            None => self.add(closed.cost),
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<QueryError> {
        let cost = self.named.get(&relation.to_string().to_lowercase().replace('"', "")).copied().unwrap_or(1);
        self.add(cost);
        ControlFlow::Continue(())
    }
}
