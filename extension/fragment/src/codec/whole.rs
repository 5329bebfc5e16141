//! Whole numbers of a chunk as unsigned words, and back.
//!
//! ```text
//!  values ──subtract the least, divide by the common divisor──► words of 8, 16, 32 or 64 bits
//!         ──subtract the word `lag` rows before, and an offset──► small words, if that makes them smaller
//! ```
//!
//! Both steps are exact: the first by construction, the second because it is arithmetic modulo the width of the word, which
//! undoes itself whatever the values are. The lag is 1 for values that follow each other (a second key column in the order of
//! the first), and the number of series for measurements that are sorted by time and then by series: the value before
//! is then that of the same series.

use serde::{Deserialize, Serialize};
use vortex::dtype::NativePType;

use crate::column::ColumnData;
use crate::schema::PhysicalType;

/// What words mean: `x[i]` is `word[i] + offset + x[i - lag]` modulo 2^bits (of rows before the first, `x` is zero; with a lag of
/// zero it is the word itself); the value is `base + x * scale`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Whole {
    pub(crate) bits: u8,
    pub(crate) base: i128,
    pub(crate) scale: u64,
    pub(crate) lag: u32,
    pub(crate) offset: u64,
}

/// An unsigned word.
pub(crate) trait Word: NativePType + Copy + Ord + Into<u64> {
    const BITS: u32;
    const ZERO: Self;
    /// The low bits.
    fn low(v: u64) -> Self;
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    /// Packs into so many bits each what fits them; of the rest the low bits. FastLanes' order.
    fn pack(words: &[Self], bits: u8) -> vortex::buffer::ByteBuffer;
}

macro_rules! word {
    ($($t:ty),+) => {$(
        impl Word for $t {
            const BITS: u32 = <$t>::BITS;
            const ZERO: Self = 0;
            #[inline]
            fn low(v: u64) -> Self {
                v as $t
            }
            #[inline]
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline]
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            fn pack(words: &[Self], bits: u8) -> vortex::buffer::ByteBuffer {
                vortex::encodings::fastlanes::bitpack_compress::bitpack_primitive::<$t>(words, bits).into_byte_buffer()
            }
        }
    )+};
}
word!(u8, u16, u32, u64);

/// Words of the narrowest width.
#[derive(Debug)]
pub(crate) enum Words {
    W8(Vec<u8>),
    W16(Vec<u16>),
    W32(Vec<u32>),
    W64(Vec<u64>),
}

/// Runs something generic on the words, whatever their width.
macro_rules! with_words {
    ($words:expr, $w:ident => $body:expr) => {
        match $words {
            $crate::codec::whole::Words::W8($w) => $body,
            $crate::codec::whole::Words::W16($w) => $body,
            $crate::codec::whole::Words::W32($w) => $body,
            $crate::codec::whole::Words::W64($w) => $body,
        }
    };
}
pub(crate) use with_words;

/// Divides by a number that is not zero: fast where it is known that nothing remains.
struct Divisor {
    shift: u32,
    odd: u64,
    inverse: u64,
}

impl Divisor {
    fn new(n: u64) -> Self {
        let shift = n.trailing_zeros();
        let odd = n >> shift;
        // Newton: each step doubles the bits that are right; three are to begin with.
        let mut inverse = odd;
        for _ in 0..5 {
            inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        }
        Self { shift, odd, inverse }
    }

    /// `x` divided by the number, if it is a multiple.
    fn exactly(&self, x: u64) -> Option<u64> {
        let part = x >> self.shift;
        let quotient = part.wrapping_mul(self.inverse);
        let whole = part << self.shift == x && quotient <= u64::MAX / self.odd;
        whole.then_some(quotient)
    }

    /// `x` divided by the number, which is known to be a multiple.
    fn of_multiple(&self, x: u64) -> u64 {
        (x >> self.shift).wrapping_mul(self.inverse)
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// The greatest common divisor of numbers that are not all zero.
fn common_divisor(x: impl Iterator<Item = u64>) -> u64 {
    let mut common = 0;
    let mut divisor = None::<Divisor>;
    for x in x {
        if divisor.as_ref().is_some_and(|d| d.exactly(x).is_some()) {
            continue;
        }
        common = gcd(common, x);
        if common == 1 {
            return 1;
        }
        divisor = (common != 0).then(|| Divisor::new(common));
    }
    common.max(1)
}

/// Numbers at a distance from `base` that fits 64 bits, not all equal.
fn reduce_distances(base: i128, most: u64, distances: impl Iterator<Item = u64> + Clone) -> (Whole, Words) {
    let scale = common_divisor(distances.clone());
    let d = Divisor::new(scale);
    let words = distances.map(|x| if scale == 1 { x } else { d.of_multiple(x) });
    let (bits, words) = match most / scale {
        0..=0xff => (8, Words::W8(words.map(|x| x as u8).collect())),
        0x100..=0xffff => (16, Words::W16(words.map(|x| x as u16).collect())),
        0x1_0000..=0xffff_ffff => (32, Words::W32(words.map(|x| x as u32).collect())),
        _ => (64, Words::W64(words.collect())),
    };
    (Whole { bits, base, scale, lag: 0, offset: 0 }, words)
}

/// Numbers, at least one and not all equal, as words.
pub(crate) fn reduce(values: &[i64]) -> (Whole, Words) {
    let min = values.iter().min().copied().unwrap_or_default();
    let max = values.iter().max().copied().unwrap_or_default();
    let most = max.wrapping_sub(min) as u64;
    reduce_distances(min.into(), most, values.iter().map(|v| v.wrapping_sub(min) as u64))
}

/// [`reduce`] of wider numbers; `None` if they are too far apart.
pub(crate) fn reduce_wide(values: &[i128]) -> Option<(Whole, Words)> {
    let (min, max) = (values.iter().min().copied()?, values.iter().max().copied()?);
    let most = u64::try_from(max.checked_sub(min)?).ok()?;
    Some(reduce_distances(min, most, values.iter().map(|v| v.wrapping_sub(min) as u64)))
}

/// The differences to the word `lag` rows before.
pub(crate) fn differences<T: Word>(x: &[T], lag: usize) -> Vec<T> {
    let head = x.iter().take(lag).copied();
    head.chain(x.iter().skip(lag).zip(x).map(|(x, before)| x.minus(*before))).collect()
}

/// Undoes [`differences`] and the subtraction of the offset.
fn accumulate<T: Word>(words: &[T], lag: usize, offset: u64) -> Vec<T> {
    let offset = T::low(offset);
    let mut x: Vec<T> = words.iter().map(|w| w.plus(offset)).collect();
    if lag == 1 {
        let mut sum = T::ZERO;
        for v in &mut x {
            sum = sum.plus(*v);
            *v = sum;
        }
        return x;
    }
    let mut start = lag;
    while start < x.len() {
        let (before, rest) = x.split_at_mut(start);
        for (v, b) in rest.iter_mut().take(lag).zip(&before[start - lag..]) {
            *v = v.plus(*b);
        }
        start += lag;
    }
    x
}

/// What the values are wanted as.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    Whole(PhysicalType),
    /// Floats: the number divided by this power of ten.
    Decimal(PhysicalType, u8),
}

/// The powers of ten that are exact as f64.
const EXACT_POWERS: i32 = 22;

/// The power of ten that a decimal float was multiplied with; `None` for digits that no writer writes.
pub(crate) fn power(digits: u8) -> Option<f64> {
    (i32::from(digits) <= EXACT_POWERS).then(|| 10f64.powi(digits.into()))
}

impl Whole {
    /// All values.
    pub(crate) fn restore<T: Word>(&self, words: &[T], target: Target) -> Result<ColumnData, String> {
        match self.lag {
            0 => self.values(words, target),
            lag => self.values(&accumulate(words, lag as usize, self.offset), target),
        }
    }

    /// The number that a word without differences is.
    #[inline]
    pub(crate) fn number(&self, x: u64) -> i128 {
        self.base.wrapping_add(i128::from(x).wrapping_mul(self.scale.into()))
    }

    /// The value of one row, from all words.
    pub(crate) fn restore_one<T: Word>(&self, words: &[T], row: usize, target: Target) -> Result<ColumnData, String> {
        let missing = || format!("row {row} of {} words", words.len());
        let word = words.get(row).copied().ok_or_else(missing)?;
        let x = match self.lag as usize {
            0 => word,
            lag => {
                let offset = T::low(self.offset);
                let series = words.iter().skip(row % lag).step_by(lag).take(row / lag + 1);
                series.fold(T::ZERO, |sum, w| sum.plus(*w).plus(offset))
            }
        };
        self.values(&[x], target)
    }

    fn values<T: Word>(&self, x: &[T], target: Target) -> Result<ColumnData, String> {
        let (scale, base) = (self.scale, self.base);
        // Wrapping arithmetic on the low bits is exact for values that fit, and the checksum says that they do.
        let low = base as u64;
        macro_rules! narrow {
            ($t:ty) => {
                match scale {
                    1 => x.iter().map(|x| (*x).into().wrapping_add(low) as $t).collect(),
                    _ => x.iter().map(|x| (*x).into().wrapping_mul(scale).wrapping_add(low) as $t).collect(),
                }
            };
        }
        Ok(match target {
            Target::Whole(PhysicalType::Bool) => {
                let numbers: Vec<u8> = narrow!(u8);
                ColumnData::Bool(numbers.into_iter().map(|v| v != 0).collect())
            }
            Target::Whole(PhysicalType::I16) => ColumnData::I16(narrow!(i16)),
            Target::Whole(PhysicalType::I32) => ColumnData::I32(narrow!(i32)),
            Target::Whole(PhysicalType::I64) => ColumnData::I64(narrow!(i64)),
            Target::Whole(PhysicalType::Decimal { .. }) => ColumnData::I128(
                x.iter().map(|x| base.wrapping_add(i128::from((*x).into()).wrapping_mul(scale.into()))).collect(),
            ),
            Target::Decimal(ty, digits) => {
                let by = power(digits).ok_or_else(|| format!("floats of {digits} decimal digits"))?;
                let mut floats = match i32::try_from(base) {
                    // Conversions of 32 bits are several at once.
                    Ok(base) if scale == 1 && T::BITS <= 16 && base < i32::MAX - 0xffff => {
                        x.iter().map(|x| f64::from((*x).into() as i32 + base)).collect()
                    }
                    _ => {
                        let numbers: Vec<i64> = narrow!(i64);
                        numbers.iter().map(|v| *v as f64).collect::<Vec<f64>>()
                    }
                };
                if digits > 0 {
                    floats.iter_mut().for_each(|v| *v /= by);
                }
                match ty {
                    PhysicalType::F32 => ColumnData::F32(floats.iter().map(|v| *v as f32).collect()),
                    _ => ColumnData::F64(floats),
                }
            }
            Target::Whole(other) => return Err(format!("integers in a column of type {other:?}")),
        })
    }

    /// Whether every value that words of this width may have fits 64 bits.
    pub(crate) fn fits_i64(&self) -> bool {
        let most = i128::from(u64::MAX >> (64 - u32::from(self.bits).clamp(1, 64))).checked_mul(i128::from(self.scale));
        let most = most.and_then(|most| self.base.checked_add(most));
        most.is_some_and(|most| i64::try_from(most).is_ok()) && i64::try_from(self.base).is_ok()
    }
}

/// The floats as whole numbers divided by a power of ten, with as few digits as possible; `None` unless every one comes back bit
/// for bit.
pub(crate) fn decimals(
    values: impl Iterator<Item = f64> + Clone,
    same: impl Fn(f64, f64) -> bool,
) -> Option<(u8, Vec<i64>)> {
    /// Digits behind the point of amounts, temperatures and the like; more make the numbers too long to gain anything.
    const MOST_DIGITS: u8 = 4;
    const LARGEST: f64 = 9_007_199_254_740_992.0; // 2^53
    'digits: for digits in 0..=MOST_DIGITS {
        let by = power(digits)?;
        let mut numbers = Vec::with_capacity(values.size_hint().0);
        for v in values.clone() {
            let scaled = if digits == 0 { v } else { (v * by).round() };
            if !(-LARGEST..=LARGEST).contains(&scaled) {
                return None;
            }
            let number = scaled as i64;
            let back = if digits == 0 { number as f64 } else { number as f64 / by };
            if !same(back, v) {
                continue 'digits;
            }
            numbers.push(number);
        }
        return Some((digits, numbers));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::useless_conversion, reason = "one of the four widths is u64 itself")]
    fn words(w: &Words) -> Vec<u64> {
        with_words!(w, w => w.iter().map(|x| u64::from(*x)).collect())
    }

    #[test]
    fn numbers_are_reduced_by_their_least_and_their_divisor() {
        let (whole, w) = reduce(&[-5_000_000, 1_000_000, 7_000_000]);
        assert_eq!((whole.bits, whole.base, whole.scale), (8, -5_000_000, 6_000_000));
        assert_eq!(words(&w), [0, 1, 2]);
        let (whole, w) = reduce(&[i64::MIN, i64::MAX, 0]);
        assert_eq!((whole.bits, whole.base, whole.scale), (64, i64::MIN.into(), 1));
        assert_eq!(words(&w), [0, u64::MAX, 1 << 63]);
        assert!(reduce_wide(&[i128::MIN, i128::MAX]).is_none() && reduce_wide(&[0, 1 << 64]).is_none());
        assert_eq!(reduce_wide(&[1 << 100, (1 << 100) + 300]).map(|(w, _)| (w.bits, w.scale)), Some((8, 300)));
    }

    #[test]
    fn division_of_multiples_is_exact() {
        for n in [1, 2, 3, 7, 10, 96, 1_000_000, 60_000_000, u64::MAX, 1 << 63] {
            let d = Divisor::new(n);
            for k in [0, 1, 2, 5, 1000, u64::MAX / n] {
                let x = n.wrapping_mul(k.min(u64::MAX / n));
                assert_eq!((d.exactly(x), d.of_multiple(x)), (Some(x / n), x / n), "{x} / {n}");
                if n > 1 && x < u64::MAX {
                    assert_eq!(d.exactly(x + 1), None, "{} / {n}", x + 1);
                }
            }
        }
    }

    #[test]
    fn differences_are_undone_for_every_lag() {
        let mut seed = 5u64;
        for n in [0, 1, 2, 9, 100, 1000] {
            let x: Vec<u16> = (0..n)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 40) as u16
                })
                .collect();
            for lag in [1, 2, 3, 9, 99, 100, 5000] {
                let offset = 65_530u64;
                let d: Vec<u16> = differences(&x, lag).iter().map(|d| d.minus(u16::low(offset))).collect();
                assert_eq!(accumulate(&d, lag, offset), x);
                let whole = Whole { bits: 16, base: 7, scale: 3, lag: lag as u32, offset };
                let all = whole.restore(&d, Target::Whole(PhysicalType::I32)).unwrap();
                for row in 0..n {
                    let one = whole.restore_one(&d, row, Target::Whole(PhysicalType::I32)).unwrap();
                    assert!(one.value(0).identical(&all.value(row)), "{n} {lag} {row}");
                }
                assert!(whole.restore_one(&d, n, Target::Whole(PhysicalType::I32)).is_err());
            }
        }
    }

    #[test]
    fn floats_are_decimals_only_if_each_comes_back() {
        let same = |a: f64, b: f64| a.to_bits() == b.to_bits();
        let of = |v: &[f64]| decimals(v.iter().copied(), same);
        assert_eq!(of(&[3.0, -7.0, 0.0]), Some((0, vec![3, -7, 0])));
        assert_eq!(of(&[0.1, 2.25, 1e6]), Some((2, vec![10, 225, 100_000_000])));
        for no in [-0.0, f64::NAN, f64::INFINITY, 1.0 / 3.0, 1e300, 5e-324] {
            assert_eq!(of(&[1.0, no]), None, "{no}");
        }
    }
}
