//! The checksum of raw data: the exclusive or of one CRC-64 per pair, over its key and then its value.
//!
//! The polynomial is ECMA-182 in its reflected form with all bits inverted before and after (CRC-64/XZ), as
//! backup tools of the field expect it. The order of pairs does not matter.

const POLYNOMIAL: u64 = 0xc96c_5795_d787_0f42;

static TABLE: [u64; 256] = table();

const fn table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
}

/// The sum over all pairs seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksum {
    pub crc64_xor: u64,
    pub total_kvs: u64,
    /// Bytes of keys and values.
    pub total_bytes: u64,
}

impl Checksum {
    /// Adds one pair.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        self.crc64_xor ^= !update(update(!0, key), value);
        self.total_kvs += 1;
        self.total_bytes += (key.len() + value.len()) as u64;
    }
}

fn update(crc: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(crc, |crc, b| TABLE[usize::from(crc as u8 ^ b)] ^ (crc >> 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_check_value() {
        let mut sum = Checksum::default();
        sum.add(b"1234", b"56789");
        assert_eq!(sum, Checksum { crc64_xor: 0x995d_c9bb_df19_39fa, total_kvs: 1, total_bytes: 9 });
    }

    #[test]
    fn the_order_of_pairs_does_not_matter() {
        let (mut a, mut b) = (Checksum::default(), Checksum::default());
        a.add(b"k1", b"v1");
        a.add(b"k2", b"v2");
        b.add(b"k2", b"v2");
        b.add(b"k1", b"v1");
        assert_eq!(a, b);
    }
}
