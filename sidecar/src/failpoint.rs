//! Places where a test kills the process, as a power failure would.
//!
//! `STRATA_FAILPOINT=NAME` in the environment kills this process, with a signal that cannot be caught, when it comes to the place;
//! `STRATA_FAILPOINT=NAME:3` the third time.

use std::sync::atomic::{AtomicU32, Ordering};

/// The expire wrote down what it is about to remove.
pub const EXPIRE_DECIDED: &str = "expire:decided";
/// One catalog entry is gone, and its backup's folder is still there.
pub const EXPIRE_ENTRY: &str = "expire:entry";
/// One backup's manifest is gone, and its packs are still there.
pub const EXPIRE_MANIFEST: &str = "expire:manifest";
/// One WAL file is gone.
pub const EXPIRE_WAL: &str = "expire:wal";
/// One entry of the fragment log is gone, and the fragment is still there.
pub const EXPIRE_LOG: &str = "expire:log";
/// One fragment is gone.
pub const EXPIRE_FRAGMENT: &str = "expire:fragment";
/// Everything is removed, and the note of it is still there.
pub const EXPIRE_REMOVED: &str = "expire:removed";
/// A recovery's hot data and `backup_label` are there, and no configuration yet.
pub const RECOVER_LABEL: &str = "recover:label";
/// A recovery's `postgresql.auto.conf` is written.
pub const RECOVER_CONFIGURED: &str = "recover:configured";
/// A recovery's directory has everything, `recovery.signal` too, and is not started.
pub const RECOVER_ARMED: &str = "recover:armed";
/// A drill's scratch server is open.
pub const DRILL_OPEN: &str = "drill:open";
/// A drill's scratch server is checked and not yet removed.
pub const DRILL_CHECKED: &str = "drill:checked";

/// A WAL file is read, checked and compressed, and nothing of it is in the archive.
pub const PUSH_PREPARED: &str = "push:prepared";
/// A WAL file is in the archive, and nobody was told.
pub const PUSH_PUBLISHED: &str = "push:published";
/// The pusher has noted that a WAL file is in the archive.
pub const PUSH_NOTED: &str = "push:noted";
/// A piece of streamed WAL is in the repository, and the server was not told.
pub const STREAM_STORED: &str = "stream:stored";
/// A streamed segment is in the archive, and its pieces are still there.
pub const STREAM_WHOLE: &str = "stream:whole";

/// Comes to the place `name`.
pub fn hit(name: &str) {
    static HITS: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("STRATA_FAILPOINT") else { return };
    let (place, count) = match wanted.rsplit_once(':').and_then(|(place, n)| Some((place, n.parse::<u32>().ok()?))) {
        Some((place, count)) => (place, count),
        None => (wanted.as_str(), 1),
    };
    if place == name && HITS.fetch_add(1, Ordering::Relaxed) + 1 == count {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
