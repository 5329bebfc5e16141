//! Three million real flights: the file `data/flights-3m.parquet` of the npm package `vega-datasets`.

use anyhow::{Context, Result, bail};
use parquet::column::reader::ColumnReader;
use parquet::data_type::{ByteArrayType, DataType, Int64Type};
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use postgres::Client;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The package, with the version that the numbers in the documentation belong to.
const PACKAGE: &str = "vega-datasets@3.2.1";
const FILE: &str = "flights-3m.parquet";

/// Finds the file, or fetches it once into the cache beside cargo's target directory.
pub fn fetch(say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let cache = cache_directory()?;
    let target = cache.join(FILE);
    if target.exists() {
        return Ok(target);
    }
    say(&format!("fetching {PACKAGE} from npm, once"));
    let work = tempfile::tempdir_in(&cache)?;
    let packed = crate::process::run(Command::new("npm").args(["pack", "--silent", PACKAGE]).current_dir(work.path()))
        .context("fetch the flights with npm")?;
    let name = String::from_utf8(packed.stdout)?;
    let name = name.lines().last().context("npm pack names its file")?.trim();
    crate::process::run(
        Command::new("tar").args(["-xzf", name, &format!("package/data/{FILE}")]).current_dir(work.path()),
    )?;
    let unpacked = work.path().join("package/data").join(FILE);
    if fs::metadata(&unpacked)?.len() < 1_000_000 {
        bail!("{PACKAGE} has no {FILE} of the size that was expected");
    }
    fs::rename(&unpacked, &target).with_context(|| format!("move the flights to {}", target.display()))?;
    Ok(target)
}

/// The parent of cargo's target directory when that is a cache of ours, or the target directory itself.
pub fn cache_directory() -> Result<PathBuf> {
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(t) => PathBuf::from(t),
        None => {
            std::env::current_exe()?.ancestors().nth(2).context("the program is in a target directory")?.to_path_buf()
        }
    };
    let dir = match target.parent() {
        Some(parent) if parent.ends_with("strata") => parent.join("data"),
        _ => target.join("data"),
    };
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    Ok(dir)
}

/// The table: monthly partitions and a primary key.
pub const TABLE: &str =
    "CREATE TABLE flights (id bigint, date timestamp, delay int, distance int, origin text, destination text,
                      PRIMARY KEY (date, id)) PARTITION BY RANGE (date)";

/// Creates the table with its partitions, 2001-01 to 2001-07, and loads the file; gives the number of rows.
/// `DEMO_ROWS` makes it smaller, to work on the programs that use it.
pub fn load(file: &Path, c: &mut Client) -> Result<i64> {
    c.batch_execute(TABLE)?;
    for month in 1..=7 {
        c.batch_execute(&format!(
            "CREATE TABLE flights_2001_{month:02} PARTITION OF flights FOR VALUES FROM ('2001-{month:02}-01') TO ('2001-{:02}-01')",
            month + 1
        ))?;
    }
    let limit = std::env::var("DEMO_ROWS").ok().and_then(|n| n.parse().ok());
    let mut out = BufWriter::with_capacity(1 << 18, c.copy_in("COPY flights FROM STDIN")?);
    let rows = copy_text(file, limit, &mut out)?;
    out.into_inner().map_err(|e| e.into_error()).context("finish COPY")?.finish()?;
    c.batch_execute("VACUUM ANALYZE flights")?;
    c.batch_execute("CHECKPOINT")?;
    Ok(rows)
}

/// Bytes of all pages of the table in the data directory: heap, indexes, TOAST, maps.
pub fn total_bytes(c: &mut Client) -> Result<u64> {
    let sql = "SELECT sum(pg_total_relation_size(relid))::bigint FROM pg_partition_tree('flights') WHERE isleaf";
    Ok(u64::try_from(c.query_one(sql, &[])?.get::<_, i64>(0))?)
}

/// Writes the flights as COPY text: id, date, delay, distance, origin, destination; returns how many.
/// The id is the row's number in the file, from 1.
pub fn copy_text(file: &Path, limit: Option<i64>, out: &mut impl Write) -> Result<i64> {
    let reader = SerializedFileReader::new(File::open(file)?).with_context(|| format!("read {}", file.display()))?;
    let mut id = 0;
    let mut line = String::with_capacity(128);
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group)?;
        let dates = longs(&*group, 0)?;
        let delays = longs(&*group, 1)?;
        let distances = longs(&*group, 2)?;
        let origins = texts(&*group, 3)?;
        let destinations = texts(&*group, 4)?;
        for row in 0..dates.len() {
            if limit.is_some_and(|l| id >= l) {
                return Ok(id);
            }
            id += 1;
            line.clear();
            line.push_str(&id.to_string());
            line.push('\t');
            match dates[row] {
                Some(us) => push_timestamp(&mut line, us),
                None => bail!("row {id} has no date"),
            }
            for v in [delays[row], distances[row]] {
                line.push('\t');
                match v {
                    Some(v) => line.push_str(&v.to_string()),
                    None => line.push_str("\\N"),
                }
            }
            for v in [&origins[row], &destinations[row]] {
                line.push('\t');
                line.push_str(v.as_deref().unwrap_or("\\N"));
            }
            line.push('\n');
            out.write_all(line.as_bytes())?;
        }
    }
    Ok(id)
}

/// Microseconds since 1970 as `YYYY-MM-DD HH:MM:SS`.
fn push_timestamp(line: &mut String, us: i64) {
    use std::fmt::Write as _;
    let seconds = us.div_euclid(1_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a civil date: eras of 400 years, counted from March.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let _ =
        write!(line, "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60);
}

fn longs(group: &dyn RowGroupReader, column: usize) -> Result<Vec<Option<i64>>> {
    match group.get_column_reader(column)? {
        ColumnReader::Int64ColumnReader(r) => values::<Int64Type>(r, group),
        _ => bail!("column {column} of the flights is not a 64-bit integer"),
    }
}

fn texts(group: &dyn RowGroupReader, column: usize) -> Result<Vec<Option<String>>> {
    match group.get_column_reader(column)? {
        ColumnReader::ByteArrayColumnReader(r) => values::<ByteArrayType>(r, group)?
            .into_iter()
            .map(|v| v.map(|b| Ok(b.as_utf8()?.to_owned())).transpose())
            .collect(),
        _ => bail!("column {column} of the flights is not text"),
    }
}

/// One column of a row group, nulls put back by the definition levels.
fn values<T: DataType>(
    mut reader: parquet::column::reader::ColumnReaderImpl<T>,
    group: &dyn RowGroupReader,
) -> Result<Vec<Option<T::T>>> {
    let rows = usize::try_from(group.metadata().num_rows())?;
    let (mut dense, mut levels) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    while levels.len() < rows {
        let (records, _, _) = reader.read_records(rows - levels.len(), Some(&mut levels), None, &mut dense)?;
        if records == 0 {
            bail!("the flights' file ends early");
        }
    }
    let mut dense = dense.into_iter();
    Ok(levels.into_iter().map(|l| if l > 0 { dense.next() } else { None }).collect())
}

#[cfg(test)]
mod tests {
    use super::push_timestamp;

    #[test]
    fn timestamps_are_civil() {
        for (us, text) in [
            (0, "1970-01-01 00:00:00"),
            (978_307_260_000_000, "2001-01-01 00:01:00"),
            (951_782_400_000_000, "2000-02-29 00:00:00"),
            (-1_000_000, "1969-12-31 23:59:59"),
        ] {
            let mut line = String::new();
            push_timestamp(&mut line, us);
            assert_eq!(line, text);
        }
    }
}
