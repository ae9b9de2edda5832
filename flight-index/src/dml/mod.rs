//! Statements that change rows: INSERT, UPDATE, DELETE, MERGE, and what they bring about in other tables.
//!
//! # Life of a statement
//!
//! 1. What to change is a question: [`select`] writes it as a SELECT whose rows are the old rows and the values of the new
//!    ones. It is planned like any query, with the transaction's snapshot and its own changes.
//! 2. [`pull`] redeems its tickets as any client does, in bounded memory.
//! 3. [`Target::prepare`] turns old and new rows into changes: of the table itself, and of the tables that keep the keys of
//!    its UNIQUE constraints. It checks CHECK and NOT NULL, and collects keys of foreign keys.
//! 4. The changes are staged ([`crate::transaction::Stager`]); the shards' first replicas check keys and conflicts.
//! 5. When all is staged, [`foreign_keys`] looks at both sides of the foreign keys, and CASCADE and SET NULL become statements
//!    of their own in the same transaction.
//!
//! INSERT ... VALUES begins at 3. [`returning`] computes the rows that the statement answers with.
//!
//! Not here: when a transaction commits ([`crate::transaction`]), and who may write.

mod by_key;
mod effects;
mod executor;
pub mod expressions;
mod fate;
mod foreign_keys;
mod insert;
mod keys;
mod merge;
mod on_conflict;
mod pull;
mod returning;
mod select;
mod target;
mod update;

pub use effects::{Effects, Prepared};
pub use executor::{Described, Executor, Services, Written, describe};
pub use select::question;
pub use target::{Target, check_not_null, key_text};
