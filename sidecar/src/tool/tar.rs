//! Writes tar, as POSIX defines it (ustar, and pax records where a name or a size does not fit), piece by piece: the caller
//! knows where in the stream each piece of content lies, which no library's builder tells.

use std::io::{Result, Write};

/// The unit of tar.
const BLOCK: u64 = 512;
/// What twelve octal digits hold.
const LARGEST: u64 = 0o77_777_777_777;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A directory.
    Directory,
}

/// A tar stream.
pub struct TarWriter<W> {
    to: W,
    position: u64,
    /// What the entry that is open still has to get.
    left: u64,
}

impl<W: Write> TarWriter<W> {
    /// Begins a stream.
    pub fn new(to: W) -> Self {
        Self { to, position: 0, left: 0 }
    }

    /// Where the next byte goes, counted from the stream's beginning.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// What is written to.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.to
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Begins an entry of `size` bytes. The one before must have ended.
    pub fn begin(&mut self, path: &str, kind: Kind, mode: u32, modified: i64, size: u64) -> Result<()> {
        let path = match kind {
            Kind::Directory => format!("{path}/"),
            Kind::File => path.to_owned(),
        };
        let split = split(&path);
        if split.is_none() || size > LARGEST {
            let mut records = String::new();
            if split.is_none() {
                records.push_str(&record("path", &path));
            }
            if size > LARGEST {
                records.push_str(&record("size", &size.to_string()));
            }
            let header = header("", "strata-pax", b'x', 0o644, modified, records.len() as u64);
            self.put(&header)?;
            self.put(records.as_bytes())?;
            self.pad()?;
        }
        let (prefix, name) = split.unwrap_or(("", "strata-long-name"));
        let flag = if kind == Kind::Directory { b'5' } else { b'0' };
        let header = header(prefix, name, flag, mode & 0o7777, modified, size);
        self.put(&header)?;
        self.left = size;
        Ok(())
    }

    /// Content of the open entry; what goes beyond its size is left out.
    pub fn data(&mut self, content: &[u8]) -> Result<()> {
        let take = (content.len() as u64).min(self.left) as usize;
        self.put(content.get(..take).unwrap_or_default())?;
        self.left -= take as u64;
        Ok(())
    }

    /// Ends the entry. What it has too little is filled with zeros.
    pub fn end(&mut self) -> Result<()> {
        let zeros = [0; 8192];
        while self.left > 0 {
            let take = self.left.min(zeros.len() as u64) as usize;
            self.data(zeros.get(..take).unwrap_or_default())?;
        }
        self.pad()
    }

    /// A whole small file.
    pub fn file(&mut self, path: &str, mode: u32, modified: i64, content: &[u8]) -> Result<()> {
        self.begin(path, Kind::File, mode, modified, content.len() as u64)?;
        self.data(content)?;
        self.end()
    }

    fn pad(&mut self) -> Result<()> {
        let over = self.position % BLOCK;
        if over > 0 {
            let zeros = [0; BLOCK as usize];
            self.put(zeros.get(..(BLOCK - over) as usize).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Ends the stream and gives back what was written to. A stream without this end is seen to be cut off.
    pub fn finish(mut self) -> Result<W> {
        self.put(&[0; 2 * BLOCK as usize])?;
        Ok(self.to)
    }
}

/// A name in the two fields of a header: none when it does not fit.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= 100 {
        return Some(("", path));
    }
    path.char_indices()
        .filter(|(_, c)| *c == '/')
        .filter_map(|(at, _)| Some((path.get(..at)?, path.get(at + 1..)?)))
        .find(|(prefix, name)| prefix.len() <= 155 && (1..=100).contains(&name.len()))
}

/// A pax record: its length, which counts itself, then the key and the value.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let mut length = rest.len() + 1;
    while rest.len() + length.to_string().len() != length {
        length = rest.len() + length.to_string().len();
    }
    format!("{length}{rest}")
}

fn header(prefix: &str, name: &str, flag: u8, mode: u32, modified: i64, size: u64) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    let mut put = |at: usize, text: &[u8]| {
        if let Some(place) = block.get_mut(at..at + text.len()) {
            place.copy_from_slice(text);
        }
    };
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    // A pax record has the size then.
    put(124, format!("{:011o}", if size > LARGEST { 0 } else { size }).as_bytes());
    put(136, format!("{:011o}", modified.clamp(0, LARGEST as i64)).as_bytes());
    put(148, b"        ");
    put(156, &[flag]);
    put(257, b"ustar\x0000");
    put(345, prefix.as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    if let Some(place) = block.get_mut(148..156) {
        place.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// What the real tar makes of it.
    fn unpacked(stream: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut tar =
            Command::new("tar").arg("-xpf").arg("-").arg("-C").arg(dir.path()).stdin(Stdio::piped()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(stream).unwrap();
        assert!(tar.wait().unwrap().success());
        dir
    }

    #[test]
    fn tar_reads_every_entry() {
        use std::os::unix::fs::PermissionsExt;
        let mut tar = TarWriter::new(Vec::new());
        let long = format!("base/{}/x", "d".repeat(120));
        let longer = "n".repeat(180);
        let content: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
        for dir in ["base", "pg_wal", &format!("base/{}", "d".repeat(120))] {
            tar.begin(dir, Kind::Directory, 0o700, 0, 0).unwrap();
            tar.end().unwrap();
        }
        tar.file("empty", 0o600, 1_700_000_000, b"").unwrap();
        tar.begin("base/1", Kind::File, 0o640, 1_700_000_000, 100_100).unwrap();
        let first = tar.position();
        tar.data(&content).unwrap();
        tar.end().unwrap();
        tar.file(&long, 0o600, 0, b"long").unwrap();
        tar.file(&longer, 0o600, 0, b"longer").unwrap();
        let whole = tar.finish().unwrap();
        assert_eq!(whole.len() % 512, 0);
        assert_eq!(&whole[first as usize..first as usize + content.len()], content);
        let dir = unpacked(&whole);
        let read = |path: &str| std::fs::read(dir.path().join(path)).unwrap();
        let mut filled = content;
        filled.resize(100_100, 0);
        assert_eq!(read("base/1"), filled, "what was cut off while it was read is filled with zeros");
        assert_eq!((read("empty").len(), read(&long), read(&longer)), (0, b"long".to_vec(), b"longer".to_vec()));
        let mode = std::fs::metadata(dir.path().join("base/1")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert!(dir.path().join("pg_wal").is_dir());
    }

    #[test]
    fn a_file_beyond_eight_gigabytes_keeps_its_size() {
        struct Counted(u64, Vec<u8>);
        impl Write for Counted {
            fn write(&mut self, bytes: &[u8]) -> Result<usize> {
                if self.0 < 4096 {
                    self.1.extend_from_slice(bytes);
                }
                self.0 += bytes.len() as u64;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> Result<()> {
                Ok(())
            }
        }
        let mut tar = TarWriter::new(Counted(0, Vec::new()));
        tar.begin("large", Kind::File, 0o600, 0, LARGEST + 2).unwrap();
        let head = tar.position() as usize;
        let text = String::from_utf8_lossy(&tar.get_mut().1[..head]).into_owned();
        assert!(text.contains("19 size=8589934593\n"), "{text}");
    }
}
