//! Reads Rust source just well enough for the house rules: what is code and what is comment, text or test;
//! where functions begin and end; which paths are imported. Works on text alone, so that it can be tested
//! with planted samples.

/// The source with comments and literals blanked: same lines, same columns, code only.
pub fn code_only(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes[at..].starts_with(b"//") => line_end(bytes, at),
            b'/' if bytes[at..].starts_with(b"/*") => block_comment_end(bytes, at),
            b'"' => string_end(bytes, at),
            b'r' | b'b' | b'c' if !follows_word(bytes, at) => literal_end(bytes, at),
            b'\'' => char_end(bytes, at),
            _ => at,
        };
        if end == at {
            at += 1;
            continue;
        }
        out[at..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
        at = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn follows_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && is_word(bytes[at - 1])
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|byte| *byte == b'\n').map_or(bytes.len(), |n| at + n)
}

fn block_comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut i) = (0, at);
    while i < bytes.len() {
        if bytes[i..].starts_with(b"/*") {
            depth += 1;
            i += 2;
        } else if bytes[i..].starts_with(b"*/") {
            depth -= 1;
            i += 2;
            if depth == 0 {
                return i;
            }
        } else {
            i += 1;
        }
    }
    bytes.len()
}

/// End of the string whose opening quote is at `at`.
fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut i = at + 1;
    while i < bytes.len() {
        match bytes[i] {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    bytes.len()
}

/// End of the prefixed literal (`b"`, `c"`, `r"`, `br#"`, `b'`) that begins at `at`, or `at` when none does.
fn literal_end(bytes: &[u8], at: usize) -> usize {
    let mut i = at;
    while i < bytes.len() && matches!(bytes[i], b'r' | b'b' | b'c') && i - at < 2 {
        i += 1;
    }
    let raw = bytes[at..i].contains(&b'r');
    let hashes = bytes[i..].iter().take_while(|byte| **byte == b'#').count();
    match bytes.get(i + hashes) {
        Some(b'"') if raw => {
            let close: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            let body = i + hashes + 1;
            let found = bytes[body..].windows(close.len()).position(|window| window == close);
            found.map_or(bytes.len(), |n| body + n + close.len())
        }
        Some(b'"') if hashes == 0 => string_end(bytes, i),
        Some(b'\'') if hashes == 0 && bytes[at] == b'b' && i == at + 1 => char_end(bytes, i),
        _ => at,
    }
}

/// End of the character literal at `at`, or `at` when the quote begins a lifetime.
fn char_end(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at + 1) {
        Some(b'\\') => {
            // The first byte after the backslash may be a quote; the closing one comes after it.
            let body = at + 3;
            bytes
                .get(body..)
                .and_then(|rest| rest.iter().position(|byte| *byte == b'\''))
                .map_or(at, |n| body + n + 1)
        }
        Some(_) => {
            let rest = String::from_utf8_lossy(&bytes[at + 1..bytes.len().min(at + 6)]).into_owned();
            let width = rest.chars().next().map_or(1, char::len_utf8);
            if bytes.get(at + 1 + width) == Some(&b'\'') { at + width + 2 } else { at }
        }
        None => at,
    }
}

/// Blanks every item under `#[cfg(test)]`. Takes and returns code without comments and literals.
pub fn without_tests(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    for start in positions(code, "#[cfg(test)]") {
        let end = item_end(code.as_bytes(), start);
        out[start..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// End of the item that begins at `start` with its attributes: its `;`, or its closing brace.
fn item_end(code: &[u8], start: usize) -> usize {
    let (mut depth, mut i) = (0_i32, start);
    while i < code.len() {
        match code[i] {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth -= 1,
            b';' if depth == 0 => return i + 1,
            b'{' if depth == 0 => return close_of(code, i) + 1,
            _ => {}
        }
        i += 1;
    }
    code.len()
}

/// Position of the brace that closes the one at `open`.
fn close_of(code: &[u8], open: usize) -> usize {
    let mut depth = 0;
    for (i, byte) in code.iter().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    code.len().saturating_sub(1)
}

fn positions<'a>(text: &'a str, needle: &'a str) -> impl Iterator<Item = usize> + 'a {
    text.match_indices(needle).map(|(at, _)| at)
}

/// Where `word` stands in `code` as a whole: not as a part of a longer name.
pub fn word_positions<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    positions(code, word).filter(move |at| {
        let end = at + word.len();
        let last_is_word = word.as_bytes().last().is_some_and(|byte| is_word(*byte));
        !(follows_word(bytes, *at) || last_is_word && bytes.get(end).is_some_and(|byte| is_word(*byte)))
    })
}

/// Line number, from 1, of a byte position.
pub fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

/// A function with a body: name, first line, number of lines to its closing brace.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    pub line: usize,
    pub lines: usize,
}

/// All functions with bodies, nested ones too. Takes code without comments and literals.
pub fn functions(code: &str) -> Vec<Function> {
    let mut found = Vec::new();
    for at in word_positions(code, "fn") {
        let name: String =
            code[at + 2..].trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let end = item_end(code.as_bytes(), at);
        if name.is_empty() || !code[..end].ends_with('}') {
            continue; // a function pointer's type, or a declaration without a body
        }
        let line = line_of(code, at);
        found.push(Function { name, line, lines: line_of(code, end) - line + 1 });
    }
    found
}

/// Every imported path, groups written out: `use std::{fs, io::Read};` gives `std::fs` and `std::io::Read`.
pub fn imports(code: &str) -> Vec<(usize, String)> {
    let mut paths = Vec::new();
    for at in word_positions(code, "use") {
        let Some(len) = code[at..].find(';') else { continue };
        let tree: String = code[at + 3..at + len].split_whitespace().collect::<Vec<_>>().join(" ");
        let mut flat = Vec::new();
        flatten("", &tree, &mut flat);
        paths.extend(flat.into_iter().map(|path| (line_of(code, at), path)));
    }
    paths
}

fn flatten(prefix: &str, tree: &str, out: &mut Vec<String>) {
    let tree = tree.trim().trim_start_matches("::");
    match tree.find('{') {
        Some(open) => {
            let prefix = format!("{prefix}{}", tree[..open].trim());
            let inner = tree[open + 1..].trim_end().trim_end_matches('}');
            for part in split_group(inner) {
                flatten(&prefix, part, out);
            }
        }
        None if tree.is_empty() => {}
        None => out.push(format!("{prefix}{}", tree.split(" as ").next().unwrap_or(tree).trim())),
    }
}

/// Splits at the commas that are not inside braces.
fn split_group(group: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_i32, 0, Vec::new());
    for (i, byte) in group.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&group[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[start..]);
    parts
}

/// Modules that the code declares with `mod NAME;`, each with whether only tests see it.
pub fn declared_modules(code: &str) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    for at in word_positions(code, "mod") {
        let rest = code[at + 3..].trim_start();
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if name.is_empty() || !rest[name.len()..].trim_start().starts_with(';') {
            continue;
        }
        let before = code[..at].rfind([';', '}', '{']).map_or(0, |n| n + 1);
        found.push((name, code[before..at].contains("#[cfg(test)]")));
    }
    found
}
