//! One pass over a JSON payload: finds the members that columns take.

mod scan;

use std::borrow::Cow;

use lakegate_model::{ColumnSource, Contract, ObjectRule, ReasonCode, Refusal};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

pub(crate) use self::scan::is_plain;

/// The deepest that a payload may nest; the same as common JSON readers take.
const MAX_DEPTH: usize = 127;

/// Stands for a member that no column takes.
const UNKNOWN: usize = usize::MAX;
/// So many members of a payload are expected where the last one had them.
const ORDER_MAX: usize = 256;

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
    /// A member's name has something in it that JSON escapes.
    has_strange_names: bool,
    /// Its place among [`Slots::objects`].
    place: usize,
    /// Members that no column takes break the contract.
    closed: bool,
    /// Members that no column takes count as the payload's own.
    is_top: bool,
    /// A column takes it as a whole, and so all its members.
    is_taken: bool,
}

/// Which slots the parts of a contract found what they take in. Slot `i` is column `i`'s first path; further ones follow.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    pub(crate) count: usize,
    columns: usize,
    /// The time field's, in the order in which they are looked at.
    pub(crate) time: Vec<usize>,
    /// The event type's, likewise.
    pub(crate) event_type: Vec<usize>,
    /// Of columns with more than one path, the further ones.
    pub(crate) further: Vec<(usize, Vec<usize>)>,
    /// Of objects with rules: the rule's index, its slot, and those of the members that it needs.
    pub(crate) ruled: Vec<(usize, usize, Vec<usize>)>,
    /// The objects that are looked into: the path of each; those whose members count as the payload's own are marked.
    pub(crate) objects: Vec<(Vec<String>, bool)>,
}

impl Slots {
    fn take(&mut self) -> usize {
        self.count += 1;
        self.count - 1
    }
}

impl Node {
    /// The tree of all paths of the contract, and which slots they lead to.
    pub(crate) fn of(contract: &Contract) -> (Self, Slots) {
        let mut root = Self { is_top: true, ..Self::default() };
        let columns = contract.columns.len();
        let mut slots = Slots { count: columns, columns, ..Slots::default() };
        for (slot, column) in contract.columns.iter().enumerate() {
            if let ColumnSource::Path(path) = &column.source {
                root.add(path, slot);
            }
            let further = contract.rules_of(&column.name).map(|rules| rules.or_paths.as_slice()).unwrap_or_default();
            let further: Vec<usize> = further.iter().map(|path| root.add_slot(path, &mut slots)).collect();
            if !further.is_empty() {
                slots.further.push((slot, further));
            }
        }
        for path in contract.time.iter().flat_map(|time| std::iter::once(&time.path).chain(&time.or_paths)) {
            let slot = root.add_slot(path, &mut slots);
            slots.time.push(slot);
        }
        for path in &contract.event_type_paths {
            let slot = root.add_slot(path, &mut slots);
            slots.event_type.push(slot);
        }
        for (rule, object) in contract.objects.iter().enumerate() {
            let slot = root.add_slot(&object.path, &mut slots);
            let needs = object.needs.iter().map(|name| {
                let path: Vec<String> = object.path.iter().chain([name]).cloned().collect();
                root.add_slot(&path, &mut slots)
            });
            let needs = needs.collect();
            slots.ruled.push((rule, slot, needs));
            root.rule(&object.path, object);
        }
        root.number(&mut Vec::new(), &mut slots);
        (root, slots)
    }

    /// The tree of the event type's paths alone.
    pub(crate) fn of_event_type(contract: &Contract) -> (Self, Slots) {
        let (mut root, mut slots) = (Self::default(), Slots::default());
        for path in &contract.event_type_paths {
            let slot = root.add_slot(path, &mut slots);
            slots.event_type.push(slot);
        }
        (root, slots)
    }

    fn add_slot(&mut self, path: &[String], slots: &mut Slots) -> usize {
        let slot = slots.take();
        self.add(path, slot);
        slot
    }

    fn add(&mut self, path: &[String], slot: usize) {
        let Some((first, rest)) = path.split_first() else { return };
        let Some(target) = self.member(first) else { return };
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

    fn member(&mut self, name: &str) -> Option<&mut Target> {
        let at = self.members.iter().position(|(found, _)| **found == *name).unwrap_or_else(|| {
            self.has_strange_names |= !scan::is_plain(name);
            self.members.push((name.into(), Target::Slots(Vec::new())));
            self.members.len() - 1
        });
        self.members.get_mut(at).map(|(_, target)| target)
    }

    /// Notes what holds for the object at `path`, which is looked into for that.
    fn rule(&mut self, path: &[String], rule: &ObjectRule) {
        let Some((first, rest)) = path.split_first() else {
            self.closed |= rule.closed;
            self.is_top |= rule.lifted;
            return;
        };
        if rest.is_empty() && !rule.closed && !rule.lifted {
            return;
        }
        match self.member(first) {
            Some(Target::Object(node, _)) => node.rule(rest, rule),
            Some(target @ Target::Slots(_)) => {
                let mut node = Self::default();
                node.rule(rest, rule);
                let Target::Slots(slots) = target else { return };
                *target = Target::Object(node, std::mem::take(slots));
            }
            None => {}
        }
    }

    fn number(&mut self, path: &mut Vec<String>, slots: &mut Slots) {
        self.place = slots.objects.len();
        slots.objects.push((path.clone(), self.is_top));
        for (name, target) in &mut self.members {
            if let Target::Object(node, taken_by) = target {
                let of_column = |slot: &usize| {
                    *slot < slots.columns || slots.further.iter().any(|(_, further)| further.contains(slot))
                };
                node.is_taken = self.is_taken || taken_by.iter().any(of_column);
                path.push(name.to_string());
                node.number(path, slots);
                path.pop();
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether no column takes a member of a member.
    pub(crate) fn is_flat(&self) -> bool {
        self.members.iter().all(|(_, target)| matches!(target, Target::Slots(_)))
    }

    /// Which member has that name; [`UNKNOWN`] if none. `hint` is where it is looked for first: members mostly come in one
    /// order.
    #[inline]
    fn find(&self, name: &str, hint: usize) -> usize {
        if self.members.get(hint).is_some_and(|(found, _)| **found == *name) {
            return hint;
        }
        self.members.iter().position(|(found, _)| **found == *name).unwrap_or(UNKNOWN)
    }
}

/// A member that no column takes.
#[derive(Debug)]
pub(crate) struct Other<'a> {
    /// Of which object, by its place among [`Slots::objects`].
    pub(crate) object: usize,
    pub(crate) name: Cow<'a, str>,
    pub(crate) raw: &'a str,
}

/// The text of the members that were found, by slot, and of those that no column takes.
#[derive(Debug, Default)]
pub(crate) struct Found<'a> {
    pub(crate) slots: Vec<Option<&'a str>>,
    /// Which members of the outermost object were found, in order: they are expected so in the next payload.
    pub(super) order: Vec<usize>,
    /// Where the payload's first slot lies, where `slots` are those of several.
    pub(crate) base: usize,
    pub(crate) others: Option<Vec<Other<'a>>>,
    /// The first member of the payload that no column takes, where nobody keeps them.
    pub(crate) first_other: Option<Cow<'a, str>>,
    /// The first member that an object must not have.
    pub(crate) forbidden: Option<Cow<'a, str>>,
}

impl<'a> Found<'a> {
    /// The first of these slots that holds a value.
    pub(crate) fn first_of(&self, slots: &[usize]) -> Option<&'a str> {
        slots.iter().find_map(|slot| self.slots.get(*slot).copied().flatten().filter(|raw| *raw != "null"))
    }
}

/// Goes once over `payload`, which must be one JSON object, and notes the text of each member that is taken.
pub(crate) fn find_members<'a>(payload: &'a str, node: &Node, found: &mut Found<'a>) -> Result<(), Refusal> {
    if scan::find_members(payload, node, found).is_some() {
        return Ok(());
    }
    found.clear();
    check_depth(payload, MAX_DEPTH)?;
    general(payload, node, found)
}

/// The same, without a word where the payload is none, or a rare one. `found` may hold a part then.
#[inline]
pub(crate) fn find_plain_members<'a>(payload: &'a str, node: &Node, found: &mut Found<'a>) -> Option<()> {
    scan::find_members(payload, node, found)
}

/// Checks that `payload` is one JSON value, of any kind.
pub(crate) fn is_json(payload: &str) -> Result<(), Refusal> {
    if scan::is_value(payload) {
        return Ok(());
    }
    check_depth(payload, MAX_DEPTH)?;
    serde_json::from_str::<serde::de::IgnoredAny>(payload).map(drop).map_err(|error| {
        let message = format!("the payload is not JSON: {error}");
        Refusal { code: ReasonCode::MalformedPayload, field: Some("payload".to_owned()), message }
    })
}

fn general<'a>(payload: &'a str, node: &Node, found: &mut Found<'a>) -> Result<(), Refusal> {
    let mut json = serde_json::Deserializer::from_str(payload);
    ObjectSeed { node, found }.deserialize(&mut json).and_then(|()| json.end()).map_err(|error| {
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
            let at = self.node.find(&key, hint);
            hint = if at == UNKNOWN { hint } else { at + 1 };
            let target = self.node.members.get(at).map(|(_, target)| target);
            let raw = map.next_value::<&'a RawValue>()?.get();
            match target {
                None => self.found.note_other(self.node, key, raw),
                Some(Target::Slots(slots)) => self.found.note(slots, raw),
                Some(Target::Object(node, slots)) => {
                    self.found.note(slots, raw);
                    if raw.starts_with('{') {
                        let mut inner = serde_json::Deserializer::from_str(raw);
                        let seed = ObjectSeed { node, found: &mut *self.found };
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
            if let Some(place) = self.slots.get_mut(self.base + *slot) {
                *place = Some(raw);
            }
        }
    }

    /// A member of `node` that no column takes.
    #[inline]
    fn note_other(&mut self, node: &Node, name: Cow<'a, str>, raw: &'a str) {
        if node.closed {
            self.forbidden.get_or_insert(name);
            return;
        }
        match &mut self.others {
            Some(_) if node.is_taken => self.note_first_other(node, name),
            Some(others) => others.push(Other { object: node.place, name, raw }),
            None => self.note_first_other(node, name),
        }
    }

    fn note_order(&mut self, place: usize, member: usize) {
        if let Some(known) = self.order.get_mut(place) {
            *known = member;
        } else if place == self.order.len() && place < ORDER_MAX {
            self.order.push(member);
        }
    }

    fn note_first_other(&mut self, node: &Node, name: Cow<'a, str>) {
        if node.is_top && self.first_other.is_none() {
            self.first_other = Some(name);
        }
    }

    /// Forgets what was found.
    pub(crate) fn clear(&mut self) {
        self.slots.fill(None);
        self.others.iter_mut().for_each(Vec::clear);
        (self.first_other, self.forbidden) = (None, None);
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
fn check_depth(payload: &str, limit: usize) -> Result<(), Refusal> {
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
