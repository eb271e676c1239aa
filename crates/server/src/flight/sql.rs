//! Flight SQL: statements, prepared statements, and what there is, for ADBC, JDBC and the like.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::server::{DoPutError, FlightSqlService, PeekableFlightDataStream};
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult,
    Any, CommandGetCatalogs, CommandGetDbSchemas, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables,
    CommandPreparedStatementQuery, CommandPreparedStatementUpdate, CommandStatementIngest, CommandStatementQuery,
    CommandStatementUpdate, DoPutPreparedStatementResult, ProstMessageExt, SqlInfo, TableNotExistOption,
    TicketStatementQuery,
};
use arrow_flight::{Action, FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, Ticket};
use futures::{Stream, StreamExt, stream};
use lakegate_model::TableName;
use lakegate_query::statement::{self, Statement};
use prost::Message;
use std::pin::Pin;
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};

use super::answers::{DoGet, Fetch, count_of, get, get_one, parameters_of, schema_bytes, sql_info, table_types_schema};
use super::put::{Lane, gather};
use super::{Flight, Out, asker_of, literals, status_of};
use crate::http::rows_of;
use crate::statements::{Asker, Changed, Done, Inserted, Run, StatementError, Statements};

/// The catalog's name.
const CATALOG: &str = "iceberg";
/// The most bytes of a prepared statement's parameters.
const PARAMETER_BYTES_MAX: usize = 8 << 20;

type DoPut = <Flight as FlightService>::DoPutStream;

fn failed(error: impl Into<StatementError>) -> Status {
    status_of(&error.into())
}

fn owner(asker: &Asker) -> Option<String> {
    asker.principal.as_ref().map(|principal| principal.id.to_string())
}

impl Flight {
    async fn run(&self, asker: &Asker, sql: String, row_limit: Option<u64>) -> Result<Done, Status> {
        let run = Run { sql, row_limit, trino: false, ..Run::default() };
        self.statements.run(asker, run).await.map_err(|error| status_of(&error))
    }

    /// What a client is to fetch. What writes is done now: clients fetch its answer late, or never.
    async fn prepare(
        &self,
        asker: &Asker,
        statements: Vec<String>,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let last = statements.last().cloned().unwrap_or_default();
        let is_read = matches!(statement::read(&last).map_err(failed)?, Statement::Read | Statement::Show(_));
        let (ticket, schema) = if is_read {
            (Fetch::Sql(last.clone()), self.schema(asker, &last).await?)
        } else {
            let fetch = Fetch::of(&self.run_all(asker, statements).await?);
            let schema = rows_of(fetch.clone().into_done(), "").map_err(|error| Status::internal(error.to_string()))?;
            (fetch, Some(schema.schema))
        };
        let handle = serde_json::to_vec(&ticket).map_err(|error| Status::internal(error.to_string()))?;
        Self::info(request, &TicketStatementQuery { statement_handle: handle.into() }, schema)
    }

    /// The columns that a statement will give; none where that is told only by running it.
    async fn schema(&self, asker: &Asker, sql: &str) -> Result<Option<SchemaRef>, Status> {
        match statement::read(sql).map_err(failed)? {
            Statement::Read | Statement::Show(_) => match self.run(asker, sql.to_owned(), Some(0)).await? {
                Done::Rows(result) => Ok(Some(result.schema)),
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }

    fn info(
        request: Request<FlightDescriptor>,
        ticket: &impl ProstMessageExt,
        schema: Option<SchemaRef>,
    ) -> Result<Response<FlightInfo>, Status> {
        let endpoint = FlightEndpoint::new().with_ticket(Ticket::new(ticket.as_any().encode_to_vec()));
        let info = FlightInfo::new().with_descriptor(request.into_inner()).with_endpoint(endpoint);
        let info = match schema {
            Some(schema) => info.try_with_schema(&schema).map_err(|error| Status::internal(error.to_string()))?,
            None => info,
        };
        Ok(Response::new(info.with_total_records(-1).with_total_bytes(-1)))
    }

    /// Runs statements one after another; the rows are those of the last.
    async fn run_all(&self, asker: &Asker, statements: Vec<String>) -> Result<Done, Status> {
        let mut stored = Inserted::default();
        let mut last = Done::Changed(Changed::Done("nothing"));
        for sql in statements {
            last = self.run(asker, sql, None).await?;
            if let Done::Inserted(inserted) = &mut last {
                inserted.rows += stored.rows;
                inserted.duplicates += stored.duplicates;
                stored = *inserted;
            }
        }
        Ok(last)
    }

    /// The tables of the namespaces that the asker sees.
    async fn tables(&self, asker: &Asker) -> Result<Vec<TableName>, Status> {
        let sql = "SELECT table_schema, table_name FROM information_schema.tables \
                   WHERE table_schema <> 'information_schema' ORDER BY 1, 2";
        let Done::Rows(result) = self.run(asker, sql.to_owned(), None).await? else { return Ok(Vec::new()) };
        let mut tables = Vec::new();
        for batch in result.collect().await.map_err(failed)? {
            let [namespaces, names] = batch.columns() else { continue };
            let (Some(namespaces), Some(names)) = (namespaces.as_string_opt::<i32>(), names.as_string_opt::<i32>())
            else {
                continue;
            };
            for row in 0..batch.num_rows().min(namespaces.len()) {
                tables.extend(TableName::new(namespaces.value(row), names.value(row)));
            }
        }
        Ok(tables)
    }
}

#[tonic::async_trait]
impl FlightSqlService for Flight {
    type FlightService = Self;

    async fn do_handshake(
        &self,
        request: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Pin<Box<dyn Stream<Item = Result<HandshakeResponse, Status>> + Send>>>, Status> {
        // Who asks was found before; what was shown is what is to be shown again.
        let token = request.metadata().get("x-api-key").cloned();
        let shown = request.metadata().get("authorization").cloned();
        let answer = HandshakeResponse { protocol_version: 0, payload: Vec::new().into() };
        let answers: Out<HandshakeResponse> = Box::pin(stream::iter([Ok(answer)]));
        let mut response = Response::new(answers);
        let bearer = match (token, shown) {
            (Some(key), _) => key.to_str().ok().and_then(|key| MetadataValue::try_from(format!("Bearer {key}")).ok()),
            (None, shown) => shown,
        };
        if let Some(bearer) = bearer {
            response.metadata_mut().insert("authorization", bearer);
        }
        Ok(response)
    }

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let asker = asker_of(request.extensions())?;
        self.prepare(&asker, vec![query.query], request).await
    }

    async fn get_flight_info_prepared_statement(
        &self,
        query: CommandPreparedStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let asker = asker_of(request.extensions())?;
        let one = self.prepared.get(owner(&asker).as_deref(), &query.prepared_statement_handle)?;
        self.prepare(&asker, literals::bound(&one.sql, &one.values).map_err(failed)?, request).await
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        let asker = asker_of(request.extensions())?;
        let fetch = serde_json::from_slice(&ticket.statement_handle);
        let done = match fetch.map_err(|_| Status::invalid_argument("the ticket is none of ours"))? {
            Fetch::Sql(sql) => match statement::read(&sql).map_err(failed)? {
                Statement::Read | Statement::Show(_) => self.run(&asker, sql, None).await?,
                _ => return Err(Status::invalid_argument("a ticket fetches rows; it changes nothing")),
            },
            done => done.into_done(),
        };
        Ok(get(rows_of(done, "").map_err(|error| Status::internal(error.to_string()))?))
    }

    async fn get_flight_info_catalogs(
        &self,
        query: CommandGetCatalogs,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Self::info(request, &query, Some(query.into_builder().schema()))
    }

    async fn do_get_catalogs(&self, query: CommandGetCatalogs, _: Request<Ticket>) -> Result<Response<DoGet>, Status> {
        let mut builder = query.into_builder();
        builder.append(CATALOG);
        Ok(get_one(builder.build().map_err(|error| Status::internal(error.to_string()))?))
    }

    async fn get_flight_info_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let schema = query.clone().into_builder().schema();
        Self::info(request, &query, Some(schema))
    }

    async fn do_get_schemas(
        &self,
        query: CommandGetDbSchemas,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        let asker = asker_of(request.extensions())?;
        let mut namespaces: Vec<String> = self.tables(&asker).await?.into_iter().map(|table| table.namespace).collect();
        namespaces.dedup();
        let mut builder = query.into_builder();
        namespaces.iter().for_each(|namespace| builder.append(CATALOG, namespace));
        Ok(get_one(builder.build().map_err(|error| Status::internal(error.to_string()))?))
    }

    async fn get_flight_info_tables(
        &self,
        query: CommandGetTables,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let schema = query.clone().into_builder().schema();
        Self::info(request, &query, Some(schema))
    }

    async fn do_get_tables(
        &self,
        query: CommandGetTables,
        request: Request<Ticket>,
    ) -> Result<Response<DoGet>, Status> {
        let asker = asker_of(request.extensions())?;
        let with_columns = query.include_schema;
        let mut builder = query.into_builder();
        for table in self.tables(&asker).await? {
            let sql = format!("SELECT * FROM \"{}\".\"{}\"", table.namespace, table.name);
            let schema = if with_columns { self.schema(&asker, &sql).await? } else { None };
            let schema = schema.unwrap_or_else(|| Arc::new(Schema::empty()));
            let added = builder.append(CATALOG, &table.namespace, &table.name, "TABLE", &schema);
            added.map_err(|error| Status::internal(error.to_string()))?;
        }
        Ok(get_one(builder.build().map_err(|error| Status::internal(error.to_string()))?))
    }

    async fn get_flight_info_table_types(
        &self,
        query: CommandGetTableTypes,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        Self::info(request, &query, Some(table_types_schema()))
    }

    async fn do_get_table_types(&self, _: CommandGetTableTypes, _: Request<Ticket>) -> Result<Response<DoGet>, Status> {
        let types = Arc::new(arrow::array::StringArray::from(vec!["TABLE"]));
        let batch = arrow::array::RecordBatch::try_new(table_types_schema(), vec![types]);
        Ok(get_one(batch.map_err(|error| Status::internal(error.to_string()))?))
    }

    async fn get_flight_info_sql_info(
        &self,
        query: CommandGetSqlInfo,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let info = sql_info()?;
        let schema = query.clone().into_builder(&info).schema();
        Self::info(request, &query, Some(schema))
    }

    async fn do_get_sql_info(&self, query: CommandGetSqlInfo, _: Request<Ticket>) -> Result<Response<DoGet>, Status> {
        let info = sql_info()?;
        Ok(get_one(query.into_builder(&info).build().map_err(|error| Status::internal(error.to_string()))?))
    }

    async fn do_put_fallback(
        &self,
        request: Request<PeekableFlightDataStream>,
        message: Any,
    ) -> Result<Response<DoPut>, Status> {
        if !message.type_url.is_empty() {
            return Err(Status::unimplemented(format!("{} is not taken", message.type_url)));
        }
        let asker = asker_of(request.extensions())?;
        let mut messages = request.into_inner();
        let descriptor = match messages.peek().await {
            Some(Ok(first)) => first.flight_descriptor.clone().unwrap_or_default(),
            Some(Err(status)) => return Err(status.clone()),
            None => return Err(Status::invalid_argument("a stream of columns begins with its schema")),
        };
        let lane = Lane::of_path(asker, &descriptor)?;
        Ok(Response::new(self.put_answers(lane, messages)))
    }

    async fn do_put_error_callback(
        &self,
        _: Request<PeekableFlightDataStream>,
        error: DoPutError,
    ) -> Result<Response<DoPut>, Status> {
        Err(Status::invalid_argument(format!("the first message tells where columns go, by its descriptor: {error}")))
    }

    async fn do_put_statement_update(
        &self,
        command: CommandStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let asker = asker_of(request.extensions())?;
        Ok(count_of(&self.run(&asker, command.query, None).await?))
    }

    async fn do_put_statement_ingest(
        &self,
        command: CommandStatementIngest,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let asker = asker_of(request.extensions())?;
        let mut messages = request.into_inner();
        let namespace = command.schema.clone().filter(|schema| !schema.is_empty());
        let namespace = namespace.unwrap_or_else(|| self.statements.own_namespace(&asker));
        let table = TableName::new(&namespace, &command.table);
        let table = table.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let options = command.table_definition_options.unwrap_or_default();
        if options.if_not_exist() == TableNotExistOption::Create {
            let first = match messages.peek().await {
                Some(first) => first.clone()?,
                None => return Err(Status::invalid_argument("a stream of columns begins with its schema")),
            };
            let schema = Schema::try_from(&first).map_err(|error| Status::invalid_argument(error.to_string()))?;
            let made = self.statements.make_table(&asker, &table, Arc::new(schema)).await.map_err(failed)?;
            if !made && options.if_exists() == arrow_flight::sql::TableExistsOption::Fail {
                return Err(Status::already_exists(format!("the table {table} exists already")));
            }
        }
        let key = self.statements.stream_of(&asker, &table).await.map_err(failed)?;
        let mut outcomes = self.put(Lane::of_table(asker, key), messages);
        let mut rows = 0;
        while let Some(outcome) = outcomes.next().await {
            rows += outcome?.accepted;
        }
        Ok(i64::try_from(rows).unwrap_or(i64::MAX))
    }

    async fn do_put_prepared_statement_query(
        &self,
        command: CommandPreparedStatementQuery,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<DoPutPreparedStatementResult, Status> {
        let asker = asker_of(request.extensions())?;
        let values = self.values(request.into_inner()).await?;
        self.prepared.bind(owner(&asker).as_deref(), &command.prepared_statement_handle, values)?;
        Ok(DoPutPreparedStatementResult { prepared_statement_handle: Some(command.prepared_statement_handle) })
    }

    async fn do_put_prepared_statement_update(
        &self,
        command: CommandPreparedStatementUpdate,
        request: Request<PeekableFlightDataStream>,
    ) -> Result<i64, Status> {
        let asker = asker_of(request.extensions())?;
        let one = self.prepared.get(owner(&asker).as_deref(), &command.prepared_statement_handle)?;
        let sent = self.values(request.into_inner()).await?;
        let values = if sent.is_empty() { one.values } else { sent };
        let done = self.run_all(&asker, literals::bound(&one.sql, &values).map_err(failed)?).await?;
        Ok(count_of(&done))
    }

    async fn do_action_create_prepared_statement(
        &self,
        query: ActionCreatePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let asker = asker_of(request.extensions())?;
        // What cannot be read is better told now; what needs values tells its columns later.
        statement::read(&query.query).map_err(failed)?;
        let types = self.statements.parameter_types(&asker, &query.query).await.map_err(failed)?;
        let schema = match types.is_empty() {
            true => self.schema(&asker, &query.query).await?,
            // What its values would change is told when they are there.
            false => {
                self.schema(&asker, &Statements::without_values(&query.query).map_err(failed)?).await.unwrap_or(None)
            }
        };
        let dataset_schema = schema.map_or(Ok(bytes::Bytes::new()), |schema| schema_bytes(&schema))?;
        let parameter_schema =
            if types.is_empty() { bytes::Bytes::new() } else { schema_bytes(&parameters_of(types))? };
        let handle = self.prepared.add(owner(&asker), query.query);
        Ok(ActionCreatePreparedStatementResult {
            prepared_statement_handle: bytes::Bytes::copy_from_slice(handle.as_bytes()),
            dataset_schema,
            parameter_schema,
        })
    }

    async fn do_action_close_prepared_statement(
        &self,
        query: ActionClosePreparedStatementRequest,
        request: Request<Action>,
    ) -> Result<(), Status> {
        let asker = asker_of(request.extensions())?;
        self.prepared.close(owner(&asker).as_deref(), &query.prepared_statement_handle);
        Ok(())
    }

    async fn register_sql_info(&self, _: i32, _: &SqlInfo) {}
}

impl Flight {
    /// Values of parameters; none where the client sends no rows.
    async fn values(&self, messages: PeekableFlightDataStream) -> Result<Vec<arrow::array::RecordBatch>, Status> {
        let body = gather(messages, PARAMETER_BYTES_MAX).await?;
        if body.is_empty() {
            return Ok(Vec::new());
        }
        match lakegate_ingest::read_columns(&body, PARAMETER_BYTES_MAX * 4) {
            Ok(batches) => {
                let rows: usize = batches.iter().map(arrow::array::RecordBatch::num_rows).sum();
                if rows > self.batch_rows_max {
                    let most = self.batch_rows_max;
                    return Err(Status::out_of_range(format!("{rows} rows of parameters, the most is {most}")));
                }
                Ok(batches)
            }
            // A statement without parameters may be bound to rows without columns.
            Err(error) if error.contains("rows without columns") => Ok(Vec::new()),
            Err(error) => Err(Status::invalid_argument(error)),
        }
    }
}
