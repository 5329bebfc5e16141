//! Which clauses of a qualification fragments can answer, and their values at run time.
//!
//! A clause is taken if it is `column op expression`, `column = ANY (array)`, `column IS [NOT] NULL` or a boolean column,
//! where the operator is PostgreSQL's own comparison of a type whose order we can reproduce exactly: the operator must be
//! a member of the type's default btree family (or the negator of its equality), with types on both sides that are listed
//! here. Text is compared for equality under deterministic collations only, and ordered under C only. The expression has
//! no column of this table, no volatile function and no sub-plan; it is evaluated once a scan.
//!
//! These comparisons raise no errors and call no functions, so that taking them ahead of other clauses (security
//! barriers included) reveals nothing: every one of them is leakproof as it is evaluated here.

use super::test::{Test, float_key};
use crate::am::datum::{self, Kind};
use crate::pg::compat;
use crate::pg::list::{is_a, items};
use pgrx::pg_sys;
use pgrx::pg_sys::{Datum, NodeTag, Oid};
use std::ptr::null_mut;

/// Types that compare alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Bool,
    Int,
    Date,
    Timestamp,
    TimestampTz,
    Time,
    Oid,
    Float,
    Text,
    Bytea,
    Uuid,
    Numeric,
    Char,
    Enum,
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
    Ne,
}

/// What a clause asks of a column.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    /// IS NULL, or IS NOT NULL.
    Null(bool),
    /// A boolean column that is true, or false.
    Bool(bool),
    /// A comparison with an expression of this type.
    Compare { op: Op, opno: Oid, right: *mut pg_sys::Expr, right_type: Oid },
    /// Equality with an element of an array.
    Any { right: *mut pg_sys::Expr, element_type: Oid },
}

/// A clause that fragments can answer.
#[derive(Clone, Copy, Debug)]
pub struct Leaf {
    /// The column's attribute number.
    pub attnum: i16,
    /// How it is kept.
    pub kind: Kind,
    class: Class,
    /// What is asked of it.
    pub ask: Ask,
}

fn class_of(type_: Oid) -> Option<(Class, u32)> {
    Some(match type_ {
        pg_sys::BOOLOID => (Class::Bool, pg_sys::BOOL_BTREE_FAM_OID.to_u32()),
        pg_sys::INT2OID | pg_sys::INT4OID | pg_sys::INT8OID => (Class::Int, pg_sys::INTEGER_BTREE_FAM_OID.to_u32()),
        pg_sys::DATEOID => (Class::Date, DATETIME_FAMILY),
        pg_sys::TIMESTAMPOID => (Class::Timestamp, DATETIME_FAMILY),
        pg_sys::TIMESTAMPTZOID => (Class::TimestampTz, DATETIME_FAMILY),
        pg_sys::TIMEOID => (Class::Time, 1996),
        pg_sys::OIDOID => (Class::Oid, pg_sys::OID_BTREE_FAM_OID.to_u32()),
        pg_sys::FLOAT4OID | pg_sys::FLOAT8OID => (Class::Float, 1970),
        pg_sys::TEXTOID | pg_sys::VARCHAROID => (Class::Text, pg_sys::TEXT_BTREE_FAM_OID.to_u32()),
        pg_sys::BYTEAOID => (Class::Bytea, 428),
        pg_sys::UUIDOID => (Class::Uuid, 2968),
        pg_sys::NUMERICOID => (Class::Numeric, 1988),
        pg_sys::CHAROID => (Class::Char, 429),
        pg_sys::ANYENUMOID => (Class::Enum, 3522),
        // SAFETY: system-cache look-up.
        other if unsafe { pg_sys::type_is_enum(other) } => (Class::Enum, 3522),
        _ => return None,
    })
}

/// `datetime_ops` of btree: date, timestamp and timestamptz.
const DATETIME_FAMILY: u32 = 434;

/// The column that an expression is, seen through binary-compatible casts.
unsafe fn column(mut node: *mut pg_sys::Node, varno: i32) -> Option<(i16, Oid)> {
    // SAFETY: a node of a plan; the tag tells its type.
    unsafe {
        while is_a(node, NodeTag::T_RelabelType) {
            node = (*node.cast::<pg_sys::RelabelType>()).arg.cast();
        }
        if !is_a(node, NodeTag::T_Var) {
            return None;
        }
        let var = &*node.cast::<pg_sys::Var>();
        (var.varno == varno && var.varlevelsup == 0 && var.varattno > 0)
            .then(|| (var.varattno, pg_sys::getBaseType(var.vartype)))
    }
}

/// Whether an expression has the same value for all rows of the table `varno` in one scan.
unsafe fn is_constant(root: *mut pg_sys::PlannerInfo, node: *mut pg_sys::Node, varno: i32) -> bool {
    // SAFETY: a node of a plan; `root` is null in the executor, where there are no placeholders.
    unsafe {
        !pg_sys::contain_subplans(node)
            && !pg_sys::contain_volatile_functions(node)
            && !pg_sys::bms_is_member(varno, pg_sys::pull_varnos(root, node))
    }
}

/// The comparison that an operator is between a column of `class` and a value; None: none that we know.
unsafe fn operator(opno: Oid, class: Class, family: u32, collation: Oid) -> Option<(Op, Oid)> {
    // SAFETY: system-cache look-ups.
    unsafe {
        let strategy = |o: Oid| pg_sys::get_op_opfamily_strategy(o, Oid::from(family));
        let op = match strategy(opno) {
            1 => Op::Lt,
            2 => Op::Le,
            3 => Op::Eq,
            4 => Op::Ge,
            5 => Op::Gt,
            _ => {
                let negator = pg_sys::get_negator(opno);
                if negator == Oid::INVALID || strategy(negator) != 3 {
                    return None;
                }
                Op::Ne
            }
        };
        let (mut left, mut right) = (Oid::INVALID, Oid::INVALID);
        pg_sys::op_input_types(opno, &mut left, &mut right);
        if class_of(left)?.0 != class {
            return None;
        }
        let right_class = class_of(right)?.0;
        let mixed = matches!((class, right_class), (Class::Timestamp, Class::Date) | (Class::Date, Class::Timestamp));
        if right_class != class && !mixed {
            return None;
        }
        let equality = matches!(op, Op::Eq | Op::Ne);
        let ordered = match class {
            Class::Oid | Class::Char | Class::Enum => equality,
            // PostgreSQL's function says what is wrong.
            Class::Text if collation == Oid::INVALID => false,
            Class::Text if equality => pg_sys::get_collation_isdeterministic(collation),
            Class::Text => compat::is_c_collation(collation),
            _ => true,
        };
        ordered.then_some((op, right))
    }
}

/// The clause as something that fragments of table `varno` can answer.
///
/// # Safety
/// `clause` is an expression over the table with descriptor `tupdesc`; `root` is the planner's, or null in the executor.
pub unsafe fn analyze(
    root: *mut pg_sys::PlannerInfo,
    clause: *mut pg_sys::Node,
    varno: i32,
    tupdesc: pg_sys::TupleDesc,
) -> Option<Leaf> {
    // SAFETY: the caller's promise; the tags tell the types of the nodes.
    unsafe {
        let leaf = |attnum: i16, class: Class, ask: Ask| {
            if attnum > (*tupdesc).natts as i16 {
                return None;
            }
            let kind = datum::kind_of(compat::attribute(tupdesc, attnum as usize - 1), false).0;
            if class == Class::Numeric && !matches!(kind, Kind::Numeric(_)) {
                return None;
            }
            Some(Leaf { attnum, kind, class, ask })
        };
        match (*clause).type_ {
            NodeTag::T_NullTest => {
                let test = &*clause.cast::<pg_sys::NullTest>();
                if test.argisrow {
                    return None;
                }
                let (attnum, _) = column(test.arg.cast(), varno)?;
                // The class does not matter; any kind of column knows its nulls.
                let kind = datum::kind_of(compat::attribute(tupdesc, attnum as usize - 1), false).0;
                let ask = Ask::Null(test.nulltesttype == pg_sys::NullTestType::IS_NULL);
                Some(Leaf { attnum, kind, class: Class::Int, ask })
            }
            NodeTag::T_Var | NodeTag::T_RelabelType => {
                let (attnum, type_) = column(clause, varno)?;
                if type_ != pg_sys::BOOLOID {
                    return None;
                }
                leaf(attnum, Class::Bool, Ask::Bool(true))
            }
            NodeTag::T_BoolExpr => {
                let expr = &*clause.cast::<pg_sys::BoolExpr>();
                if expr.boolop != pg_sys::BoolExprType::NOT_EXPR {
                    return None;
                }
                let (attnum, type_) = column(items(expr.args).next()?, varno)?;
                if type_ != pg_sys::BOOLOID {
                    return None;
                }
                leaf(attnum, Class::Bool, Ask::Bool(false))
            }
            NodeTag::T_BooleanTest => {
                let test = &*clause.cast::<pg_sys::BooleanTest>();
                let want = match test.booltesttype {
                    pg_sys::BoolTestType::IS_TRUE => true,
                    pg_sys::BoolTestType::IS_FALSE => false,
                    _ => return None,
                };
                let (attnum, type_) = column(test.arg.cast(), varno)?;
                if type_ != pg_sys::BOOLOID {
                    return None;
                }
                leaf(attnum, Class::Bool, Ask::Bool(want))
            }
            NodeTag::T_OpExpr => {
                let expr = &*clause.cast::<pg_sys::OpExpr>();
                let mut args = items::<pg_sys::Node>(expr.args);
                if args.len() != 2 {
                    return None;
                }
                let (left, right) = (args.next()?, args.next()?);
                let (attnum, type_, other, opno) = match column(left, varno) {
                    Some((attnum, type_)) if is_constant(root, right, varno) => (attnum, type_, right, expr.opno),
                    _ => {
                        let (attnum, type_) = column(right, varno)?;
                        if !is_constant(root, left, varno) {
                            return None;
                        }
                        let commutator = pg_sys::get_commutator(expr.opno);
                        if commutator == Oid::INVALID {
                            return None;
                        }
                        (attnum, type_, left, commutator)
                    }
                };
                let (class, family) = class_of(type_)?;
                let (op, right_type) = operator(opno, class, family, expr.inputcollid)?;
                leaf(attnum, class, Ask::Compare { op, opno, right: other.cast(), right_type })
            }
            NodeTag::T_ScalarArrayOpExpr => {
                let expr = &*clause.cast::<pg_sys::ScalarArrayOpExpr>();
                let mut args = items::<pg_sys::Node>(expr.args);
                let (left, right) = (args.next()?, args.next()?);
                let (attnum, type_) = column(left, varno)?;
                if !expr.useOr || !is_constant(root, right, varno) {
                    return None;
                }
                let (class, family) = class_of(type_)?;
                let (op, element_type) = operator(expr.opno, class, family, expr.inputcollid)?;
                if op != Op::Eq {
                    return None;
                }
                leaf(attnum, class, Ask::Any { right: right.cast(), element_type })
            }
            _ => None,
        }
    }
}

/// A value to compare with.
enum Scalar {
    Int(i128),
    Bytes(Vec<u8>),
    /// Between this value and the next.
    Between(i128),
    AboveAll,
    BelowAll,
}

const MICROSECONDS_A_DAY: i64 = 86_400_000_000;

impl Leaf {
    /// The expression whose value the test needs.
    pub fn expression(&self) -> Option<*mut pg_sys::Expr> {
        match self.ask {
            Ask::Compare { right, .. } | Ask::Any { right, .. } => Some(right),
            Ask::Null(_) | Ask::Bool(_) => None,
        }
    }

    /// The constant that the test compares with, if it is one.
    ///
    /// # Safety
    /// The leaf's nodes still exist.
    pub unsafe fn constant(&self) -> Option<(Datum, bool)> {
        let node = self.expression()?;
        // SAFETY: the caller's promise.
        unsafe {
            is_a(node, NodeTag::T_Const).then(|| {
                let c = &*node.cast::<pg_sys::Const>();
                (c.constvalue, c.constisnull)
            })
        }
    }

    /// The test, given the value of the expression.
    ///
    /// # Safety
    /// `value` is the value of [`Leaf::expression`], or anything if there is none.
    pub unsafe fn test(&self, value: Datum, is_null: bool) -> Test {
        // SAFETY: the caller's promise.
        unsafe {
            match self.ask {
                Ask::Null(want) => Test::Null(want),
                Ask::Bool(want) => Test::Range { lo: want.into(), hi: want.into(), negate: false },
                _ if is_null => Test::Never,
                Ask::Compare { op, right_type, .. } => compare(op, self.scalar(right_type, value)),
                Ask::Any { element_type, .. } => self.any(element_type, value),
            }
        }
    }

    unsafe fn scalar(&self, type_: Oid, value: Datum) -> Scalar {
        // SAFETY: `value` is of type `type_`, which fits the class.
        unsafe {
            match self.class {
                Class::Bool => Scalar::Int(i128::from(value.value() & 0xff != 0)),
                Class::Char => Scalar::Int(i128::from(value.value() as i8)),
                Class::Date if type_ == pg_sys::TIMESTAMPOID => timestamp_among_dates(value.value() as i64),
                Class::Oid | Class::Enum | Class::Date => Scalar::Int(i128::from(value.value() as i32)),
                Class::Int => Scalar::Int(match type_ {
                    pg_sys::INT2OID => i128::from(value.value() as i16),
                    pg_sys::INT4OID => i128::from(value.value() as i32),
                    _ => i128::from(value.value() as i64),
                }),
                Class::Timestamp if type_ == pg_sys::DATEOID => {
                    Scalar::Int(i128::from(date_to_timestamp(value.value() as i32)))
                }
                Class::Timestamp | Class::TimestampTz | Class::Time => Scalar::Int(i128::from(value.value() as i64)),
                Class::Float => Scalar::Int(i128::from(float_key(match type_ {
                    pg_sys::FLOAT4OID => f64::from(f32::from_bits(value.value() as u32)),
                    _ => f64::from_bits(value.value() as u64),
                }))),
                Class::Text | Class::Bytea => Scalar::Bytes(datum::varlena_bytes(value).to_vec()),
                Class::Uuid => Scalar::Bytes(std::slice::from_raw_parts(value.cast_mut_ptr::<u8>(), 16).to_vec()),
                Class::Numeric => match self.kind {
                    Kind::Numeric(scale) => numeric(datum::varlena_bytes(value), i32::from(scale)),
                    _ => Scalar::AboveAll,
                },
            }
        }
    }

    unsafe fn any(&self, element_type: Oid, value: Datum) -> Test {
        // SAFETY: `value` is an array whose elements the operator takes.
        unsafe {
            let array = pg_sys::pg_detoast_datum(value.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
            let (mut length, mut by_value, mut align) = (0, false, 0);
            pg_sys::get_typlenbyvalalign((*array).elemtype, &mut length, &mut by_value, &mut align);
            let (mut elements, mut nulls, mut n) = (null_mut(), null_mut(), 0);
            pg_sys::deconstruct_array(
                array,
                (*array).elemtype,
                i32::from(length),
                by_value,
                align,
                &mut elements,
                &mut nulls,
                &mut n,
            );
            let (mut ints, mut bytes) = (Vec::new(), std::collections::HashSet::new());
            for i in 0..n as usize {
                if *nulls.add(i) {
                    continue;
                }
                match self.scalar(element_type, *elements.add(i)) {
                    Scalar::Int(v) => ints.push(v),
                    Scalar::Bytes(v) => drop(bytes.insert(v)),
                    Scalar::Between(_) | Scalar::AboveAll | Scalar::BelowAll => {}
                }
            }
            ints.sort_unstable();
            ints.dedup();
            match (ints.is_empty(), bytes.is_empty()) {
                (true, true) if self.class != Class::Numeric => Test::Never,
                (false, _) | (true, true) => Test::Among(ints),
                (true, false) => Test::AmongBytes(bytes),
            }
        }
    }
}

fn compare(op: Op, scalar: Scalar) -> Test {
    let range = |lo: i128, hi: i128, negate: bool| Test::Range { lo, hi, negate };
    let bytes = |lo, hi, negate| Test::Bytes { lo, hi, negate };
    match scalar {
        Scalar::Int(v) => match op {
            Op::Lt => range(i128::MIN, v.saturating_sub(1), false),
            Op::Le => range(i128::MIN, v, false),
            Op::Eq => range(v, v, false),
            Op::Ge => range(v, i128::MAX, false),
            Op::Gt => range(v.saturating_add(1), i128::MAX, false),
            Op::Ne => range(v, v, true),
        },
        Scalar::Bytes(v) => match op {
            Op::Lt => bytes(None, Some((v, false)), false),
            Op::Le => bytes(None, Some((v, true)), false),
            Op::Eq => bytes(Some((v.clone(), true)), Some((v, true)), false),
            Op::Ge => bytes(Some((v, true)), None, false),
            Op::Gt => bytes(Some((v, false)), None, false),
            Op::Ne => bytes(Some((v.clone(), true)), Some((v, true)), true),
        },
        // Not Never: where a column holds NaN it is kept as bytes, to which a range is not put.
        Scalar::Between(v) => match op {
            Op::Lt | Op::Le => range(i128::MIN, v, false),
            Op::Ge | Op::Gt => range(v.saturating_add(1), i128::MAX, false),
            Op::Eq => range(i128::MAX, i128::MIN, false),
            Op::Ne => range(i128::MIN, i128::MAX, false),
        },
        Scalar::AboveAll => match op {
            Op::Lt | Op::Le | Op::Ne => range(i128::MIN, i128::MAX, false),
            Op::Eq | Op::Ge | Op::Gt => range(i128::MAX, i128::MIN, false),
        },
        Scalar::BelowAll => match op {
            Op::Ge | Op::Gt | Op::Ne => range(i128::MIN, i128::MAX, false),
            Op::Eq | Op::Lt | Op::Le => range(i128::MAX, i128::MIN, false),
        },
    }
}

/// A date as the timestamp that compares with others as the date does.
fn date_to_timestamp(date: i32) -> i64 {
    match date {
        i32::MIN => i64::MIN,
        i32::MAX => i64::MAX,
        // Later than every finite timestamp, earlier than infinity.
        d => i64::from(d).checked_mul(MICROSECONDS_A_DAY).unwrap_or(i64::MAX - 1),
    }
}

/// A timestamp among dates: one of them, or between one and the next.
fn timestamp_among_dates(timestamp: i64) -> Scalar {
    match timestamp {
        i64::MIN => Scalar::Int(i128::from(i32::MIN)),
        i64::MAX => Scalar::Int(i128::from(i32::MAX)),
        t if t % MICROSECONDS_A_DAY == 0 => Scalar::Int(i128::from(t / MICROSECONDS_A_DAY)),
        t => Scalar::Between(i128::from(t.div_euclid(MICROSECONDS_A_DAY))),
    }
}

/// A numeric's bytes (without the length word; the format is numeric.c's) against unscaled values at `scale`.
fn numeric(bytes: &[u8], scale: i32) -> Scalar {
    let word = |i: usize| bytes.get(i..i + 2).map_or(0, |b| u16::from_ne_bytes([b[0], b[1]]));
    let header = word(0);
    let (negative, weight, start) = match header {
        // NaN is larger than every number, and a column that is kept as whole numbers has none.
        h if h & 0xF000 == 0xF000 => return Scalar::BelowAll,
        h if h & 0xC000 == 0xC000 => return Scalar::AboveAll,
        h if h & 0x8000 != 0 => {
            let weight = i32::from(h & 0x003F) | if h & 0x0040 != 0 { !0x3F } else { 0 };
            (h & 0x2000 != 0, weight, 2)
        }
        h => (h & 0xC000 == 0x4000, i32::from(word(2) as i16), 4),
    };
    let (mut v, mut exact) = (0i128, true);
    for (i, digit) in bytes.get(start..).unwrap_or_default().chunks_exact(2).enumerate() {
        let d = i128::from(i16::from_ne_bytes([digit[0], digit[1]]));
        let exponent = (weight - i as i32) * 4 + scale;
        let part = if exponent >= 0 {
            10i128.checked_pow(exponent as u32).and_then(|p| p.checked_mul(d))
        } else {
            let divisor = 10i128.pow(exponent.unsigned_abs().min(4));
            exact &= d % divisor == 0;
            Some(d / divisor)
        };
        match part.and_then(|p| v.checked_add(p)) {
            Some(sum) => v = sum,
            None if negative => return Scalar::BelowAll,
            None => return Scalar::AboveAll,
        }
    }
    match (negative, exact) {
        (false, true) => Scalar::Int(v),
        (true, true) => Scalar::Int(-v),
        (false, false) => Scalar::Between(v),
        (true, false) => Scalar::Between(-v - 1),
    }
}
