//! Random changes and queries over a table of the model. What they give must not depend on the order in which rows are read.

use crate::schema::Table;
use rand::Rng;
use rand::rngs::StdRng;

/// How two results are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    /// Row by row.
    Ordered,
    /// As bags.
    Bag,
    /// As bags; which of several errors of data or constraints comes first depends on the order of rows.
    Changes,
}

/// What holds for some rows.
pub fn condition(r: &mut StdRng, t: &Table) -> String {
    let one = |r: &mut StdRng| {
        let c = t.column(r);
        c.ty.condition(r, &c.name)
    };
    let (a, b) = (one(r), one(r));
    match r.random_range(0..10) {
        0 => "true".to_owned(),
        1 => format!("({a} OR {b})"),
        2 => format!("NOT ({a})"),
        3..=5 => format!("{a} AND {b}"),
        _ => a,
    }
}

fn by_key(r: &mut StdRng, t: &Table) -> String {
    let all: Vec<String> =
        t.key_columns().iter().map(|c| format!("{} = ({})::{}", c.name, c.ty.present(r), c.ty.cast)).collect();
    if all.is_empty() { condition(r, t) } else { all.join(" AND ") }
}

/// INSERT of some rows.
pub fn insert(r: &mut StdRng, t: &Table, rows: u32) -> (String, Compare) {
    let mut columns: Vec<_> = t.columns.iter().filter(|c| !c.generated).collect();
    columns.retain(|c| t.key.contains(&c.name) || r.random_range(0..12) > 0);
    let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
    let values: Vec<String> = (0..rows)
        .map(|_| {
            let row: Vec<String> = columns
                .iter()
                .map(|c| {
                    let v = if t.key.contains(&c.name) { c.ty.present(r) } else { c.ty.value(r) };
                    format!("({v})::{}", c.ty.cast)
                })
                .collect();
            format!("({})", row.join(", "))
        })
        .collect();
    let mut sql = if names.is_empty() {
        format!("INSERT INTO {} DEFAULT VALUES", t.name)
    } else {
        format!("INSERT INTO {} ({}) VALUES {}", t.name, names.join(", "), values.join(", "))
    };
    match r.random_range(0..6) {
        0..=2 => sql += " ON CONFLICT DO NOTHING",
        3 if !t.key.is_empty() => {
            let set = match t.payload(r) {
                Some(c) if r.random() => format!("{} = excluded.{}", c.name, c.name),
                Some(c) => format!("{} = ({})::{}", c.name, c.ty.value(r), c.ty.cast),
                None => format!("{} = excluded.{}", t.key[0], t.key[0]),
            };
            sql += &format!(" ON CONFLICT ({}) DO UPDATE SET {set}", t.key.join(", "));
            if r.random_range(0..3) == 0 {
                let c = t.column(r);
                sql += &format!(" WHERE {}", c.ty.condition(r, &format!("{}.{}", t.name, c.name)));
            }
        }
        _ => {}
    }
    if r.random_range(0..4) == 0 {
        sql += " RETURNING *";
    }
    (sql, Compare::Bag)
}

/// A change of rows.
pub fn change(r: &mut StdRng, t: &Table) -> (String, Compare) {
    let name = &t.name;
    let returning = if r.random_range(0..3) == 0 { format!(" RETURNING {name}.*") } else { String::new() };
    match r.random_range(0..12) {
        0..=3 => {
            let rows = if r.random_range(0..5) == 0 { 30 } else { r.random_range(1..4) };
            insert(r, t, rows)
        }
        4..=6 => {
            let Some(c) = t.payload(r) else { return insert(r, t, 1) };
            let place = if r.random() { by_key(r, t) } else { condition(r, t) };
            let set = format!("{} = ({})::{}", c.name, c.ty.value(r), c.ty.cast);
            let more = match t.payload(r) {
                Some(d) if d.name != c.name && r.random_range(0..3) == 0 => format!(", {} = DEFAULT", d.name),
                _ => String::new(),
            };
            (format!("UPDATE {name} SET {set}{more} WHERE {place}{returning}"), Compare::Changes)
        }
        7 => {
            let Some(k) = t.key_columns().first().map(|k| (*k).clone()) else { return insert(r, t, 1) };
            let place = by_key(r, t);
            let set = format!("{} = ({})::{}", k.name, k.ty.present(r), k.ty.cast);
            (format!("UPDATE {name} SET {set} WHERE {place}{returning}"), Compare::Changes)
        }
        8 | 9 => {
            let place = if r.random_range(0..3) > 0 { by_key(r, t) } else { condition(r, t) };
            (format!("DELETE FROM {name} WHERE {place}{returning}"), Compare::Changes)
        }
        10 => {
            let Some(k) = t.key_columns().first().map(|k| (*k).clone()) else { return insert(r, t, 1) };
            let Some(c) = t.payload(r) else { return insert(r, t, 1) };
            // One row: which of several is inserted first, and gets the smaller identity, is the plan's business.
            let source = format!("(({})::{})", k.ty.present(r), k.ty.cast);
            if t.key.len() > 1 {
                return insert(r, t, 2);
            }
            let value = format!("({})::{}", c.ty.value(r), c.ty.cast);
            let when = c.ty.condition(r, &format!("t.{}", c.name));
            (
                format!(
                    "MERGE INTO {name} t USING (VALUES {}) s (k) ON t.{} = s.k WHEN MATCHED AND {when} THEN DELETE
                     WHEN MATCHED THEN UPDATE SET {} = {value} WHEN NOT MATCHED THEN INSERT ({}) VALUES (s.k)",
                    source, k.name, c.name, k.name
                ),
                Compare::Changes,
            )
        }
        _ => match r.random_range(0..4) {
            0 => (format!("TRUNCATE {name} CASCADE"), Compare::Bag),
            _ => insert(r, t, 60),
        },
    }
}

/// A query over `t`, or over `t` and `u`.
pub fn query(r: &mut StdRng, t: &Table, u: &Table) -> (String, Compare) {
    let name = &t.name;
    let place = condition(r, t);
    let c = t.column(r);
    match r.random_range(0..20) {
        0..=2 => {
            let some: Vec<&str> =
                t.columns.iter().filter(|_| r.random_range(0..3) > 0).map(|c| c.name.as_str()).collect();
            let list = if some.is_empty() { "tableoid::regclass".to_owned() } else { some.join(", ") };
            (format!("SELECT {list} FROM {name} WHERE {place}"), Compare::Bag)
        }
        3 | 4 => (format!("SELECT * FROM {name} WHERE {}", by_key(r, t)), Compare::Bag),
        5..=7 => {
            let mut list = vec!["count(*)".to_owned(), format!("count({})", c.name)];
            for c in &t.columns {
                if c.ty.has_sum() && r.random_range(0..2) == 0 {
                    list.push(format!("sum({})", c.name));
                    list.push(format!("avg({})", c.name));
                }
                if c.ty.has_extremes() && r.random_range(0..2) == 0 {
                    list.push(format!("min({})", c.name));
                    list.push(format!("max({})", c.name));
                }
            }
            (format!("SELECT {} FROM {name} WHERE {place}", list.join(", ")), Compare::Bag)
        }
        8 | 9 if c.ty.is_exact() => {
            let d = t.column(r);
            let sum = if d.ty.has_sum() { format!("sum({})", d.name) } else { format!("count({})", d.name) };
            let having = if r.random_range(0..3) == 0 { " HAVING count(*) > 1" } else { "" };
            (
                format!("SELECT {}, count(*), {sum} FROM {name} WHERE {place} GROUP BY {}{having}", c.name, c.name),
                Compare::Bag,
            )
        }
        10 if c.ty.is_exact() => (format!("SELECT DISTINCT {} FROM {name} WHERE {place}", c.name), Compare::Bag),
        11 | 12 if c.ty.is_ordered() => {
            let direction = ["", " DESC", " DESC NULLS LAST", " NULLS FIRST"][r.random_range(0..4)];
            let limit = r.random_range(1..30);
            (
                format!(
                    "SELECT * FROM {name} WHERE {place} ORDER BY {}{direction}, {name}::text COLLATE \"C\" LIMIT {limit} OFFSET {}",
                    c.name,
                    limit / 3
                ),
                Compare::Ordered,
            )
        }
        13 => {
            let pairs: Vec<(&str, &str)> = t
                .columns
                .iter()
                .flat_map(|a| u.columns.iter().map(move |b| (a, b)))
                .filter(|(a, b)| a.ty.name == b.ty.name && a.ty.is_exact())
                .map(|(a, b)| (a.name.as_str(), b.name.as_str()))
                .collect();
            if pairs.is_empty() {
                return (format!("SELECT count(*) FROM {name}"), Compare::Bag);
            }
            let (a, b) = pairs[r.random_range(0..pairs.len())];
            let kind = ["JOIN", "LEFT JOIN", "FULL JOIN"][r.random_range(0..3)];
            let other = &u.name;
            (
                format!(
                    "SELECT x.{a}, count(*), count(y.{b}) FROM {name} x {kind} {other} y ON x.{a} = y.{b} GROUP BY x.{a}"
                ),
                Compare::Bag,
            )
        }
        14 => {
            let lock = ["UPDATE", "NO KEY UPDATE", "SHARE", "KEY SHARE"][r.random_range(0..4)];
            (format!("SELECT * FROM {name} WHERE {} FOR {lock}", by_key(r, t)), Compare::Bag)
        }
        15 if c.ty.is_ordered() => (
            format!(
                "SELECT {name}::text, rank() OVER (ORDER BY {}), count(*) OVER () FROM {name} WHERE {place}",
                c.name
            ),
            Compare::Bag,
        ),
        16 => (
            format!("SELECT * FROM {name} WHERE ctid = ANY (ARRAY(SELECT ctid FROM {name} WHERE {place}))"),
            if t.is_partitioned() {
                return (format!("SELECT count(*) FROM {name}"), Compare::Bag);
            } else {
                Compare::Bag
            },
        ),
        17 => {
            let method = ["SYSTEM", "BERNOULLI"][r.random_range(0..2)];
            (format!("SELECT * FROM {name} TABLESAMPLE {method} (100) WHERE {place}"), Compare::Bag)
        }
        18 => (
            format!(
                "SELECT * FROM {name} x WHERE NOT EXISTS (SELECT FROM {name} y WHERE y.ctid = x.ctid AND y.tableoid = x.tableoid AND {place})"
            ),
            Compare::Bag,
        ),
        _ => {
            // All system columns that mean the same on both sides.
            (
                format!(
                    "SELECT tableoid::regclass, ctid IS NOT NULL, xmin IS NOT NULL, {name} FROM {name} WHERE {place}"
                ),
                Compare::Bag,
            )
        }
    }
}
