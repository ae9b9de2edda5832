//! Random transactions beside one another, against a model in memory: what a statement may do, and what every snapshot and
//! every transaction sees, after each step.
//!
//! Two engines run the same history: one checks, as a shard's first replica does, and one takes what the first let through.

use std::{collections::BTreeMap, sync::Arc};

use arrow::{
    array::{AsArray, Int64Array, RecordBatch, StringViewArray},
    datatypes::Int64Type,
};
use drsdb_core::{ErrorCode, Result, Table, Ulid, ids::new_ulid, scan::OwnWrites};
use drsdb_storage::engine::{ScanRequest, StageOptions};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::support::{Factory, Fixture, batch, keys, people, request};

const KEYS: usize = 6;
const TRANSACTIONS: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    /// A statement of one of the transactions, which begins when there is none.
    Statement {
        transaction: usize,
        deletes: Vec<usize>,
        inserts: Vec<usize>,
    },
    /// Deletes and inserts all that the transaction can: the most common case of an update.
    Update {
        transaction: usize,
        keys: Vec<usize>,
    },
    RollbackTo {
        transaction: usize,
        back: u32,
    },
    Commit(usize),
    Abort(usize),
    Compact,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let transaction = || 0..TRANSACTIONS;
    let some_keys = || prop::collection::btree_set(0..KEYS, 0..3).prop_map(|keys| keys.into_iter().collect::<Vec<_>>());
    let step = prop_oneof![
        5 => (transaction(), some_keys(), some_keys())
            .prop_map(|(transaction, deletes, inserts)| Step::Statement { transaction, deletes, inserts }),
        6 => (transaction(), some_keys()).prop_map(|(transaction, keys)| Step::Update { transaction, keys }),
        2 => (transaction(), 1..4_u32).prop_map(|(transaction, back)| Step::RollbackTo { transaction, back }),
        3 => transaction().prop_map(Step::Commit),
        1 => transaction().prop_map(Step::Abort),
        1 => Just(Step::Compact),
        1 => Just(Step::Restart),
    ];
    prop::collection::vec(step, 10..40)
}

/// A row of the model.
#[derive(Debug, Clone)]
struct Row {
    key: usize,
    value: u64,
    from: u64,
    /// `u64::MAX` while it lives.
    to: u64,
}

#[derive(Debug, Clone)]
struct Statement {
    sequence: u32,
    deletes: Vec<usize>,
    inserts: Vec<(usize, u64)>,
}

#[derive(Debug, Clone)]
struct Transaction {
    id: Ulid,
    snapshot: u64,
    statements: Vec<Statement>,
}

/// What a transaction has done to a key so far.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Own {
    Nothing,
    Deleted,
    Inserted(u64),
}

impl Transaction {
    fn own(&self, key: usize, sequence: u32) -> Own {
        let mut own = Own::Nothing;
        for statement in self.statements.iter().filter(|statement| statement.sequence <= sequence) {
            if statement.deletes.contains(&key) {
                own = Own::Deleted;
            }
            if let Some((_, value)) = statement.inserts.iter().find(|(inserted, _)| *inserted == key) {
                own = Own::Inserted(*value);
            }
        }
        own
    }

    /// Whether it holds the key against others: whatever it did to it, even if it undid that itself by another statement.
    fn holds(&self, key: usize) -> bool {
        self.own(key, u32::MAX) != Own::Nothing
    }
}

#[derive(Debug, Default)]
struct Model {
    rows: Vec<Row>,
    version: u64,
    horizon: u64,
    next_value: u64,
    transactions: BTreeMap<usize, Transaction>,
}

type View = BTreeMap<usize, u64>;

impl Model {
    fn view(&self, snapshot: u64, own: Option<(&Transaction, u32)>) -> View {
        let visible = self.rows.iter().filter(|row| row.from <= snapshot && (row.to > snapshot || row.to == u64::MAX));
        let mut view: View = visible.map(|row| (row.key, row.value)).collect();
        if let Some((transaction, sequence)) = own {
            for key in 0..KEYS {
                match transaction.own(key, sequence) {
                    Own::Nothing => {}
                    Own::Deleted => {
                        view.remove(&key);
                    }
                    Own::Inserted(value) => {
                        view.insert(key, value);
                    }
                }
            }
        }
        view
    }

    /// The codes with which a statement may be refused; none: it must go through.
    fn faults(&self, slot: usize, deletes: &[usize], inserts: &[usize]) -> Vec<ErrorCode> {
        let mine = &self.transactions[&slot];
        let mut faults = vec![];
        let held = |key| self.transactions.iter().any(|(other, held)| *other != slot && held.holds(key));
        let live = |key| self.rows.iter().find(|row| row.key == key && row.to == u64::MAX);
        for &key in deletes {
            let may = match mine.own(key, u32::MAX) {
                Own::Inserted(_) => true,
                Own::Deleted => false,
                Own::Nothing => !held(key) && live(key).is_some_and(|row| row.from <= mine.snapshot),
            };
            if !may {
                faults.push(ErrorCode::Conflict);
            }
        }
        for &key in inserts {
            let own = mine.own(key, u32::MAX);
            let gone = deletes.contains(&key) || own == Own::Deleted;
            let ended_since = |row: &Row| row.to != u64::MAX && row.to > mine.snapshot;
            let deleted_since = self.rows.iter().any(|row| row.key == key && ended_since(row));
            if !gone && matches!(own, Own::Inserted(_)) {
                faults.push(ErrorCode::ConstraintViolation);
            }
            if own == Own::Nothing && held(key) || deleted_since {
                faults.push(ErrorCode::Conflict);
            }
            if !gone && own == Own::Nothing && live(key).is_some() {
                faults.push(ErrorCode::ConstraintViolation);
            }
        }
        faults
    }
}

struct Run<'a> {
    model: Model,
    table: Arc<Table>,
    /// Rows of each key: more than a few thousand, and pieces are large ones.
    width: i64,
    fixtures: &'a mut [Fixture; 2],
}

impl Run<'_> {
    fn ids(&self, key: usize) -> impl Iterator<Item = i64> + use<> {
        let from = key as i64 * self.width;
        from..from + self.width
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Statement { transaction, deletes, inserts } => {
                self.statement(*transaction, deletes.clone(), inserts.clone());
            }
            Step::Update { transaction, keys } => {
                self.begin(*transaction);
                let mine = &self.model.transactions[transaction];
                let view = self.model.view(mine.snapshot, Some((mine, u32::MAX)));
                let deletes = keys.iter().copied().filter(|key| view.contains_key(key)).collect();
                self.statement(*transaction, deletes, keys.clone());
            }
            Step::RollbackTo { transaction, back } => {
                let Some(mine) = self.model.transactions.get_mut(transaction) else { return };
                let last = mine.statements.last().map_or(0, |statement| statement.sequence);
                let sequence = last.saturating_sub(*back);
                mine.statements.retain(|statement| statement.sequence <= sequence);
                let id = mine.id;
                self.each(|fixture| fixture.engine().rollback_to(id, sequence).unwrap());
            }
            Step::Commit(transaction) => {
                let Some(mine) = self.model.transactions.remove(transaction) else { return };
                self.model.version += 1;
                let version = self.model.version;
                for key in 0..KEYS {
                    let own = mine.own(key, u32::MAX);
                    if own != Own::Nothing {
                        let mut live = self.model.rows.iter_mut().filter(|row| row.key == key && row.to == u64::MAX);
                        live.by_ref().for_each(|row| row.to = version);
                    }
                    if let Own::Inserted(value) = own {
                        self.model.rows.push(Row { key, value, from: version, to: u64::MAX });
                    }
                }
                self.each(|fixture| fixture.engine().commit(mine.id, version).unwrap());
            }
            Step::Abort(transaction) => {
                let Some(mine) = self.model.transactions.remove(transaction) else { return };
                self.each(|fixture| fixture.engine().abort(mine.id).unwrap());
            }
            Step::Compact => {
                let oldest = self.model.transactions.values().map(|transaction| transaction.snapshot).min();
                self.model.horizon = oldest.unwrap_or(self.model.version).max(self.model.horizon);
                let horizon = self.model.horizon;
                self.each(|fixture| {
                    fixture.engine().compact(horizon).unwrap();
                });
            }
            Step::Restart => self.fixtures.iter_mut().for_each(Fixture::restart),
        }
    }

    /// Ends the transactions that are open. Each case has a table of its own.
    fn forget_everything(&self) {
        self.each(|fixture| {
            for transaction in fixture.engine().staged_transactions().unwrap() {
                fixture.engine().abort(transaction).unwrap();
            }
        });
    }

    fn each(&self, act: impl Fn(&Fixture)) {
        self.fixtures.iter().for_each(act);
    }

    fn begin(&mut self, transaction: usize) {
        let snapshot = self.model.version;
        let begin = || Transaction { id: new_ulid(), snapshot, statements: vec![] };
        self.model.transactions.entry(transaction).or_insert_with(begin);
    }

    fn statement(&mut self, transaction: usize, deletes: Vec<usize>, inserts: Vec<usize>) {
        if deletes.is_empty() && inserts.is_empty() {
            return;
        }
        self.begin(transaction);
        let faults = self.model.faults(transaction, &deletes, &inserts);
        let mine = &self.model.transactions[&transaction];
        let sequence = mine.statements.last().map_or(0, |statement| statement.sequence) + 1;
        let options = StageOptions { transaction: mine.id, sequence, snapshot: mine.snapshot, checked: true };
        let next_value = self.model.next_value;
        let inserts: Vec<(usize, u64)> = inserts.into_iter().zip(next_value..).collect();
        let first = self.stage(&self.fixtures[0], options, &deletes, &inserts);
        match first {
            Ok(()) => {
                assert!(faults.is_empty(), "{options:?} {deletes:?} {inserts:?} went through: {faults:?}");
                let options = StageOptions { checked: false, ..options };
                self.stage(&self.fixtures[1], options, &deletes, &inserts).expect("the follower refuses");
                self.model.next_value += inserts.len() as u64;
                let statements = &mut self.model.transactions.get_mut(&transaction).unwrap().statements;
                statements.push(Statement { sequence, deletes, inserts });
            }
            Err(error) => assert!(faults.contains(&error.code()), "{deletes:?} {inserts:?}: {error}, not {faults:?}"),
        }
    }

    fn stage(
        &self,
        fixture: &Fixture,
        options: StageOptions,
        deletes: &[usize],
        inserts: &[(usize, u64)],
    ) -> Result<()> {
        let mut writer = fixture.engine().stage(options, &self.table, 0)?;
        for &key in deletes {
            writer.delete(&keys(&self.table, self.ids(key)))?;
        }
        for (key, value) in inserts {
            let ids = Int64Array::from_iter_values(self.ids(*key));
            let names: StringViewArray = self.ids(*key).map(|_| Some(value.to_string())).collect();
            writer.write(&batch(&self.table, vec![Arc::new(ids), Arc::new(names)]))?;
        }
        writer.finish().map(drop)
    }

    fn check(&self) {
        let model = &self.model;
        let mut snapshots = vec![model.horizon, (model.horizon + model.version) / 2, model.version, u64::MAX];
        snapshots.dedup();
        for fixture in self.fixtures.iter() {
            for &snapshot in &snapshots {
                assert_eq!(self.read(fixture, snapshot, None), model.view(snapshot, None), "at {snapshot}");
            }
            for (&from, &to) in snapshots.iter().zip(&snapshots[1..]) {
                for (from, to) in [(from, to), (to, from)] {
                    let before = model.view(from, None);
                    let mut expected = model.view(to, None);
                    // Values are never used again.
                    expected.retain(|key, value| before.get(key) != Some(value));
                    assert_eq!(self.difference(fixture, from, to), expected, "at {to} without {from}");
                }
            }
            for transaction in model.transactions.values() {
                let last = transaction.statements.last().map_or(0, |statement| statement.sequence);
                for sequence in [last, last.saturating_sub(1)] {
                    let own = OwnWrites { transaction: transaction.id, sequence };
                    let read = self.read(fixture, transaction.snapshot, Some(own));
                    let expected = model.view(transaction.snapshot, Some((transaction, sequence)));
                    assert_eq!(read, expected, "transaction {} at {sequence}", transaction.id);
                }
            }
            let staged = model.transactions.values().filter(|transaction| !transaction.statements.is_empty());
            let mut staged: Vec<Ulid> = staged.map(|transaction| transaction.id).collect();
            staged.sort_unstable();
            assert_eq!(fixture.engine().staged_transactions().unwrap(), staged);
        }
    }

    fn read(&self, fixture: &Fixture, snapshot: u64, own: Option<OwnWrites>) -> View {
        self.found(fixture, ScanRequest { own, ..request(&self.table, snapshot) })
    }

    /// What was made between two snapshots, or, if the first is the later one, what was deleted.
    fn difference(&self, fixture: &Fixture, from: u64, to: u64) -> View {
        self.found(fixture, ScanRequest { except: Some(from), ..request(&self.table, to) })
    }

    fn found(&self, fixture: &Fixture, request: ScanRequest) -> View {
        let rows: RecordBatch = fixture.scan(request).unwrap();
        let ids = rows.column(0).as_primitive::<Int64Type>().values();
        let mut found: BTreeMap<usize, (i64, u64)> = BTreeMap::new();
        for (id, name) in ids.iter().zip(rows.column(1).as_string_view()) {
            let value: u64 = name.unwrap().parse().unwrap();
            let (count, first) = found.entry((id / self.width) as usize).or_insert((0, value));
            *count += 1;
            assert_eq!(*first, value, "rows of one key differ");
        }
        let whole = |(key, (count, value)): (usize, (i64, u64))| {
            assert_eq!(count, self.width, "rows of key {key}");
            (key, value)
        };
        found.into_iter().map(whole).collect()
    }
}

fn run(factory: Factory, cases: u32, width: i64) {
    let fixtures = std::cell::RefCell::new([Fixture::new(factory), Fixture::new(factory)]);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let result = TestRunner::new(config).run(&steps(), |steps| {
        let table = people();
        let mut fixtures = fixtures.borrow_mut();
        let mut run = Run { model: Model::default(), table: Arc::clone(&table), width, fixtures: &mut fixtures };
        // A case before that failed left something.
        run.forget_everything();
        for step in &steps {
            run.step(step);
            run.check();
        }
        run.forget_everything();
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

pub fn random_transactions_agree_with_a_model(factory: Factory) {
    run(factory, 40, 1);
}

/// The same with keys of many rows each, so that pieces are large and what happens in the background takes its time.
pub fn large_random_transactions_agree_with_a_model(factory: Factory) {
    run(factory, 5, 700);
}
