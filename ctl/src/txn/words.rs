//! What a line of the transaction shell says: its words, and the command they make. Pure.
//!
//! A word ends at a space; in double quotes spaces and escapes are part of it. Bare words stand for bytes as the shell's
//! coding says.

use crate::error::{Error, Result};
use crate::text::{Coding, unescape};

/// Pairs that a scan without a limit prints.
const SCAN_LIMIT: usize = 100;

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// An empty line or a remark.
    Nothing,
    Begin {
        pessimistic: bool,
    },
    Get(Vec<u8>),
    Put {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Insert {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    Delete(Vec<u8>),
    Lock(Vec<Vec<u8>>),
    Scan(Range),
    Commit,
    Rollback,
    Help,
    Quit,
}

/// Which pairs a scan prints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Range {
    /// The first key.
    pub start: Option<Vec<u8>>,
    /// The first key after it.
    pub end: Option<Vec<u8>>,
    /// Most pairs.
    pub limit: usize,
    /// The largest key first.
    pub reverse: bool,
}

/// A word, and whether it was quoted: a quoted one is never a keyword.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    text: String,
    quoted: bool,
}

impl Word {
    fn is(&self, keyword: &str) -> bool {
        !self.quoted && self.text == keyword
    }

    fn bytes(&self, coding: Coding) -> Result<Vec<u8>> {
        let bytes = match self.quoted {
            true => unescape(self.text.as_bytes()),
            false => coding.parse(&self.text),
        };
        bytes.map_err(|error| Error::Usage(format!("{:?}: {error}", self.text)))
    }
}

/// The words of a line. Escapes in quoted ones are left as they are.
fn split(line: &str) -> Result<Vec<Word>> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let end = closing_quote(quoted);
                let end = end.ok_or_else(|| Error::Usage(format!("a quote is missing after {quoted:?}")))?;
                let after = &quoted[end + 1..];
                if after.starts_with(|c: char| !c.is_whitespace()) {
                    return Err(Error::Usage(format!("a space is missing before {after:?}")));
                }
                // The only escape that the bytes' own escapes do not know.
                (Word { text: quoted[..end].replace("\\\"", "\""), quoted: true }, after)
            }
            None => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                (Word { text: rest[..end].to_owned(), quoted: false }, &rest[end..])
            }
        };
        words.push(word);
        rest = after.trim_start();
    }
    Ok(words)
}

/// Where the quote is that ends a quoted word; one after a backslash does not.
fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// The command on a line.
pub fn parse(line: &str, coding: Coding) -> Result<Command> {
    if line.trim_start().starts_with('#') {
        return Ok(Command::Nothing);
    }
    let words = split(line)?;
    let Some((verb, words)) = words.split_first() else { return Ok(Command::Nothing) };
    let usage = |how: &str| Err(Error::Usage(format!("write `{how}`; `help` shows all commands")));
    let verb = if verb.quoted { "" } else { verb.text.as_str() };
    match (verb, words) {
        ("begin", []) => Ok(Command::Begin { pessimistic: false }),
        ("begin", [kind]) if kind.is("optimistic") => Ok(Command::Begin { pessimistic: false }),
        ("begin", [kind]) if kind.is("pessimistic") => Ok(Command::Begin { pessimistic: true }),
        ("begin", _) => usage("begin [pessimistic]"),
        ("get", [key]) => Ok(Command::Get(key.bytes(coding)?)),
        ("get", _) => usage("get KEY"),
        ("put", [key, value]) => Ok(Command::Put { key: key.bytes(coding)?, value: value.bytes(coding)? }),
        ("put", _) => usage("put KEY VALUE"),
        ("insert", [key, value]) => {
            Ok(Command::Insert { key: key.bytes(coding)?, value: value.bytes(coding)? })
        }
        ("insert", _) => usage("insert KEY VALUE"),
        ("delete", [key]) => Ok(Command::Delete(key.bytes(coding)?)),
        ("delete", _) => usage("delete KEY"),
        ("lock", [_, ..]) => {
            words.iter().map(|key| key.bytes(coding)).collect::<Result<_>>().map(Command::Lock)
        }
        ("lock", []) => usage("lock KEY..."),
        ("scan", words) => scan(words, coding).map(Command::Scan),
        ("commit", []) => Ok(Command::Commit),
        ("rollback", []) => Ok(Command::Rollback),
        ("help", []) => Ok(Command::Help),
        ("quit" | "exit", []) => Ok(Command::Quit),
        _ => Err(Error::Usage("unknown command; `help` shows all".into())),
    }
}

fn scan(words: &[Word], coding: Coding) -> Result<Range> {
    let mut range = Range { limit: SCAN_LIMIT, ..Range::default() };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word.is("reverse") {
            range.reverse = true;
        } else if word.is("limit") {
            let number = words.next().and_then(|word| word.text.parse().ok());
            range.limit = number.ok_or_else(|| Error::Usage("write `limit N`; 0 prints all".into()))?;
        } else if range.start.is_none() {
            range.start = Some(word.bytes(coding)?);
        } else if range.end.is_none() {
            range.end = Some(word.bytes(coding)?);
        } else {
            return Err(Error::Usage("write `scan [START [END]] [limit N] [reverse]`".into()));
        }
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(line: &str) -> Command {
        parse(line, Coding::Text).unwrap()
    }

    #[test]
    fn words_end_at_spaces_and_quotes_keep_them() {
        let put = |key: &[u8], value: &[u8]| Command::Put { key: key.to_vec(), value: value.to_vec() };
        assert_eq!(text("  put a  b "), put(b"a", b"b"));
        assert_eq!(text(r#"put "a b" "say \"hi\"\n\xff""#), put(b"a b", b"say \"hi\"\n\xff"));
        assert_eq!(text(r#"put "" "\\""#), put(b"", b"\\"));
        assert_eq!(text(r"put C:\dir x"), put(br"C:\dir", b"x"));
        assert_eq!(parse("put 6100 ff", Coding::Hex).unwrap(), put(b"a\0", b"\xff"));
        assert_eq!(parse(r#"put "text" ff"#, Coding::Hex).unwrap(), put(b"text", b"\xff"));
        assert_eq!(
            (text(""), text("  # begin"), text("quit")),
            (Command::Nothing, Command::Nothing, Command::Quit)
        );
    }

    #[test]
    fn scans_take_words_in_any_order_after_the_keys() {
        let range = |start: Option<&str>, end: Option<&str>, limit, reverse| {
            let bytes = |key: Option<&str>| key.map(|key| key.as_bytes().to_vec());
            Command::Scan(Range { start: bytes(start), end: bytes(end), limit, reverse })
        };
        assert_eq!(text("scan"), range(None, None, 100, false));
        assert_eq!(text("scan a b limit 0 reverse"), range(Some("a"), Some("b"), 0, true));
        assert_eq!(text("scan reverse limit 7 a"), range(Some("a"), None, 7, true));
        assert_eq!(text(r#"scan "limit""#), range(Some("limit"), None, 100, false));
    }

    #[test]
    fn mistakes_say_what_to_write() {
        for (line, hint) in [
            ("get", "get KEY"),
            ("put a", "put KEY VALUE"),
            ("begin later", "begin [pessimistic]"),
            ("lock", "lock KEY..."),
            ("scan a b c", "scan [START"),
            ("scan limit x", "limit N"),
            ("drop table", "help"),
            ("\"get\" a", "help"),
            ("get \"a", "quote"),
            ("get \"a\"b", "space"),
            (r#"get "\q""#, r"\q"),
        ] {
            let error = parse(line, Coding::Text).unwrap_err();
            assert!(error.exit_code() == 2 && error.to_string().contains(hint), "{line}: {error}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_is_typed_panics(line: String) {
            let _ = parse(&line, Coding::Escaped);
        }
    }
}
