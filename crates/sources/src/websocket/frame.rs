//! Frames of RFC 6455, section 5, as a server reads and writes them.
//!
//! ```text
//! fin rsv1 rsv2 rsv3 opcode(4) | mask length(7) | length(16 or 64) | mask(32) | payload
//! ```

/// Why a socket is closed, with the code that says so (RFC 6455, section 7.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
}

impl Fault {
    pub(crate) const fn protocol(reason: &'static str) -> Self {
        Self { code: 1002, reason }
    }

    pub(crate) const TOO_BIG: Self = Self { code: 1009, reason: "the message is larger than the limit" };
    pub(crate) const NO_TEXT: Self = Self { code: 1007, reason: "a text message that is not UTF-8" };
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// The beginning of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) last: bool,
    pub(crate) packed: bool,
    pub(crate) kind: Kind,
    pub(crate) mask: [u8; 4],
    /// Where the payload begins.
    pub(crate) start: usize,
    /// Its length.
    pub(crate) len: usize,
}

/// The longest payload of a control frame.
const CONTROL_BYTES_MAX: usize = 125;

/// Reads a client's frame head; none where more bytes are needed.
pub(crate) fn read_head(bytes: &[u8], max: usize, packing: bool) -> Result<Option<Head>, Fault> {
    let (Some(first), Some(second)) = (bytes.first(), bytes.get(1)) else { return Ok(None) };
    let kind = match first & 0x0f {
        0 => Kind::Continuation,
        1 => Kind::Text,
        2 => Kind::Binary,
        8 => Kind::Close,
        9 => Kind::Ping,
        10 => Kind::Pong,
        _ => return Err(Fault::protocol("an opcode that is not known")),
    };
    let (last, packed) = (first & 0x80 != 0, first & 0x40 != 0);
    if first & 0x30 != 0 || (packed && !(packing && matches!(kind, Kind::Text | Kind::Binary))) {
        return Err(Fault::protocol("reserved bits are set"));
    }
    if second & 0x80 == 0 {
        return Err(Fault::protocol("a frame that is not masked"));
    }
    let short = usize::from(second & 0x7f);
    let is_control = matches!(kind, Kind::Close | Kind::Ping | Kind::Pong);
    if is_control && (!last || short > CONTROL_BYTES_MAX) {
        return Err(Fault::protocol("a control frame that is cut or too long"));
    }
    let (len, at) = match short {
        126 => match bytes.get(2..4).and_then(|bytes| bytes.try_into().ok()) {
            Some(len) => (u64::from(u16::from_be_bytes(len)), 4),
            None => return Ok(None),
        },
        127 => match bytes.get(2..10).and_then(|bytes| bytes.try_into().ok()) {
            Some(len) => (u64::from_be_bytes(len), 10),
            None => return Ok(None),
        },
        len => (len as u64, 2),
    };
    let len = usize::try_from(len).ok().filter(|len| *len <= max).ok_or(Fault::TOO_BIG)?;
    let Some(mask) = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()) else { return Ok(None) };
    Ok(Some(Head { last, packed, kind, mask, start: at + 4, len }))
}

/// Takes the mask off.
pub(crate) fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u128::from_ne_bytes([mask; 4].concat().try_into().unwrap_or([0; 16]));
    let mut blocks = payload.chunks_exact_mut(16);
    for block in &mut blocks {
        if let Ok(bytes) = <[u8; 16]>::try_from(&*block) {
            block.copy_from_slice(&(u128::from_ne_bytes(bytes) ^ wide).to_ne_bytes());
        }
    }
    for (byte, mask) in blocks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// Writes a frame of ours, with its payload written by `payload`.
pub(crate) fn put_frame(out: &mut Vec<u8>, kind: Kind, payload: impl FnOnce(&mut Vec<u8>)) {
    let opcode = match kind {
        Kind::Continuation => 0,
        Kind::Text => 1,
        Kind::Binary => 2,
        Kind::Close => 8,
        Kind::Ping => 9,
        Kind::Pong => 10,
    };
    out.push(0x80 | opcode);
    // Nearly all payloads have two bytes of length: room for these is left, and put right where that is wrong.
    out.push(126);
    out.extend_from_slice(&[0, 0]);
    let start = out.len();
    payload(out);
    let len = out.len() - start;
    let (short, more): (u8, Vec<u8>) = match (u8::try_from(len), u16::try_from(len)) {
        (Ok(len), _) if len < 126 => (len, Vec::new()),
        (_, Ok(len)) => (126, len.to_be_bytes().to_vec()),
        _ => (127, (len as u64).to_be_bytes().to_vec()),
    };
    if let Some(place) = out.get_mut(start - 3) {
        *place = short;
    }
    out.splice(start - 2..start, more);
}

/// Writes a close frame.
pub(crate) fn put_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    put_frame(out, Kind::Close, |out| {
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(reason.as_bytes());
    });
}

/// The code of a client's close frame; none where it brought none.
pub(crate) fn read_close(payload: &[u8]) -> Result<Option<u16>, Fault> {
    match payload {
        [] => Ok(None),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            let known = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
            match known && std::str::from_utf8(reason).is_ok() {
                true => Ok(Some(code)),
                false => Err(Fault::protocol("a close frame with a wrong code or reason")),
            }
        }
        _ => Err(Fault::protocol("a close frame of one byte")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_at_any_cut_and_unmasked() {
        for len in [0_usize, 1, 15, 16, 17, 125, 126, 65_535, 65_536] {
            let mask = [1, 2, 3, 4];
            let mut bytes = Vec::new();
            put_frame(&mut bytes, Kind::Text, |out| out.extend((0..len).map(|at| (at % 251) as u8)));
            // Made a client's: masked, with the mask behind the length.
            let head = bytes.len() - len;
            bytes[1] |= 0x80;
            let payload: Vec<u8> = bytes[head..].iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]).collect();
            let bytes = [&bytes[..head], &mask, &payload].concat();
            for cut in 0..head + 4 {
                assert_eq!(read_head(&bytes[..cut], 1 << 20, false), Ok(None), "{len} cut at {cut}");
            }
            let found = read_head(&bytes, 1 << 20, false).unwrap().unwrap();
            assert_eq!((found.start, found.len, found.kind, found.last), (head + 4, len, Kind::Text, true));
            let mut payload = bytes[found.start..].to_vec();
            unmask(&mut payload, found.mask);
            assert!(payload.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
        }
    }

    #[test]
    fn s35_f60_what_breaks_the_protocol_is_told_by_its_code() {
        let code = |bytes: &[u8]| read_head(bytes, 1000, false).unwrap_err().code;
        assert_eq!(code(&[0x81, 5]), 1002, "not masked");
        assert_eq!(code(&[0xc1, 0x80]), 1002, "packed without having agreed on it");
        assert_eq!(code(&[0x91, 0x80]), 1002, "reserved bits");
        assert_eq!(code(&[0x83, 0x80]), 1002, "unknown opcode");
        assert_eq!(code(&[0x09, 0x80]), 1002, "a ping in pieces");
        assert_eq!(code(&[0x89, 0xfe]), 1002, "a long ping");
        assert_eq!(code(&[0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), 1009, "2^63-1 bytes");
        assert_eq!(code(&[0x81, 0xfe, 0x03, 0xe9]), 1009, "1001 bytes");
        assert_eq!(read_close(&[3]).unwrap_err().code, 1002);
        assert_eq!(read_close(&[0x03, 0xed]).unwrap_err().code, 1002, "1005 is never sent");
        assert_eq!(read_close(&[0x03, 0xe8, b'o', b'k']), Ok(Some(1000)));
    }
}
