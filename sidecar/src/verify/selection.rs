//! Which files a verification reads: all, a sample, or those that came since a time.

use crate::repository::storage::Storage;
use jiff::Timestamp;
use std::path::Path;
use std::time::SystemTime;

/// Which files are read. The default is all.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Of a hundred files this many, chosen anew by the seed.
    pub sample: Option<(f64, u64)>,
    /// Those that came into the repository since.
    pub since: Option<Timestamp>,
}

impl Selection {
    /// Shall the content of this file be read?
    pub fn takes(&self, storage: &Storage, path: &Path) -> bool {
        if let Some(since) = self.since {
            // One that cannot be looked at is read, so that the reading says why.
            let modified = storage.modified(path).ok().flatten();
            if modified.is_some_and(|modified| modified < SystemTime::from(since)) {
                return false;
            }
        }
        self.sample.is_none_or(|(percent, seed)| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&seed.to_le_bytes()).update(path.as_os_str().as_encoded_bytes());
            let mut first = [0; 4];
            hasher.finalize_xof().fill(&mut first);
            f64::from(u32::from_le_bytes(first)) < percent / 100.0 * f64::from(u32::MAX)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_about_its_part_and_another_one_each_time() {
        let chosen = |percent, seed| -> Vec<u32> {
            let selection = Selection { sample: Some((percent, seed)), since: None };
            (0..2000).filter(|n| selection.takes(&Storage::Directory, Path::new(&format!("/r/{n}.frag")))).collect()
        };
        let (one, other) = (chosen(10.0, 1), chosen(10.0, 2));
        assert!((120..280).contains(&one.len()), "{}", one.len());
        assert_ne!(one, other);
        assert_eq!(chosen(100.0, 1).len(), 2000);
    }

    #[test]
    fn what_is_older_is_left_out() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let since = |seconds: i64| Selection {
            sample: None,
            since: Some(Timestamp::now() + jiff::SignedDuration::from_secs(seconds)),
        };
        assert!(since(-60).takes(&Storage::Directory, file.path()));
        assert!(!since(60).takes(&Storage::Directory, file.path()));
        assert!(since(60).takes(&Storage::Directory, Path::new("/nowhere/at/all")));
    }
}
