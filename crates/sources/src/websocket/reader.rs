//! Messages out of bytes: frames joined, unmasked, unpacked.

use super::frame::{Fault, Head, Kind, read_close, read_head, unmask};
use super::inflate::inflate;

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Got<'a> {
    Message(&'a [u8]),
    Ping(&'a [u8]),
    Close(Option<u16>),
}

/// A message of which pieces are still to come.
#[derive(Debug)]
struct Open {
    packed: bool,
    text: bool,
    parts: Vec<u8>,
}

/// Between reads it holds only what has come in part.
#[derive(Debug)]
pub(crate) struct Reader {
    packing: bool,
    max: usize,
    waiting: Vec<u8>,
    open: Option<Open>,
}

impl Reader {
    pub(crate) fn new(packing: bool, max: usize) -> Self {
        Self { packing, max, waiting: Vec::new(), open: None }
    }

    /// Bytes that are held.
    pub(crate) fn held(&self) -> usize {
        self.waiting.capacity() + self.open.as_ref().map_or(0, |open| open.parts.capacity())
    }

    /// Takes what was read.
    pub(crate) fn take(&mut self, data: &mut [u8], mut give: impl FnMut(Got<'_>)) -> Result<(), Fault> {
        if self.waiting.is_empty() {
            let used = self.frames(data, &mut give)?;
            self.waiting = data.get(used..).unwrap_or_default().to_vec();
            return Ok(());
        }
        let mut all = std::mem::take(&mut self.waiting);
        all.extend_from_slice(data);
        let used = self.frames(&mut all, &mut give)?;
        all.drain(..used);
        if all.capacity() / 2 > all.len() {
            all.shrink_to_fit();
        }
        self.waiting = all;
        Ok(())
    }

    /// Goes over whole frames; says how many bytes they took.
    fn frames(&mut self, bytes: &mut [u8], give: &mut impl FnMut(Got<'_>)) -> Result<usize, Fault> {
        let mut at = 0;
        loop {
            let rest = bytes.get_mut(at..).unwrap_or_default();
            let Some(head) = read_head(rest, self.max, self.packing)? else { return Ok(at) };
            let Some(payload) = rest.get_mut(head.start..head.start + head.len) else { return Ok(at) };
            unmask(payload, head.mask);
            self.frame(head, payload, give)?;
            at += head.start + head.len;
        }
    }

    fn frame(&mut self, head: Head, payload: &[u8], give: &mut impl FnMut(Got<'_>)) -> Result<(), Fault> {
        match (head.kind, &mut self.open) {
            (Kind::Ping, _) => give(Got::Ping(payload)),
            (Kind::Pong, _) => {}
            (Kind::Close, _) => give(Got::Close(read_close(payload)?)),
            (Kind::Continuation, None) => return Err(Fault::protocol("a piece of no message")),
            (Kind::Text | Kind::Binary, Some(_)) => return Err(Fault::protocol("a message inside another")),
            (Kind::Text | Kind::Binary, none) => {
                let text = head.kind == Kind::Text;
                if head.last {
                    return self.message(payload, head.packed, text, give);
                }
                *none = Some(Open { packed: head.packed, text, parts: payload.to_vec() });
            }
            (Kind::Continuation, Some(open)) => {
                if open.parts.len() + payload.len() > self.max {
                    return Err(Fault::TOO_BIG);
                }
                open.parts.extend_from_slice(payload);
                if head.last
                    && let Some(whole) = self.open.take()
                {
                    return self.message(&whole.parts, whole.packed, whole.text, give);
                }
            }
        }
        Ok(())
    }

    fn message(&self, payload: &[u8], packed: bool, text: bool, give: &mut impl FnMut(Got<'_>)) -> Result<(), Fault> {
        let unpacked = if packed { Some(inflate(payload, self.max)?) } else { None };
        let message = unpacked.as_deref().unwrap_or(payload);
        if text && std::str::from_utf8(message).is_err() {
            return Err(Fault::NO_TEXT);
        }
        give(Got::Message(message));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's frame.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [9, 8, 7, 6];
        let masked = payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]);
        [first, 0x80 | payload.len() as u8].into_iter().chain(mask).chain(masked).collect()
    }

    fn read(bytes: &[u8], piece: usize) -> Result<Vec<String>, Fault> {
        let mut reader = Reader::new(true, 100);
        let mut got = Vec::new();
        for data in bytes.chunks(piece) {
            reader.take(&mut data.to_vec(), |one| {
                got.push(match one {
                    Got::Message(text) => String::from_utf8(text.to_vec()).unwrap(),
                    Got::Ping(text) => format!("ping {}", String::from_utf8_lossy(text)),
                    Got::Close(code) => format!("close {code:?}"),
                });
            })?;
        }
        assert_eq!(reader.held(), 0, "an idle socket holds nothing");
        Ok(got)
    }

    #[test]
    fn messages_are_the_same_however_the_bytes_come() {
        let hello = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
        let bytes = [
            frame(0x81, b"one"),
            frame(0x01, b"t"),
            frame(0x89, b"!"),
            frame(0x80, b"wo"),
            frame(0xc1, &hello),
            frame(0x41, &hello[..3]),
            frame(0x80, &hello[3..]),
            frame(0x82, b""),
            frame(0x8a, b"pong"),
            frame(0x88, &[0x03, 0xe8]),
        ]
        .concat();
        for piece in 1..=bytes.len() {
            let got = read(&bytes, piece).unwrap();
            assert_eq!(got, ["one", "ping !", "two", "Hello", "Hello", "", "close Some(1000)"], "in pieces of {piece}");
        }
    }

    #[test]
    fn s35_what_breaks_the_protocol_ends_the_reading() {
        for (bytes, code) in [
            (frame(0x80, b"x"), 1002),
            ([frame(0x01, b"x"), frame(0x81, b"y")].concat(), 1002),
            (frame(0x81, &[0xff]), 1007),
            ([frame(0x01, &[b'x'; 60]), frame(0x80, &[b'x'; 60])].concat(), 1009),
            (frame(0xc1, &[0xff; 9]), 1007),
        ] {
            assert_eq!(read(&bytes, 7).unwrap_err().code, code, "{bytes:?}");
        }
    }
}
