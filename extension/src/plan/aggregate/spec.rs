//! Which aggregates and group keys can be computed on decoded blocks.

use super::super::list::{is_a, items};
use crate::am::datum::{self, Kind};
use crate::pg::compat;
use pgrx::pg_sys;
use pgrx::pg_sys::{NodeTag, Oid};
use std::ffi::CStr;

/// The transition that an aggregate makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transition {
    /// count(*)
    CountRows,
    /// count(x)
    Count,
    /// sum of int2, int4: an int8.
    SumInt,
    /// avg of int2, int4: an array of count and sum.
    AverageInt,
    /// sum, avg of int8: count and 128-bit sum, serialized.
    Sum128,
    /// sum, avg of numeric: count, sum and scales, serialized.
    SumNumeric,
    /// min
    Min,
    /// max
    Max,
}

/// One column of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// A key: an attribute (from 0).
    Key(usize),
    /// A key: `date_trunc(unit, attribute)`.
    Truncated(Unit, usize),
    /// A partial state; count(*) has no attribute.
    State(Transition, Option<usize>),
}

/// A unit of date_trunc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Second,
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Quarter,
    Year,
}

/// `date_trunc(text, timestamp)`
const TIMESTAMP_TRUNC: u32 = 2020;

/// The built-in aggregates by their functions' OIDs (`pg_aggregate.dat`).
fn transition(function: Oid) -> Option<Transition> {
    Some(match function.to_u32() {
        2803 => Transition::CountRows,
        2147 => Transition::Count,
        2108 | 2109 => Transition::SumInt,
        2101 | 2102 => Transition::AverageInt,
        2107 | 2100 => Transition::Sum128,
        2114 | 2103 => Transition::SumNumeric,
        // int8, int4, int2, float4, float8, date, time, timestamp, timestamptz, numeric
        2115 | 2116 | 2117 | 2119 | 2120 | 2122 | 2123 | 2126 | 2127 | 2130 => Transition::Max,
        2131 | 2132 | 2133 | 2135 | 2136 | 2138 | 2139 | 2142 | 2143 | 2146 => Transition::Min,
        _ => return None,
    })
}

/// The attribute (from 0) that an expression is.
unsafe fn attribute(node: *mut pg_sys::Node) -> Option<usize> {
    // SAFETY: a node of a plan; the tag tells its type.
    unsafe {
        if !is_a(node, NodeTag::T_Var) {
            return None;
        }
        let var = &*node.cast::<pg_sys::Var>();
        (var.varlevelsup == 0 && var.varattno > 0).then(|| var.varattno as usize - 1)
    }
}

/// What an expression of the output is, if it can be computed; its columns are of the table `tupdesc`.
///
/// # Safety
/// `node` is an expression of a partial aggregation over one table.
pub unsafe fn output(node: *mut pg_sys::Node, tupdesc: pg_sys::TupleDesc) -> Option<Output> {
    // SAFETY: the caller's promise.
    unsafe {
        let known =
            |a: usize| (a < (*tupdesc).natts as usize).then(|| datum::kind_of(compat::attribute(tupdesc, a), false).0);
        match (*node).type_ {
            NodeTag::T_Var => {
                let a = attribute(node)?;
                known(a).map(|_| Output::Key(a))
            }
            NodeTag::T_FuncExpr => {
                let function = &*node.cast::<pg_sys::FuncExpr>();
                if function.funcid.to_u32() != TIMESTAMP_TRUNC {
                    return None;
                }
                let mut args = items::<pg_sys::Node>(function.args);
                let (unit, value) = (args.next()?, args.next()?);
                let a = attribute(value)?;
                (known(a)? == Kind::Int(8)).then_some(Output::Truncated(unit_of(unit)?, a))
            }
            NodeTag::T_Aggref => {
                let aggref = &*node.cast::<pg_sys::Aggref>();
                let plain = aggref.aggdistinct.is_null()
                    && aggref.aggorder.is_null()
                    && aggref.aggfilter.is_null()
                    && aggref.aggdirectargs.is_null()
                    && aggref.agglevelsup == 0;
                if !plain {
                    return None;
                }
                let transition = transition(aggref.aggfnoid)?;
                if transition == Transition::CountRows {
                    return Some(Output::State(transition, None));
                }
                let argument = items::<pg_sys::TargetEntry>(aggref.args).next()?;
                let a = attribute((*argument).expr.cast())?;
                let kind = known(a)?;
                let fits = match transition {
                    Transition::SumNumeric => summable(compat::attribute(tupdesc, a), kind),
                    Transition::Min | Transition::Max => kind != Kind::Varlena,
                    _ => true,
                };
                fits.then_some(Output::State(transition, Some(a)))
            }
            _ => None,
        }
    }
}

/// Whether sums of a numeric column fit 128 bits: 10^10 rows of 28 digits do.
fn summable(attr: &pg_sys::FormData_pg_attribute, kind: Kind) -> bool {
    matches!(kind, Kind::Numeric(_))
        && matches!(datum::kind_of(attr, false).1, strata_fragment::PhysicalType::Decimal { precision: 0..=28, .. })
}

unsafe fn unit_of(node: *mut pg_sys::Node) -> Option<Unit> {
    // SAFETY: a node of a plan; a constant that is not null holds a text.
    unsafe {
        if !is_a(node, NodeTag::T_Const) || (*node.cast::<pg_sys::Const>()).constisnull {
            return None;
        }
        let text = pg_sys::text_to_cstring((*node.cast::<pg_sys::Const>()).constvalue.cast_mut_ptr());
        Some(match CStr::from_ptr(text).to_str().ok()? {
            "second" => Unit::Second,
            "minute" => Unit::Minute,
            "hour" => Unit::Hour,
            "day" => Unit::Day,
            "week" => Unit::Week,
            "month" => Unit::Month,
            "quarter" => Unit::Quarter,
            "year" => Unit::Year,
            _ => return None,
        })
    }
}

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// 4714-11-24 BC, the first timestamp.
const FIRST_TIMESTAMP: i64 = -211_813_488_000_000_000;

impl Unit {
    /// The truncated timestamp, and the end of the stretch that is truncated to it. None: out of range.
    pub fn truncate(self, at: i64) -> Option<(i64, i64)> {
        if at == i64::MIN || at == i64::MAX {
            return Some((at, at));
        }
        let step = |unit: i64, offset: i64| {
            let start = (at - offset).div_euclid(unit) * unit + offset;
            (start, start.saturating_add(unit))
        };
        let months = |n: i64| {
            let month = month_of(at.div_euclid(DAY)).div_euclid(n) * n;
            (first_day(month) * DAY, first_day(month + n).saturating_mul(DAY))
        };
        let (start, end) = match self {
            Self::Second => step(SECOND, 0),
            Self::Minute => step(60 * SECOND, 0),
            Self::Hour => step(3600 * SECOND, 0),
            Self::Day => step(DAY, 0),
            // Day 0 is 2000-01-01, a Saturday; day 2 is a Monday.
            Self::Week => step(7 * DAY, 2 * DAY),
            Self::Month => months(1),
            Self::Quarter => months(3),
            Self::Year => months(12),
        };
        (start >= FIRST_TIMESTAMP).then_some((start, end))
    }
}

/// Days from 2000-03-01 to 2000-01-01.
const MARCH_2000: i64 = 60;

/// The month of a day (days since 2000-01-01), counted from January of year 0.
fn month_of(day: i64) -> i64 {
    // Eras of 400 years that begin in March, of which 2000-03-01 is one.
    let z = day - MARCH_2000;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    // Months since March.
    let month = (5 * doy + 2) / 153;
    (2000 + era * 400 + yoe) * 12 + 2 + month
}

/// The first day (days since 2000-01-01) of a month, counted from January of year 0.
fn first_day(month: i64) -> i64 {
    let since_march = month - 2;
    let (year, m) = (since_march.div_euclid(12), since_march.rem_euclid(12));
    let (era, yoe) = ((year - 2000).div_euclid(400), (year - 2000).rem_euclid(400));
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + (153 * m + 2) / 5 + MARCH_2000
}
