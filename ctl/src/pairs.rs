//! Pairs on the command line and on the terminal, raw and transactional alike: arguments and ranges in, lines and JSON
//! out.

use std::io::Write as _;
use std::ops::Bound;

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use kvclient::KvPair;
use serde::Serialize;

use crate::cli::{RangeArgs, Scan};
use crate::error::{Error, Result};
use crate::output::{Output, json, print_line, stdout_error};
use crate::text::{Coding, JsonEncoding, json_text};

/// A range of user keys.
pub(crate) type KeyRange = (Bound<Bytes>, Bound<Bytes>);

/// The bytes of an argument, or a usage error that names it.
pub(crate) fn parse(coding: Coding, name: &str, argument: &str) -> Result<Bytes> {
    match coding.parse(argument) {
        Ok(bytes) => Ok(Bytes::from(bytes)),
        Err(error) => Err(Error::Usage(format!("{name} {argument:?}: {error}"))),
    }
}

/// The range that the flags name.
pub(crate) fn range(args: &RangeArgs) -> Result<KeyRange> {
    let coding = args.coding.coding();
    if let Some(prefix) = &args.prefix {
        return Ok(kvclient::prefix(parse(coding, "--prefix", prefix)?));
    }
    let bound = |name, argument: &Option<String>| {
        argument.as_deref().map(|argument| parse(coding, name, argument)).transpose()
    };
    let start = bound("--start", &args.start)?.map_or(Bound::Unbounded, Bound::Included);
    let end = bound("--end", &args.end)?.map_or(Bound::Unbounded, Bound::Excluded);
    Ok((start, end))
}

/// A pair in JSON.
#[derive(Serialize)]
struct PairJson<'a> {
    key: &'a str,
    key_encoding: JsonEncoding,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_encoding: Option<JsonEncoding>,
}

/// A pair, or a key without its value, as one line of JSON.
pub(crate) fn pair_json(key: &[u8], value: Option<&[u8]>) -> Result<Vec<u8>> {
    let (key, key_encoding) = json_text(key);
    let value = value.map(json_text);
    json(&PairJson {
        key: &key,
        key_encoding,
        value: value.as_ref().map(|(text, _)| &**text),
        value_encoding: value.as_ref().map(|(_, encoding)| *encoding),
    })
}

/// What a get of an absent key ends with.
pub(crate) fn absent(key: &[u8], coding: Coding) -> Error {
    Error::NotFound(format!("key {} has no value", coding.show(key)))
}

/// Says that a write is done, where programs read that.
pub(crate) fn acknowledge(output: Output) -> Result<()> {
    #[derive(Serialize)]
    struct Done {
        done: bool,
    }
    match output {
        Output::Table => Ok(()),
        Output::Json => print_line(&json(&Done { done: true })?),
    }
}

/// Prints the value of a key, or fails when it has none.
pub(crate) fn print_value(key: &[u8], value: Option<Bytes>, coding: Coding, output: Output) -> Result<()> {
    let value = value.ok_or_else(|| absent(key, coding))?;
    match (output, coding) {
        (Output::Json, _) => print_line(&pair_json(key, Some(&value))?),
        // The bytes as they are, so that a value can be sent on.
        (Output::Table, Coding::Text) => print_line(&value),
        (Output::Table, _) => print_line(coding.show(&value).as_bytes()),
    }
}

/// How many pairs to ask for, so that it shows whether there are more than are printed; `None` for all.
pub(crate) fn one_more(args: &Scan) -> Option<usize> {
    (args.limit > 0).then(|| args.limit.saturating_add(1))
}

/// Prints pairs as they come, at most as many as the flags say.
pub(crate) async fn print_pairs(
    mut pairs: impl Stream<Item = kvclient::Result<KvPair>> + Unpin,
    args: &Scan,
    output: Output,
) -> Result<()> {
    let coding = args.range.coding.coding();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut printed = 0;
    while let Some(pair) = pairs.try_next().await? {
        if printed == args.limit && args.limit > 0 {
            out.flush().map_err(stdout_error)?;
            eprintln!("stopped after {printed} pairs and there are more; --limit 0 prints all");
            return Ok(());
        }
        let value = (!args.keys_only).then_some(&pair.value[..]);
        let mut line = match output {
            Output::Json => pair_json(&pair.key, value)?,
            Output::Table => pair_text(&pair.key, value, coding).into_bytes(),
        };
        line.push(b'\n');
        out.write_all(&line).map_err(stdout_error)?;
        printed += 1;
    }
    out.flush().map_err(stdout_error)
}

/// A pair, or a key without its value, as one line for people.
pub(crate) fn pair_text(key: &[u8], value: Option<&[u8]>, coding: Coding) -> String {
    match value {
        Some(value) => format!("{}\t{}", coding.show(key), coding.show(value)),
        None => coding.show(key),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::CodingArgs;

    fn args(start: Option<&str>, end: Option<&str>, prefix: Option<&str>) -> RangeArgs {
        RangeArgs {
            start: start.map(str::to_owned),
            end: end.map(str::to_owned),
            prefix: prefix.map(str::to_owned),
            coding: CodingArgs { hex: false, escaped: true },
        }
    }

    #[test]
    fn ranges_follow_the_flags() {
        let key = |bytes: &'static [u8]| Bytes::from_static(bytes);
        let both = range(&args(Some("a"), Some("b"), None)).unwrap();
        assert_eq!(both, (Bound::Included(key(b"a")), Bound::Excluded(key(b"b"))));
        assert_eq!(range(&args(None, None, None)).unwrap(), (Bound::Unbounded, Bound::Unbounded));
        let prefix = range(&args(None, None, Some(r"a\xff"))).unwrap();
        assert_eq!(prefix, (Bound::Included(key(b"a\xff")), Bound::Excluded(key(b"b"))));
        assert_eq!(range(&args(Some(r"\q"), None, None)).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn pairs_in_json_name_their_encoding() {
        let line = pair_json(b"k", Some(b"\xff")).unwrap();
        assert_eq!(line, br#"{"key":"k","key_encoding":"text","value":"ff","value_encoding":"hex"}"#);
        assert_eq!(pair_json(b"k", None).unwrap(), br#"{"key":"k","key_encoding":"text"}"#);
        assert_eq!(pair_text(b"a\tb", Some(b"1\n"), Coding::Text), "a\\tb\t1\\n");
    }
}
