//! Configuration parameters (`strata.*`).

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::ffi::CString;
use std::path::PathBuf;

/// `strata.store`
pub static STORE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
/// `strata.agent_socket`
pub static AGENT_SOCKET: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
/// `strata.agent_timeout`, seconds
pub static AGENT_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(60);
/// `strata.failpoint`
pub static FAILPOINT: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);
/// `strata.enable_warm_scan`
pub static ENABLE_WARM_SCAN: GucSetting<bool> = GucSetting::<bool>::new(true);
/// `strata.enable_aggregate_pushdown`
pub static ENABLE_AGGREGATE_PUSHDOWN: GucSetting<bool> = GucSetting::<bool>::new(true);
/// `strata.index_prefetch_distance`, blocks
pub static INDEX_PREFETCH_DISTANCE: GucSetting<i32> = GucSetting::<i32>::new(64);
/// `strata.index_prefetch_min_size`, blocks
pub static INDEX_PREFETCH_MIN_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1024);
/// `strata.index_prefetch_latency`, microseconds
pub static INDEX_PREFETCH_LATENCY: GucSetting<i32> = GucSetting::<i32>::new(25);
/// `strata.enable_promoter`
pub static ENABLE_PROMOTER: GucSetting<bool> = GucSetting::<bool>::new(true);
/// `strata.policy_interval`, seconds
pub static POLICY_INTERVAL: GucSetting<i32> = GucSetting::<i32>::new(60);
/// `strata.swap_timeout`, seconds
pub static SWAP_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(300);
/// `strata.consolidate_on_vacuum`
pub static CONSOLIDATE_ON_VACUUM: GucSetting<bool> = GucSetting::<bool>::new(true);
/// `strata.test_fold`
pub static TEST_FOLD: GucSetting<bool> = GucSetting::<bool>::new(false);
/// `strata.move_rate`, kB a second
pub static MOVE_RATE: GucSetting<i32> = GucSetting::<i32>::new(0);
/// `strata.snapshot_wait`
pub static SNAPSHOT_WAIT: GucSetting<i32> = GucSetting::<i32>::new(3000);
/// `strata.consolidate_threshold`
pub static CONSOLIDATE_THRESHOLD: GucSetting<f64> = GucSetting::<f64>::new(0.1);
/// `strata.memory_budget`, kilobytes
pub static MEMORY_BUDGET: GucSetting<i32> = GucSetting::<i32>::new(262_144);
/// `strata.access_mode`
pub static ACCESS_MODE: GucSetting<AccessMode> = GucSetting::<AccessMode>::new(AccessMode::Auto);
/// `strata.fragment_rows`
pub static FRAGMENT_ROWS: GucSetting<i32> = GucSetting::<i32>::new(1_000_000);

/// The values of `strata.access_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
#[allow(missing_docs)]
pub enum AccessMode {
    #[name = c"auto"]
    Auto,
    #[name = c"loaded"]
    Loaded,
    #[name = c"paged"]
    Paged,
    #[name = c"direct"]
    Direct,
}

/// `strata.memory_budget` in bytes.
pub fn memory_budget() -> u64 {
    MEMORY_BUDGET.get().max(0) as u64 * 1024
}

/// The store: the setting, or the data directory's path with `.strata` behind it.
pub fn store_directory() -> PathBuf {
    match STORE.get() {
        Some(path) if !path.is_empty() => PathBuf::from(path.to_string_lossy().into_owned()),
        _ => {
            // SAFETY: DataDir is set before any backend runs.
            let data = unsafe { std::ffi::CStr::from_ptr(pgrx::pg_sys::DataDir) };
            PathBuf::from(format!("{}.strata", data.to_string_lossy().trim_end_matches('/')))
        }
    }
}

/// The agent's socket: the setting, or `agent.sock` in the store.
pub fn agent_socket() -> PathBuf {
    match AGENT_SOCKET.get() {
        Some(path) if !path.is_empty() => PathBuf::from(path.to_string_lossy().into_owned()),
        _ => store_directory().join("agent.sock"),
    }
}

/// Defines the parameters; called once when the library is loaded.
pub fn register() {
    GucRegistry::define_string_guc(
        c"strata.store",
        c"Folder of the fragments of warm tables.",
        c"Empty: the data directory's path with .strata behind it.",
        &STORE,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"strata.agent_socket",
        c"Unix socket of the strata agent.",
        c"Empty: agent.sock in the store.",
        &AGENT_SOCKET,
        GucContext::Sighup,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"strata.agent_timeout",
        c"Longest time without a word from the agent.",
        c"After it a statement that waits for the agent fails.",
        &AGENT_TIMEOUT,
        1,
        86_400,
        GucContext::Userset,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_string_guc(
        c"strata.failpoint",
        c"Named places where the server dies, fails or waits, for tests.",
        c"NAME=kill, NAME=error or NAME=sleep:MS, separated by commas.",
        &FAILPOINT,
        GucContext::Suset,
        GucFlags::NO_SHOW_ALL,
    );
    GucRegistry::define_bool_guc(
        c"strata.enable_warm_scan",
        c"Enables the planner's use of WarmScan.",
        c"When off, warm tables are read row by row like heap tables.",
        &ENABLE_WARM_SCAN,
        GucContext::Userset,
        GucFlags::EXPLAIN,
    );
    GucRegistry::define_bool_guc(
        c"strata.enable_aggregate_pushdown",
        c"Enables aggregation inside the scan of warm tables.",
        c"",
        &ENABLE_AGGREGATE_PUSHDOWN,
        GucContext::Userset,
        GucFlags::EXPLAIN,
    );
    GucRegistry::define_int_guc(
        c"strata.index_prefetch_distance",
        c"How many table blocks an index scan in sequential access asks for ahead.",
        c"0 turns prefetch of index scans off.",
        &INDEX_PREFETCH_DISTANCE,
        0,
        1024,
        GucContext::Userset,
        GucFlags::EXPLAIN,
    );
    GucRegistry::define_int_guc(
        c"strata.index_prefetch_min_size",
        c"Index scans of smaller tables prefetch nothing.",
        c"",
        &INDEX_PREFETCH_MIN_SIZE,
        0,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_BLOCKS,
    );
    GucRegistry::define_int_guc(
        c"strata.index_prefetch_latency",
        c"Microseconds from which on the read of a block is slow, so that prefetch pays.",
        c"0: prefetch in all sequential index scans, however fast the reads are.",
        &INDEX_PREFETCH_LATENCY,
        0,
        1_000_000,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"strata.enable_promoter",
        c"Promotes fragment rows in a transaction of their own.",
        c"When off, the changing transaction does it, and others that want the row wait for its end.",
        &ENABLE_PROMOTER,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"strata.policy_interval",
        c"Time between two runs of the tiering policies.",
        c"0 turns the background runs off; CALL strata.run_policies() still works.",
        &POLICY_INTERVAL,
        0,
        86_400,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_int_guc(
        c"strata.swap_timeout",
        c"Longest time that a move tries to get its exclusive lock.",
        c"It asks for it in short attempts, so that others are not held up.",
        &SWAP_TIMEOUT,
        1,
        86_400,
        GucContext::Userset,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_bool_guc(
        c"strata.consolidate_on_vacuum",
        c"VACUUM of a warm table that has lost many rows, or has many in its delta store, has it consolidated in the background.",
        c"",
        &CONSOLIDATE_ON_VACUUM,
        GucContext::Userset,
        GucFlags::default(),
    );
    // Such a parameter cannot be made later, when a session loads the library by itself.
    // SAFETY: a plain variable of the server.
    if unsafe { pgrx::pg_sys::process_shared_preload_libraries_in_progress } {
        GucRegistry::define_bool_guc(
            c"strata.test_fold",
            c"For tests: folds every change into fragments once it has committed.",
            c"",
            &TEST_FOLD,
            GucContext::Postmaster,
            GucFlags::NO_SHOW_ALL,
        );
    }
    GucRegistry::define_int_guc(
        c"strata.move_rate",
        c"Most that a move or a consolidation reads and writes each second.",
        c"It holds beside readers and writers, not for the swap. 0: no limit.",
        &MOVE_RATE,
        0,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"strata.snapshot_wait",
        c"How long a move or a consolidation waits for older snapshots, so that what was committed just before goes into fragments too.",
        c"",
        &SNAPSHOT_WAIT,
        0,
        3_600_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_float_guc(
        c"strata.consolidate_threshold",
        c"The share of deleted rows from which on consolidation writes a fragment again without them.",
        c"",
        &CONSOLIDATE_THRESHOLD,
        0.0,
        1.0,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"strata.fragment_rows",
        c"Most rows of a new fragment.",
        c"",
        &FRAGMENT_ROWS,
        1,
        16_000_000,
        GucContext::Userset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"strata.memory_budget",
        c"Memory that all processes of the server together may keep of fragments.",
        c"Scans whose fragments do not fit read them in parts. 0 keeps nothing. At most half of the machine's memory is used.",
        &MEMORY_BUDGET,
        0,
        i32::MAX,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_enum_guc(
        c"strata.access_mode",
        c"How scans of warm tables read fragments: auto, loaded, paged or direct.",
        c"auto chooses by the size of the data set, strata.memory_budget and what is asked for. No mode keeps more than the budget.",
        &ACCESS_MODE,
        GucContext::Userset,
        GucFlags::EXPLAIN,
    );
    // SAFETY: a name that lives for ever.
    unsafe { pgrx::pg_sys::MarkGUCPrefixReserved(c"strata".as_ptr()) };
}
