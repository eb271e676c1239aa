//! The cryptography that `jsonwebtoken` calls: ring, which TLS uses too. It checks signatures and makes none.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use ring::{hmac, signature as ring_signature};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: verifier,
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes it the one that is used. Once is enough; more do no harm.
pub(super) fn install() {
    let _ = PROVIDER.install_default();
}

fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    let raw = |scheme: &'static dyn ring_signature::VerificationAlgorithm| -> Result<Check> {
        Ok(Check::Raw(ring_signature::UnparsedPublicKey::new(scheme, key.try_get_as_bytes()?.to_vec())))
    };
    let check = match (algorithm, key.kind()) {
        (Algorithm::HS256, _) => Check::Hmac(hmac::Key::new(hmac::HMAC_SHA256, key.try_get_as_bytes()?)),
        (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
            Check::Rsa(ring_signature::RsaPublicKeyComponents { n: n.clone(), e: e.clone() })
        }
        (Algorithm::ES256, _) => raw(&ring_signature::ECDSA_P256_SHA256_FIXED)?,
        (Algorithm::EdDSA, _) => raw(&ring_signature::ED25519)?,
        _ => return Err(ErrorKind::UnsupportedAlgorithm.into()),
    };
    Ok(Box::new(Verifier { algorithm: *algorithm, check }))
}

struct Verifier {
    algorithm: Algorithm,
    check: Check,
}

enum Check {
    Hmac(hmac::Key),
    Rsa(ring_signature::RsaPublicKeyComponents<Vec<u8>>),
    Raw(ring_signature::UnparsedPublicKey<Vec<u8>>),
}

impl signature::Verifier<Vec<u8>> for Verifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), signature::Error> {
        let right = match &self.check {
            // In constant time, as ring's documentation of `hmac::verify` promises.
            Check::Hmac(key) => hmac::verify(key, message, signature),
            Check::Rsa(key) => key.verify(&ring_signature::RSA_PKCS1_2048_8192_SHA256, message, signature),
            Check::Raw(key) => key.verify(message, signature),
        };
        right.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Verifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}
