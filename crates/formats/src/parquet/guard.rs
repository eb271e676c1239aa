//! Looks over Thrift's compact protocol before anything is allocated for it.
//!
//! A footer of 300 bytes may promise a list of 2^31 elements. Here every length is held against the bytes that are left,
//! nesting against a depth, and long lists of structs against the size that their elements must have. The schema is
//! followed group by group: the library descends into it by recursion, and a stack that overflows ends the process.

/// The deepest nesting of structs and lists in a footer; sound ones need about ten.
const DEPTH: usize = 32;

/// Lists of structs longer than this must give each element at least [`ELEMENT_BYTES`].
const SHORT_LIST: usize = 1 << 16;
const ELEMENT_BYTES: usize = 8;

/// What is wrong with Thrift bytes.
pub(super) type Wrong = String;

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// What a footer says of its schema.
#[derive(Debug)]
pub(super) struct Shape {
    /// A footer of nothing but the schema. Where the library reads a field otherwise than its type says, it then cannot
    /// come upon another schema than the one that was looked over.
    pub(super) schema: Vec<u8>,
    /// Of a column or group, the most groups that it lies in, plus itself.
    pub(super) deepest: usize,
}

/// Checks a footer's bytes.
pub(super) fn check_footer(bytes: &[u8]) -> Result<Shape, Wrong> {
    let mut walk = Walk { bytes, at: 0 };
    let mut found = None;
    let mut field = 0;
    while let Some((id, kind)) = walk.field(&mut field)? {
        let right = match id {
            1 => 5,
            2 | 4 | 5 | 7 => 9,
            3 => 6,
            6 => 8,
            _ => kind,
        };
        if kind != right {
            return Err(format!("its field {id} is of the type {kind}; {right} would be right"));
        }
        if id != 2 {
            walk.skip(kind, 0)?;
            continue;
        }
        if found.is_some() {
            return Err("it has two schemas".to_owned());
        }
        let from = walk.at;
        let deepest = walk.schema()?;
        let mut schema = vec![0x29];
        schema.extend_from_slice(bytes.get(from..walk.at).unwrap_or_default());
        schema.push(0);
        found = Some(Shape { schema, deepest });
    }
    found.ok_or_else(|| "it has no schema".to_owned())
}

/// The type that a field of a logical type must have. None: the library does not know the field.
fn logical_kind(logical: i64, id: i64) -> Option<u8> {
    match (logical, id) {
        (7 | 8, 1) | (10, 2) => Some(1),
        (10 | 16, 1) => Some(3),
        (5, 1 | 2) | (18, 2) => Some(5),
        (17 | 18, 1) => Some(8),
        (7 | 8, 2) => Some(12),
        _ => None,
    }
}

/// The sizes that a page's header tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct PageSizes {
    /// 2: a dictionary page.
    pub(super) kind: i64,
    pub(super) unpacked: i64,
    pub(super) packed: i64,
    /// The number of values, nulls included.
    pub(super) values: i64,
    /// The header's own length.
    pub(super) header: u64,
    /// The checksum of the packed bytes, where there is one.
    pub(super) crc: Option<u32>,
}

/// Reads the sizes from a page's header.
pub(super) fn page_sizes(bytes: &[u8]) -> Result<PageSizes, Wrong> {
    let mut walk = Walk { bytes, at: 0 };
    let mut sizes = PageSizes::default();
    let mut field = 0;
    while let Some((id, kind)) = walk.field(&mut field)? {
        match (id, kind) {
            (1, 5) => sizes.kind = walk.number()?,
            (2, 5) => sizes.unpacked = walk.number()?,
            (3, 5) => sizes.packed = walk.number()?,
            (4, 5) => sizes.crc = i32::try_from(walk.number()?).ok().map(i32::cast_unsigned),
            (5 | 7 | 8, 12) => {
                let mut inner = 0;
                while let Some((id, kind)) = walk.field(&mut inner)? {
                    match (id, kind) {
                        (1, 5) => sizes.values = walk.number()?,
                        _ => walk.skip(kind, 1)?,
                    }
                }
            }
            _ => walk.skip(kind, 0)?,
        }
    }
    sizes.header = walk.at as u64;
    Ok(sizes)
}

impl Walk<'_> {
    fn byte(&mut self) -> Result<u8, Wrong> {
        let byte = self.bytes.get(self.at).copied().ok_or("it ends inside a value")?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, Wrong> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number of more than ten bytes".to_owned())
    }

    fn number(&mut self) -> Result<i64, Wrong> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -((value & 1).cast_signed()))
    }

    /// The next field's id and type. None: the struct ends.
    fn field(&mut self, last: &mut i64) -> Result<Option<(i64, u8)>, Wrong> {
        let byte = self.byte()?;
        if byte == 0 {
            return Ok(None);
        }
        let delta = i64::from(byte >> 4);
        *last = if delta == 0 { self.number()? } else { last.saturating_add(delta) };
        if i16::try_from(*last).is_err() {
            return Err(format!("a field of the number {last}; none is larger than {}", i16::MAX));
        }
        Ok(Some((*last, byte & 0x0f)))
    }

    fn skip_struct(&mut self, depth: usize) -> Result<(), Wrong> {
        if depth > DEPTH {
            return Err(format!("nested more than {DEPTH} deep"));
        }
        let mut field = 0;
        while let Some((_, kind)) = self.field(&mut field)? {
            self.skip(kind, depth)?;
        }
        Ok(())
    }

    fn take(&mut self, bytes: u64) -> Result<(), Wrong> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(bytes) {
            Ok(bytes) if bytes <= left => {
                self.at += bytes;
                Ok(())
            }
            _ => Err(format!("a text of {bytes} bytes where {left} are left")),
        }
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Result<(), Wrong> {
        if depth > DEPTH {
            return Err(format!("nested more than {DEPTH} deep"));
        }
        match kind {
            1 | 2 => Ok(()),
            3 => self.take(1),
            4..=6 => self.varint().map(|_| ()),
            7 => self.take(8),
            8 => {
                let len = self.varint()?;
                self.take(len)
            }
            9 | 10 => self.skip_list(depth),
            12 => self.skip_struct(depth + 1),
            _ => Err(format!("a value of the unknown type {kind}")),
        }
    }

    /// The type and the number of a list's elements.
    fn list(&mut self) -> Result<(u8, usize), Wrong> {
        let head = self.byte()?;
        let kind = head & 0x0f;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        let left = self.bytes.len() - self.at;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let each = if kind == 12 && count > SHORT_LIST { ELEMENT_BYTES } else { 1 };
        if count.checked_mul(each).is_none_or(|needed| needed > left) {
            return Err(format!("a list of {count} elements where {left} bytes are left"));
        }
        Ok((kind, count))
    }

    fn skip_list(&mut self, depth: usize) -> Result<(), Wrong> {
        let (kind, count) = self.list()?;
        // No known field is one, and the library passes over them as if they took no bytes.
        if count > 0 && matches!(kind, 1 | 2) {
            return Err("a list of truth values, which no footer or page header has".to_owned());
        }
        for _ in 0..count {
            self.skip(kind, depth + 1)?;
        }
        Ok(())
    }

    /// Follows the tree that a schema's elements make, each after its parent. How deep it is.
    fn schema(&mut self) -> Result<usize, Wrong> {
        let (kind, count) = self.list()?;
        if count > 0 && kind != 12 {
            return Err(format!("a schema of elements of the type {kind}; 12 would be right"));
        }
        // Of each group around the element, how many children are still to come.
        let mut open: Vec<usize> = Vec::new();
        let mut deepest = 0;
        for number in 0..count {
            if number > 0 && open.is_empty() {
                return Err(format!("a schema of {count} elements, of which only {number} belong to its groups"));
            }
            let children = self.schema_element(number)?;
            let left = count - number - 1;
            if children > left {
                return Err(format!(
                    "the schema's element {number} promises {children} children where {left} are left"
                ));
            }
            deepest = deepest.max(open.len());
            if let Some(last) = open.last_mut() {
                *last = last.saturating_sub(1);
            }
            open.push(children);
            while open.last() == Some(&0) {
                open.pop();
            }
        }
        if open.is_empty() {
            return Ok(deepest);
        }
        let missing = open.iter().fold(0_usize, |sum, more| sum.saturating_add(*more));
        Err(format!("a schema of {count} elements, whose groups promise {missing} more"))
    }

    /// How many children an element of the schema has. Its fields must have the types that the library takes for granted.
    fn schema_element(&mut self, number: usize) -> Result<usize, Wrong> {
        let mut children = 0;
        let mut field = 0;
        while let Some((id, kind)) = self.field(&mut field)? {
            match (id, kind) {
                (5, 5) => {
                    let claimed = self.number()?;
                    let sound = i32::try_from(claimed).ok().and_then(|c| usize::try_from(c).ok());
                    children = sound.ok_or_else(|| format!("the schema's element {number} has {claimed} children"))?;
                }
                (10, 12) => self.logical_type()?,
                (1..=3 | 6..=9, 5) | (4, 8) => self.skip(kind, 0)?,
                (1..=10, _) => {
                    return Err(format!("the schema's element {number} has a field {id} of the wrong type {kind}"));
                }
                _ => self.skip(kind, 0)?,
            }
        }
        Ok(children)
    }

    fn logical_type(&mut self) -> Result<(), Wrong> {
        let wrong = |logical: i64, kind: u8| format!("the logical type {logical} has a field of the wrong type {kind}");
        let mut field = 0;
        while let Some((logical, kind)) = self.field(&mut field)? {
            if kind != 12 {
                return Err(wrong(logical, kind));
            }
            let mut inner = 0;
            while let Some((id, kind)) = self.field(&mut inner)? {
                // The two values of a truth value are types of their own.
                let shown = if kind == 2 { 1 } else { kind };
                match logical_kind(logical, id) {
                    Some(right) if right != shown => return Err(wrong(logical, kind)),
                    Some(12) => {
                        let mut unit = 0;
                        while let Some((_, kind)) = self.field(&mut unit)? {
                            if kind != 12 {
                                return Err(wrong(logical, kind));
                            }
                            self.skip(kind, 0)?;
                        }
                    }
                    _ => self.skip(kind, 0)?,
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use crate::{BytesInput, Limits, ReadError, read_footer};

    const ROOT: &[u8] = b"\x48\x01s\x15\x02\0";
    const GROUP: &[u8] = b"\x35\0\x18\x01g\x15\x02\0";
    const LEAF: &[u8] = b"\x15\x02\x25\0\x18\x01x\0";

    /// A file without rows whose footer has these elements.
    fn file(elements: &[&[u8]]) -> Vec<u8> {
        let mut footer = b"\x15\x02\x19\xfc".to_vec();
        let mut count = elements.len();
        while count > 0x7f {
            footer.push(u8::try_from(count & 0x7f).unwrap() | 0x80);
            count >>= 7;
        }
        footer.push(u8::try_from(count).unwrap());
        footer.extend(elements.concat());
        footer.extend(b"\x16\0\x19\x0c\0");
        let len = u32::try_from(footer.len()).unwrap().to_le_bytes();
        [b"PAR1".as_slice(), &footer, &len, b"PAR1"].concat()
    }

    fn chain(groups: usize) -> Vec<u8> {
        let mut elements = vec![ROOT];
        elements.extend(std::iter::repeat_n(GROUP, groups));
        elements.push(LEAF);
        file(&elements)
    }

    fn read(bytes: Vec<u8>, nesting: usize) -> Result<usize, ReadError> {
        let limits = Limits { nesting, ..Limits::default() };
        let footer = read_footer(&BytesInput::new("a.parquet", bytes), &limits)?;
        Ok(footer.file_metadata().schema_descr().num_columns())
    }

    #[test]
    fn s29_groups_nested_deeper_than_the_limit_are_refused_before_the_library_descends() {
        assert_eq!(read(chain(0), 1).unwrap(), 1);
        assert_eq!(read(chain(100), 128).unwrap(), 1);
        for (groups, nesting) in [(1, 1), (100, 100), (1_000, 128), (200_000, 128)] {
            let error = read(chain(groups), nesting).unwrap_err();
            assert!(matches!(error, ReadError::Limit { .. }), "{error}");
            let text = error.to_string();
            assert!(text.contains(&format!("at most {nesting} is read (limit nesting)")), "{text}");
        }
    }

    #[test]
    fn s29_children_that_are_not_there_or_not_promised_are_refused() {
        let lying = |children: &[u8]| [b"\x48\x01s\x15".as_slice(), children, b"\0"].concat();
        for (elements, why) in [
            (vec![lying(b"\x04").as_slice(), LEAF], "promises 2 children where 1 are left"),
            (vec![ROOT, GROUP], "promises 1 children where 0 are left"),
            (vec![lying(b"\x04").as_slice(), GROUP, LEAF], "promise 1 more"),
            (vec![ROOT, LEAF, LEAF], "only 2 belong to its groups"),
            (vec![lying(b"\x01").as_slice(), LEAF], "has -1 children"),
            (vec![lying(b"\xfe\xff\xff\xff\x1f").as_slice(), LEAF], "has 4294967295 children"),
            (vec![ROOT, b"\x15\x02\x25\0\x15\x02\0"], "field 4 of the wrong type 5"),
        ] {
            let error = read(file(&elements), 128).unwrap_err();
            assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn schemas_that_the_library_writes_pass() {
        let schema = "message s {
            required int32 i (INTEGER(16,true));
            optional group a (LIST) { repeated group list { optional group element {
                required int64 t (TIMESTAMP(MICROS,true));
                optional int64 d (DECIMAL(9,2));
                optional binary s (STRING);
            } } }
        }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::builder().build()));
        let bytes = writer.unwrap().into_inner().unwrap();
        assert_eq!(read(bytes.clone(), 4).unwrap(), 4);
        assert!(matches!(read(bytes, 3), Err(ReadError::Limit { .. })));
    }
}
