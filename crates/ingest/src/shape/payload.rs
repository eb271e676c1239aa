//! One pass over a JSON payload: finds the members that columns take.

use std::borrow::Cow;

use lakegate_model::{ColumnSource, Contract, ReasonCode, Refusal};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// What a member of an object leads to.
#[derive(Debug)]
enum Target {
    /// Its value goes into these slots; more than one column may take the same member.
    Slots(Vec<usize>),
    /// It is an object whose members are looked at, and may go into slots itself.
    Object(Node, Vec<usize>),
}

/// An object of which some members are taken.
#[derive(Debug, Default)]
pub(crate) struct Node {
    members: Vec<(Box<str>, Target)>,
}

impl Node {
    /// The tree of all paths of the contract's columns. Slot `i` is column `i`; one more for the time field.
    pub(crate) fn of(contract: &Contract) -> Self {
        let mut root = Self::default();
        for (slot, column) in contract.columns.iter().enumerate() {
            if let ColumnSource::Path(path) = &column.source {
                root.add(path, slot);
            }
        }
        if let Some(time) = &contract.time {
            root.add(&time.path, contract.columns.len());
        }
        root
    }

    fn add(&mut self, path: &[String], slot: usize) {
        let Some((first, rest)) = path.split_first() else { return };
        let at = self.members.iter().position(|(name, _)| **name == **first).unwrap_or_else(|| {
            self.members.push((first.as_str().into(), Target::Slots(Vec::new())));
            self.members.len() - 1
        });
        let Some((_, target)) = self.members.get_mut(at) else { return };
        match (rest.is_empty(), &mut *target) {
            (true, Target::Slots(slots) | Target::Object(_, slots)) => slots.push(slot),
            (false, Target::Object(node, _)) => node.add(rest, slot),
            (false, Target::Slots(slots)) => {
                let mut node = Self::default();
                node.add(rest, slot);
                *target = Target::Object(node, std::mem::take(slots));
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The member of that name. `hint` is where it is looked for first: members mostly come in one order.
    #[inline]
    fn find(&self, name: &str, hint: &mut usize) -> Option<&Target> {
        if let Some((found, target)) = self.members.get(*hint)
            && **found == *name
        {
            *hint += 1;
            return Some(target);
        }
        let at = self.members.iter().position(|(found, _)| **found == *name)?;
        *hint = at + 1;
        self.members.get(at).map(|(_, target)| target)
    }
}

/// The text of the members that were found, by slot, and of those that no column takes.
#[derive(Debug, Default)]
pub(crate) struct Found<'a> {
    pub(crate) slots: Vec<Option<&'a str>>,
    pub(crate) others: Option<Vec<(Cow<'a, str>, &'a str)>>,
    /// The first member that no column takes, where nobody keeps them.
    pub(crate) first_other: Option<Cow<'a, str>>,
}

/// Goes once over `payload`, which must be one JSON object, and notes the text of each member that is taken.
pub(crate) fn find_members<'a>(payload: &'a str, node: &Node, found: &mut Found<'a>) -> Result<(), Refusal> {
    let mut json = serde_json::Deserializer::from_str(payload);
    ObjectSeed { node, found, top: true }.deserialize(&mut json).and_then(|()| json.end()).map_err(|error| {
        let code = if error.to_string().starts_with("number out of range") {
            ReasonCode::OutOfRange
        } else {
            ReasonCode::MalformedPayload
        };
        Refusal {
            code,
            field: Some("payload".to_owned()),
            message: format!("the payload is not a JSON object: {error}"),
        }
    })
}

struct ObjectSeed<'n, 'f, 'a> {
    node: &'n Node,
    found: &'f mut Found<'a>,
    top: bool,
}

impl<'a> DeserializeSeed<'a> for ObjectSeed<'_, '_, 'a> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for ObjectSeed<'_, '_, 'a> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        let mut hint = 0;
        while let Some(key) = map.next_key_seed(KeySeed)? {
            let target = self.node.find(&key, &mut hint);
            if target.is_none() && !(self.top && self.found.others.is_some()) {
                map.next_value::<serde::de::IgnoredAny>()?;
                if self.top && self.found.first_other.is_none() {
                    self.found.first_other = Some(key);
                }
                continue;
            }
            let raw = map.next_value::<&'a RawValue>()?.get();
            match target {
                None => {
                    if let Some(others) = &mut self.found.others {
                        others.push((key, raw));
                    }
                }
                Some(Target::Slots(slots)) => self.found.note(slots, raw),
                Some(Target::Object(node, slots)) => {
                    self.found.note(slots, raw);
                    if raw.starts_with('{') {
                        let mut inner = serde_json::Deserializer::from_str(raw);
                        let seed = ObjectSeed { node, found: &mut *self.found, top: false };
                        seed.deserialize(&mut inner).map_err(serde::de::Error::custom)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl<'a> Found<'a> {
    #[inline]
    fn note(&mut self, slots: &[usize], raw: &'a str) {
        for slot in slots {
            if let Some(place) = self.slots.get_mut(*slot) {
                *place = Some(raw);
            }
        }
    }
}

struct KeySeed;

impl<'a> DeserializeSeed<'a> for KeySeed {
    type Value = Cow<'a, str>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'a> Visitor<'a> for KeySeed {
    type Value = Cow<'a, str>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_borrowed_str<E>(self, text: &'a str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// Refuses a payload that nests deeper than `limit`. Readers of the table would have to follow it down.
pub(crate) fn check_depth(payload: &str, limit: usize) -> Result<(), Refusal> {
    let bytes = payload.as_bytes();
    #[allow(clippy::naive_bytecount, reason = "the compiler makes vector code of it")]
    let openings = bytes.iter().filter(|b| matches!(**b, b'{' | b'[')).count();
    if openings <= limit {
        return Ok(());
    }
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            let message = format!("the payload nests deeper than {limit} at byte {at}");
            return Err(Refusal { code: ReasonCode::TooDeep, field: Some("payload".to_owned()), message });
        }
    }
    Ok(())
}
