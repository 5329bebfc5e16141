//! Unique indexes that become deferrable constraints.
//!
//! `ALTER TABLE … ADD CONSTRAINT … UNIQUE USING INDEX … DEFERRABLE` takes an index as it is. A deferrable one is not plain (`index`): it holds
//! entries for fragment rows, which this one was built without. So it is built again in the same command. No other command
//! makes an existing index deferrable.

use super::{fragments, handler, index};
use crate::pg::{OpenRelation, ext};
use pgrx::pg_sys::*;
use pgrx::prelude::*;

static mut PREVIOUS: ProcessUtility_hook_type = None;

/// Installs the hook.
pub fn install() {
    // SAFETY: called once, while the library is loaded; the previous hook is chained.
    unsafe {
        PREVIOUS = ProcessUtility_hook;
        ProcessUtility_hook = Some(utility);
    }
}

/// Catches nothing that PostgreSQL raises, so that it reaches the client with all that it says; holds nothing that needs dropping.
unsafe extern "C-unwind" fn utility(
    statement: *mut PlannedStmt,
    text: *const core::ffi::c_char,
    read_only: bool,
    context: ProcessUtilityContext::Type,
    params: ParamListInfo,
    environment: *mut QueryEnvironment,
    receiver: *mut DestReceiver,
    completion: *mut QueryCompletion,
) {
    // SAFETY: the arguments are PostgreSQL's; the statement outlives its execution.
    unsafe {
        let node = (*statement).utilityStmt;
        PREVIOUS.unwrap_or(ext::standard_ProcessUtility)(
            statement,
            text,
            read_only,
            context,
            params,
            environment,
            receiver,
            completion,
        );
        if (*node).type_ == NodeTag::T_AlterTableStmt && adopts(node.cast()) {
            build_again((*node.cast::<AlterTableStmt>()).relation);
        }
    }
}

/// Whether the command makes a deferrable constraint from an index.
unsafe fn adopts(statement: *const AlterTableStmt) -> bool {
    // SAFETY: the parser's nodes: a list of commands, whose definition is a constraint for this kind.
    unsafe {
        let commands = (*statement).cmds;
        let length = if commands.is_null() { 0 } else { (*commands).length as usize };
        (0..length).any(|i| {
            let command = (*(*commands).elements.add(i)).ptr_value.cast::<AlterTableCmd>();
            let constraint = (*command).def.cast::<Constraint>();
            (*command).subtype == AlterTableType::AT_AddConstraint
                && !constraint.is_null()
                && (*constraint).type_ == NodeTag::T_Constraint
                && !(*constraint).indexname.is_null()
                && (*constraint).deferrable
        })
    }
}

/// Builds the deferrable unique indexes of a table again if it has fragments.
#[pg_guard]
unsafe extern "C-unwind" fn build_again(name: *mut RangeVar) {
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
