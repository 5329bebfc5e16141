//! Which aggregates and group keys can be computed on decoded blocks.

use super::expression::Expression;
use crate::am::datum::{self, Kind};
use crate::pg::compat;
use crate::pg::list::{is_a, items};
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
    /// sum of float4, of float8: the type itself.
    SumFloat,
    /// avg of float4, float8: an array of count, sum and sum of squared deviations.
    AverageFloat,
    /// min
    Min,
    /// max
    Max,
}

/// What an aggregate is of.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// Rows.
    Nothing,
    /// An attribute (from 0).
    Column(usize),
    /// A numeric expression, or a numeric column to add up.
    Expression(Expression),
}

/// One column of the output.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// A key: an attribute (from 0).
    Key(usize),
    /// A key: `date_trunc(unit, attribute)`.
    Truncated(Unit, usize),
    /// A key: an expression of one date, computed once for each date that there is.
    Computed(usize, *mut pg_sys::Expr),
    /// A partial state.
    State(Transition, Argument),
}

impl Output {
    /// The attributes (from 0) that it needs.
    pub fn attributes(&self) -> Vec<usize> {
        match self {
            Self::Key(a) | Self::Truncated(_, a) | Self::Computed(a, _) => vec![*a],
            Self::State(_, Argument::Column(a)) => vec![*a],
            Self::State(_, Argument::Expression(e)) => e.columns.iter().map(|c| c.0).collect(),
            Self::State(_, Argument::Nothing) => Vec::new(),
        }
    }
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
        2110 | 2111 => Transition::SumFloat,
        2104 | 2105 => Transition::AverageFloat,
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
                    return computed(node, tupdesc);
                }
                let mut args = items::<pg_sys::Node>(function.args);
                let (unit, value) = (args.next()?, args.next()?);
                let Some(a) = attribute(value) else { return computed(node, tupdesc) };
                (known(a)? == Kind::Int(8)).then_some(Output::Truncated(unit_of(unit)?, a))
            }
            NodeTag::T_OpExpr | NodeTag::T_CoerceViaIO => computed(node, tupdesc),
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
                    return Some(Output::State(transition, Argument::Nothing));
                }
                let argument = items::<pg_sys::TargetEntry>(aggref.args).next()?;
                let expression = (*argument).expr.cast::<pg_sys::Node>();
                if transition == Transition::SumNumeric {
                    let expression = Expression::new(expression, tupdesc)?;
                    return Some(Output::State(transition, Argument::Expression(expression)));
                }
                let a = attribute(expression)?;
                let kind = known(a)?;
                let fits = match transition {
                    Transition::Min | Transition::Max => kind != Kind::Varlena,
                    Transition::SumFloat | Transition::AverageFloat => matches!(kind, Kind::F32 | Kind::F64),
                    _ => true,
                };
                fits.then_some(Output::State(transition, Argument::Column(a)))
            }
            _ => None,
        }
    }
}

/// An expression of one date column and of nothing else that changes. There are few dates, so that it costs nothing to group
/// by the date and to compute the expression for each group; equal results are merged by the Finalize Aggregate.
unsafe fn computed(node: *mut pg_sys::Node, tupdesc: pg_sys::TupleDesc) -> Option<Output> {
    // SAFETY: an expression of a plan over one table.
    unsafe {
        if pg_sys::contain_volatile_functions(node) || pg_sys::contain_subplans(node) {
            return None;
        }
        let mut found = None;
        for var in items::<pg_sys::Node>(pg_sys::pull_var_clause(node, 0)) {
            let a = attribute(var)?;
            if a >= (*tupdesc).natts as usize || found.is_some_and(|f| f != a) {
                return None;
            }
            found = Some(a);
        }
        let a = found?;
        (compat::attribute(tupdesc, a).atttypid == pg_sys::DATEOID).then_some(Output::Computed(a, node.cast()))
    }
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
    /// Its length in microseconds, about.
    pub fn length(self) -> i64 {
        match self {
            Self::Second => SECOND,
            Self::Minute => 60 * SECOND,
            Self::Hour => 3600 * SECOND,
            Self::Day => DAY,
            Self::Week => 7 * DAY,
            Self::Month => 30 * DAY,
            Self::Quarter => 91 * DAY,
            Self::Year => 365 * DAY,
        }
    }

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
