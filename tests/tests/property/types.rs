//! Types of columns: their names, literals of them, and what may be asked of them.

use rand::Rng;
use rand::rngs::StdRng;

/// A type that a column may have.
#[derive(Clone, Debug)]
pub struct Type {
    /// As in CREATE TABLE, with its collation.
    pub name: &'static str,
    /// Without the collation, for casts.
    pub cast: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Int,
    Float,
    Numeric,
    Text,
    Bool,
    Date,
    Time,
    Timestamp,
    Interval,
    Bytea,
    Uuid,
    Json,
    Jsonb,
    Inet,
    Mac,
    Bit,
    Point,
    Range,
    DateRange,
    Multirange,
    IntArray,
    TextArray,
    NumericArray,
    Mood,
    Positive,
    Code,
    Pair,
    Pairs,
    Vector,
    Money,
    Oid,
    Char,
    Lsn,
}

/// What all types need, in both databases.
pub const PRELUDE: &str = "
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
    CREATE DOMAIN positive AS int CHECK (VALUE > 0);
    CREATE DOMAIN code AS text CHECK (VALUE ~ '^[a-z]*$');
    CREATE TYPE pair AS (a int, b text);
    CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE FUNCTION volatile_int() RETURNS int VOLATILE LANGUAGE plpgsql AS 'BEGIN RETURN 17; END';
    CREATE FUNCTION volatile_text() RETURNS text VOLATILE LANGUAGE plpgsql AS 'BEGIN RETURN repeat(''vol'', 3); END';";

macro_rules! types {
    ($(($name:literal, $cast:literal, $kind:ident)),* $(,)?) => {
        const TYPES: &[Type] = &[$(Type { name: $name, cast: $cast, kind: Kind::$kind }),*];
    };
}
types!(
    ("smallint", "smallint", Int),
    ("int", "int", Int),
    ("int", "int", Int),
    ("bigint", "bigint", Int),
    ("real", "real", Float),
    ("double precision", "double precision", Float),
    ("numeric", "numeric", Numeric),
    ("numeric(10,2)", "numeric(10,2)", Numeric),
    ("numeric(6,-2)", "numeric(6,-2)", Numeric),
    ("numeric(30,12)", "numeric(30,12)", Numeric),
    ("text", "text", Text),
    ("text COLLATE \"C\"", "text", Text),
    ("text COLLATE ci", "text", Text),
    ("text COLLATE \"en-x-icu\"", "text", Text),
    ("varchar(12)", "varchar(12)", Text),
    ("char(6)", "char(6)", Text),
    ("name", "name", Text),
    ("boolean", "boolean", Bool),
    ("date", "date", Date),
    ("time", "time", Time),
    ("timetz", "timetz", Time),
    ("timestamp", "timestamp", Timestamp),
    ("timestamptz", "timestamptz", Timestamp),
    ("timestamp(0)", "timestamp(0)", Timestamp),
    ("interval", "interval", Interval),
    ("bytea", "bytea", Bytea),
    ("uuid", "uuid", Uuid),
    ("json", "json", Json),
    ("jsonb", "jsonb", Jsonb),
    ("inet", "inet", Inet),
    ("macaddr", "macaddr", Mac),
    ("bit(8)", "bit(8)", Bit),
    ("varbit", "varbit", Bit),
    ("point", "point", Point),
    ("int4range", "int4range", Range),
    ("daterange", "daterange", DateRange),
    ("int4multirange", "int4multirange", Multirange),
    ("int[]", "int[]", IntArray),
    ("text[]", "text[]", TextArray),
    ("numeric(8,2)[]", "numeric(8,2)[]", NumericArray),
    ("mood", "mood", Mood),
    ("positive", "positive", Positive),
    ("code", "code", Code),
    ("pair", "pair", Pair),
    ("pair[]", "pair[]", Pairs),
    ("tsvector", "tsvector", Vector),
    ("money", "money", Money),
    ("oid", "oid", Oid),
    ("\"char\"", "\"char\"", Char),
    ("pg_lsn", "pg_lsn", Lsn),
);

fn pick<'a>(r: &mut StdRng, of: &[&'a str]) -> &'a str {
    of[r.random_range(0..of.len())]
}

fn word(r: &mut StdRng) -> String {
    let words = ["", "a", "A", "b", "B", "abc", "ABC", "Äpfel", "äpfel", "zebra", "x'y", " pad", "tab\t", "日本"];
    match r.random_range(0..10) {
        0 => format!("{}{}", pick(r, &words), r.random_range(0..100)),
        _ => pick(r, &words).to_owned(),
    }
}

impl Type {
    /// Any of them.
    pub fn any(r: &mut StdRng) -> Self {
        TYPES[r.random_range(0..TYPES.len())].clone()
    }

    /// One that a primary key may have.
    pub fn for_key(r: &mut StdRng) -> Self {
        let names =
            ["int", "int", "int", "bigint", "text", "uuid", "date", "numeric(10,2)", "text COLLATE ci", "timestamptz"];
        let name = pick(r, &names);
        TYPES.iter().find(|t| t.name == name).unwrap_or(&TYPES[1]).clone()
    }

    /// The int type.
    pub fn int() -> Self {
        TYPES[1].clone()
    }

    /// A literal of the type, an expression without the cast: NULL one time in eight.
    pub fn value(&self, r: &mut StdRng) -> String {
        if r.random_range(0..8) == 0 { "NULL".to_owned() } else { self.present(r) }
    }

    /// A literal of the type that is not null.
    pub fn present(&self, r: &mut StdRng) -> String {
        let n: i32 = match r.random_range(0..6) {
            0 => r.random_range(-30000..30000),
            _ => r.random_range(0..40),
        };
        match self.kind {
            Kind::Int => match (self.cast, r.random_range(0..20)) {
                ("bigint", 0) => r.random::<i64>().to_string(),
                ("int", 0) => pick(r, &["2147483647", "-2147483648", "0"]).to_owned(),
                _ => n.to_string(),
            },
            Kind::Float => match r.random_range(0..12) {
                0 => pick(r, &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "0", "1e30", "1e-30"]).to_owned(),
                _ => format!("{}", f64::from(n) / 4.0),
            },
            Kind::Numeric => match (self.cast, r.random_range(0..12)) {
                ("numeric", 0) => {
                    pick(r, &["'NaN'", "'Infinity'", "'-Infinity'", "0.00", "1.10", "1.1", "1e40", "1e-40"]).to_owned()
                }
                (_, 1) => "'NaN'".to_owned(),
                ("numeric(6,-2)", _) => format!("{}", n * 7),
                ("numeric(30,12)", 2) => "123456789012345678.123456789012".to_owned(),
                _ => format!("{}.{:02}", n % 1000, r.random_range(0..100)),
            },
            Kind::Text => {
                let text = match (self.cast, r.random_range(0..60)) {
                    ("text", 0) => {
                        return format!("repeat('{}', {})", pick(r, &["x", "long ", "äö"]), r.random_range(1..4000));
                    }
                    ("text", 1) => {
                        return format!(
                            "(SELECT string_agg(md5(({n} + g)::text), '') FROM generate_series(1, {}) g)",
                            r.random_range(1..400)
                        );
                    }
                    ("varchar(12)" | "char(6)" | "name", _) => word(r).chars().take(5).collect(),
                    _ => word(r),
                };
                format!("'{}'", text.replace('\'', "''"))
            }
            Kind::Bool => pick(r, &["true", "false"]).to_owned(),
            Kind::Date => match r.random_range(0..12) {
                0 => pick(r, &["'infinity'", "'-infinity'", "'0001-01-01 BC'"]).to_owned(),
                _ => format!("date '2020-01-01' + {n}"),
            },
            Kind::Time => format!("'{:02}:{:02}:00'", n.rem_euclid(24), n.rem_euclid(60)),
            Kind::Timestamp => match r.random_range(0..12) {
                0 => pick(r, &["'infinity'", "'-infinity'"]).to_owned(),
                _ => format!("timestamp '2020-01-01' + {n} * interval '7 hours 3.5 seconds'"),
            },
            Kind::Interval => format!("'{} months {} days {} hours'", n % 20, n % 50, n % 30),
            Kind::Bytea => format!("decode(md5('{}'), 'hex')", n % 50),
            Kind::Uuid => format!("md5('{}')::uuid", n % 60),
            Kind::Json => format!("'{{\"a\": {n}, \"b\": [{}, null]}}'", n % 3),
            Kind::Jsonb => match r.random_range(0..4) {
                0 => format!("'[{}, {}]'", n % 5, n % 7),
                1 => pick(r, &["'null'", "'\"s\"'", "'1'", "'{}'"]).to_owned(),
                _ => format!("'{{\"a\": {}, \"b\": \"{}\"}}'", n % 10, n % 4),
            },
            Kind::Inet => format!("'10.{}.{}.0/24'", n.rem_euclid(250), n.rem_euclid(7)),
            Kind::Mac => format!("'08:00:2b:01:02:{:02x}'", n.rem_euclid(250)),
            Kind::Bit => format!("B'{:08b}'", n.rem_euclid(256)),
            Kind::Point => format!("'({}, {})'", n % 20, n % 11),
            Kind::Range => match r.random_range(0..10) {
                0 => pick(r, &["'empty'", "'(,)'", "'[5,)'"]).to_owned(),
                _ => format!("int4range({n}, {n} + {})", r.random_range(0..9)),
            },
            Kind::DateRange => format!("daterange(date '2020-01-01' + {n}, date '2020-01-05' + {n})"),
            Kind::Multirange => format!("'{{[{n}, {}), [{}, {})}}'", n + 2, n + 4, n + 9),
            Kind::IntArray => match r.random_range(0..8) {
                0 => pick(r, &["'{}'", "'{NULL}'", "'[0:1]={7,8}'", "'{{1,2},{3,4}}'"]).to_owned(),
                _ => format!("ARRAY[{}, {}, NULL]", n % 9, n % 5),
            },
            Kind::TextArray => format!("ARRAY['{}', '{}', NULL]", n % 6, pick(r, &["x", "y y", "", "ä"])),
            Kind::NumericArray => format!("ARRAY[{}.25, {}]", n % 1000, n % 7),
            Kind::Mood => pick(r, &["'sad'", "'ok'", "'happy'"]).to_owned(),
            Kind::Positive => format!("{}", n.abs() + 1),
            Kind::Code => format!("'{}'", pick(r, &["", "a", "bc", "xyz"])),
            Kind::Pair => format!("ROW({n}, '{}')", pick(r, &["p", "q", ""])),
            Kind::Pairs => format!("ARRAY[ROW({n}, 'e'), NULL]"),
            Kind::Vector => format!("'{}:1 {}:2'", pick(r, &["cat", "dog"]), pick(r, &["runs", "sleeps"])),
            Kind::Money => format!("'{n}.50'"),
            Kind::Oid => format!("{}", n.unsigned_abs()),
            Kind::Char => pick(r, &["'a'", "'b'", "''"]).to_owned(),
            Kind::Lsn => format!("'0/{:X}'", n.unsigned_abs()),
        }
    }

    /// Whether `<` is there and total.
    pub fn is_ordered(&self) -> bool {
        !matches!(self.kind, Kind::Json | Kind::Point)
    }

    /// Whether equal values look the same, so that groups and extremes do not depend on the order of rows.
    pub fn is_exact(&self) -> bool {
        match self.kind {
            Kind::Int
            | Kind::Bool
            | Kind::Date
            | Kind::Timestamp
            | Kind::Bytea
            | Kind::Uuid
            | Kind::Mood
            | Kind::Positive => true,
            Kind::Text => self.name != "text COLLATE ci" && self.cast != "char(6)",
            Kind::Numeric => self.cast != "numeric",
            _ => false,
        }
    }

    /// Whether the aggregates min and max are there.
    pub fn has_extremes(&self) -> bool {
        self.is_exact() && !matches!(self.kind, Kind::Bool | Kind::Uuid | Kind::Bytea) && self.cast != "name"
    }

    /// Whether sum and avg are there and do not depend on the order of rows.
    pub fn has_sum(&self) -> bool {
        matches!(self.kind, Kind::Int | Kind::Numeric | Kind::Positive)
    }

    /// Whether a btree can be made over it.
    pub fn takes_btree(&self) -> bool {
        self.is_ordered()
    }

    /// Whether a hash index can.
    pub fn takes_hash(&self) -> bool {
        !matches!(
            self.kind,
            Kind::Json | Kind::Point | Kind::Bit | Kind::Vector | Kind::Money | Kind::Pair | Kind::Pairs
        )
    }

    /// Another access method that can, with its operator class.
    pub fn other_index(&self) -> Option<&'static str> {
        match self.kind {
            Kind::Range | Kind::DateRange => Some("gist"),
            Kind::Multirange | Kind::Point => Some("gist"),
            Kind::IntArray | Kind::TextArray | Kind::NumericArray | Kind::Jsonb | Kind::Vector => Some("gin"),
            Kind::Text if self.name == "text" || self.name == "text COLLATE \"C\"" => Some("spgist"),
            Kind::Int | Kind::Date | Kind::Timestamp | Kind::Numeric | Kind::Uuid => Some("brin"),
            _ => None,
        }
    }

    /// Whether the type is a range, for exclusion constraints.
    pub fn is_range(&self) -> bool {
        matches!(self.kind, Kind::Range | Kind::DateRange)
    }

    /// A condition on column `c`.
    pub fn condition(&self, r: &mut StdRng, c: &str) -> String {
        let cast = self.cast;
        let v = self.present(r);
        let one = format!("({v})::{cast}");
        match r.random_range(0..12) {
            0 => format!("{c} IS NULL"),
            1 => format!("{c} IS NOT NULL"),
            2 if self.is_ordered() => format!("{c} IN ({one}, ({})::{cast}, NULL)", self.present(r)),
            3 if self.is_ordered() => format!("{c} BETWEEN {one} AND ({})::{cast}", self.present(r)),
            4 if self.is_ordered() => format!("{c} IS DISTINCT FROM {one}"),
            5 if self.is_ordered() => format!("{c} <> {one}"),
            _ => match self.kind {
                Kind::Json => format!("{c}->>'a' = '{}'", r.random_range(0..40)),
                Kind::Point => format!("{c} <@ box '((0,0),({},9))'", r.random_range(0..20)),
                Kind::Jsonb if r.random() => format!("{c} @> '{{\"a\": {}}}'", r.random_range(0..10)),
                Kind::Range | Kind::DateRange | Kind::Multirange if r.random() => format!("{c} && {one}"),
                Kind::IntArray | Kind::TextArray | Kind::NumericArray if r.random() => format!("{c} @> {one}"),
                Kind::Text if self.name != "text COLLATE ci" && r.random_range(0..3) == 0 => {
                    format!("{c} LIKE '{}%'", pick(r, &["a", "A", "x", "ä", ""]))
                }
                Kind::Vector => format!("{c} @@ 'cat & runs'"),
                Kind::Bool => c.to_owned(),
                _ => format!("{c} {} {one}", pick(r, &["=", "=", "=", "<", "<=", ">", ">="])),
            },
        }
    }
}
