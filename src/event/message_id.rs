//! The name of a record by which a consumer drops repeats.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::run::Timestamp;

/// `personas_` and a KSUID: four bytes of time, sixteen of payload, in 27 digits of base 62.
/// <https://github.com/segmentio/ksuid>
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageId([u8; Self::LENGTH]);

/// KSUIDs count seconds from here, 2014-05-13.
const KSUID_EPOCH: i64 = 1_400_000_000;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const PREFIX: &[u8] = b"personas_";

impl MessageId {
    const LENGTH: usize = PREFIX.len() + 27;

    pub(super) fn new(at: Timestamp, payload: [u8; 16]) -> Self {
        let seconds = at.millis().div_euclid(1000) - KSUID_EPOCH;
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(
            &u32::try_from(seconds.max(0))
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        bytes[4..].copy_from_slice(&payload);
        let mut id = [0; Self::LENGTH];
        id[..PREFIX.len()].copy_from_slice(PREFIX);
        base62(bytes, &mut id[PREFIX.len()..]);
        Self(id)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("base 62 is ASCII")
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Writes a number of 160 bits, most significant digit first, filling `digits` from the right.
fn base62(number: [u8; 20], digits: &mut [u8]) {
    let mut words = [0_u32; 5];
    for (word, bytes) in words.iter_mut().zip(number.chunks_exact(4)) {
        *word = u32::from_be_bytes(bytes.try_into().expect("chunks of four"));
    }
    // Five digits a division: 62^5 still fits a word.
    for group in digits.rchunks_mut(5) {
        let base = 62_u64.pow(5);
        let mut rest = 0;
        for word in &mut words {
            let value = rest << 32 | u64::from(*word);
            *word = u32::try_from(value / base).expect("the rest is below the base");
            rest = value % base;
        }
        for digit in group.iter_mut().rev() {
            *digit = DIGITS[(rest % 62) as usize];
            rest /= 62;
        }
    }
}

/// A hash of the parts, each closed by a NUL, which none of them can hold.
pub(super) fn digest(parts: &[&[u8]]) -> Sha256 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ksuids_are_segments() {
        // The highest KSUID, and the example of segmentio/ksuid's README.
        let mut digits = [0; 27];
        base62([0xff; 20], &mut digits);
        assert_eq!(&digits, b"aWgEPTl1tmebfsQzFP4bxwgy80V");
        let payload = 0xB5A1_CD34_B5F9_9D11_54FB_6853_345C_9735_u128.to_be_bytes();
        let at = Timestamp::from_millis((107_608_047 + KSUID_EPOCH) * 1000);
        assert_eq!(
            MessageId::new(at, payload).as_str(),
            "personas_0ujtsYcgvSTl8PAuAdqWYSMnLOv"
        );
    }
}

#[cfg(test)]
mod laws {
    use proptest::prelude::*;

    use super::*;
    use crate::laws::cases;

    fn times() -> impl Strategy<Value = i64> {
        prop_oneof![any::<i64>(), 1_400_000_000_000..6_000_000_000_000_i64]
    }

    /// The number that digits of base 62 stand for, most significant byte first.
    fn decoded(digits: &str) -> [u8; 20] {
        let mut number = [0_u8; 20];
        for digit in digits.bytes() {
            let value = DIGITS.iter().position(|known| *known == digit).unwrap();
            let mut carry = value as u32;
            for byte in number.iter_mut().rev() {
                let next = u32::from(*byte) * 62 + carry;
                *byte = (next & 0xff) as u8;
                carry = next >> 8;
            }
            assert_eq!(carry, 0, "over 160 bits");
        }
        number
    }

    proptest! {
        #![proptest_config(cases(512))]

        #[test]
        fn an_id_is_a_ksuid_that_tells_its_time(millis in times(), payload in any::<[u8; 16]>()) {
            let id = MessageId::new(Timestamp::from_millis(millis), payload);
            let ksuid = id.as_str().strip_prefix("personas_").unwrap();
            prop_assert_eq!(ksuid.len(), 27);
            let bytes = decoded(ksuid);
            let seconds = (millis.div_euclid(1000) - 1_400_000_000).clamp(0, i64::from(u32::MAX));
            prop_assert_eq!(u32::from_be_bytes(bytes[..4].try_into().unwrap()), seconds as u32);
            prop_assert_eq!(&bytes[4..], &payload);
        }

        /// So that a consumer may sort by it.
        #[test]
        fn ids_sort_by_time(first in 1_400_000_000_u32.., later in 1_u32..1_000_000, payloads in any::<[[u8; 16]; 2]>()) {
            let seconds = i64::from(first) - 1;
            let at = |seconds: i64| Timestamp::from_millis(seconds * 1000);
            let earlier = MessageId::new(at(seconds), payloads[0]);
            let later = MessageId::new(at(seconds + i64::from(later)), payloads[1]);
            prop_assert!(earlier.as_str() < later.as_str());
        }
    }
}
