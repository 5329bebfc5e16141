//! `[drill]`: how `strata drill` tries a recovery.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How a recovery is tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrillConfig {
    /// Where the scratch server is laid out; by default `strata-drill-SYSTEM-MEMBER` in the directory for temporary files. It needs
    /// room for the hot data and the fragments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// Queries that the recovered server must answer, in the conninfo's database. One that fails, or whose first value is `false` or
    /// null, is damage; other values are recorded. Their search path is `"$user", public`.
    pub checks: Vec<String>,
}
