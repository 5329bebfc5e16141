//! Sums, differences and products of numeric columns, computed on decoded blocks as whole numbers.
//!
//! A `numeric(p,s)` is an unscaled whole number at scale s, and PostgreSQL's `+`, `-` and `*` of numerics are exact with a
//! scale that follows from the operands' scales. So an expression of them is an expression of whole numbers at a scale that
//! is known when it is planned. How wide these must be is known when a block is read: its zone maps bound the columns, and
//! interval arithmetic bounds each step. As a rule 64 bits are enough; 256 bits always are ([`MOST_DIGITS`]).

use super::super::blocks::{Batch, BlockScan, Selection};
use super::wide::I256;
use crate::am::datum::{self, Kind};
use crate::pg::compat;
use crate::pg::list::items;
use pgrx::pg_sys;
use pgrx::pg_sys::NodeTag;
use std::borrow::Cow;
use std::rc::Rc;
use strata_fragment::{Column, ColumnData, Value};

/// Decimal digits that a value may have: 10^10 of them and the digits that serializing adds fit 256 bits.
const MOST_DIGITS: u32 = 60;

/// An expression of whole numbers.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    /// A column: its position among the expression's columns.
    Column(usize),
    Constant(i128),
    Add(Box<Node>, Box<Node>),
    Subtract(Box<Node>, Box<Node>),
    Multiply(Box<Node>, Box<Node>),
}

/// A numeric expression.
#[derive(Clone, Debug, PartialEq)]
pub struct Expression {
    node: Node,
    /// The scale of its values.
    pub scale: i32,
    /// Its columns: attributes (from 0), and the scale of those that are numeric.
    pub columns: Vec<(usize, Option<u8>)>,
}

/// What an expression gives for the rows of a selection, in their order.
pub struct Evaluated {
    /// The values; unspecified where null or NaN.
    pub values: Values,
    /// Rows where it is null.
    pub nulls: Option<Vec<bool>>,
    /// Rows where it is NaN.
    pub nans: Option<Vec<bool>>,
}

/// Values, as wide as they may need.
pub enum Values {
    /// No value's magnitude is above this.
    Narrow(Vec<i64>, u64),
    Wide(Vec<i128>),
    Huge(Vec<I256>),
}

/// `pg_proc.dat`: numeric_add, numeric_sub, numeric_mul; the casts of int2, int4, int8.
const ADD: u32 = 1724;
const SUBTRACT: u32 = 1725;
const MULTIPLY: u32 = 1726;
const FROM_INTEGER: [u32; 3] = [1782, 1740, 1781];

/// A part of an expression while it is taken apart.
struct Part {
    node: Node,
    scale: i32,
    digits: u32,
}

impl Expression {
    /// The expression, if it can be computed like this.
    ///
    /// # Safety
    /// `node` is an expression of a plan over one table, whose descriptor is `tupdesc`.
    pub unsafe fn new(node: *mut pg_sys::Node, tupdesc: pg_sys::TupleDesc) -> Option<Self> {
        let mut columns = Vec::new();
        // SAFETY: the caller's promise.
        let part = unsafe { part(node, tupdesc, &mut columns)? };
        (!columns.is_empty()).then_some(Self { node: part.node, scale: part.scale, columns })
    }

    /// Its values for the rows of the batch's selection.
    pub fn evaluate(&self, scan: &BlockScan, batch: &mut Batch) -> Evaluated {
        let loaded: Vec<Loaded> = self.columns.iter().map(|(a, scale)| Loaded::new(scan, batch, *a, *scale)).collect();
        let (mut nulls, mut nans) = (None, None);
        for column in &loaded {
            union(&mut nulls, column.nulls.as_deref());
            union(&mut nans, column.nans.as_deref());
        }
        let bounds: Vec<Option<(i128, i128)>> = self.columns.iter().map(|(a, _)| bounds(batch, *a)).collect();
        let mut most = 0;
        let known = limits(&self.node, &bounds, &mut most).is_some();
        let values = match known {
            true if most < 1 << 62 => Values::Narrow(eval::<i64>(&self.node, &loaded).into_vec(batch), most as u64),
            true if most < 10u128.pow(28) => Values::Wide(eval::<i128>(&self.node, &loaded).into_vec(batch)),
            _ => Values::Huge(eval::<I256>(&self.node, &loaded).into_vec(batch)),
        };
        Evaluated { values, nulls, nans }
    }
}

/// Takes an expression apart.
unsafe fn part(
    node: *mut pg_sys::Node,
    tupdesc: pg_sys::TupleDesc,
    columns: &mut Vec<(usize, Option<u8>)>,
) -> Option<Part> {
    // SAFETY: a node of a plan; the tag tells its type.
    unsafe {
        match (*node).type_ {
            NodeTag::T_Var => {
                let (attribute, kind) = column(node, tupdesc)?;
                let Kind::Numeric(scale) = kind else { return None };
                Some(leaf(attribute, Some(scale), digits_of(attribute, tupdesc)?, columns))
            }
            NodeTag::T_Const => {
                let constant = &*node.cast::<pg_sys::Const>();
                if constant.constisnull || constant.consttype != pg_sys::NUMERICOID {
                    return None;
                }
                let bytes = datum::varlena_bytes(constant.constvalue);
                let scale = datum::display_scale(bytes)?;
                let value = datum::numeric_unscaled(bytes, scale)?;
                Some(Part { node: Node::Constant(value), scale, digits: digits(value.unsigned_abs()) })
            }
            NodeTag::T_FuncExpr => {
                let function = &*node.cast::<pg_sys::FuncExpr>();
                if !FROM_INTEGER.contains(&function.funcid.to_u32()) {
                    return None;
                }
                let (attribute, kind) = column(items(function.args).next()?, tupdesc)?;
                matches!(kind, Kind::Int(2 | 4 | 8)).then(|| leaf(attribute, None, 19, columns))
            }
            NodeTag::T_OpExpr => {
                let operator = &*node.cast::<pg_sys::OpExpr>();
                let function = operator.opfuncid.to_u32();
                let mut args = items::<pg_sys::Node>(operator.args);
                if !matches!(function, ADD | SUBTRACT | MULTIPLY) || args.len() != 2 {
                    return None;
                }
                let left = part(args.next()?, tupdesc, columns)?;
                let right = part(args.next()?, tupdesc, columns)?;
                let whole = if function == MULTIPLY {
                    Part {
                        node: Node::Multiply(Box::new(left.node), Box::new(right.node)),
                        scale: left.scale + right.scale,
                        digits: left.digits + right.digits,
                    }
                } else {
                    let scale = left.scale.max(right.scale);
                    let (left, right) = (left.at(scale), right.at(scale));
                    let digits = left.digits.max(right.digits) + 1;
                    let (l, r) = (Box::new(left.node), Box::new(right.node));
                    let node = if function == ADD { Node::Add(l, r) } else { Node::Subtract(l, r) };
                    Part { node, scale, digits }
                };
                (whole.digits <= MOST_DIGITS && whole.scale <= MOST_DIGITS as i32).then_some(whole)
            }
            _ => None,
        }
    }
}

impl Part {
    /// The same value at a larger scale.
    fn at(self, scale: i32) -> Self {
        let more = (scale - self.scale).unsigned_abs();
        match self.node {
            _ if more == 0 => self,
            Node::Constant(v) if self.digits + more <= 38 => {
                Self { node: Node::Constant(v * 10i128.pow(more)), scale, digits: self.digits + more }
            }
            node => {
                // More than 38 digits are refused by the caller, who counts them.
                let factor = Box::new(Node::Constant(10i128.pow(more.min(38))));
                let digits = if more > 38 { MOST_DIGITS + 1 } else { self.digits + more };
                Self { node: Node::Multiply(Box::new(node), factor), scale, digits }
            }
        }
    }
}

fn leaf(attribute: usize, scale: Option<u8>, digits: u32, columns: &mut Vec<(usize, Option<u8>)>) -> Part {
    let at = columns.iter().position(|c| *c == (attribute, scale)).unwrap_or_else(|| {
        columns.push((attribute, scale));
        columns.len() - 1
    });
    Part { node: Node::Column(at), scale: scale.map_or(0, i32::from), digits }
}

/// The attribute (from 0) that an expression is, and how it is kept.
unsafe fn column(node: *mut pg_sys::Node, tupdesc: pg_sys::TupleDesc) -> Option<(usize, Kind)> {
    // SAFETY: a node of a plan; the attribute is checked.
    unsafe {
        if (*node).type_ != NodeTag::T_Var {
            return None;
        }
        let var = &*node.cast::<pg_sys::Var>();
        let attribute = usize::try_from(i32::from(var.varattno) - 1).ok()?;
        if var.varlevelsup != 0 || attribute >= (*tupdesc).natts as usize {
            return None;
        }
        Some((attribute, datum::kind_of(compat::attribute(tupdesc, attribute), false).0))
    }
}

unsafe fn digits_of(attribute: usize, tupdesc: pg_sys::TupleDesc) -> Option<u32> {
    // SAFETY: an attribute of the descriptor.
    match unsafe { datum::kind_of(compat::attribute(tupdesc, attribute), false) }.1 {
        strata_fragment::PhysicalType::Decimal { precision, .. } => Some(u32::from(precision)),
        _ => None,
    }
}

fn digits(v: u128) -> u32 {
    v.checked_ilog10().map_or(1, |n| n + 1)
}

/// A column of an expression: in the order of the selection unless all rows are selected.
struct Loaded {
    data: Data,
    nulls: Option<Vec<bool>>,
    nans: Option<Vec<bool>>,
}

enum Data {
    /// The column of the block as it is; all rows are selected.
    Whole(Rc<Column>),
    Selected(Vec<i64>),
    Wide(Vec<i128>),
}

impl Loaded {
    fn new(scan: &BlockScan, batch: &mut Batch, attribute: usize, scale: Option<u8>) -> Self {
        if let Some(column) = scan.integers(batch, attribute) {
            let nulls = column.nulls.as_ref().map(|nulls| picked(nulls, &batch.selection));
            let data = match (&batch.selection, &column.data) {
                (Selection::Rows(rows), ColumnData::I64(v)) => {
                    Data::Selected(rows.iter().map(|r| v[*r as usize]).collect())
                }
                _ => Data::Whole(column),
            };
            return Self { data, nulls, nans: None };
        }
        let column = scan.column(batch, attribute);
        let n = batch.selection.len();
        let (mut wide, mut nans) = (Vec::with_capacity(n), None);
        for i in 0..n {
            let row = batch.selection.row(i);
            let value = match &column.data {
                _ if column.is_null(row) => Some(0),
                ColumnData::I128(v) => Some(v[row]),
                ColumnData::I64(v) => Some(i128::from(v[row])),
                ColumnData::I32(v) => Some(i128::from(v[row])),
                ColumnData::I16(v) => Some(i128::from(v[row])),
                // Kept as bytes because there are NaNs.
                data => datum::numeric_unscaled(data.bytes(row), scale.map_or(0, i32::from)),
            };
            if value.is_none() {
                nans.get_or_insert_with(|| vec![false; n])[i] = true;
            }
            wide.push(value.unwrap_or(0));
        }
        let nulls = column.nulls.as_ref().map(|nulls| picked(nulls, &batch.selection));
        Self { data: Data::Wide(wide), nulls, nans }
    }
}

fn picked(flags: &[bool], selection: &Selection) -> Vec<bool> {
    match selection {
        Selection::All(_) => flags.to_vec(),
        Selection::Rows(rows) => rows.iter().map(|r| flags[*r as usize]).collect(),
    }
}

fn union(all: &mut Option<Vec<bool>>, more: Option<&[bool]>) {
    match (all, more) {
        (Some(all), Some(more)) => all.iter_mut().zip(more).for_each(|(a, b)| *a |= b),
        (all @ None, Some(more)) => *all = Some(more.to_vec()),
        (_, None) => {}
    }
}

/// What a column's values in this block lie between.
fn bounds(batch: &Batch, attribute: usize) -> Option<(i128, i128)> {
    let zone = batch.zone(attribute)?;
    if zone.all_null() {
        return Some((0, 0));
    }
    let whole = |v: &Value| match v {
        Value::I16(v) => Some(i128::from(*v)),
        Value::I32(v) => Some(i128::from(*v)),
        Value::I64(v) => Some(i128::from(*v)),
        Value::I128(v) => Some(*v),
        _ => None,
    };
    // Where a row is null the column has zero.
    Some((whole(zone.min.as_ref()?)?.min(0), whole(zone.max.as_ref()?)?.max(0)))
}

/// What the values of `node` lie between; `most` becomes the largest magnitude of any step. None: beyond 128 bits, or unknown.
fn limits(node: &Node, bounds: &[Option<(i128, i128)>], most: &mut u128) -> Option<(i128, i128)> {
    let found = match node {
        Node::Column(c) => bounds[*c]?,
        Node::Constant(v) => (*v, *v),
        Node::Add(l, r) => {
            let (l, r) = (limits(l, bounds, most)?, limits(r, bounds, most)?);
            (l.0.checked_add(r.0)?, l.1.checked_add(r.1)?)
        }
        Node::Subtract(l, r) => {
            let (l, r) = (limits(l, bounds, most)?, limits(r, bounds, most)?);
            (l.0.checked_sub(r.1)?, l.1.checked_sub(r.0)?)
        }
        Node::Multiply(l, r) => {
            let (l, r) = (limits(l, bounds, most)?, limits(r, bounds, most)?);
            let corners = [l.0.checked_mul(r.0)?, l.0.checked_mul(r.1)?, l.1.checked_mul(r.0)?, l.1.checked_mul(r.1)?];
            corners.iter().fold((i128::MAX, i128::MIN), |(lo, hi), c| (lo.min(*c), hi.max(*c)))
        }
    };
    *most = (*most).max(found.0.unsigned_abs()).max(found.1.unsigned_abs());
    Some(found)
}

/// Numbers of one width. Their arithmetic wraps, which [`limits`] rules out.
trait Number: Copy {
    fn of(v: i128) -> Self;
    fn add(self, other: Self) -> Self;
    fn subtract(self, other: Self) -> Self;
    fn multiply(self, other: Self) -> Self;
    /// The column as it is, if it has this width.
    fn borrow(column: &Column) -> Option<&[Self]>;
}

macro_rules! native {
    ($t:ty, $borrow:expr) => {
        impl Number for $t {
            #[inline]
            fn of(v: i128) -> Self {
                v as $t
            }
            #[inline]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline]
            fn subtract(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline]
            fn multiply(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            fn borrow(column: &Column) -> Option<&[Self]> {
                let borrow: fn(&Column) -> Option<&[Self]> = $borrow;
                borrow(column)
            }
        }
    };
}

native!(i64, |column| match column {
    Column { data: ColumnData::I64(v), .. } => Some(v.as_slice()),
    _ => None,
});
native!(i128, |_| None);

impl Number for I256 {
    fn of(v: i128) -> Self {
        v.into()
    }
    fn add(self, other: Self) -> Self {
        self.plus(other)
    }
    fn subtract(self, other: Self) -> Self {
        self.plus(other.negated())
    }
    fn multiply(self, other: Self) -> Self {
        self.times(other)
    }
    fn borrow(_: &Column) -> Option<&[Self]> {
        None
    }
}

/// The value of a part: one for all rows, or one for each.
enum Computed<'a, T: Clone> {
    Scalar(T),
    Each(Cow<'a, [T]>),
}

impl<T: Number> Computed<'_, T> {
    fn into_vec(self, batch: &Batch) -> Vec<T> {
        match self {
            Self::Scalar(v) => vec![v; batch.selection.len()],
            Self::Each(v) => v.into_owned(),
        }
    }
}

fn eval<'a, T: Number>(node: &Node, columns: &'a [Loaded]) -> Computed<'a, T> {
    match node {
        Node::Constant(v) => Computed::Scalar(T::of(*v)),
        Node::Column(c) => Computed::Each(match &columns[*c].data {
            Data::Whole(column) => match (T::borrow(column), &column.data) {
                (Some(values), _) => Cow::Borrowed(values),
                (None, ColumnData::I64(v)) => Cow::Owned(v.iter().map(|v| T::of(i128::from(*v))).collect()),
                // Only 64-bit integers are kept whole.
                (None, _) => Cow::Owned(Vec::new()),
            },
            Data::Selected(v) => Cow::Owned(v.iter().map(|v| T::of(i128::from(*v))).collect()),
            Data::Wide(v) => Cow::Owned(v.iter().map(|v| T::of(*v)).collect()),
        }),
        Node::Add(l, r) => combine(eval(l, columns), eval(r, columns), T::add),
        Node::Subtract(l, r) => combine(eval(l, columns), eval(r, columns), T::subtract),
        Node::Multiply(l, r) => combine(eval(l, columns), eval(r, columns), T::multiply),
    }
}

#[inline]
fn combine<'a, T: Number>(left: Computed<'a, T>, right: Computed<'a, T>, f: impl Fn(T, T) -> T) -> Computed<'a, T> {
    let each: Vec<T> = match (left, right) {
        (Computed::Scalar(l), Computed::Scalar(r)) => return Computed::Scalar(f(l, r)),
        (Computed::Scalar(l), Computed::Each(r)) => r.iter().map(|r| f(l, *r)).collect(),
        (Computed::Each(l), Computed::Scalar(r)) => l.iter().map(|l| f(*l, r)).collect(),
        (Computed::Each(l), Computed::Each(r)) => l.iter().zip(r.iter()).map(|(l, r)| f(*l, *r)).collect(),
    };
    Computed::Each(Cow::Owned(each))
}
