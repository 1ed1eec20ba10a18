//! Where a fact comes from: a call or a file, one text for all facts that come from there.

use std::{borrow::Borrow, cell::RefCell, collections::BTreeSet, fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Visitor};

/// Texts that a thread remembers; then it begins anew, so that facts with a process id in their
/// source do not pile up.
const REMEMBERED: usize = 4096;

thread_local! {
    static KNOWN: RefCell<BTreeSet<Source>> = const { RefCell::new(BTreeSet::new()) };
}

/// Name of a call or file. A fleet of a thousand nodes has half a million facts from some hundred
/// sources, so texts that are read are shared, and a fact holds one word.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source(Arc<Box<str>>);

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// A set of sources is searched by text.
impl Borrow<str> for Source {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Source {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn shared(text: &str) -> Self {
        KNOWN.with_borrow_mut(|known| {
            if let Some(found) = known.get(text) {
                return found.clone();
            }
            if REMEMBERED <= known.len() {
                known.clear();
            }
            let new = Source::from(text);
            known.insert(new.clone());
            new
        })
    }
}

impl From<&str> for Source {
    fn from(text: &str) -> Self {
        Source(Arc::new(text.into()))
    }
}

impl From<String> for Source {
    fn from(text: String) -> Self {
        Source(Arc::new(text.into()))
    }
}

impl From<&String> for Source {
    fn from(text: &String) -> Self {
        Source::from(text.as_str())
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Source;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a call or file")
            }

            fn visit_str<E>(self, text: &str) -> Result<Source, E> {
                Ok(Source::shared(text))
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of half a million facts of a fleet each byte counts.
    #[test]
    fn a_fact_is_as_small_as_three_words() {
        assert_eq!(size_of::<Source>(), size_of::<usize>());
        assert!(size_of::<crate::facts::Fact<u64>>() <= 3 * size_of::<u64>());
    }

    #[test]
    fn equal_texts_are_one_text_when_they_are_read() {
        let read = |text: &str| serde_json::from_str::<Source>(text).unwrap();
        let (first, second) = (read("\"/proc/meminfo\""), read("\"/proc/meminfo\""));
        assert!(Arc::ptr_eq(&first.0, &second.0));
        assert_ne!(first, read("\"/proc/stat\""));
        assert_eq!(serde_json::to_string(&first).unwrap(), "\"/proc/meminfo\"");
        // Escapes make a text that is not a part of the file.
        assert_eq!(read("\"a\\u0062\"").as_str(), "ab");
        for number in 0..2 * REMEMBERED {
            read(&format!("\"{number}\""));
        }
        assert!(KNOWN.with_borrow(BTreeSet::len) <= REMEMBERED);
    }
}
