//! The pieces of which lock and write records are made: bytes, numbers of variable length, and strings with their
//! length in front. Reading shares the record's memory and never panics.

use bytes::{BufMut, Bytes};

/// Appends `n` in groups of seven bits, the lowest first.
pub fn put_u64(buf: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        buf.put_u8(n as u8 | 0x80);
        n >>= 7;
    }
    buf.put_u8(n as u8);
}

/// Appends the length of `bytes` and then them.
pub fn put_bytes(buf: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(buf, bytes.len() as u64);
    buf.put_slice(bytes);
}

/// Reads a number and gives what follows it; `None` when there is none.
pub fn peek_u64(stored: &[u8]) -> Option<(u64, &[u8])> {
    let (mut n, mut shift) = (0u64, 0u32);
    for (at, byte) in stored.iter().enumerate() {
        let bits = u64::from(byte & 0x7f);
        if shift > 63 || (shift == 63 && bits > 1) {
            return None;
        }
        n |= bits << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return Some((n, &stored[at + 1..]));
        }
    }
    None
}

/// Takes records apart. `None` everywhere means that the record is damaged.
pub struct Input(pub Bytes);

impl Input {
    /// One byte.
    pub fn u8(&mut self) -> Option<u8> {
        let byte = *self.0.first()?;
        let _ = self.0.split_to(1);
        Some(byte)
    }

    /// A number.
    pub fn u64(&mut self) -> Option<u64> {
        let (n, rest) = peek_u64(&self.0)?;
        let used = self.0.len() - rest.len();
        let _ = self.0.split_to(used);
        Some(n)
    }

    /// A string.
    pub fn bytes(&mut self) -> Option<Bytes> {
        let len = usize::try_from(self.u64()?).ok()?;
        if len > self.0.len() {
            return None;
        }
        Some(self.0.split_to(len))
    }

    /// Nothing is left.
    pub fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_strings_read_back_and_damage_is_noticed() {
        for n in [0, 1, 127, 128, 1 << 40, u64::MAX - 1, u64::MAX] {
            let mut buf = Vec::new();
            put_u64(&mut buf, n);
            put_bytes(&mut buf, b"abc");
            let mut input = Input(buf.clone().into());
            assert_eq!((input.u64(), input.bytes(), input.end()), (Some(n), Some("abc".into()), Some(())));
            for cut in 0..buf.len() {
                let mut input = Input(Bytes::copy_from_slice(&buf[..cut]));
                assert!(input.u64().and_then(|_| input.bytes()).is_none());
            }
        }
        assert_eq!(Input(vec![0xff; 10].into()).u64(), None, "more than 64 bits");
    }
}
