//! Turns a parser's complaint about an unknown key into advice: which known key is nearest.

/// The message for people.
pub fn explain(message: &str) -> String {
    match unknown_field(message) {
        Some((key, known)) => advise(key, &known),
        None => message.lines().next().unwrap_or(message).to_string(),
    }
}

/// Takes "unknown field `a`, expected one of `b`, `c`" apart.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field ")?;
    let mut quoted = rest.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

fn advise(key: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|name| (distance(key, name), *name)).min();
    match nearest {
        Some((distance, name)) if distance <= key.len().max(name.len()) / 2 => {
            format!("unknown key `{key}`; did you mean `{name}`?")
        }
        _ => format!("unknown key `{key}`; known here are {}", known.join(", ")),
    }
}

/// Edits between two words (insert, delete, replace).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let replace = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_is_corrected_and_nonsense_gets_the_list() {
        let message = "unknown field `adr`, expected one of `addr`, `labels`";
        assert_eq!(explain(message), "unknown key `adr`; did you mean `addr`?");
        let message = "unknown field `zzzzzz`, expected `addr` or `labels`";
        assert_eq!(explain(message), "unknown key `zzzzzz`; known here are addr, labels");
        assert_eq!(explain("invalid type\nmore"), "invalid type");
    }

    #[test]
    fn distance_counts_single_edits() {
        assert_eq!((distance("abc", "abc"), distance("abc", "ac"), distance("", "ab")), (0, 1, 2));
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
