//! The line formats of import and export: bytes in, records and bad lines out, and back.
//!
//! [`Decoder`] takes input in chunks of any size and hands out one record or one bad line at a time, each with
//! the number of the line it starts on. [`Encoder`] writes the canonical form. Pure: no file, no network.
//!
//! Invariants: a bad line costs only itself; memory is bounded by one record of [`RECORD_BYTES_MAX`] plus one
//! chunk; decoding what an encoder wrote gives the same records, and encoding what a decoder read from
//! canonical input gives the same bytes.

mod csv;
mod jsonl;
mod tsv;

use bytes::{Bytes, BytesMut};
use serde::Serialize;

/// Longest record in bytes, line end included. A longer one is a bad line.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// Which format a file is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `key`, tab, `value`; no tab means an empty value.
    Tsv,
    /// RFC 4180 `key,value`; no comma means an empty value.
    Csv,
    /// One JSON object a line: `{"key":"…","value":"…"}`.
    Jsonl,
}

/// One key and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Number of the line the record starts on, from 1.
    pub line: u64,
    /// Never empty.
    pub key: Bytes,
    /// May be empty.
    pub value: Bytes,
    /// Seconds until the pair expires; 0 means never.
    pub ttl_seconds: u64,
}

/// A line that holds no record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadLine {
    /// Number of the line, from 1.
    pub line: u64,
    /// What is wrong with it and what would be right.
    pub reason: String,
}

/// A decoded line before it is known which number it has.
struct Fields {
    key: Bytes,
    value: Bytes,
    ttl_seconds: u64,
}

/// Cuts chunks of input into records.
pub struct Decoder {
    format: Format,
    /// Input that is not handed out yet; starts at the start of line `line`, or inside it while `skipping`.
    buf: BytesMut,
    /// How many bytes of `buf` are known to hold no end of the first record.
    scanned: usize,
    /// Where the scan of a CSV record stands after `scanned` bytes.
    scan: csv::Scan,
    line: u64,
    /// The rest of a line that was reported as too long is passed over.
    skipping: bool,
    ended: bool,
    record_bytes_max: usize,
}

impl Decoder {
    /// A decoder at the start of the input.
    pub fn new(format: Format) -> Decoder {
        Decoder {
            format,
            buf: BytesMut::new(),
            scanned: 0,
            scan: csv::Scan::default(),
            line: 1,
            skipping: false,
            ended: false,
            record_bytes_max: RECORD_BYTES_MAX,
        }
    }

    /// Adds input. Take all records out before the next chunk, so that the buffer stays small.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buf.extend_from_slice(chunk);
    }

    /// Says that no more input comes: a last line without a line end is now complete.
    pub fn finish(&mut self) {
        self.ended = true;
    }

    /// The next record or bad line; `None` when more input is needed, or at the end of it.
    pub fn next_record(&mut self) -> Option<Result<Record, BadLine>> {
        if self.skipping && !self.skip_rest_of_line() {
            return None;
        }
        let found = match self.format {
            Format::Csv => self.scan.find_end(&self.buf, &mut self.scanned),
            Format::Tsv | Format::Jsonl => find_newline(&self.buf, &mut self.scanned),
        };
        let raw = match found {
            Some(end) => self.take(end + 1),
            None if self.buf.len() > self.record_bytes_max => return Some(Err(self.give_up_too_long())),
            None if self.ended && self.scan.in_quotes() => return Some(Err(self.give_up_open_quote())),
            None if self.ended && !self.buf.is_empty() => self.take(self.buf.len()),
            None => return None,
        };
        let line = self.line;
        self.line += raw.iter().filter(|byte| **byte == b'\n').count() as u64;
        Some(self.decode(line, raw))
    }

    fn decode(&self, line: u64, raw: Bytes) -> Result<Record, BadLine> {
        if raw.len() > self.record_bytes_max {
            return Err(self.too_long(line));
        }
        let end = raw.len() - usize::from(raw.ends_with(b"\n"));
        let raw = raw.slice(..end);
        let fields = match self.format {
            Format::Tsv => tsv::decode(&raw),
            Format::Csv => csv::decode(&raw),
            Format::Jsonl => jsonl::decode(&raw),
        };
        match fields {
            Ok(fields) if fields.key.is_empty() => {
                Err(BadLine { line, reason: "the key is empty".to_owned() })
            }
            Ok(Fields { key, value, ttl_seconds }) => Ok(Record { line, key, value, ttl_seconds }),
            Err(reason) => Err(BadLine { line, reason }),
        }
    }

    fn take(&mut self, len: usize) -> Bytes {
        self.scanned = 0;
        self.scan = csv::Scan::default();
        self.buf.split_to(len).freeze()
    }

    /// Passes over the rest of a line; false when its end is not here yet.
    fn skip_rest_of_line(&mut self) -> bool {
        match self.buf.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let _ = self.take(end + 1);
                self.line += 1;
                self.skipping = false;
                true
            }
            None => {
                self.buf.clear();
                false
            }
        }
    }

    fn too_long(&self, line: u64) -> BadLine {
        let limit = self.record_bytes_max;
        BadLine { line, reason: format!("longer than {limit} bytes; split the value over several keys") }
    }

    /// Reports the first line and goes on with the second: only an open quote hides good lines in the buffer.
    fn give_up_too_long(&mut self) -> BadLine {
        if self.scan.in_quotes() && self.buf.contains(&b'\n') {
            return self.give_up_open_quote();
        }
        let bad = self.too_long(self.line);
        self.skipping = true;
        self.scanned = 0;
        self.scan = csv::Scan::default();
        bad
    }

    fn give_up_open_quote(&mut self) -> BadLine {
        let reason = r#"a quoted field has no closing quote; write a quote inside quotes as """#.to_owned();
        let bad = BadLine { line: self.line, reason };
        let end = self.buf.iter().position(|byte| *byte == b'\n').map_or(self.buf.len(), |at| at + 1);
        let _ = self.take(end);
        self.line += 1;
        bad
    }
}

fn find_newline(buf: &[u8], scanned: &mut usize) -> Option<usize> {
    match buf[*scanned..].iter().position(|byte| *byte == b'\n') {
        Some(at) => Some(*scanned + at),
        None => {
            *scanned = buf.len();
            None
        }
    }
}

/// Writes records in the canonical form of a format.
#[derive(Debug, Clone, Copy)]
pub struct Encoder {
    format: Format,
}

impl Encoder {
    /// An encoder; it keeps nothing between records.
    pub fn new(format: Format) -> Encoder {
        Encoder { format }
    }

    /// Appends one record and its line end to `out`.
    pub fn encode(self, key: &[u8], value: &[u8], out: &mut Vec<u8>) {
        match self.format {
            Format::Tsv => tsv::encode(key, value, out),
            Format::Csv => csv::encode(key, value, out),
            Format::Jsonl => jsonl::encode(key, value, out),
        }
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Lines = Vec<Result<(u64, Vec<u8>, Vec<u8>), u64>>;

    fn decode_chunked(decoder: &mut Decoder, input: &[u8], chunk: usize) -> Lines {
        let mut out = Vec::new();
        let mut drain = |decoder: &mut Decoder| {
            while let Some(next) = decoder.next_record() {
                out.push(match next {
                    Ok(record) => Ok((record.line, record.key.to_vec(), record.value.to_vec())),
                    Err(bad) => Err(bad.line),
                });
            }
        };
        for piece in input.chunks(chunk.max(1)) {
            decoder.push(piece);
            drain(decoder);
        }
        decoder.finish();
        drain(decoder);
        out
    }

    fn decode_all(format: Format, input: &[u8], chunk: usize) -> Lines {
        decode_chunked(&mut Decoder::new(format), input, chunk)
    }

    fn good(line: u64, key: &[u8], value: &[u8]) -> Result<(u64, Vec<u8>, Vec<u8>), u64> {
        Ok((line, key.to_vec(), value.to_vec()))
    }

    #[test]
    fn a_bad_line_costs_only_itself() {
        let lines = decode_all(Format::Tsv, b"a\t1\n\nb\\q\t2\nc\t3\t4\nd", 3);
        assert_eq!(lines, [good(1, b"a", b"1"), Err(2), Err(3), Err(4), good(5, b"d", b"")]);
        let lines =
            decode_all(Format::Jsonl, b"{\"key\":\"a\"}\nnonsense\n{\"key\":\"b\",\"value\":\"2\"}", 5);
        assert_eq!(lines, [good(1, b"a", b""), Err(2), good(3, b"b", b"2")]);
    }

    #[test]
    fn a_line_of_only_a_key_survives_the_round_trip() {
        let mut out = Vec::new();
        Encoder::new(Format::Tsv).encode(b"word", b"", &mut out);
        assert_eq!(out, b"word\n");
    }

    #[test]
    fn csv_records_may_span_lines_and_are_numbered_by_their_first() {
        let lines = decode_all(Format::Csv, b"a,\"x\ny\"\r\nb,2\n\"c\"\"c\",\n", 4);
        assert_eq!(lines, [good(1, b"a", b"x\ny"), good(3, b"b", b"2"), good(4, b"c\"c", b"")]);
    }

    #[test]
    fn an_open_quote_does_not_swallow_the_lines_after_it() {
        let lines = decode_all(Format::Csv, b"a,\"open\nb,2\nc,3\n", 1);
        assert_eq!(lines, [Err(1), good(2, b"b", b"2"), good(3, b"c", b"3")]);
    }

    #[test]
    fn a_line_over_the_limit_is_reported_and_passed_over() {
        for format in [Format::Tsv, Format::Csv] {
            for chunk in [1, 4, 100] {
                let mut decoder = Decoder::new(format);
                decoder.record_bytes_max = 8;
                let lines =
                    decode_chunked(&mut decoder, b"0123456789abcdef\nok\nfedcba9876543210\nend", chunk);
                assert_eq!(lines, [Err(1), good(2, b"ok", b""), Err(3), good(4, b"end", b"")]);
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_exported_is_imported(
            pairs in prop::collection::vec((prop::collection::vec(any::<u8>(), 1..12), any::<Vec<u8>>()), 0..20),
            format in prop::sample::select(vec![Format::Tsv, Format::Csv, Format::Jsonl]),
            chunk in 1usize..40,
        ) {
            let mut file = Vec::new();
            for (key, value) in &pairs {
                Encoder::new(format).encode(key, value, &mut file);
            }
            let lines = decode_all(format, &file, chunk);
            let read: Vec<_> = lines.into_iter().map(|line| line.map(|(_, key, value)| (key, value))).collect();
            prop_assert_eq!(read, pairs.into_iter().map(Ok).collect::<Vec<_>>());
        }

        #[test]
        fn no_input_breaks_the_decoder(input: Vec<u8>, chunk in 1usize..40) {
            for format in [Format::Tsv, Format::Csv, Format::Jsonl] {
                let lines = decode_all(format, &input, chunk);
                prop_assert_eq!(lines, decode_all(format, &input, input.len()));
            }
        }
    }
}
