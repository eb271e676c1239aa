//! Which stream a record belongs to, and which table that leads to.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::{Equivalent, HashMap};
use lakegate_memtable::Memtables;
use lakegate_model::{
    Contract, ContractVersion, ReasonCode, Refusal, StreamKey, StreamName, TableName, TenantId, event_type_part,
};
use parking_lot::{Mutex, RwLock};

use crate::api::StreamDeclaration;
use crate::contracts::{ContractStore, ContractStoreError};
use crate::dead_letters;
use crate::duplicates::{Window, Windows};
use crate::flush::TableUnit;
use crate::growth::GrowthStore;
use crate::import::OwnContracts;
use crate::import::claims::Claims;
use crate::noticed::Noticed;
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

/// One tenant's part of one stream, or of that the records of one event type; under one version of its contract.
pub(crate) struct Stream {
    pub(crate) key: StreamKey,
    pub(crate) shaper: Arc<Shaper>,
    pub(crate) fingerprint: u64,
    pub(crate) unit: Arc<TableUnit>,
    pub(crate) rate: Arc<Rate>,
    /// The keys that were seen, where the contract has an event key.
    pub(crate) window: Option<Arc<Window>>,
    /// The keys of rows of files that are on their way into the table.
    pub(crate) claims: Arc<Claims>,
    /// Records that this process accepted.
    pub(crate) accepted: Arc<AtomicU64>,
    /// What was noticed about them.
    pub(crate) noticed: Arc<Noticed>,
}

/// A tenant, a stream, and the event type as in the table's name; empty where the table does not depend on it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct PartKey(pub(crate) StreamKey, pub(crate) Box<str>);

struct KeyText<'a>(&'a str, &'a str, &'a str);

impl Hash for KeyText<'_> {
    /// The same as of [`PartKey`]: names hash as their text does.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
        self.1.hash(state);
        self.2.hash(state);
    }
}

impl Equivalent<PartKey> for KeyText<'_> {
    fn equivalent(&self, PartKey(key, part): &PartKey) -> bool {
        self.0 == key.tenant.as_str() && self.1 == key.stream.as_str() && self.2 == &**part
    }
}

/// A shaped contract under its fingerprint.
pub(crate) type Shaped = (u64, Arc<Shaper>);

/// What files and records made of contracts, beside what is declared.
pub(crate) struct Beside {
    pub(crate) own: OwnContracts,
    pub(crate) growth: GrowthStore,
}

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
    contracts: Arc<ContractStore>,
    pub(crate) growth: GrowthStore,
    pub(crate) known: RwLock<HashMap<PartKey, Arc<Stream>>>,
    units: Mutex<BTreeMap<TableName, Arc<TableUnit>>>,
    /// The keys that the streams have seen.
    pub(crate) windows: Windows,
}

impl Streams {
    pub(crate) fn new(
        declarations: &[StreamDeclaration],
        allow_undeclared: bool,
        max_streams: usize,
        contracts: &Arc<ContractStore>,
        Beside { own, growth }: Beside,
        memtables: Arc<Memtables>,
        windows: Windows,
    ) -> Result<Self, ContractStoreError> {
        let mut declared = BTreeMap::new();
        for declaration in declarations {
            let mut contract = declaration.contract.clone();
            contract.add_policy_columns();
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
            contracts: contracts.clone(),
            growth,
            known: RwLock::default(),
            units: Mutex::default(),
            windows,
        })
    }

    /// The stream of that name, made where it may be.
    pub(crate) fn resolve(&self, tenant: &str, stream: &str) -> Result<Arc<Stream>, Refusal> {
        if let Some(found) = self.known.read().get(&KeyText(tenant, stream, "")) {
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
        self.check_room()?;
        self.create(key, shaped)
    }

    /// The contract that new records of a stream are read by.
    fn current(&self, key: &StreamKey) -> Option<Shaped> {
        let declared = self.declared.get(&key.stream).cloned();
        declared.or_else(|| self.own.get(key)).or_else(|| self.undeclared.clone())
    }

    /// The same, as it was declared or kept.
    pub(crate) fn contract_of(&self, key: &StreamKey) -> Option<Arc<Contract>> {
        self.current(key).map(|(_, shaper)| shaper.contract.clone())
    }

    /// Whether a stream's first file may give it its columns: nobody declared it, and nothing was ever sent to it here.
    pub(crate) fn may_take_columns(&self, key: &StreamKey) -> bool {
        let reserved = [DEAD_LETTERS, DEAD_LETTER_MARKS, UNROUTABLE].contains(&key.stream.as_str());
        let declared = reserved || self.declared.contains_key(&key.stream) || self.undeclared.is_none();
        let known = || self.known.read().contains_key(&KeyText(key.tenant.as_str(), key.stream.as_str(), ""));
        !declared && self.own.get(key).is_none() && !known()
    }

    /// Whether a stream may get a contract of its own: no other of that name is there.
    pub(crate) fn may_be_made(&self, key: &StreamKey) -> bool {
        let reserved = [DEAD_LETTERS, DEAD_LETTER_MARKS, UNROUTABLE].contains(&key.stream.as_str());
        !reserved && !self.is_declared(&key.stream) && self.own.get(key).is_none() && !self.is_known(key)
    }

    /// Whether the configuration declares it.
    pub(crate) fn is_declared(&self, stream: &StreamName) -> bool {
        self.declared.contains_key(stream)
    }

    /// Whether records may make streams that nobody declared.
    pub(crate) fn takes_undeclared(&self) -> bool {
        self.undeclared.is_some()
    }

    /// Whether anything was sent to it.
    pub(crate) fn is_known(&self, key: &StreamKey) -> bool {
        self.known.read().contains_key(&KeyText(key.tenant.as_str(), key.stream.as_str(), ""))
    }

    /// The tenant's stream whose contract is as asked, of those that have one of their own.
    pub(crate) fn find(&self, tenant: &TenantId, is_it: impl Fn(&StreamKey, &Contract) -> bool) -> Option<StreamKey> {
        let declared = self.declared.iter().find_map(|(stream, (_, shaper))| {
            let key = StreamKey { tenant: tenant.clone(), stream: stream.clone() };
            is_it(&key, &shaper.contract).then_some(key)
        });
        declared.or_else(|| self.own.find(tenant, is_it))
    }

    /// Takes a stream and its table out. New records of that name make another.
    pub(crate) fn remove(&self, key: &StreamKey, table: &TableName) -> Option<Arc<TableUnit>> {
        self.known.write().retain(|PartKey(known, _), _| known != key);
        self.units.lock().remove(table)
    }

    fn check_room(&self) -> Result<(), Refusal> {
        if self.known.read().len() < self.max_streams {
            return Ok(());
        }
        let message = format!("{} streams are known, which is the most (limits.streams)", self.max_streams);
        Err(Refusal { code: ReasonCode::UnknownStream, field: Some("endpoint_id".to_owned()), message })
    }

    /// Of a stream whose records go into tables by their event type, the part that is for this one.
    pub(crate) fn part_of(&self, stream: &Arc<Stream>, event_type: Option<&str>) -> Result<Arc<Stream>, Refusal> {
        let part = event_type.map(event_type_part).unwrap_or_default();
        if part.is_empty() {
            return Ok(stream.clone());
        }
        let (tenant, name) = (stream.key.tenant.as_str(), stream.key.stream.as_str());
        if let Some(found) = self.known.read().get(&KeyText(tenant, name, &part)) {
            return Ok(found.clone());
        }
        self.check_room()?;
        let declared = self.current(&stream.key);
        let base = declared.as_ref().map_or(&stream.shaper.contract, |(_, shaper)| &shaper.contract);
        let shaped = self.contracts.keep(&Contract { part, ..base.as_ref().clone() });
        self.create(stream.key.clone(), shaped.map_err(|error| unkept(&error))?)
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
        if let Some(found) = self.known.read().get(&KeyText(tenant, stream, "")) {
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
        let live = self.live(key, &shaper.contract.part)?;
        if let Some(live) = &live {
            if live.fingerprint == fingerprint {
                return Ok(live.clone());
            }
            let table = table_of(key, &shaper.contract)?;
            if live.unit.table == table {
                return Ok(Arc::new(live.at_version((fingerprint, shaper))));
            }
        }
        self.make(key.clone(), (fingerprint, shaper), false).map(Arc::new)
    }

    /// The stream of which a version of the contract was kept, as the configuration declares it now; none where it does
    /// not.
    pub(crate) fn declared_now(&self, version: &ContractVersion) -> Option<Result<Arc<Stream>, String>> {
        let (tenant, stream) = version.stream.split_once('.')?;
        let key = StreamKey { tenant: TenantId::new(tenant).ok()?, stream: StreamName::new(stream).ok()? };
        self.declared.contains_key(&key.stream).then_some(())?;
        let fingerprint = u64::from_str_radix(&version.fingerprint, 16).ok()?;
        let kept = match self.contracts.find(fingerprint) {
            Ok(kept) => kept,
            Err(error) => return Some(Err(error.to_string())),
        };
        self.live(&key, &kept.contract.part).map_err(|refusal| refusal.message).transpose()
    }

    /// The stream as it is now, if there is such.
    fn live(&self, key: &StreamKey, part: &str) -> Result<Option<Arc<Stream>>, Refusal> {
        let (tenant, stream) = (key.tenant.as_str(), key.stream.as_str());
        if let Some(found) = self.known.read().get(&KeyText(tenant, stream, part)) {
            return Ok(Some(found.clone()));
        }
        let current = match stream {
            DEAD_LETTERS => Some(self.dead_letters.clone()),
            DEAD_LETTER_MARKS => Some(self.marks.clone()),
            _ => self.current(key),
        };
        let Some((fingerprint, shaper)) = current else { return Ok(None) };
        if part.is_empty() {
            return self.create(key.clone(), (fingerprint, shaper)).map(Some);
        }
        if !shaper.contract.table.takes_event_type() {
            return Ok(None);
        }
        let contract = Contract { part: part.to_owned(), ..shaper.contract.as_ref().clone() };
        self.create(key.clone(), self.contracts.keep(&contract).map_err(|error| unkept(&error))?).map(Some)
    }

    /// Makes the stream that has this contract declared, with what its table has grown by.
    fn create(&self, key: StreamKey, shaped: Shaped) -> Result<Arc<Stream>, Refusal> {
        let (table, contract) = (table_of(&key, &shaped.1.contract)?, shaped.1.contract.clone());
        let growth = self.growth.of(&table).map_err(|error| unkept(&error))?;
        let grown = contract.grown(&growth);
        let shaped =
            if grown == *contract { shaped } else { self.contracts.keep(&grown).map_err(|error| unkept(&error))? };
        let stream = Arc::new(self.make(key, shaped, true)?);
        let is_declared = self.declared.contains_key(&stream.key.stream);
        if is_declared {
            self.growth.note_version(&stream.unit.table, &stream.key, stream.fingerprint, Vec::new());
        }
        let key = PartKey(stream.key.clone(), contract.part.as_str().into());
        Ok(self.known.write().entry(key).or_insert(stream).clone())
    }

    /// `is_current`: new records are read by this contract.
    fn make(&self, key: StreamKey, (fingerprint, shaper): Shaped, is_current: bool) -> Result<Stream, Refusal> {
        let table = table_of(&key, &shaper.contract)?;
        let make_unit = || {
            let memtable = self.memtables.get_or_create(&table, shaper.schema.clone());
            Arc::new(TableUnit::new(table.clone(), memtable, shaper.contract.clone()))
        };
        let unit = self.units.lock().entry(table.clone()).or_insert_with(make_unit).clone();
        let window =
            (!shaper.contract.event_key.is_empty()).then(|| self.windows.of_stream(&key, &shaper.contract, is_current));
        let (rate, claims, accepted, noticed) = (Arc::default(), Arc::default(), Arc::default(), Arc::default());
        Ok(Stream { key, shaper, fingerprint, unit, rate, window, claims, accepted, noticed })
    }

    /// Keeps a contract.
    pub(crate) fn keep(&self, contract: &Contract) -> Result<Shaped, ContractStoreError> {
        self.contracts.keep(contract)
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

fn table_of(key: &StreamKey, contract: &Contract) -> Result<TableName, Refusal> {
    contract.table.table_for(key, &contract.part).map_err(|error| Refusal {
        code: ReasonCode::InvalidName,
        field: Some("endpoint_id".to_owned()),
        message: error.to_string(),
    })
}

fn unkept(error: &dyn std::fmt::Display) -> Refusal {
    Refusal { code: ReasonCode::UnknownStream, field: Some("endpoint_id".to_owned()), message: error.to_string() }
}

impl Stream {
    pub(crate) fn count_accepted(&self, records: u64) {
        self.accepted.fetch_add(records, Ordering::Relaxed);
    }

    /// The same stream under another version of its contract.
    pub(crate) fn at_version(&self, (fingerprint, shaper): Shaped) -> Self {
        Self {
            key: self.key.clone(),
            shaper,
            fingerprint,
            unit: self.unit.clone(),
            rate: self.rate.clone(),
            window: self.window.clone(),
            claims: self.claims.clone(),
            accepted: self.accepted.clone(),
            noticed: self.noticed.clone(),
        }
    }
}
