//! Paths for aggregation over one warm table, or over the partitions of one table of which some are warm.

use super::exec::SCAN_METHODS;
use super::spec::{self, Output, Unit};
use crate::guc;
use crate::pg::list::{from_items, is_a, items};
use crate::pg::{OpenRelation, compat, ext, guarded};
use crate::plan::exec::Methods;
use crate::plan::paths::Planned;
use crate::plan::private::Part;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ptr::null_mut;

/// For one fragment row: taking one value into a state, or finding its group by one key.
const VALUE_COST: f64 = 0.0003;

static PATH_METHODS: Methods<pg_sys::CustomPathMethods> = Methods(pg_sys::CustomPathMethods {
    CustomName: c"WarmAggregate".as_ptr(),
    PlanCustomPath: Some(plan),
    ReparameterizeCustomPathByChild: None,
});

static mut PREVIOUS: pg_sys::create_upper_paths_hook_type = None;

/// Installs the hook.
pub fn install() {
    // SAFETY: called once when the library is loaded; the previous hook is chained.
    unsafe {
        pg_sys::RegisterCustomScanMethods(&raw const SCAN_METHODS.0);
        PREVIOUS = pg_sys::create_upper_paths_hook;
        pg_sys::create_upper_paths_hook = Some(create_upper_paths);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn create_upper_paths(
    root: *mut pg_sys::PlannerInfo,
    stage: pg_sys::UpperRelationKind::Type,
    input: *mut pg_sys::RelOptInfo,
    output: *mut pg_sys::RelOptInfo,
    extra: *mut core::ffi::c_void,
) {
    // SAFETY: the arguments are the planner's; `extra` is what it is for this stage.
    unsafe {
        if let Some(previous) = PREVIOUS {
            guarded(|| previous(root, stage, input, output, extra));
        }
        if stage == pg_sys::UpperRelationKind::UPPERREL_GROUP_AGG
            && guc::ENABLE_AGGREGATE_PUSHDOWN.get()
            && guc::ENABLE_WARM_SCAN.get()
            && let Some(path) = aggregate(root, input, output, &*extra.cast::<pg_sys::GroupPathExtraData>())
        {
            pg_sys::add_path(output, path);
        }
    }
}

/// The aggregation as a path, if it can be pushed down.
unsafe fn aggregate(
    root: *mut pg_sys::PlannerInfo,
    input: *mut pg_sys::RelOptInfo,
    output: *mut pg_sys::RelOptInfo,
    extra: &pg_sys::GroupPathExtraData,
) -> Option<*mut pg_sys::Path> {
    // SAFETY: the arguments are the planner's.
    unsafe {
        let query = &*(*root).parse;
        let groups = compat::group_clause(root);
        let pushable = (query.hasAggs || !groups.is_null())
            && query.groupingSets.is_null()
            && (query.groupClause.is_null() == groups.is_null())
            && !query.hasTargetSRFs
            && !(*root).hasNonPartialAggs
            && !(*root).hasNonSerialAggs
            && !(*root).hasPseudoConstantQuals
            && (*input).reloptkind == pg_sys::RelOptKind::RELOPT_BASEREL
            && (*input).rtekind == pg_sys::RTEKind::RTE_RELATION
            && (*input).lateral_relids.is_null()
            && !pg_sys::is_dummy_rel(input)
            && (groups.is_null() || pg_sys::grouping_is_hashable(groups));
        if !pushable {
            return None;
        }
        let mut leaves = Vec::new();
        collect_leaves(root, input, &mut leaves)?;
        let planned: Vec<Option<Planned>> = leaves
            .iter()
            .map(|leaf| Planned::new(root, *leaf, *(*root).simple_rte_array.add((**leaf).relid as usize)))
            .collect();
        if planned.iter().all(Option::is_none) {
            return None;
        }
        let target = partial_target(root, groups, (*output).reltarget, extra.havingQual)?;
        let rel = partial_rel(input, target);
        let (mut partial_costs, mut final_costs) =
            (pg_sys::AggClauseCosts::default(), pg_sys::AggClauseCosts::default());
        if query.hasAggs {
            guarded(|| {
                ext::get_agg_clause_costs(root, pg_sys::AggSplit::AGGSPLIT_INITIAL_SERIAL, &mut partial_costs);
                ext::get_agg_clause_costs(root, pg_sys::AggSplit::AGGSPLIT_FINAL_DESERIAL, &mut final_costs);
            });
        }
        let group_exprs = pg_sys::get_sortgrouplist_exprs(groups, query.targetList);
        let number = |rows: f64| {
            if groups.is_null() {
                1.0
            } else {
                pg_sys::estimate_num_groups(root, group_exprs, rows, null_mut(), null_mut())
            }
        };
        let total = truncated_groups(root, target, &leaves, &planned, input, (*input).rows)
            .map_or_else(|| number((*input).rows), |fewer| fewer.min(number((*input).rows)));
        let strategy = if groups.is_null() { pg_sys::AggStrategy::AGG_PLAIN } else { pg_sys::AggStrategy::AGG_HASHED };

        let mut paths: Vec<*mut pg_sys::Path> = Vec::new();
        let mut pushed = false;
        for (leaf, planned) in leaves.iter().zip(&planned) {
            let target = child_target(root, target, *leaf, input);
            let mut partial = |path: *mut pg_sys::Path| {
                let groups_here = total.min((*path).rows).max(1.0);
                let agg = pg_sys::create_agg_path(
                    root,
                    rel,
                    path,
                    target,
                    strategy,
                    pg_sys::AggSplit::AGGSPLIT_INITIAL_SERIAL,
                    groups,
                    null_mut(),
                    &partial_costs,
                    groups_here,
                );
                paths.push(agg.cast());
            };
            match planned {
                Some(planned) if outputs(root, *leaf, target).is_some() => {
                    partial(planned.path(root, Part::Delta).cast());
                    paths.push(fragments_path(root, rel, planned, target, total));
                    pushed = true;
                }
                _ => partial((**leaf).cheapest_total_path),
            }
        }
        if !pushed {
            return None;
        }
        let rows = paths.iter().map(|p| (**p).rows).sum();
        let append = pg_sys::create_append_path(
            root,
            rel,
            from_items(paths),
            null_mut(),
            null_mut(),
            null_mut(),
            0,
            false,
            rows,
        );
        let path = pg_sys::create_agg_path(
            root,
            output,
            append.cast(),
            (*output).reltarget,
            strategy,
            pg_sys::AggSplit::AGGSPLIT_FINAL_DESERIAL,
            groups,
            extra.havingQual.cast(),
            &final_costs,
            total,
        );
        Some(path.cast())
    }
}

/// The tables to read: the relation itself, or its partitions at every level. None: other inheritance.
unsafe fn collect_leaves(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    leaves: &mut Vec<*mut pg_sys::RelOptInfo>,
) -> Option<()> {
    // SAFETY: a relation that was planned; a partitioned one has its partitions.
    unsafe {
        let rte = *(*root).simple_rte_array.add((*rel).relid as usize);
        if !(*rte).inh {
            leaves.push(rel);
            return Some(());
        }
        if (*rel).part_scheme.is_null() || (*rel).nparts <= 0 || (*rel).part_rels.is_null() {
            return None;
        }
        for i in 0..(*rel).nparts as usize {
            let child = *(*rel).part_rels.add(i);
            if !child.is_null() && !pg_sys::is_dummy_rel(child) {
                collect_leaves(root, child, leaves)?;
            }
        }
        Some(())
    }
}

/// What the partial aggregation gives: group keys and partial aggregates (`make_partial_grouping_target` of planner.c).
/// None: something else is needed as well.
unsafe fn partial_target(
    root: *mut pg_sys::PlannerInfo,
    groups: *mut pg_sys::List,
    target: *mut pg_sys::PathTarget,
    having: *mut pg_sys::Node,
) -> Option<*mut pg_sys::PathTarget> {
    // SAFETY: the planner's target.
    unsafe {
        let partial = pg_sys::create_empty_pathtarget();
        let mut rest = null_mut();
        for (i, expr) in items::<pg_sys::Expr>((*target).exprs).enumerate() {
            let group = if (*target).sortgrouprefs.is_null() { 0 } else { *(*target).sortgrouprefs.add(i) };
            if group != 0 && !groups.is_null() && !pg_sys::get_sortgroupref_clause_noerr(group, groups).is_null() {
                pg_sys::add_column_to_pathtarget(partial, expr, group);
            } else {
                rest = pg_sys::lappend(rest, expr.cast());
            }
        }
        if !having.is_null() {
            rest = pg_sys::lappend(rest, having.cast());
        }
        let flags = pg_sys::PVC_INCLUDE_AGGREGATES | pg_sys::PVC_RECURSE_WINDOWFUNCS | pg_sys::PVC_INCLUDE_PLACEHOLDERS;
        let keys = items::<pg_sys::Expr>((*partial).exprs).len();
        pg_sys::add_new_columns_to_pathtarget(partial, pg_sys::pull_var_clause(rest.cast(), flags as i32));
        let exprs = (*partial).exprs;
        for i in keys..items::<pg_sys::Expr>(exprs).len() {
            let cell = (*exprs).elements.add(i);
            let aggref = (*cell).ptr_value.cast::<pg_sys::Aggref>();
            if !is_a(aggref, pg_sys::NodeTag::T_Aggref) {
                return None;
            }
            // The parse tree's aggregate stays as it is.
            let copy = pg_sys::palloc(size_of::<pg_sys::Aggref>()).cast::<pg_sys::Aggref>();
            *copy = *aggref;
            pg_sys::mark_partial_aggref(copy, pg_sys::AggSplit::AGGSPLIT_INITIAL_SERIAL);
            (*cell).ptr_value = copy.cast();
        }
        Some(pg_sys::set_pathtarget_cost_width(root, partial))
    }
}

/// A relation for the partial results.
unsafe fn partial_rel(input: *mut pg_sys::RelOptInfo, target: *mut pg_sys::PathTarget) -> *mut pg_sys::RelOptInfo {
    // SAFETY: zeroed memory is a relation without paths.
    unsafe {
        let rel = pg_sys::palloc0(size_of::<pg_sys::RelOptInfo>()).cast::<pg_sys::RelOptInfo>();
        (*rel).type_ = pg_sys::NodeTag::T_RelOptInfo;
        (*rel).reloptkind = pg_sys::RelOptKind::RELOPT_UPPER_REL;
        (*rel).relids = pg_sys::bms_copy((*input).relids);
        (*rel).reltarget = target;
        rel
    }
}

/// The target over a partition.
unsafe fn child_target(
    root: *mut pg_sys::PlannerInfo,
    target: *mut pg_sys::PathTarget,
    child: *mut pg_sys::RelOptInfo,
    top: *mut pg_sys::RelOptInfo,
) -> *mut pg_sys::PathTarget {
    // SAFETY: the planner's.
    unsafe {
        if child == top {
            return target;
        }
        let copy = pg_sys::copy_pathtarget(target);
        (*copy).exprs = compat::translate_to_child(root, (*copy).exprs.cast(), child, top).cast();
        copy
    }
}

/// The outputs over one table, if all of them can be computed on its blocks.
unsafe fn outputs(
    root: *mut pg_sys::PlannerInfo,
    leaf: *mut pg_sys::RelOptInfo,
    target: *mut pg_sys::PathTarget,
) -> Option<Vec<Output>> {
    // SAFETY: the planner's; the table is locked.
    unsafe {
        let rte = *(*root).simple_rte_array.add((*leaf).relid as usize);
        let open = OpenRelation::open((*rte).relid, pg_sys::NoLock);
        items::<pg_sys::Node>((*target).exprs).map(|e| spec::output(e, (*open.0).rd_att)).collect()
    }
}

/// The number of groups where some keys are timestamps cut to a unit: as many as there are units between the first and the last.
/// PostgreSQL takes the number of distinct timestamps for it, and a hash table for so many groups looks too large for memory.
/// None: there are no such keys, or it is not known what they lie between.
unsafe fn truncated_groups(
    root: *mut pg_sys::PlannerInfo,
    target: *mut pg_sys::PathTarget,
    leaves: &[*mut pg_sys::RelOptInfo],
    planned: &[Option<Planned>],
    top: *mut pg_sys::RelOptInfo,
    rows: f64,
) -> Option<f64> {
    // SAFETY: the planner's.
    unsafe {
        // By output: the unit, and what the column lies between in all partitions.
        let mut spans: Vec<Option<(Unit, i64, i64)>> = Vec::new();
        for (leaf, planned) in leaves.iter().zip(planned) {
            let outputs = outputs(root, *leaf, child_target(root, target, *leaf, top))?;
            spans.resize(outputs.len(), None);
            for (output, span) in outputs.iter().zip(&mut spans) {
                let Output::Truncated(unit, attribute) = output else { continue };
                let (lo, hi) = planned.as_ref()?.span(*attribute)?;
                let (_, from, to) = span.unwrap_or((*unit, lo, hi));
                *span = Some((*unit, lo.min(from), hi.max(to)));
            }
        }
        let units = |s: &(Unit, i64, i64)| ((s.2.saturating_sub(s.1)) / s.0.length()).max(0) as f64 + 1.0;
        let cut: f64 = spans.iter().flatten().map(units).product();
        if spans.iter().all(Option::is_none) {
            return None;
        }
        let others = items::<pg_sys::Node>((*target).exprs)
            .zip(&spans)
            .filter(|(node, span)| span.is_none() && !is_a(*node, pg_sys::NodeTag::T_Aggref))
            .map(|(node, _)| node);
        let others: Vec<_> = others.collect();
        Some(cut * pg_sys::estimate_num_groups(root, from_items(others), rows, null_mut(), null_mut()))
    }
}

/// The aggregation of the fragments of one table.
unsafe fn fragments_path(
    root: *mut pg_sys::PlannerInfo,
    rel: *mut pg_sys::RelOptInfo,
    planned: &Planned,
    target: *mut pg_sys::PathTarget,
    groups: f64,
) -> *mut pg_sys::Path {
    // SAFETY: the planner's.
    unsafe {
        let scan = planned.path(root, Part::Fragments);
        (*scan).path.pathtarget = pg_sys::create_empty_pathtarget();
        (*scan).path.total_cost = (*scan).path.startup_cost + planned.aggregate_cost();
        let path = pg_sys::palloc0(size_of::<pg_sys::CustomPath>()).cast::<pg_sys::CustomPath>();
        (*path).path.type_ = pg_sys::NodeTag::T_CustomPath;
        (*path).path.pathtype = pg_sys::NodeTag::T_CustomScan;
        (*path).path.parent = rel;
        (*path).path.pathtarget = target;
        (*path).path.rows = groups.min((*scan).path.rows).max(1.0);
        let values = (*scan).path.rows * VALUE_COST * items::<pg_sys::Node>((*target).exprs).len() as f64;
        (*path).path.startup_cost = (*scan).path.total_cost + values;
        (*path).path.total_cost = (*path).path.startup_cost + (*path).path.rows * pg_sys::cpu_tuple_cost;
        #[cfg(feature = "pg18")]
        {
            (*path).path.disabled_nodes = (*scan).path.disabled_nodes;
        }
        (*path).custom_paths = from_items([scan]);
        (*path).methods = &raw const PATH_METHODS.0;
        path.cast()
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn plan(
    _root: *mut pg_sys::PlannerInfo,
    _rel: *mut pg_sys::RelOptInfo,
    path: *mut pg_sys::CustomPath,
    targets: *mut pg_sys::List,
    _clauses: *mut pg_sys::List,
    plans: *mut pg_sys::List,
) -> *mut pg_sys::Plan {
    // SAFETY: called by the planner for a path of this module. The plan's columns are those of its scan tuple.
    unsafe {
        let scan = pg_sys::palloc0(size_of::<pg_sys::CustomScan>()).cast::<pg_sys::CustomScan>();
        (*scan).scan.plan.type_ = pg_sys::NodeTag::T_CustomScan;
        (*scan).scan.plan.targetlist = targets;
        (*scan).flags = (*path).flags;
        (*scan).custom_plans = plans;
        (*scan).custom_scan_tlist = pg_sys::copyObjectImpl(targets.cast()).cast();
        (*scan).methods = &raw const SCAN_METHODS.0;
        scan.cast()
    }
}
