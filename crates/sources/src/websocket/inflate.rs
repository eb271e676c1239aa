//! Unpacking of messages (RFC 7692, section 7.2.2), each on its own.

use std::cell::RefCell;

use flate2::{Decompress, FlushDecompress, Status};

use super::frame::Fault;

/// Taken away by the sender at the end of each message.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// Room is made in such steps.
const STEP_BYTES: usize = 16 << 10;

const DAMAGED: Fault = Fault { code: 1007, reason: "a packed message that cannot be unpacked" };

thread_local! {
    /// One for each thread rather than for each socket: a message is unpacked in one go.
    static INFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(false));
}

/// What a message holds, of at most `max` bytes.
pub(crate) fn inflate(packed: &[u8], max: usize) -> Result<Vec<u8>, Fault> {
    INFLATE.with_borrow_mut(|inflate| {
        inflate.reset(false);
        let mut out = Vec::new();
        for part in [packed, &TAIL] {
            let before = inflate.total_in();
            loop {
                let done = usize::try_from(inflate.total_in() - before).unwrap_or(usize::MAX);
                let Some(rest) = part.get(done..) else { break };
                if out.len() == out.capacity() {
                    out.reserve(STEP_BYTES.min(max + 1));
                }
                let (taken, given) = (inflate.total_in(), out.len());
                let status = inflate.decompress_vec(rest, &mut out, FlushDecompress::Sync);
                let status = status.map_err(|_| DAMAGED)?;
                if out.len() > max {
                    return Err(Fault::TOO_BIG);
                }
                if status == Status::StreamEnd {
                    return Ok(out);
                }
                let room = out.len() < out.capacity();
                if inflate.total_in() - before == part.len() as u64 && room {
                    break;
                }
                if (taken, given) == (inflate.total_in(), out.len()) && room {
                    return Err(DAMAGED);
                }
            }
        }
        Ok(out)
    })
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    fn deflate(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len() + 1000);
        Compress::new(Compression::default(), false).compress_vec(text, &mut out, FlushCompress::Sync).unwrap();
        assert!(out.ends_with(&TAIL));
        out.truncate(out.len() - 4);
        out
    }

    #[test]
    fn a_message_is_unpacked_as_it_was() {
        // "Hello", as RFC 7692 (section 7.2.3.1) writes it.
        assert_eq!(inflate(&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], 5).unwrap(), b"Hello");
        for len in [0_usize, 1, 1000, STEP_BYTES, 100_000] {
            let text: Vec<u8> = (0..len).map(|at| (at * at % 253) as u8).collect();
            assert_eq!(inflate(&deflate(&text), len).unwrap(), text, "{len}");
        }
    }

    #[test]
    fn s28_a_message_is_counted_as_it_unpacks() {
        let bomb = deflate(&vec![b'a'; 50 << 20]);
        assert!(bomb.len() < 60_000);
        assert_eq!(inflate(&bomb, 1 << 20), Err(Fault::TOO_BIG));
        assert_eq!(inflate(&[0xff; 20], 100).unwrap_err().code, 1007);
    }
}
