//! Which keys get key maps in the fragment index: those that the bounds of fragments do not tell apart.

use strata_fragment::PhysicalType;
use strata_fragment::segment::{Described, order_key};

/// Fragments whose bounds stand for all.
const SAMPLE: usize = 64;

/// Of how many of these fragments a typical key of one is within the bounds, on average.
fn candidates_of_a_key(fragments: &[&Described], key: &[i16]) -> f64 {
    // By fragment, the ends of each column of the key; none if no row has a key.
    let ends: Vec<Option<Vec<(i128, i128)>>> = fragments
        .iter()
        .map(|d| {
            key.iter()
                .map(|attnum| {
                    let Some(c) = d.layout.columns.iter().position(|(a, _)| a == attnum) else {
                        return Some((i128::MIN, i128::MAX));
                    };
                    let zone = d.zones.get(c)?;
                    let min = zone.min.as_ref().and_then(order_key)?;
                    Some((min, zone.max.as_ref().and_then(order_key).unwrap_or(i128::MAX)))
                })
                .collect()
        })
        .collect();
    let step = ends.len().div_ceil(SAMPLE).max(1);
    let (mut keys, mut found) = (0, 0);
    for sample in ends.iter().step_by(step).flatten() {
        let middle: Vec<i128> = sample.iter().map(|(min, max)| min / 2 + max / 2 + (min % 2 + max % 2) / 2).collect();
        let holds = |e: &&Vec<(i128, i128)>| e.iter().zip(&middle).all(|((min, max), m)| min <= m && m <= max);
        keys += 1;
        found += ends.iter().flatten().filter(holds).count();
    }
    if keys == 0 { 0.0 } else { found as f64 / f64::from(keys) }
}

/// Whether a key map pays for a segment of these fragments: without it a look-up would ask several of them.
pub(super) fn wants_map(fragments: &[&Described], key: &[i16]) -> bool {
    candidates_of_a_key(fragments, key) > 1.5
}

/// The keys for which every segment gets a key map, also one of a single fragment: of the whole table, more than three fragments and a
/// quarter of all would be asked for a key. Random uuids are like that.
pub(super) fn wanted_everywhere(described: &[Option<Described>], keys: &[Vec<i16>]) -> Vec<bool> {
    let all: Vec<&Described> = described.iter().flatten().collect();
    let most = (all.len() as f64 / 4.0).max(3.0);
    keys.iter().map(|key| candidates_of_a_key(&all, key) > most).collect()
}

/// The columns of a key in the fragment's layout, if all are there and have equality as key maps have it.
pub(super) fn key_columns(d: &Described, key: &[i16]) -> Option<Vec<usize>> {
    let column = |attnum: &i16| {
        let c = d.layout.columns.iter().position(|(a, _)| a == attnum)?;
        let ty = d.layout.columns[c].1;
        (!matches!(ty, PhysicalType::F32 | PhysicalType::F64 | PhysicalType::Decimal { .. })).then_some(c)
    };
    key.iter().map(column).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use strata_fragment::segment::{Layout, Member};
    use strata_fragment::{Value, Zone};

    pub(in crate::tier) fn described(ends: impl IntoIterator<Item = (i64, i64)>) -> Vec<Described> {
        let one = |(min, max)| {
            let zone =
                Zone { min: Some(Value::I64(min)), max: Some(Value::I64(max)), exact: true, null_count: 0, rows: 9 };
            let layout = Layout { columns: vec![(1, PhysicalType::I64)], sort_key: vec![1] };
            let member = Member { hash: [0; 32], first_row_id: 0, end: 9, rows: 9, blocks: 1, layout: 0 };
            Described { member, layout, zones: vec![zone] }
        };
        ends.into_iter().map(one).collect()
    }

    #[test]
    fn a_key_map_pays_where_bounds_overlap() {
        let in_order = described((0..100).map(|i| (i * 10, i * 10 + 10)));
        let refs: Vec<&Described> = in_order.iter().collect();
        assert!(!wants_map(&refs, &[1]), "fragments in the order of the key");
        let random = described((0..4).map(|i| (i64::MIN + i, i64::MAX - i)));
        let refs: Vec<&Described> = random.iter().collect();
        assert!(wants_map(&refs, &[1]), "fragments with random keys");
        assert!(!wants_map(&refs[..1], &[1]), "one fragment");
        let late = described((0..100).map(|i| (i * 10, i * 10 + 9)).chain([(0, 1_000), (5, 990)]));
        let all: Vec<Option<Described>> = late.into_iter().map(Some).collect();
        assert_eq!(wanted_everywhere(&all, &[vec![1]]), [false], "two late fragments are no reason to map all");
        let all: Vec<Option<Described>> = random.into_iter().map(Some).collect();
        assert_eq!(wanted_everywhere(&all, &[vec![1]]), [true]);
    }
}
