//! Which stream a record belongs to, and which table that leads to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::{Equivalent, HashMap};
use lakegate_memtable::Memtables;
use lakegate_model::{Contract, ReasonCode, Refusal, StreamKey, StreamName, TableName, TenantId};
use parking_lot::{Mutex, RwLock};

use crate::api::StreamDeclaration;
use crate::contracts::{ContractStore, ContractStoreError};
use crate::dead_letters;
use crate::duplicates::{Window, Windows};
use crate::flush::TableUnit;
use crate::import::OwnContracts;
use crate::import::claims::Claims;
use crate::rate::Rate;
use crate::shape::Shaper;

/// The name under which a tenant's dead letters are kept.
pub(crate) const DEAD_LETTERS: &str = "dead_letters";
/// The name under which is kept what became of those that were brought again.
pub(crate) const DEAD_LETTER_MARKS: &str = "dead_letter_marks";
/// Where records are counted whose stream has no valid name.
pub(crate) const UNROUTABLE: &str = "_unroutable";
/// The tenant of requests that name none while authentication is off.
pub(crate) const DEFAULT_TENANT: &str = "default";

/// One tenant's part of one stream.
pub(crate) struct Stream {
    pub(crate) key: StreamKey,
    pub(crate) shaper: Arc<Shaper>,
    pub(crate) fingerprint: u64,
    pub(crate) unit: Arc<TableUnit>,
    pub(crate) rate: Rate,
    /// The keys that were seen, where the contract has an event key.
    pub(crate) window: Option<Arc<Window>>,
    /// The keys of rows of files that are on their way into the table.
    pub(crate) claims: Claims,
    /// Records that this process accepted.
    pub(crate) accepted: AtomicU64,
}

#[derive(Hash)]
struct KeyText<'a>(&'a str, &'a str);

impl Equivalent<StreamKey> for KeyText<'_> {
    fn equivalent(&self, key: &StreamKey) -> bool {
        self.0 == key.tenant.as_str() && self.1 == key.stream.as_str()
    }
}

/// A shaped contract under its fingerprint.
type Shaped = (u64, Arc<Shaper>);

/// All streams and tables that the process knows.
pub(crate) struct Streams {
    declared: BTreeMap<StreamName, Shaped>,
    undeclared: Option<Shaped>,
    dead_letters: Shaped,
    /// Contracts that files gave to streams that nobody declared.
    pub(crate) own: OwnContracts,
    marks: Shaped,
    max_streams: usize,
    memtables: Arc<Memtables>,
    known: RwLock<HashMap<StreamKey, Arc<Stream>>>,
    units: Mutex<BTreeMap<TableName, Arc<TableUnit>>>,
    /// The keys that the streams have seen.
    pub(crate) windows: Windows,
}

impl Streams {
    pub(crate) fn new(
        declarations: &[StreamDeclaration],
        allow_undeclared: bool,
        max_streams: usize,
        contracts: &ContractStore,
        own: OwnContracts,
        memtables: Arc<Memtables>,
        windows: Windows,
    ) -> Result<Self, ContractStoreError> {
        let mut declared = BTreeMap::new();
        for declaration in declarations {
            let mut contract = declaration.contract.clone();
            contract.add_undeclared_column();
            declared.insert(declaration.name.clone(), contracts.keep(&contract)?);
        }
        let undeclared = contracts.keep(&Contract::undeclared_default())?;
        let dead_letters = contracts.keep(&dead_letters::contract())?;
        let marks = contracts.keep(&dead_letters::marks_contract())?;
        Ok(Self {
            declared,
            undeclared: allow_undeclared.then_some(undeclared),
            dead_letters,
            own,
            marks,
            max_streams,
            memtables,
            known: RwLock::default(),
            units: Mutex::default(),
            windows,
        })
    }

    /// The stream of that name, made where it may be.
    pub(crate) fn resolve(&self, tenant: &str, stream: &str) -> Result<Arc<Stream>, Refusal> {
        if let Some(found) = self.known.read().get(&KeyText(tenant, stream)) {
            return Ok(found.clone());
        }
        let refusal = |code, field: &str, message: String| Refusal { code, field: Some(field.to_owned()), message };
        let invalid = |field: &'static str| {
            move |error: lakegate_model::NameError| refusal(ReasonCode::InvalidName, field, error.to_string())
        };
        let key = StreamKey {
            tenant: TenantId::new(tenant).map_err(invalid("tenant_id"))?,
            stream: StreamName::new(stream).map_err(invalid("endpoint_id"))?,
        };
        let reserved = [DEAD_LETTERS, DEAD_LETTER_MARKS, UNROUTABLE].contains(&stream);
        let shaped = match self.current(&key) {
            Some(shaped) if !reserved => shaped,
            _ => {
                let names: Vec<&str> = self.declared.keys().map(StreamName::as_str).collect();
                let message = format!("the stream {stream:?} is not declared; declared are {names:?}");
                return Err(refusal(ReasonCode::UnknownStream, "endpoint_id", message));
            }
        };
        if self.known.read().len() >= self.max_streams {
            let message = format!("{} streams are known, which is the most (limits.streams)", self.max_streams);
            return Err(refusal(ReasonCode::UnknownStream, "endpoint_id", message));
        }
        self.create(key, shaped)
    }

    /// The contract that new records of a stream are read by.
    fn current(&self, key: &StreamKey) -> Option<Shaped> {
        let undeclared = || self.undeclared.as_ref().and_then(|shaped| self.own.get(key).or(Some(shaped.clone())));
        self.declared.get(&key.stream).cloned().or_else(undeclared)
    }

    /// Whether a stream's first file may give it its columns: nobody declared it, and nothing was ever sent to it here.
    pub(crate) fn may_take_columns(&self, key: &StreamKey) -> bool {
        let reserved = [DEAD_LETTERS, DEAD_LETTER_MARKS, UNROUTABLE].contains(&key.stream.as_str());
        let declared = reserved || self.declared.contains_key(&key.stream) || self.undeclared.is_none();
        let known = || self.known.read().contains_key(&KeyText(key.tenant.as_str(), key.stream.as_str()));
        !declared && self.own.get(key).is_none() && !known()
    }

    /// The dead letters of a tenant.
    pub(crate) fn dead_letters_of(&self, tenant: &TenantId) -> Result<Arc<Stream>, Refusal> {
        self.reserved(tenant.as_str(), DEAD_LETTERS, &self.dead_letters)
    }

    /// What became of a tenant's dead letters that were brought again.
    pub(crate) fn marks_of(&self, tenant: &str) -> Result<Arc<Stream>, Refusal> {
        self.reserved(tenant, DEAD_LETTER_MARKS, &self.marks)
    }

    fn reserved(&self, tenant: &str, stream: &str, shaped: &Shaped) -> Result<Arc<Stream>, Refusal> {
        if let Some(found) = self.known.read().get(&KeyText(tenant, stream)) {
            return Ok(found.clone());
        }
        let invalid = |error: lakegate_model::NameError| Refusal {
            code: ReasonCode::InvalidName,
            field: None,
            message: error.to_string(),
        };
        let key = StreamKey {
            tenant: TenantId::new(tenant).map_err(invalid)?,
            stream: StreamName::new(stream).map_err(invalid)?,
        };
        self.create(key, shaped.clone())
    }

    /// The stream as it was when a frame was written, for replay.
    pub(crate) fn resolve_as(
        &self,
        key: &StreamKey,
        fingerprint: u64,
        shaper: Arc<Shaper>,
    ) -> Result<Arc<Stream>, Refusal> {
        if let Some(found) = self.known.read().get(&KeyText(key.tenant.as_str(), key.stream.as_str()))
            && found.fingerprint == fingerprint
        {
            return Ok(found.clone());
        }
        let current = self.current(key);
        if current.is_some_and(|(current, _)| current == fingerprint)
            || [self.dead_letters.0, self.marks.0].contains(&fingerprint)
        {
            return self.create(key.clone(), (fingerprint, shaper));
        }
        self.make(key.clone(), (fingerprint, shaper)).map(Arc::new)
    }

    fn create(&self, key: StreamKey, shaped: Shaped) -> Result<Arc<Stream>, Refusal> {
        let stream = Arc::new(self.make(key, shaped)?);
        Ok(self.known.write().entry(stream.key.clone()).or_insert(stream).clone())
    }

    fn make(&self, key: StreamKey, (fingerprint, shaper): Shaped) -> Result<Stream, Refusal> {
        let table = shaper.contract.table.table_for(&key).map_err(|error| Refusal {
            code: ReasonCode::InvalidName,
            field: Some("endpoint_id".to_owned()),
            message: error.to_string(),
        })?;
        let make_unit = || {
            let memtable = self.memtables.get_or_create(&table, shaper.schema.clone());
            Arc::new(TableUnit::new(table.clone(), memtable, shaper.contract.clone()))
        };
        let unit = self.units.lock().entry(table.clone()).or_insert_with(make_unit).clone();
        let window = self.window_of(&key, fingerprint, &shaper.contract);
        let (rate, claims, accepted) = (Rate::default(), Claims::default(), AtomicU64::new(0));
        Ok(Stream { key, shaper, fingerprint, unit, rate, window, claims, accepted })
    }

    fn window_of(&self, key: &StreamKey, fingerprint: u64, contract: &Contract) -> Option<Arc<Window>> {
        let is_current = self.current(key).is_some_and(|(current, _)| current == fingerprint);
        (!contract.event_key.is_empty()).then(|| self.windows.of_stream(key, contract, is_current))
    }

    /// All tables, by name.
    pub(crate) fn units(&self) -> Vec<Arc<TableUnit>> {
        self.units.lock().values().cloned().collect()
    }

    /// All streams, in no order.
    pub(crate) fn all(&self) -> Vec<Arc<Stream>> {
        self.known.read().values().cloned().collect()
    }
}

impl Stream {
    pub(crate) fn count_accepted(&self, records: u64) {
        self.accepted.fetch_add(records, Ordering::Relaxed);
    }
}
