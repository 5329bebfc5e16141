//! One value of text in zstd frames: its frame is decompressed, and in it the values before it are skipped.
//!
//! A frame of Vortex's zstd array holds values one behind the other, each after its length (u32, little-endian). Vortex, asked for one value,
//! decompresses its frame too, but then makes an array of all values in it.

use std::cell::RefCell;

use vortex::array::ArrayRef;
use vortex::array::validity::Validity;
use vortex::buffer::ByteBuffer;
use vortex::encodings::zstd::Zstd;
use zstd::bulk::Decompressor;

/// The frames of a chunk.
#[derive(Debug)]
pub(super) struct Frames {
    frames: Vec<Frame>,
    /// All values and their lengths.
    bytes: usize,
}

#[derive(Debug)]
struct Frame {
    packed: ByteBuffer,
    /// The position of its first value, and of the first behind it.
    first: usize,
    end: usize,
    /// Its bytes when decompressed.
    bytes: usize,
}

thread_local! {
    /// What decompresses, and the last frame.
    static SCRATCH: RefCell<Option<(Decompressor<'static>, Vec<u8>)>> = const { RefCell::new(None) };
}

/// A frame that would be larger is left to Vortex; the writer's are 8 KiB, but a value of any length is in one.
const LARGEST: usize = 1 << 20;

impl Frames {
    /// The frames of an array, if they are of the kind that the writer makes.
    pub(super) fn new(array: &ArrayRef) -> Option<Self> {
        let array = array.as_opt::<Zstd>()?;
        if array.dtype().is_nullable() {
            return None;
        }
        let parts = array.data().clone().into_parts(Validity::NonNullable);
        if parts.dictionary.is_some()
            || (parts.slice_start, parts.slice_stop) != (0, parts.n_rows)
            || parts.frames.len() != parts.metadata.frames.len()
        {
            return None;
        }
        let (mut first, mut bytes) = (0usize, 0usize);
        let mut frames = Vec::with_capacity(parts.frames.len());
        for (packed, meta) in parts.frames.into_iter().zip(&parts.metadata.frames) {
            let size = usize::try_from(meta.uncompressed_size).ok().filter(|size| *size <= LARGEST)?;
            let end = first.checked_add(usize::try_from(meta.n_values).ok()?)?;
            frames.push(Frame { packed, first, end, bytes: size });
            (first, bytes) = (end, bytes + size);
        }
        (first == parts.n_rows).then_some(Self { frames, bytes })
    }

    /// The memory that all values take when decoded, with their offsets.
    pub(super) fn decoded_bytes(&self) -> usize {
        self.bytes
    }

    /// The memory that this takes beside the array.
    pub(super) fn memory(array: &ArrayRef) -> usize {
        if array.is::<Zstd>() { array.nbuffers() * size_of::<Frame>() } else { 0 }
    }

    /// Value `i`, given to `f`; `None` if there is none, or if its frame is not what it is said to be.
    pub(super) fn with<R>(&self, i: usize, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let frame = self.frames.get(self.frames.partition_point(|frame| frame.end <= i))?;
        SCRATCH.with(|scratch| {
            let mut scratch = scratch.try_borrow_mut().ok()?;
            let (decompressor, buffer) = match scratch.as_mut() {
                Some(scratch) => scratch,
                None => scratch.insert((Decompressor::new().ok()?, Vec::new())),
            };
            buffer.clear();
            buffer.reserve(frame.bytes);
            let found = decompressor.decompress_to_buffer(frame.packed.as_slice(), buffer);
            if found.ok() != Some(frame.bytes) {
                // After an error it begins afresh.
                *scratch = None;
                return None;
            }
            let mut rest = buffer.as_slice();
            for _ in frame.first..i {
                rest = rest.get(length(rest)?.checked_add(4)?..)?;
            }
            rest.get(4..length(rest)?.checked_add(4)?).map(f)
        })
    }
}

/// The length of the value that begins here.
fn length(bytes: &[u8]) -> Option<usize> {
    bytes.first_chunk::<4>().map(|length| u32::from_le_bytes(*length) as usize)
}
