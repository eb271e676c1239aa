//! Digests, random text, and comparing without telling how much was right.

use lakegate_env::Random;
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

/// The SHA-256 digest of some bytes.
pub(crate) type Digest = [u8; 32];

/// SHA-256 (FIPS 180-4).
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    let mut found = Digest::default();
    found.iter_mut().zip(digest(&SHA256, bytes).as_ref()).for_each(|(to, from)| *to = *from);
    found
}

/// Whether two digests are the same, in a time that does not depend on where they differ.
pub(crate) fn same(a: &Digest, b: &Digest) -> bool {
    a.as_slice().ct_eq(b.as_slice()).into()
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes that hexadecimal digits stand for, if they are 32.
pub(crate) fn digest_of_hex(text: &str) -> Option<Digest> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = Digest::default();
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(at * 2..at * 2 + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// The letters of keys: no two that look alike, and none that a shell or an address takes for something else.
const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// `letters` random letters, five bits each.
pub(crate) fn random_text(random: &dyn Random, letters: usize) -> String {
    let mut text = String::with_capacity(letters);
    while text.len() < letters {
        let mut bits = random.next_u64();
        for _ in 0..12.min(letters - text.len()) {
            let letter = LETTERS.get(usize::try_from(bits & 31).unwrap_or(0)).copied().unwrap_or(b'a');
            text.push(char::from(letter));
            bits >>= 5;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use lakegate_env::SeededRandom;

    use super::*;

    #[test]
    fn a_digest_is_that_of_the_standard() {
        // FIPS 180-2, appendix B.1.
        let of_abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(&sha256(b"abc")), of_abc);
        assert_eq!(digest_of_hex(of_abc), Some(sha256(b"abc")));
        for bad in ["", "zz", &of_abc[1..], &"é".repeat(32), &"+f".repeat(32)] {
            assert_eq!(digest_of_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn random_text_uses_all_letters_and_no_others() {
        let random = SeededRandom::new(7);
        let text = random_text(&random, 5000);
        assert_eq!(text.len(), 5000);
        assert!(text.bytes().all(|b| LETTERS.contains(&b)) && LETTERS.iter().all(|l| text.as_bytes().contains(l)));
    }
}
