//! What the spelling of a token in a vocabulary stands for in bytes.

use std::borrow::Cow;

/// How a vocabulary spells bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// Each byte is a printable character (GPT-2's byte-level BPE).
    ByteLevel,
    /// `▁` is a space and `<0x0A>` a byte (SentencePiece).
    Spaces,
}

impl Spelling {
    /// The bytes of a token.
    pub fn bytes(self, token: &str) -> Cow<'_, [u8]> {
        match self {
            // Tokens that were added by hand may hold other characters; they stand for themselves.
            Spelling::ByteLevel => match token.chars().map(byte_of).collect::<Option<Vec<u8>>>() {
                Some(bytes) => Cow::Owned(bytes),
                None => Cow::Borrowed(token.as_bytes()),
            },
            Spelling::Spaces => match hex_byte(token) {
                Some(byte) => Cow::Owned(vec![byte]),
                None if token.contains('▁') => Cow::Owned(token.replace('▁', " ").into_bytes()),
                None => Cow::Borrowed(token.as_bytes()),
            },
        }
    }
}

/// GPT-2's mapping, backwards: printable Latin-1 is itself, the other 68 bytes follow in order from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The byte of `<0x0A>`.
pub fn hex_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u8::from_str_radix(digits, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_is_a_bijection_between_256_characters_and_bytes() {
        let mut bytes: Vec<u8> = ('\0'..='\u{200}').filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
    }

    #[test]
    fn hexadecimal_bytes_are_read_in_full_form_only() {
        assert_eq!(hex_byte("<0x0A>"), Some(10));
        for other in ["<0x0A", "0x0A>", "<0xA>", "<0x+A>", "<0x00A>", "<0xÄ>"] {
            assert_eq!(hex_byte(other), None, "{other}");
        }
    }
}
