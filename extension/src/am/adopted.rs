//! Unique indexes that become deferrable constraints.
//!
//! `ALTER TABLE … ADD CONSTRAINT … UNIQUE USING INDEX … DEFERRABLE` takes an index as it is. A deferrable one is not plain (`index`): it holds
//! entries for fragment rows, which this one was built without. So it is built again in the same command. No other command
//! makes an existing index deferrable.

use super::{fragments, handler, index};
use crate::pg::OpenRelation;
use crate::pg::list::{is_a, items};
use pgrx::pg_sys::*;
use pgrx::prelude::*;

/// The table of a command that makes a deferrable constraint from an index; null for any other statement.
///
/// # Safety
/// `statement` is the parser's.
pub unsafe fn table_of(statement: *mut Node) -> *mut RangeVar {
    // SAFETY: the caller's promise: ALTER TABLE has a list of commands, whose definition is a constraint for this kind.
    unsafe {
        if !is_a(statement, NodeTag::T_AlterTableStmt) {
            return std::ptr::null_mut();
        }
        let statement = statement.cast::<AlterTableStmt>();
        let adopts = items::<AlterTableCmd>((*statement).cmds).any(|command| {
            let constraint = (*command).def.cast::<Constraint>();
            (*command).subtype == AlterTableType::AT_AddConstraint
                && is_a(constraint, NodeTag::T_Constraint)
                && !(*constraint).indexname.is_null()
                && (*constraint).deferrable
        });
        if adopts { (*statement).relation } else { std::ptr::null_mut() }
    }
}

/// Builds the deferrable unique indexes of a table again if it has fragments.
///
/// # Safety
/// The command that [`table_of`] has found is done.
#[pg_guard]
pub unsafe extern "C-unwind" fn build_again(name: *mut RangeVar) {
    // SAFETY: the command has locked the table until the end of the transaction; it may have been left out for IF EXISTS.
    unsafe {
        let relid =
            RangeVarGetRelidExtended(name, NoLock as i32, RVROption::RVR_MISSING_OK, None, std::ptr::null_mut());
        if relid == Oid::INVALID || get_rel_relkind(relid) as u8 != RELKIND_RELATION {
            return;
        }
        CommandCounterIncrement();
        let again: Vec<Oid> = {
            let rel = OpenRelation::open(relid, NoLock);
            if !handler::is_warm(rel.0) || fragments::of(rel.0).is_none() {
                return;
            }
            index::index_oids(rel.0)
                .into_iter()
                .filter(|oid| {
                    let index = OpenRelation::open(*oid, AccessShareLock);
                    let form = &*(*index.0).rd_index;
                    form.indisunique && !form.indimmediate
                })
                .collect()
        };
        for oid in again {
            let sql = format!("REINDEX INDEX {}", crate::pg::qualified_name(oid));
            if let Err(error) = Spi::run(&sql) {
                error!("could not build the index again: {error}");
            }
        }
    }
}
