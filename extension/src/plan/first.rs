//! DISTINCT ON: rows that cannot come first are left out while blocks are read.
//!
//! `SELECT DISTINCT ON (host) … ORDER BY host, ts DESC` returns, for each host, a row with the largest ts. So of the rows of a
//! block with one host only those with the largest ts in the block can be returned; the others need not be made, sorted and
//! thrown away. PostgreSQL's own Sort and Unique above the scan stay and decide between blocks, partitions and delta rows.
//!
//! It is done where the query reads one table and nothing else, for one column by whose value rows are distinct and
//! whole-number or date-time columns to order by, and only for blocks whose rows need no further check: a row that another
//! clause would remove must not displace one that stays. Nulls in either column leave a block as it is.

use super::blocks::{Batch, BlockScan, Selection};
use crate::am::datum::{self, Kind};
use crate::pg::compat;
use crate::pg::list::{is_a, items};
use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;
use std::collections::HashMap;

/// Of rows with the same key, those count that have the least (or the largest) value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct First {
    /// The attribute number of the key.
    pub key: i16,
    /// The attribute number of the value.
    pub by: i16,
    /// The largest is wanted.
    pub largest: bool,
}

/// `integer_ops` and `datetime_ops` of btree.
const ORDERED_AS_INTEGERS: [u32; 2] = [1976, 434];

/// What the query above `rel` takes of its rows, if only first ones count. Also the key as an expression over `rel`.
///
/// # Safety
/// `rel` is a table or a partition that is being planned; `tupdesc` is its descriptor.
pub unsafe fn wanted(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    tupdesc: pg_sys::TupleDesc,
) -> Option<(First, *mut pg_sys::Node)> {
    // SAFETY: the caller's promise; tags tell the types of nodes.
    unsafe {
        let query = &*(*root).parse;
        let plain = query.hasDistinctOn
            && query.commandType == pg_sys::CmdType::CMD_SELECT
            && !query.hasAggs
            && !query.hasWindowFuncs
            && !query.hasTargetSRFs
            && query.groupClause.is_null()
            && query.groupingSets.is_null()
            && query.havingQual.is_null()
            && query.setOperations.is_null()
            && query.rowMarks.is_null()
            && !query.jointree.is_null()
            && !pg_sys::contain_volatile_functions(query.targetList.cast());
        if !plain {
            return None;
        }
        let mut tables = items::<pg_sys::Node>((*query.jointree).fromlist);
        let only = tables.next().filter(|_| tables.len() == 0)?;
        if !is_a(only, NodeTag::T_RangeTblRef) {
            return None;
        }
        let index = (*only.cast::<pg_sys::RangeTblRef>()).rtindex;
        let top = pg_sys::find_base_rel(root, index);
        let is_child = !(*rel).top_parent_relids.is_null() && pg_sys::bms_is_member(index, (*rel).top_parent_relids);
        if top != rel && !is_child {
            return None;
        }
        let mut keys = items::<pg_sys::SortGroupClause>(query.distinctClause);
        let mut order = items::<pg_sys::SortGroupClause>(query.sortClause);
        let key = keys.next().filter(|_| keys.len() == 0)?;
        let (first, second) = (order.next()?, order.next()?);
        if (*first).tleSortGroupRef != (*key).tleSortGroupRef {
            return None;
        }
        let column = |clause: *mut pg_sys::SortGroupClause| {
            let mut node = pg_sys::get_sortgroupclause_expr(clause, query.targetList);
            if !is_a(node, NodeTag::T_Var) || (*node.cast::<pg_sys::Var>()).varno != index {
                return None;
            }
            if top != rel {
                node = compat::translate_to_child(root, node, rel, top);
            }
            let var = node.cast::<pg_sys::Var>();
            (is_a(node, NodeTag::T_Var) && (*var).varattno > 0 && (*var).varattno <= (*tupdesc).natts as i16)
                .then_some((node, (*var).varattno))
        };
        let ((key_node, key), (_, by)) = (column(key)?, column(second)?);
        let (mut family, mut type_, mut strategy) = (pg_sys::Oid::INVALID, pg_sys::Oid::INVALID, 0);
        if !pg_sys::get_ordering_op_properties((*second).sortop, &mut family, &mut type_, &mut strategy)
            || !ORDERED_AS_INTEGERS.contains(&family.to_u32())
            || !matches!(datum::kind_of(compat::attribute(tupdesc, by as usize - 1), false).0, Kind::Int(2 | 4 | 8))
        {
            return None;
        }
        let largest = i64::from(strategy) == i64::from(pg_sys::BTGreaterStrategyNumber);
        Some((First { key, by, largest }, key_node))
    }
}

impl First {
    /// Leaves of a batch, all of whose rows satisfy the query, those that can come first.
    pub fn reduce(&self, scan: &BlockScan, batch: &mut Batch) {
        let (key, by) = (self.key as usize - 1, self.by as usize - 1);
        let whole = |a: usize| batch.zone(a).is_some_and(|z| z.null_count == 0);
        if batch.recheck || !whole(key) || !whole(by) {
            return;
        }
        let Some(values) = scan.integers(batch, by) else { return };
        let strata_fragment::ColumnData::I64(values) = &values.data else { return };
        let n = batch.selection.len();
        let groups: Vec<u32> = if let Some(dictionary) = scan.dictionary(batch, key) {
            (0..n).map(|i| dictionary.codes[batch.selection.row(i)]).collect()
        } else if let Some(keys) = scan.integers(batch, key)
            && let strata_fragment::ColumnData::I64(keys) = &keys.data
        {
            let mut known: HashMap<i64, u32> = HashMap::new();
            (0..n)
                .map(|i| {
                    let next = known.len() as u32;
                    *known.entry(keys[batch.selection.row(i)]).or_insert(next)
                })
                .collect()
        } else {
            return;
        };
        let most = groups.iter().max().map_or(0, |g| *g as usize + 1);
        // The value turned so that the largest wins.
        let rank = |i: usize| {
            let v = values[batch.selection.row(i)];
            if self.largest { v } else { !v }
        };
        let mut best = vec![i64::MIN; most];
        groups.iter().enumerate().for_each(|(i, g)| best[*g as usize] = best[*g as usize].max(rank(i)));
        let kept = (0..n).filter(|i| best[groups[*i] as usize] == rank(*i)).map(|i| batch.selection.row(i) as u32);
        let kept: Vec<u32> = kept.collect();
        batch.selection = Selection::Rows(kept);
    }
}
