//! What the suites share: making fragments from rows and reading them back.
#![allow(dead_code)]

use std::path::Path;

use strata_fragment::{Builder, BuilderOptions, ColumnSpec, Fragment, KeySpec, PhysicalType, Schema, Value, Written};

pub type Row = Vec<Value>;

pub fn schema(types: &[PhysicalType], sort_key: &[usize], keys: &[&[usize]]) -> Schema {
    let columns = types.iter().enumerate();
    Schema {
        columns: columns.map(|(i, ty)| ColumnSpec { name: format!("c{i}"), attnum: i as i16 + 1, ty: *ty }).collect(),
        sort_key: sort_key.to_vec(),
        keys: keys.iter().enumerate().map(|(i, k)| KeySpec { name: format!("k{i}"), columns: k.to_vec() }).collect(),
    }
}

pub fn write(dir: &Path, schema: &Schema, block_rows: u32, rows: &[Row]) -> Written {
    let mut b = Builder::new(schema.clone(), BuilderOptions::with_block_rows(block_rows)).unwrap();
    for r in rows {
        b.push_row(r).unwrap();
    }
    assert_eq!(b.rows(), rows.len());
    b.finish(dir).unwrap()
}

/// Reads every row by whole columns.
pub fn read_all(f: &Fragment) -> Vec<Row> {
    let mut rows = Vec::new();
    for block in 0..f.blocks().len() {
        let columns: Vec<_> = (0..f.schema().columns.len()).map(|c| f.read(block, c).unwrap()).collect();
        for i in 0..f.blocks()[block].rows as usize {
            rows.push(columns.iter().map(|c| c.value(i)).collect());
        }
    }
    rows
}

pub fn same(a: &[Value], b: &[Value]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.identical(b))
}
