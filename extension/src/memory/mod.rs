//! The memory of fragments: one budget for the whole server, and for each scan a way to read that fits it.
//!
//! ```text
//!                     strata.memory_budget (SIGHUP)        machine: /proc/meminfo, control groups
//!                                   │                                │ half of it at most, and half of what is free
//!                                   └──────────► limit ◄─────────────┘
//!   shared memory:  Shared { kept, forced, limit }   Slot[MaxBackends] { pid, kept, forced, asked, what it chose last … }
//!                        ▲ take, give, force                        │ asked: give back down to the fair share
//!   each process:   strata_fragment::memory  (entries, least recently used; see its header)
//!                        ▲ begin(access)
//!   each scan:      access::choose   data set of the statement, limit, pattern ──► loaded | paged | direct, and why
//! ```
//!
//! What this room promises:
//!
//! * **What all processes keep, and what they have at hand, is counted, and nothing is kept beyond the budget.** Memory is taken
//!   by an addition to one shared counter that is undone when the sum is too large; so no two processes can take the same room.
//! * **A scan never fails or waits for want of memory.** What a process needs at the moment (the columns of one block, footers of open
//!   fragments, a few chunks of the last look-ups, rows that will be a fragment) is *forced*: counted, so that less is kept, but
//!   granted. The peak of the server is therefore the larger of the budget and the sum of what is forced; `strata.stat_memory` has both.
//! * **Nobody holds the budget for ever.** Memory is private, so only its owner can free it. Who is refused while he has less than
//!   his share (the limit divided by the processes that keep something or were refused lately) asks those who have more than
//!   theirs: a flag in their slot, and the signal by which PostgreSQL has an idle backend catch up with invalidations, which makes it
//!   run an empty transaction. The owner gives back at its end, at its next statement, or the next time it takes memory. A session idle
//!   *in* a transaction gives back when it goes on.
//! * **What a process leaves is freed.** A slot belongs to a process id and is emptied by a shared-memory exit callback: after a normal end, an ERROR
//!   and FATAL alike. When a process dies without (SIGKILL), the postmaster makes shared memory anew, and counting begins at zero
//!   with no process left.
//!
//! **No locks.** All fields are atomic; a slot's numbers are written by its owner, `asked` by anybody. `kept` of [`shared`] is
//! the sum of the slots' at all times but between two additions of one process. The limit is computed again once a second by whoever
//! begins a statement then.
//!
//! **Without shared memory** (Strata is not in `shared_preload_libraries`) each process has a sixteenth of the budget to itself.
//!
//! **Why not map the files.** A mapping would share the page cache without copying, but a read error or a file cut short by a damaged disk arrives
//! as SIGBUS, which ends the server; and what is mapped was not checked when it is used. Reading costs 2 to 10 µs a chunk of 32,768 values,
//! checksum included, decoding it 10 to 25 µs for numbers.

pub mod access;
pub mod shared;

pub use access::Choice;
