//! What every place that a repository may be in must do.

use std::io::ErrorKind as IoKind;
use std::path::Path;
use strata_sidecar::ErrorKind;
use strata_sidecar::repository::crypt::Keys;
use strata_sidecar::repository::fsio::Published;
use strata_sidecar::repository::storage::{Listed, Storage};

/// What every place must do; each place's own test runs it.
pub fn keeps_its_promises(storage: &Storage, root: &Path) {
    let keys = Keys::none();
    let path = root.join("a/b/object");
    assert_eq!(storage.read(&path).unwrap(), None);
    assert_eq!(storage.size(&path).unwrap(), None);
    assert_eq!(storage.modified(&path).unwrap(), None);
    assert!(storage.open(&path).unwrap().is_none() && storage.read_end(&path, 4).unwrap().is_none());
    assert!(!storage.exists(&path).unwrap());
    assert_eq!(storage.list(&root.join("a")).unwrap(), Vec::<String>::new());
    assert_eq!(storage.walk(&root.join("a")).unwrap(), []);

    assert_eq!(storage.write_new(&path, b"0123456789").unwrap(), Published::New);
    assert_eq!(storage.write_new(&path, b"other").unwrap(), Published::Existing);
    assert_eq!(storage.read(&path).unwrap().unwrap(), b"0123456789");
    assert_eq!(storage.read_end(&path, 4).unwrap().unwrap(), (b"6789".to_vec(), 10));
    assert_eq!(storage.read_end(&path, 40).unwrap().unwrap(), (b"0123456789".to_vec(), 10));
    let reader = storage.open(&path).unwrap().unwrap();
    let mut middle = [0; 3];
    reader.read_exact_at(&mut middle, 4).unwrap();
    assert_eq!((&middle, reader.size()), (b"456", 10));
    assert_eq!(reader.read_exact_at(&mut middle, 8).unwrap_err().kind(), IoKind::UnexpectedEof);

    storage.write(&root.join("a/c"), b"x").unwrap();
    storage.write(&root.join("a/c"), b"yy").unwrap();
    assert_eq!(storage.list(&root.join("a")).unwrap(), ["b", "c"]);
    let all = storage.walk(&root.join("a")).unwrap();
    let listed = |path: &str, bytes| Listed { path: root.join(path), bytes };
    assert_eq!(all, [listed("a/b/object", 10), listed("a/c", 2)]);
    assert!(storage.has_folder(&root.join("a/b")).unwrap() && !storage.has_folder(&root.join("a/c")).unwrap());

    let mut upload = storage.create(&root.join("a/dropped")).unwrap();
    upload.write_all(b"half").unwrap();
    drop(upload);
    assert!(!storage.exists(&root.join("a/dropped")).unwrap());
    for (name, size) in [("small", 10), ("large", 20 << 20)] {
        let content: Vec<u8> = (0..size as u32).map(|n| (n / 251) as u8).collect();
        let path = root.join("a").join(name);
        let mut upload = storage.create(&path).unwrap();
        content.chunks(1 << 20).for_each(|piece| upload.write_all(piece).unwrap());
        assert!(!storage.exists(&path).unwrap(), "nobody sees it before it is published");
        assert_eq!(upload.publish_new().unwrap(), Published::New);
        assert!(storage.read(&path).unwrap().unwrap() == content, "{name}");
        let mut again = storage.create(&path).unwrap();
        again.write_all(&content).unwrap();
        assert_eq!(again.publish_new().unwrap(), Published::Existing);
    }

    let local = tempfile::tempdir().unwrap();
    let (from, back) = (local.path().join("from"), local.path().join("back"));
    std::fs::write(&from, b"content").unwrap();
    let (hash, to) = (blake3::hash(b"content").to_hex().to_string(), root.join("a/copy"));
    assert_eq!(storage.put_checked(&from, &to, &"0".repeat(64), &keys).unwrap_err().kind, ErrorKind::Damaged);
    assert!(!storage.exists(&to).unwrap());
    assert_eq!(storage.put_checked(&from, &to, &hash, &keys).unwrap(), (Published::New, 7));
    assert_eq!(storage.put_checked(&from, &to, &hash, &keys).unwrap().0, Published::Existing);
    assert_eq!(storage.put_checked(&local.path().join("no"), &to, &hash, &keys).unwrap_err().kind, ErrorKind::Missing);
    assert_eq!(storage.get_checked(&to, &back, &"0".repeat(64), &keys).unwrap_err().kind, ErrorKind::Damaged);
    assert!(!back.exists());
    assert_eq!(storage.get_checked(&to, &back, &hash, &keys).unwrap(), (Published::New, 7));
    assert_eq!(storage.get_checked(&root.join("a/no"), &back, &hash, &keys).unwrap_err().kind, ErrorKind::Missing);
    std::fs::write(&back, b"damaged").unwrap();
    assert_eq!(storage.get_checked_over(&to, &back, &hash, &keys).unwrap(), 7);
    assert_eq!(std::fs::read(&back).unwrap(), b"content");

    let lock = root.join("lock");
    let first = storage.lock(&lock, "the test").unwrap();
    assert_eq!(storage.lock(&lock, "the test").unwrap_err().kind, ErrorKind::Locked);
    drop(first);
    let shared = (storage.share(&lock).unwrap(), storage.share(&lock).unwrap());
    assert_eq!(storage.lock(&lock, "the test").unwrap_err().kind, ErrorKind::Locked);
    drop(shared);
    let second = storage.lock(&lock, "the test").unwrap();
    second.require_held().unwrap();
    drop(second);

    storage.remove(&root.join("a/c")).unwrap();
    storage.remove(&root.join("a/c")).unwrap();
    storage.sync(&root.join("a")).unwrap();
    assert!(!storage.exists(&root.join("a/c")).unwrap());
    storage.remove_all(&root.join("a")).unwrap();
    assert_eq!(storage.walk(&root.join("a")).unwrap(), []);
    assert!(!storage.has_folder(&root.join("a")).unwrap());
}
