//! Looks over Thrift's compact protocol before anything is allocated for it.
//!
//! A footer of 300 bytes may promise a list of 2^31 elements. Here every length is held against the bytes that are left,
//! nesting against a depth, and long lists of structs against the size that their elements must have.

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

/// Checks a footer's bytes.
pub(super) fn check_footer(bytes: &[u8]) -> Result<(), Wrong> {
    Walk { bytes, at: 0 }.skip_struct(0)
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

    fn skip_list(&mut self, depth: usize) -> Result<(), Wrong> {
        let head = self.byte()?;
        let kind = head & 0x0f;
        let count = if head >> 4 == 15 { self.varint()? } else { u64::from(head >> 4) };
        let left = self.bytes.len() - self.at;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let each = if kind == 12 && count > SHORT_LIST { ELEMENT_BYTES } else { 1 };
        if count.checked_mul(each).is_none_or(|needed| needed > left) {
            return Err(format!("a list of {count} elements where {left} bytes are left"));
        }
        for _ in 0..count {
            match kind {
                1 | 2 => self.take(1)?,
                _ => self.skip(kind, depth + 1)?,
            }
        }
        Ok(())
    }
}
