//! What takes more than one statement: cursors, prepared statements, COPY there and back, another role, foreign keys.

use crate::schema::{Column, Table};
use crate::statements::{self, Compare};
use crate::types::Type;
use crate::{Outcome, Twins, run};
use postgres::Client;
use rand::Rng;
use rand::rngs::StdRng;
use std::io::{Read, Write};

/// A statement that was prepared in both sessions, with the types of its parameters.
pub struct Prepared {
    name: String,
    parameters: Vec<Type>,
}

/// The role that row-level security holds for.
pub const PRELUDE: &str = "
    GRANT USAGE ON SCHEMA work TO property_reader;
    ALTER DEFAULT PRIVILEGES IN SCHEMA work GRANT ALL ON TABLES TO property_reader;
    ALTER DEFAULT PRIVILEGES IN SCHEMA work GRANT ALL ON SEQUENCES TO property_reader;";

/// A table whose rows refer to those of `parent`, and the statements that make it.
pub fn child(r: &mut StdRng, parent: &Table) -> (Table, Vec<String>) {
    let name = format!("{}_child", parent.name);
    let action = |r: &mut StdRng| {
        ["NO ACTION", "RESTRICT", "CASCADE", "CASCADE", "SET NULL", "SET DEFAULT"][r.random_range(0..6)]
    };
    let deferrable = ["", " DEFERRABLE", " DEFERRABLE INITIALLY DEFERRED"][r.random_range(0..3)];
    let keys = parent.key_columns();
    let mut columns = vec![Column { name: "id".to_owned(), ty: Type::int(), generated: false }];
    columns.extend(keys.iter().map(|k| Column { name: format!("f{}", k.name), ty: k.ty.clone(), generated: false }));
    columns.push(Column { name: "v".to_owned(), ty: Type::any(r), generated: false });
    let mut definitions: Vec<String> = columns.iter().map(|c| format!("{} {}", c.name, c.ty.name)).collect();
    let own: Vec<String> = keys.iter().map(|k| format!("f{}", k.name)).collect();
    let matching = if keys.len() > 1 && r.random_range(0..3) == 0 { " MATCH FULL" } else { "" };
    definitions.push("PRIMARY KEY (id)".to_owned());
    definitions.push(format!(
        "FOREIGN KEY ({}) REFERENCES {} ({}){matching} ON DELETE {} ON UPDATE {}{deferrable}",
        own.join(", "),
        parent.name,
        parent.key.join(", "),
        action(r),
        action(r)
    ));
    let made = vec![format!("CREATE TABLE {name} ({})", definitions.join(", "))];
    (Table::of(&name, columns, vec!["id".to_owned()]), made)
}

/// Rows of a child for some rows of its parent.
pub fn adopt(r: &mut StdRng, parent: &Table, child: &Table) -> String {
    let own: Vec<String> = parent.key.iter().map(|k| format!("f{k}")).collect();
    format!(
        "INSERT INTO {} (id, {}) SELECT {} + row_number() OVER (ORDER BY p::text COLLATE \"C\"), {} FROM {} p WHERE {}
         ON CONFLICT DO NOTHING",
        child.name,
        own.join(", "),
        r.random_range(0..500),
        parent.key.join(", "),
        parent.name,
        statements::condition(r, parent),
    )
}

impl Twins {
    /// ROW LEVEL SECURITY on a table: a policy for what is seen, and sometimes another for what is written.
    pub fn secure(&mut self, r: &mut StdRng, t: &Table) {
        let name = &t.name;
        let (seen, written) = (statements::condition(r, t), statements::condition(r, t));
        self.step(&format!("ALTER TABLE {name} ENABLE ROW LEVEL SECURITY"), Compare::Bag);
        self.step(&format!("CREATE POLICY seen ON {name} USING ({seen})"), Compare::Bag);
        if r.random() {
            self.step(
                &format!("CREATE POLICY written ON {name} AS RESTRICTIVE FOR INSERT WITH CHECK ({written})"),
                Compare::Bag,
            );
        }
    }

    /// A statement by a role that has no right to more than the policies give.
    pub fn as_reader(&mut self, r: &mut StdRng, t: &Table, u: &Table) {
        let (sql, compare) = if r.random() { statements::change(r, t) } else { statements::query(r, t, u) };
        if sql.starts_with("TRUNCATE") {
            return;
        }
        self.step("SET ROLE property_reader", Compare::Bag);
        self.step(&sql, compare);
        self.step("RESET ROLE", Compare::Bag);
    }

    /// A cursor, what happens while it is open, and what it gives then.
    pub fn cursor(&mut self, r: &mut StdRng, t: &Table) {
        let name = &t.name;
        let (place, order) = (statements::condition(r, t), format!("ORDER BY {name}::text COLLATE \"C\""));
        let query = format!("SELECT * FROM {name} WHERE {place} {order}");
        if self.begun.is_none() {
            if self.both(&format!("DECLARE c SCROLL CURSOR WITH HOLD FOR {query}"), Compare::Bag) {
                self.fetch(r);
                self.moves(r);
                let (sql, compare) = statements::change(r, t);
                self.both(&sql, compare);
                self.fetch(r);
                self.both("CLOSE c", Compare::Bag);
            }
            return;
        }
        let locks = r.random_range(0..3) == 0;
        let (scroll, lock) = if locks { ("", " FOR UPDATE") } else { (" SCROLL", "") };
        if !self.step(&format!("DECLARE c{scroll} CURSOR FOR {query}{lock}"), Compare::Bag) {
            return;
        }
        for _ in 0..r.random_range(1..5) {
            if locks {
                self.step(&format!("FETCH {} FROM c", r.random_range(1..4)), Compare::Ordered);
                let sql = match t.payload(r) {
                    Some(c) if r.random() => {
                        format!("UPDATE {name} SET {} = ({})::{} WHERE CURRENT OF c", c.name, c.ty.value(r), c.ty.cast)
                    }
                    _ => format!("DELETE FROM {name} WHERE CURRENT OF c"),
                };
                self.step(&sql, Compare::Changes);
            } else {
                self.fetch(r);
                let (sql, compare) = statements::change(r, t);
                self.step(&sql, compare);
            }
        }
        self.step("CLOSE c", Compare::Bag);
    }

    fn fetch(&mut self, r: &mut StdRng) {
        let n = r.random_range(1..12);
        let direction =
            ["NEXT", "PRIOR", "FIRST", "LAST", "FORWARD ALL", "BACKWARD ALL", "", "BACKWARD", "RELATIVE", "ABSOLUTE"];
        let direction = match direction[r.random_range(0..direction.len())] {
            counted @ ("" | "BACKWARD" | "RELATIVE") => format!("{counted} {n}"),
            "ABSOLUTE" => format!("ABSOLUTE {}", n - 6),
            other => other.to_owned(),
        };
        let verb = if r.random_range(0..4) == 0 { "MOVE" } else { "FETCH" };
        self.step(&format!("{verb} {direction} FROM c"), Compare::Ordered);
    }

    /// Prepares a statement by key, or executes one that was prepared before whatever changed since.
    pub fn prepared(&mut self, r: &mut StdRng, t: &Table) {
        let known = self.prepared.len();
        if known > 0 && r.random_range(0..3) > 0 {
            for _ in 0..r.random_range(1..8) {
                let p = &self.prepared[r.random_range(0..known)];
                let values: Vec<String> =
                    p.parameters.iter().map(|ty| format!("({})::{}", ty.present(r), ty.cast)).collect();
                let sql = format!("EXECUTE {} ({})", p.name, values.join(", "));
                self.step(&sql, Compare::Changes);
            }
            return;
        }
        let keys = t.key_columns();
        if keys.is_empty() {
            return;
        }
        let place: Vec<String> = keys.iter().enumerate().map(|(i, k)| format!("{} = ${}", k.name, i + 1)).collect();
        let mut parameters: Vec<Type> = keys.iter().map(|k| k.ty.clone()).collect();
        let (name, place) = (&t.name, place.join(" AND "));
        let sql = match (r.random_range(0..4), t.payload(r)) {
            (0, Some(c)) => {
                parameters.push(c.ty.clone());
                format!("UPDATE {name} SET {} = ${} WHERE {place} RETURNING {}", c.name, parameters.len(), c.name)
            }
            (1, _) => format!("DELETE FROM {name} WHERE {place}"),
            (2, _) => format!("SELECT * FROM {name} WHERE {place} FOR UPDATE"),
            _ => format!("SELECT * FROM {name} WHERE {place}"),
        };
        let types: Vec<&str> = parameters.iter().map(|ty| ty.cast).collect();
        let p = Prepared { name: format!("p{known}"), parameters: parameters.clone() };
        if self.step(&format!("PREPARE {} ({}) AS {sql}", p.name, types.join(", ")), Compare::Bag) {
            self.prepared.push(p);
        }
    }

    /// Rows go out by COPY, are deleted, and come back by COPY.
    pub fn copy(&mut self, r: &mut StdRng, t: &Table) {
        let name = &t.name;
        let columns: Vec<&str> = t.columns.iter().filter(|c| !c.generated).map(|c| c.name.as_str()).collect();
        let (columns, place) = (columns.join(", "), statements::condition(r, t));
        let format = ["text", "csv", "csv, QUOTE '!', FORCE_QUOTE *"][r.random_range(0..3)];
        let out = format!("COPY (SELECT {columns} FROM {name} WHERE {place}) TO STDOUT (FORMAT {format})");
        self.trace.push(out.clone());
        if self.begun.is_some() {
            self.both("SAVEPOINT copy", Compare::Bag);
        }
        let read = |client: &mut Client| -> Result<String, String> {
            let mut text = String::new();
            let said = |error: postgres::Error| error.code().map_or("lost".to_owned(), |code| code.code().to_owned());
            let mut reader = client.copy_out(&out).map_err(said)?;
            reader.read_to_string(&mut text).map_err(|error| format!("{error:#}"))?;
            Ok(text)
        };
        let (heap, warm) = (read(&mut self.heap), read(&mut self.warm));
        let lines = |text: &Result<String, String>| {
            let mut lines: Vec<String> = text.iter().flat_map(|t| t.split('\n')).map(str::to_owned).collect();
            lines.sort();
            lines
        };
        if heap.is_ok() != warm.is_ok() || lines(&heap) != lines(&warm) {
            self.fail(&format!("{out}\nheap: {heap:?}\nwarm: {warm:?}"));
        }
        let Ok(data) = heap else {
            if self.begun.is_some() {
                self.both("ROLLBACK TO copy", Compare::Bag);
            }
            return;
        };
        if !self.step(&format!("DELETE FROM {name} WHERE {place}"), Compare::Changes) {
            return;
        }
        let into =
            format!("COPY {name} ({columns}) FROM STDIN (FORMAT {})", format.split(", FORCE").next().unwrap_or(format));
        self.trace.push(format!("{into};\n{data}\\."));
        if self.begun.is_some() {
            self.both("SAVEPOINT copy", Compare::Bag);
        }
        let write = |client: &mut Client| -> Result<u64, String> {
            let said = |error: &postgres::Error| error.code().map_or("lost".to_owned(), |code| code.code().to_owned());
            let mut writer = client.copy_in(&into).map_err(|e| said(&e))?;
            writer.write_all(data.as_bytes()).map_err(|error| format!("{error:#}"))?;
            writer.finish().map_err(|e| said(&e))
        };
        let (heap, warm) = (write(&mut self.heap), write(&mut self.warm));
        self.count(&into, heap.is_ok());
        let alike = match (&heap, &warm) {
            (Ok(a), Ok(b)) => a == b,
            // Which row of several comes first is the same here: it is the same file.
            (Err(a), Err(b)) => a == b && a != "lost" && !a.starts_with("XX"),
            _ => false,
        };
        if !alike {
            self.fail(&format!("{into}\nheap: {heap:?}\nwarm: {warm:?}"));
        }
        if heap.is_err() && self.begun.is_some() {
            self.both("ROLLBACK TO copy", Compare::Bag);
        }
    }

    /// Ends the transaction by PREPARE TRANSACTION, and then in one of both ways.
    pub fn two_phase(&mut self, r: &mut StdRng) {
        let side = |sql: &str| (format!("{sql} 'heap'"), format!("{sql} 'warm'"));
        let each = |twins: &mut Self, sql: &str| {
            let (heap, warm) = side(sql);
            twins.trace.push(heap.clone());
            match (run(&mut twins.heap, &heap), run(&mut twins.warm, &warm)) {
                (Outcome::Done(..), Outcome::Done(..)) => twins.count(sql, true),
                (Outcome::Failed(a, x), Outcome::Failed(b, y)) => {
                    if a != b || a.starts_with("XX") || a == "lost" {
                        twins.fail(&format!("{sql}\nheap: {a} {x}\nwarm: {b} {y}"));
                    }
                    twins.count(sql, false)
                }
                (a, b) => twins.fail(&format!("{sql}\nheap: {a:?}\nwarm: {b:?}")),
            }
        };
        let before = self.begun.take();
        self.saved = None;
        if each(self, "PREPARE TRANSACTION") {
            if r.random_range(0..3) > 0 {
                each(self, "COMMIT PREPARED");
                return;
            }
            each(self, "ROLLBACK PREPARED");
        }
        self.tables = before.unwrap_or_default();
    }
}
