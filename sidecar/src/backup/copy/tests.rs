use super::*;
use crate::backup::target::PackTarget;
use crate::repository::pack::PackReader;
use crate::repository::storage::Storage;
use proptest::prelude::*;
use std::path::Path;

fn scanned(dir: &Path, name: &str, content: &[u8]) -> ScannedFile {
    let source = dir.join(name);
    std::fs::write(&source, content).unwrap();
    ScannedFile {
        path: name.to_owned(),
        source,
        size: content.len() as u64,
        mode: 0o600,
        modified: 0,
        first_block: None,
    }
}

fn options(workers: usize) -> CopyOptions {
    CopyOptions { workers, check_pages_from: None }
}

fn attempt(files: &[ScannedFile], last: Option<usize>, dir: &Path, options: &CopyOptions) -> Result<Copied> {
    copy(
        files,
        last,
        &PackTarget::new(&Storage::Directory, dir, 1, &crate::repository::crypt::Keys::none()),
        options,
        &Progress::silent(),
        &AtomicBool::new(false),
    )
}

fn run(files: &[ScannedFile], dir: &Path, options: &CopyOptions) -> Copied {
    attempt(files, None, dir, options).unwrap()
}

/// Lays one file out from the packs, as a restore does.
fn restored(copied: &Copied, dir: &Path, entry: &FileEntry) -> Vec<u8> {
    let mut out = vec![0; entry.bytes as usize];
    for part in &entry.parts {
        let pack = &copied.packs[part.pack as usize];
        let mut reader =
            PackReader::open(&Storage::Directory, &crate::repository::crypt::Keys::none(), &dir.join(&pack.name))
                .unwrap();
        // The frame's length is at most that of the largest part that ends in it.
        let length = copied
            .files
            .iter()
            .flat_map(|file| &file.parts)
            .filter(|other| other.pack == part.pack && other.frame == part.frame)
            .map(|other| u64::from(other.skip) + other.bytes)
            .max()
            .unwrap();
        let mut content = Vec::new();
        reader.frame(part.frame, part.frame_bytes, &mut content, length as usize).unwrap();
        let piece = &content[part.skip as usize..part.skip as usize + part.bytes as usize];
        assert_eq!(blake3::hash(piece).to_hex().to_string(), part.blake3);
        out[part.offset as usize..(part.offset + part.bytes) as usize].copy_from_slice(piece);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn every_file_comes_back(sizes in proptest::collection::vec(0usize..9_000_000, 1..6), small in 0usize..40, workers in 1usize..4) {
        let source = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        let mut contents = Vec::new();
        for (at, size) in sizes.iter().copied().chain((0..small).map(|n| n * 500)).enumerate() {
            let content: Vec<u8> = (0..size).map(|n| ((n * 31 + at) >> 5) as u8).collect();
            contents.push((scanned(source.path(), &format!("f{at:03}"), &content), content));
        }
        let files: Vec<ScannedFile> = contents.iter().map(|(file, _)| file.clone()).collect();
        let copied = run(&files, target.path(), &options(workers));
        // Empty files have no part, and are kept all the same.
        prop_assert_eq!(copied.files.len(), files.len());
        for (entry, (_, content)) in copied.files.iter().zip(&contents) {
            prop_assert_eq!(&restored(&copied, target.path(), entry), content);
        }
    }
}

#[test]
fn a_file_that_vanished_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    let files =
        [scanned(dir.path(), "a", b"a"), scanned(dir.path(), "b", &vec![1; 1 << 20]), scanned(dir.path(), "c", b"c")];
    std::fs::remove_file(&files[0].source).unwrap();
    std::fs::remove_file(&files[1].source).unwrap();
    let copied = run(&files, target.path(), &options(1));
    let names: Vec<&str> = copied.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(names, ["c"]);
}

#[test]
fn a_file_that_shrank_keeps_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    let file = scanned(dir.path(), "a", &vec![7; 10 << 20]);
    std::fs::write(&file.source, vec![7; 5 << 20]).unwrap();
    let copied = run(std::slice::from_ref(&file), target.path(), &options(2));
    assert_eq!(copied.files[0].bytes, 5 << 20);
    assert_eq!(restored(&copied, target.path(), &copied.files[0]), vec![7; 5 << 20]);
}

#[test]
fn a_page_with_a_wrong_checksum_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    let mut content = Vec::new();
    for block in 0..100u32 {
        let mut page = [block as u8; PAGE];
        page[0..8].copy_from_slice(&[0, 0, 0, 0, 10, 0, 0, 0]);
        page[14] = 1;
        let sum = page::checksum(&page, block + 5);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        content.extend_from_slice(&page);
    }
    content[42 * PAGE + 100] ^= 1;
    let mut file = scanned(dir.path(), "16384", &content);
    file.first_block = Some(5);
    let options = CopyOptions { check_pages_from: Some(1000), ..options(1) };
    let copied = run(std::slice::from_ref(&file), target.path(), &options);
    assert_eq!(copied.damaged_pages, [DamagedPage { path: "16384".into(), page: 42 }]);
}

#[test]
fn a_log_that_grows_is_not_followed_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    let small = scanned(dir.path(), "a", b"short");
    let log = scanned(dir.path(), "b", b"short");
    std::fs::write(&small.source, vec![1; 300_000]).unwrap();
    std::fs::write(&log.source, vec![2; 5 << 20]).unwrap();
    let copied = run(&[small, log], target.path(), &options(1));
    assert_eq!(copied.files.iter().map(|file| file.bytes).collect::<Vec<_>>(), [300_000, GROWN]);
    assert_eq!(restored(&copied, target.path(), &copied.files[1]), vec![2; GROWN as usize]);
}

/// A control file as `initdb` makes one: the checksum stands behind 288 bytes of content, and zeros follow.
fn control() -> Vec<u8> {
    let mut content: Vec<u8> = (0..288u32).map(|n| (n * 7) as u8).collect();
    content.extend_from_slice(&crc32c::crc32c(&content).to_le_bytes());
    content.resize(8192, 0);
    content
}

#[test]
fn a_control_file_is_read_until_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let target = tempfile::tempdir().unwrap();
    let mut torn = control();
    torn[200] ^= 1;
    let file = scanned(dir.path(), "pg_control", &torn);
    let source = file.source.clone();
    let writer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        std::fs::write(source, control()).unwrap();
    });
    let other = scanned(dir.path(), "other", b"read before");
    let files = [file, other];
    let copied = attempt(&files, Some(0), target.path(), &options(1)).unwrap();
    writer.join().unwrap();
    assert_eq!(restored(&copied, target.path(), &copied.files[0]), control());
    let place = |at: usize| (copied.files[at].parts[0].pack, copied.files[at].parts[0].frame);
    assert!(place(0) > place(1), "it is the last one");
    std::fs::write(&files[0].source, torn).unwrap();
    let again = tempfile::tempdir().unwrap();
    let error = attempt(&files, Some(0), again.path(), &options(1)).unwrap_err();
    assert_eq!(error.kind, crate::error::ErrorKind::Damaged);
    assert!(error.message.contains("pg_control"), "{error}");
}
