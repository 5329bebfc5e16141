//! Choosing how words are laid out, and laying them out, by counting what each way takes instead of trying encodings on samples.
//!
//! Words are packed into as few bits as most of them need, the others kept beside them as patches; or kept as runs; or as a
//! sequence. Before that they may be replaced by their differences to words before ([`super::whole`]). What counting cannot see
//! (few distinct words that are far apart) is left to Vortex's compressor.

use vortex::array::arrays::PrimitiveArray;
use vortex::array::buffer::BufferHandle;
use vortex::array::patches::Patches;
use vortex::array::validity::Validity;
use vortex::array::{ArrayRef, ExecutionCtx, IntoArray};
use vortex::buffer::Buffer;
use vortex::dtype::NativePType;
use vortex::encodings::fastlanes::BitPacked;
use vortex::encodings::runend::RunEnd;
use vortex::encodings::sequence::sequence_encode;

use super::text;
use super::whole::{Word, differences};

/// Bytes of an array's own description, about.
const ARRAY: usize = 48;
/// FastLanes packs so many words at a time.
const PACKED: usize = 1024;
/// The part of the other size that differences must stay below to be taken, in percent: they are slower to read.
const DIFFERENCES_GAIN: usize = 75;
/// The part of packed words that runs must stay below, in percent.
const RUNS_GAIN: usize = 80;

/// How words are laid out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    form: Form,
    /// What that takes, about.
    pub(super) bytes: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    Raw,
    /// Packed into so many bits; so many words do not fit.
    Packed(u32, usize),
    Runs,
}

fn bits_of(word: u64) -> u32 {
    u64::BITS - word.leading_zeros()
}

fn packed_bytes(bits: u32, words: usize) -> usize {
    bits as usize * PACKED / 8 * words.div_ceil(PACKED)
}

/// What a word that does not fit takes: its position and itself.
fn patch_bytes<T>(words: usize) -> usize {
    size_of::<T>() + if words <= 1 << 16 { 2 } else { 4 }
}

/// Counts pairs for which something holds, many at a time.
fn count<A: Copy, B: Copy>(a: &[A], b: &[B], holds: impl Fn(A, B) -> bool) -> usize {
    let few = |(a, b): (&[A], &[B])| a.iter().zip(b).map(|(a, b)| u8::from(holds(*a, *b))).sum::<u8>();
    a.chunks(128).zip(b.chunks(128)).map(|pair| usize::from(few(pair))).sum()
}

/// The cheapest way to keep words.
pub(super) fn layout<T: Word>(x: &[T]) -> Layout {
    let mut best = Layout { form: Form::Raw, bytes: size_of_val(x) + ARRAY };
    let most: u64 = x.iter().max().map_or(0, |m| (*m).into());
    let mut consider = |bits, exceptions| {
        let patches = if exceptions == 0 { 0 } else { exceptions * patch_bytes::<T>(x.len()) + 2 * ARRAY };
        let bytes = packed_bytes(bits, x.len()) + patches + ARRAY;
        if bits < T::BITS && bytes < best.bytes {
            best = Layout { form: Form::Packed(bits, exceptions), bytes };
        }
        patches < best.bytes
    };
    for bits in (0..=bits_of(most)).rev() {
        let limit = T::low(((1u128 << bits) - 1) as u64);
        let exceptions = if bits == bits_of(most) { 0 } else { count(x, x, |x, _| x > limit) };
        // With fewer bits there are only more exceptions.
        if !consider(bits, exceptions) {
            break;
        }
    }
    let runs = 1 + count(x, x.get(1..).unwrap_or_default(), |a, b| a != b);
    if runs * 4 <= x.len() {
        let words = packed_bytes(bits_of(most), runs).min(runs * size_of::<T>());
        let bytes = runs * (patch_bytes::<T>(x.len()) - size_of::<T>()) + words + 3 * ARRAY;
        if bytes * 100 < best.bytes * RUNS_GAIN {
            best = Layout { form: Form::Runs, bytes };
        }
    }
    best
}

/// Lays words out.
pub(super) fn build<T: Word>(x: Vec<T>, layout: &Layout, ctx: &mut ExecutionCtx) -> Result<ArrayRef, String> {
    match layout.form {
        Form::Raw => Ok(raw(x)),
        Form::Packed(bits, exceptions) => packed(&x, bits, exceptions, ctx),
        Form::Runs => {
            let mut ends = Vec::new();
            let mut words = Vec::new();
            let next = x.iter().skip(1).map(Some).chain([None]);
            for (at, (word, next)) in (1u32..).zip(x.iter().zip(next)) {
                if Some(word) != next {
                    ends.push(at);
                    words.push(*word);
                }
            }
            let inner = match self::layout(&words) {
                Layout { form: Form::Runs, .. } => raw(words),
                other => build(words, &other, ctx)?,
            };
            let ends = match u16::try_from(x.len()) {
                Ok(_) => raw(ends.iter().map(|e| *e as u16).collect()),
                Err(_) => raw(ends),
            };
            Ok(RunEnd::try_new(ends, inner, ctx).map_err(text)?.into_array())
        }
    }
}

fn raw<T: NativePType>(x: Vec<T>) -> ArrayRef {
    PrimitiveArray::new(Buffer::from(x), Validity::NonNullable).into_array()
}

pub(super) fn packed<T: Word>(
    x: &[T],
    bits: u32,
    exceptions: usize,
    ctx: &mut ExecutionCtx,
) -> Result<ArrayRef, String> {
    let patches = if exceptions > 0 {
        let limit = T::low(((1u128 << bits) - 1) as u64);
        let mut at = Vec::with_capacity(exceptions);
        let mut words = Vec::with_capacity(exceptions);
        for (i, word) in (0u32..).zip(x) {
            if *word > limit {
                at.push(i);
                words.push(*word);
            }
        }
        let at = match x.len() <= 1 << 16 {
            true => raw(at.iter().map(|i| *i as u16).collect()),
            false => raw(at),
        };
        Some(Patches::new(x.len(), 0, at, raw(words), None, ctx).map_err(text)?)
    } else {
        None
    };
    let bits = bits as u8;
    let buffer = BufferHandle::new_host(T::pack(x, bits));
    let array = BitPacked::try_new(buffer, T::PTYPE, Validity::NonNullable, patches, bits, x.len(), 0);
    Ok(array.map_err(text)?.into_array())
}

/// The words as `first + i * step`, if they are.
pub(super) fn sequence<T: Word>(x: &[T], ctx: &mut ExecutionCtx) -> Result<Option<ArrayRef>, String> {
    let [a, b, c, ..] = x else { return Ok(None) };
    if b.minus(*a) != c.minus(*b) {
        return Ok(None);
    }
    let array = PrimitiveArray::new(Buffer::from(x.to_vec()), Validity::NonNullable);
    sequence_encode(array.as_view(), ctx).map_err(text)
}

/// Words in place of others, and what is to be added to them.
pub(super) struct Differences<T> {
    pub(super) lag: u32,
    pub(super) offset: u64,
    pub(super) words: Vec<T>,
    pub(super) layout: Layout,
}

/// Differences to the words one of these numbers of rows before, if that is much smaller than `plain`.
pub(super) fn steps<T: Word>(x: &[T], lags: &[u32], plain: &Layout) -> Option<Differences<T>> {
    let mut best: Option<(u32, u64, Vec<T>, Layout)> = None;
    let mut limit = plain.bytes * DIFFERENCES_GAIN / 100;
    for lag in lags {
        let rows = *lag as usize;
        if rows == 0 || rows * 4 > x.len() || !promising(x, rows, limit) {
            continue;
        }
        let words = differences(x, rows);
        let (offset, layout) = window(&words);
        if layout.bytes < limit {
            limit = layout.bytes;
            best = Some((*lag, offset, words, layout));
        }
    }
    let (lag, offset, mut words, layout) = best?;
    let by = T::low(offset);
    words.iter_mut().for_each(|w| *w = w.minus(by));
    Some(Differences { lag, offset, words, layout })
}

/// The bits of a difference, seen as a number with a sign, in the form that has the sign last.
fn signed_bits<T: Word>(d: T) -> u32 {
    let high = u64::BITS - T::BITS;
    let v = (d.into() << high) as i64 >> high;
    bits_of(((v << 1) ^ (v >> 63)) as u64)
}

/// Whether a few differences, evenly taken, are as small as they would have to be.
fn promising<T: Word>(x: &[T], lag: usize, limit: usize) -> bool {
    const LOOK: usize = 256;
    let every = (x.len() - lag).div_ceil(LOOK);
    let pairs = x.iter().skip(lag).zip(x).step_by(every);
    let (n, bits) = pairs.fold((0, 0), |(n, bits), (a, b)| (n + 1, bits + signed_bits(a.minus(*b)) as usize));
    // A bit more than the mean is about what the width will be.
    bits / 8 * x.len() / n.max(1) <= limit + x.len() / 8
}

/// The offset (zero, or such that small numbers of either sign fit) and the layout for differences.
fn window<T: Word>(d: &[T]) -> (u64, Layout) {
    let mut positive = [0usize; 65];
    let mut signed = [0usize; 65];
    for d in d {
        positive[bits_of((*d).into()) as usize] += 1;
        signed[signed_bits(*d) as usize] += 1;
    }
    let mut best = (0, Layout { form: Form::Raw, bytes: size_of_val(d) + ARRAY });
    for (centred, lengths) in [(false, &positive), (true, &signed)] {
        let mut exceptions = 0;
        for bits in (0..T::BITS).rev() {
            exceptions += lengths[bits as usize + 1];
            let patches = if exceptions == 0 { 0 } else { exceptions * patch_bytes::<T>(d.len()) + 2 * ARRAY };
            let bytes = packed_bytes(bits, d.len()) + patches + ARRAY;
            if bytes < best.1.bytes {
                let offset = if centred && bits > 0 { 0u64.wrapping_sub(1 << (bits - 1)) } else { 0 };
                best = (offset, Layout { form: Form::Packed(bits, exceptions), bytes });
            }
        }
    }
    best
}

/// Whether packing wastes most of its bits because there are few distinct words: a few of them, evenly taken, repeat.
pub(super) fn repeats<T: Word>(x: &[T], layout: &Layout) -> bool {
    const LOOK: usize = 512;
    const WIDE: u32 = 11;
    let wide = matches!(layout.form, Form::Raw) && T::BITS > WIDE
        || matches!(layout.form, Form::Packed(bits, _) if bits > WIDE);
    if !wide || x.len() < 4 * LOOK {
        return false;
    }
    let mut seen: Vec<T> = x.iter().step_by(x.len() / LOOK).copied().collect();
    let looked = seen.len();
    seen.sort_unstable();
    seen.dedup();
    seen.len() * 3 < looked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(x: &[u32]) -> Form {
        layout(x).form
    }

    #[test]
    fn the_width_is_that_of_most_words() {
        let mut x: Vec<u32> = (0..4096).map(|i| i % 32).collect();
        assert_eq!(form(&x), Form::Packed(5, 0));
        x[77] = 1 << 30;
        x[4000] = 1 << 20;
        assert_eq!(form(&x), Form::Packed(5, 2));
        x.sort_unstable();
        assert_eq!(form(&x), Form::Runs);
        assert_eq!(form(&[1, 2, 3]), Form::Raw);
        let wide: Vec<u32> = (0..4096u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
        assert_eq!(form(&wide), Form::Raw);
    }

    #[test]
    fn series_are_found_by_their_lag() {
        // Ten series that walk, one row each in turn.
        let mut seed = 1u64;
        let mut at: [u32; 10] = std::array::from_fn(|series| 500 + 1000 * series as u32);
        let x: Vec<u32> = (0..8192)
            .map(|i| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let series = i % 10;
                at[series] = at[series] + (seed >> 62) as u32 - 1;
                at[series]
            })
            .collect();
        let plain = layout(&x);
        let found = steps(&x, &[1, 10], &plain).unwrap();
        assert_eq!(found.lag, 10);
        assert!(found.layout.bytes * 3 < plain.bytes, "{:?} instead of {plain:?}", found.layout);
        let noise: Vec<u32> = (0..8192u32).map(|i| i.wrapping_mul(0x9e37_79b9) >> 12).collect();
        assert!(steps(&noise, &[1, 10], &layout(&noise)).is_none());
    }
}
