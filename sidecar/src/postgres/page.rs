//! Heap and index pages, as far as their checksum goes.

/// The size of PostgreSQL's blocks on every platform that distributions build for.
pub const PAGE: usize = 8192;
/// Blocks in one file of a relation.
pub const BLOCKS_PER_FILE: u64 = 131_072;

const LANES: usize = 32;
/// The word of a page whose lower half is the checksum.
const CHECKSUM_LANE: usize = 2;
const PRIME: u32 = 16_777_619;
const OFFSETS: [u32; LANES] = [
    0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C, 0xF8D4474F,
    0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB, 0xE58F764B, 0x187636BC,
    0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4, 0x783125BB, 0x6CA8EAA2, 0xE407EAC6,
    0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
];

fn u16_at(page: &[u8; PAGE], at: usize) -> u16 {
    u16::from_le_bytes([page.get(at).copied().unwrap_or(0), page.get(at + 1).copied().unwrap_or(0)])
}

fn u32_at(page: &[u8; PAGE], at: usize) -> u32 {
    u32::from(u16_at(page, at)) | u32::from(u16_at(page, at + 2)) << 16
}

/// The checksum that PostgreSQL gives to a page, with the checksum's own bytes taken as zero. The algorithm is FNV-1a in
/// 32 lanes with a final avalanche (`storage/checksum_impl.h`).
pub fn checksum(page: &[u8; PAGE], block: u32) -> u16 {
    let (words, _) = page.as_chunks::<4>();
    let (rows, _) = words.as_chunks::<LANES>();
    let mut sums = OFFSETS;
    // Whole rows at a time and nothing that branches, so that the compiler makes vector instructions of it.
    let mut mix = |row: &[[u8; 4]; LANES], mask: u32| {
        for lane in 0..LANES {
            let mut value = u32::from_le_bytes(row[lane]);
            if lane == CHECKSUM_LANE {
                value &= mask;
            }
            let mixed = sums[lane] ^ value;
            sums[lane] = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
        }
    };
    if let Some((first, rest)) = rows.split_first() {
        mix(first, 0xffff_0000);
        for row in rest {
            mix(row, u32::MAX);
        }
    }
    for _ in 0..2 {
        for sum in &mut sums {
            *sum = sum.wrapping_mul(PRIME) ^ (*sum >> 17);
        }
    }
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
    (folded % 65535 + 1) as u16
}

/// What a look at a page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Never written, or its checksum is right.
    Good,
    /// Changed after the backup began: replay brings it back whole, so its checksum does not matter.
    Newer,
    /// Its checksum is wrong, and nothing will overwrite it.
    Bad,
}

/// Judges a page of a backup that began at `start`. `block` is the page's number in its relation.
pub fn judge(page: &[u8; PAGE], block: u32, start: u64) -> PageState {
    // A page whose upper bound is 0 was never initialized.
    if u16_at(page, 14) == 0 {
        return PageState::Good;
    }
    let lsn = u64::from(u32_at(page, 0)) << 32 | u64::from(u32_at(page, 4));
    if lsn >= start {
        return PageState::Newer;
    }
    if checksum(page, block) == u16_at(page, 8) { PageState::Good } else { PageState::Bad }
}

/// For the name of a relation's file: the number of its segment. None for names that are not of that kind.
pub fn relation_segment(name: &str) -> Option<u64> {
    let (base, segment) = match name.split_once('.') {
        Some((base, segment)) => (base, segment.parse().ok()?),
        None => (name, 0),
    };
    let (number, fork) = base.split_once('_').unwrap_or((base, "main"));
    let digits = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    (digits && matches!(fork, "main" | "fsm" | "vm" | "init")).then_some(segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_page_is_good() {
        assert_eq!(judge(&[0; PAGE], 0, 100), PageState::Good);
    }

    #[test]
    fn a_flipped_bit_is_seen_unless_the_page_is_newer() {
        let mut page = [7u8; PAGE];
        page[0..8].copy_from_slice(&[0, 0, 0, 0, 50, 0, 0, 0]);
        let sum = checksum(&page, 3);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(judge(&page, 3, 100), PageState::Good);
        assert_eq!(judge(&page, 4, 100), PageState::Bad);
        page[5000] ^= 1;
        assert_eq!(judge(&page, 3, 100), PageState::Bad);
        assert_eq!(judge(&page, 3, 50), PageState::Newer);
    }

    #[test]
    fn files_of_relations_are_told_apart() {
        assert_eq!(relation_segment("16384"), Some(0));
        assert_eq!(relation_segment("16384.3"), Some(3));
        assert_eq!(relation_segment("16384_vm.1"), Some(1));
        for other in ["pg_filenode.map", "PG_VERSION", "t3_16384", "16384_x", "_vm", "16384.x", "pg_control"] {
            assert_eq!(relation_segment(other), None, "{other}");
        }
    }
}
