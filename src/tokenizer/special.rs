//! Special tokens inside a text: where they stand, the leftmost first, the longest where several begin together.

use std::collections::HashMap;

/// The special tokens of a vocabulary.
#[derive(Debug)]
pub struct Specials {
    ids: HashMap<String, u32>,
    /// Lengths in bytes that occur, longest first.
    lengths: Vec<usize>,
    /// Whether one begins with this byte; saves the look-ups at nearly every place of a text.
    begins: [bool; 256],
}

/// A part of a text.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Between special tokens; never empty.
    Text(&'a str),
    /// A special token.
    Token(u32),
}

impl Specials {
    /// Of these spellings and ids; empty spellings are left out.
    pub fn new<'a>(tokens: impl Iterator<Item = (&'a str, u32)>) -> Self {
        let ids: HashMap<String, u32> =
            tokens.filter(|(t, _)| !t.is_empty()).map(|(t, id)| (t.to_owned(), id)).collect();
        let mut lengths: Vec<usize> = ids.keys().map(String::len).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        let mut begins = [false; 256];
        for token in ids.keys() {
            begins[usize::from(token.as_bytes()[0])] = true;
        }
        Self { ids, lengths, begins }
    }

    /// Cuts a text at its special tokens.
    pub fn split<'a>(&self, text: &'a str) -> Vec<Part<'a>> {
        let (mut parts, mut done, mut at) = (Vec::new(), 0, 0);
        while at < text.len() {
            match self.token_at(text, at) {
                None => at += 1,
                Some((len, id)) => {
                    if done < at {
                        parts.push(Part::Text(&text[done..at]));
                    }
                    parts.push(Part::Token(id));
                    at += len;
                    done = at;
                }
            }
        }
        if done < text.len() {
            parts.push(Part::Text(&text[done..]));
        }
        parts
    }

    fn token_at(&self, text: &str, at: usize) -> Option<(usize, u32)> {
        if !self.begins[usize::from(text.as_bytes()[at])] {
            return None;
        }
        self.lengths.iter().find_map(|&len| Some((len, *self.ids.get(text.get(at..at.checked_add(len)?)?)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leftmost_and_then_the_longest_token_wins() {
        let specials = Specials::new([("<a>", 1), ("<a><b>", 2), ("é", 3), ("", 4)].into_iter());
        use Part::{Text, Token};
        assert_eq!(specials.split("x<a><b><a>é€"), [Text("x"), Token(2), Token(1), Token(3), Text("€")]);
        assert_eq!(specials.split("<a"), [Text("<a")]);
        assert_eq!(specials.split(""), []);
    }
}
