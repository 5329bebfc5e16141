//! 256-bit whole numbers: enough for sums of products of numerics. Arithmetic wraps; whoever uses it knows that results fit.

/// A 256-bit whole number in two's complement, the lowest 64 bits first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct I256([u64; 4]);

impl From<i128> for I256 {
    fn from(v: i128) -> Self {
        let sign = if v < 0 { u64::MAX } else { 0 };
        Self([v as u64, (v >> 64) as u64, sign, sign])
    }
}

impl I256 {
    /// The sum.
    #[inline]
    pub fn plus(self, other: Self) -> Self {
        let mut out = [0; 4];
        let mut carry = 0u128;
        for (i, to) in out.iter_mut().enumerate() {
            let sum = u128::from(self.0[i]) + u128::from(other.0[i]) + carry;
            *to = sum as u64;
            carry = sum >> 64;
        }
        Self(out)
    }

    /// The negative.
    #[inline]
    pub fn negated(self) -> Self {
        Self(self.0.map(|w| !w)).plus(Self([1, 0, 0, 0]))
    }

    /// The product.
    #[inline]
    pub fn times(self, other: Self) -> Self {
        let mut out = [0u64; 4];
        for i in 0..4 {
            let mut carry = 0u128;
            for j in 0..4 - i {
                let sum = u128::from(self.0[i]) * u128::from(other.0[j]) + u128::from(out[i + j]) + carry;
                out[i + j] = sum as u64;
                carry = sum >> 64;
            }
        }
        Self(out)
    }

    /// Whether it is below zero.
    pub fn is_negative(self) -> bool {
        self.0[3] >> 63 == 1
    }

    /// The digits of its magnitude to base 10,000, the lowest first; none for zero.
    pub fn digits(self) -> Vec<u16> {
        let mut rest = if self.is_negative() { self.negated().0 } else { self.0 };
        let mut digits = Vec::with_capacity(20);
        while rest != [0; 4] {
            let mut remainder = 0u128;
            for word in rest.iter_mut().rev() {
                let part = (remainder << 64) | u128::from(*word);
                *word = (part / 10_000) as u64;
                remainder = part % 10_000;
            }
            digits.push(remainder as u16);
        }
        digits
    }
}

#[cfg(test)]
mod tests {
    use super::I256;

    #[test]
    fn agrees_with_128_bits() {
        let values = [0, 1, -1, 9_999, 10_000, -123_456_789_012_345, i64::MAX as i128, i64::MIN as i128];
        for a in values {
            for b in values {
                assert_eq!(I256::from(a).plus(I256::from(b)), I256::from(a + b), "{a} + {b}");
                assert_eq!(I256::from(a).times(I256::from(b)), I256::from(a * b), "{a} * {b}");
            }
            assert_eq!(I256::from(a).negated(), I256::from(-a));
            let back = I256::from(a).digits().iter().rev().fold(0i128, |n, d| n * 10_000 + i128::from(*d));
            assert_eq!(back, a.abs());
        }
    }

    #[test]
    fn goes_beyond_128_bits() {
        let ten_to = |n: u32| (0..n).fold(I256::from(1), |v, _| v.times(I256::from(10)));
        let v = ten_to(60).plus(I256::from(7)).negated();
        assert!(v.is_negative());
        let digits = v.digits();
        assert_eq!((digits.len(), digits[0], digits[15]), (16, 7, 1));
        assert!(digits[1..15].iter().all(|d| *d == 0));
    }
}
