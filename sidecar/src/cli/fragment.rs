//! `strata fragment fetch` and `strata fragment inspect`.

use super::output::{self, Output};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::postgres::{Conninfo, ServerInfo};
use crate::repository::Repository;
use crate::repository::fragments::Repaired;
use clap::Subcommand;
use serde::Serialize;
use std::path::{Path, PathBuf};
use strata_fragment::{Fragment, Zone};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Copy a fragment from the repository into a store, in place of a damaged one
    Fetch {
        /// The fragment's hash: 64 hexadecimal digits, as errors and strata.fragment name it
        hash: String,
        /// The oid of the database that it belongs to; by default the one that the fragment log names
        #[arg(long, value_name = "OID")]
        database: Option<u32>,
        /// The store; by default the configuration's member.store, else the server's
        #[arg(long, value_name = "DIR")]
        store: Option<PathBuf>,
    },
    /// Show a fragment's columns, blocks, smallest and largest values, and sizes; needs no configuration
    Inspect {
        /// The fragment's file: STORE/DATABASE_OID/<first two digits>/<hash>.frag
        file: PathBuf,
        /// Show the smallest and largest values of every block as well
        #[arg(long)]
        blocks: bool,
        /// Read everything and check it first
        #[arg(long)]
        verify: bool,
    },
}

pub fn run(command: &Command, config: &dyn Fn() -> Result<Config>, out: &Output) -> Result<()> {
    match command {
        Command::Fetch { hash, database, store } => fetch(&config()?, hash, *database, store.as_deref(), out),
        Command::Inspect { file, blocks, verify } => inspect(file, *blocks, *verify, out),
    }
}

#[derive(Serialize)]
struct Fetched<'a> {
    hash: &'a str,
    store: &'a Path,
    bytes: u64,
    fetched: bool,
    outcome: Repaired,
}

fn fetch(config: &Config, hash: &str, database: Option<u32>, store: Option<&Path>, out: &Output) -> Result<()> {
    let repository = Repository::open(config)?;
    // The hash is checked first.
    repository.fragment_path(hash)?;
    let database = database.map_or_else(|| database_of(&repository, hash), Ok)?;
    let store = match store.or(config.member.store.as_deref()) {
        Some(store) => store.to_owned(),
        None => store_of_server(config)?,
    };
    let (bytes, outcome) = repository.repair_fragment(database, hash, &store)?;
    let fetched = outcome != Repaired::Sound;
    out.result(&Fetched { hash, store: &store, bytes, fetched, outcome }, || {
        let what = match outcome {
            Repaired::Fetched => "fetched",
            Repaired::Replaced => "the store's was damaged and is replaced",
            Repaired::Sound => "is in the store already, and sound",
        };
        format!("{what}: {hash} ({})", output::bytes(bytes))
    })
}

/// The database that the fragment log names for a fragment.
fn database_of(repository: &Repository, hash: &str) -> Result<u32> {
    let logged = repository.fragment_log()?;
    let mut oids: Vec<u32> =
        logged.iter().filter(|entry| entry.fragment.hash == hash).map(|entry| entry.database_oid).collect();
    oids.sort_unstable();
    oids.dedup();
    let unclear =
        |message: String| Error::new(ErrorKind::Missing, message).with_hint("Name the database with --database OID.");
    match oids.as_slice() {
        [oid] => Ok(*oid),
        [] => Err(unclear(format!("the fragment log names no fragment {hash}"))),
        several => Err(unclear(format!("the fragment {hash} belongs to several databases: {several:?}"))),
    }
}

/// The store of the server that the configuration leads to.
fn store_of_server(config: &Config) -> Result<PathBuf> {
    let ask = async {
        let session = Conninfo::parse(&config.member.conninfo)?.connect().await?;
        Ok(ServerInfo::ask(&session).await?.store_or(None))
    };
    super::block_on(ask).map_err(|error: Error| {
        error.with_hint(
            "Name the store with --store, or set member.store in the configuration, to do without the server.",
        )
    })
}

#[derive(Serialize)]
struct Inspected {
    file: PathBuf,
    bytes: u64,
    rows: u64,
    edition: String,
    encodings: Vec<String>,
    sort_key: Vec<String>,
    keys: Vec<Key>,
    columns: Vec<Column>,
    blocks: Vec<Block>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verified_hash: Option<String>,
}

#[derive(Serialize)]
struct Key {
    name: String,
    columns: Vec<String>,
}

#[derive(Serialize)]
struct Column {
    name: String,
    attnum: i16,
    #[serde(rename = "type")]
    ty: String,
    bytes: u64,
    zone: ZoneView,
}

#[derive(Serialize)]
struct Block {
    first_row: u64,
    rows: u32,
    bytes: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    zones: Vec<ZoneView>,
}

#[derive(Serialize)]
struct ZoneView {
    min: Option<String>,
    max: Option<String>,
    nulls: u32,
}

impl From<&Zone> for ZoneView {
    fn from(zone: &Zone) -> Self {
        let text = |value: &strata_fragment::Value| shorten(&value_text(value));
        Self { min: zone.min.as_ref().map(text), max: zone.max.as_ref().map(text), nulls: zone.null_count }
    }
}

/// A bound as text: numbers as numbers, bytes as text when they are text.
fn value_text(value: &strata_fragment::Value) -> String {
    match value {
        strata_fragment::Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => format!("{text:?}"),
            Err(_) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        },
        other => {
            // The name of the physical type is in the column's row already.
            let text = format!("{other:?}");
            match text.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')) {
                Some(inner) => inner.to_owned(),
                None => text,
            }
        }
    }
}

fn shorten(text: &str) -> String {
    const LIMIT: usize = 40;
    match text.char_indices().nth(LIMIT) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn inspect(file: &Path, with_blocks: bool, verify: bool, out: &Output) -> Result<()> {
    let failed = |error: strata_fragment::FragmentError| {
        if file.exists() {
            Error::damaged(format_args!("the fragment \"{}\"", file.display()), error)
        } else {
            Error::new(ErrorKind::Missing, format!("there is no fragment \"{}\"", file.display()))
        }
    };
    let verified_hash = if verify { Some(strata_fragment::verify_file(file).map_err(failed)?.hash) } else { None };
    let fragment = Fragment::open(file, None).map_err(failed)?;
    let schema = fragment.schema();
    let name = |at: &usize| schema.columns.get(*at).map(|column| column.name.clone()).unwrap_or_default();
    let blocks = fragment.blocks().len();
    let mut columns = Vec::new();
    for (at, column) in schema.columns.iter().enumerate() {
        let mut bytes = 0;
        for block in 0..blocks {
            bytes += fragment.chunk_bytes(block, at).map_err(failed)?;
        }
        columns.push(Column {
            name: column.name.clone(),
            attnum: column.attnum,
            ty: format!("{:?}", column.ty),
            bytes,
            zone: fragment.fragment_zone(at).into(),
        });
    }
    let mut views = Vec::new();
    for (at, block) in fragment.blocks().iter().enumerate() {
        let mut bytes = 0;
        for column in 0..schema.columns.len() {
            bytes += fragment.chunk_bytes(at, column).map_err(failed)?;
        }
        let zones = if with_blocks {
            (0..schema.columns.len()).map(|column| fragment.zone(at, column).into()).collect()
        } else {
            Vec::new()
        };
        views.push(Block { first_row: block.first_row, rows: block.rows, bytes, zones });
    }
    let inspected = Inspected {
        file: file.to_owned(),
        bytes: fragment.bytes(),
        rows: fragment.rows(),
        edition: fragment.edition().to_owned(),
        encodings: fragment.encodings().to_vec(),
        sort_key: schema.sort_key.iter().map(name).collect(),
        keys: schema
            .keys
            .iter()
            .map(|key| Key { name: key.name.clone(), columns: key.columns.iter().map(name).collect() })
            .collect(),
        columns,
        blocks: views,
        verified_hash,
    };
    out.result(&inspected, || text(&inspected))
}

fn text(inspected: &Inspected) -> String {
    let mut text = output::pairs(&[
        ("file", inspected.file.display().to_string()),
        ("bytes", format!("{} ({})", inspected.bytes, output::bytes(inspected.bytes))),
        ("rows", inspected.rows.to_string()),
        ("blocks", inspected.blocks.len().to_string()),
        ("edition", inspected.edition.clone()),
        ("encodings", inspected.encodings.join(", ")),
        ("sorted by", inspected.sort_key.join(", ")),
        (
            "keys",
            inspected
                .keys
                .iter()
                .map(|key| format!("{} ({})", key.name, key.columns.join(", ")))
                .collect::<Vec<_>>()
                .join("; "),
        ),
    ]);
    if let Some(hash) = &inspected.verified_hash {
        text.push_str(&format!("verified   {hash}\n"));
    }
    let shown = |value: &Option<String>| value.clone().unwrap_or_default();
    let rows = inspected
        .columns
        .iter()
        .map(|column| {
            vec![
                column.attnum.to_string(),
                column.name.clone(),
                column.ty.clone(),
                output::bytes(column.bytes),
                column.zone.nulls.to_string(),
                shown(&column.zone.min),
                shown(&column.zone.max),
            ]
        })
        .collect();
    text.push('\n');
    text.push_str(&output::table(&["#>", "column", "type", "size>", "nulls>", "min", "max"], rows));
    let mut rows = Vec::new();
    for (at, block) in inspected.blocks.iter().enumerate() {
        rows.push(vec![
            at.to_string(),
            block.first_row.to_string(),
            block.rows.to_string(),
            output::bytes(block.bytes),
            String::new(),
        ]);
        for (zone, column) in block.zones.iter().zip(&inspected.columns) {
            rows.push(vec![
                String::new(),
                String::new(),
                String::new(),
                String::new(),
                format!("{}: {} to {}, {} nulls", column.name, shown(&zone.min), shown(&zone.max), zone.nulls),
            ]);
        }
    }
    text.push('\n');
    text.push_str(&output::table(&["block>", "first row>", "rows>", "size>", "zones"], rows));
    text
}
