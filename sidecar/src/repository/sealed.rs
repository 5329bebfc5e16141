//! Small JSON documents that carry their own checksum.
//!
//! The file is `{"blake3":"<64 hexadecimal digits>","content":<JSON>}` and a newline, with no other space outside the
//! content. The checksum is of the content's bytes exactly as they stand in the file.

use crate::error::{Error, ErrorKind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Display;

const HEAD: &str = "{\"blake3\":\"";
const MIDDLE: &str = "\",\"content\":";
const TAIL: &str = "}\n";

/// The bytes of a sealed document.
pub fn seal<T: Serialize>(content: &T) -> Result<Vec<u8>> {
    let body = serde_json::to_string_pretty(content)
        .map_err(|error| Error::new(ErrorKind::Io, format!("could not write JSON: {error}")))?;
    let hash = blake3::hash(body.as_bytes()).to_hex();
    Ok(format!("{HEAD}{hash}{MIDDLE}{body}{TAIL}").into_bytes())
}

/// Checks and parses the bytes of a sealed document. `what` names it in errors.
pub fn unseal<T: DeserializeOwned>(bytes: &[u8], what: impl Display) -> Result<T> {
    let split = || {
        let text = std::str::from_utf8(bytes).ok()?;
        let rest = text.strip_prefix(HEAD)?;
        let (hash, rest) = rest.split_at_checked(64)?;
        Some((hash, rest.strip_prefix(MIDDLE)?.strip_suffix(TAIL)?))
    };
    let Some((hash, body)) = split() else {
        return Err(Error::damaged(what, "it is not a sealed JSON document"));
    };
    if blake3::hash(body.as_bytes()).to_hex().as_str() != hash {
        return Err(Error::damaged(what, "its checksum does not match its content"));
    }
    serde_json::from_str(body)
        .map_err(|error| Error::damaged(what, format_args!("its content does not parse: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_changed_byte_is_found() {
        let sealed = seal(&serde_json::json!({"a": [1, 2, 3], "b": "x"})).unwrap();
        assert!(unseal::<serde_json::Value>(&sealed, "d").is_ok());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 0x04;
            let error = unseal::<serde_json::Value>(&changed, "the thing").unwrap_err();
            assert_eq!(error.kind, ErrorKind::Damaged, "byte {at}");
            assert!(error.message.contains("the thing"));
        }
        for length in 0..sealed.len() {
            assert!(unseal::<serde_json::Value>(&sealed[..length], "d").is_err(), "length {length}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(unseal::<serde_json::Value>(&bytes, "d").is_err());
        }
    }
}
