//! SQL functions. The declarations are in `sql/schema/25_functions.sql`.

pub mod agent;
pub mod memory;
pub mod tiering;
