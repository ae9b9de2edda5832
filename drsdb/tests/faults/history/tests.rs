//! The checker on histories made by hand, on a store that is right, and on stores that are not.

use proptest::prelude::*;

use super::{
    Anomaly, History, Key, Operation, Outcome, Transaction, Value, check,
    simulated::{Defect, Shape, run},
};

fn append(key: Key, value: Value) -> Operation {
    Operation::Append { key, value }
}

fn read(key: Key, list: &[Value]) -> Operation {
    Operation::Read { key, list: list.to_vec() }
}

/// Transactions that all ran at the same time.
fn at_once(transactions: &[(Outcome, &[Operation])]) -> History {
    timed(&transactions.iter().map(|(outcome, operations)| (*outcome, *operations, 0, 100)).collect::<Vec<_>>())
}

fn timed(transactions: &[(Outcome, &[Operation], u64, u64)]) -> History {
    let transactions = transactions.iter().enumerate().map(|(client, (outcome, operations, began, ended))| {
        Transaction { client, operations: operations.to_vec(), outcome: *outcome, began: *began, ended: *ended }
    });
    History { transactions: transactions.collect() }
}

fn names(history: &History) -> Vec<&'static str> {
    check(history).iter().map(Anomaly::name).collect()
}

use Outcome::{Aborted, Committed, Unknown};

#[test]
fn what_snapshot_isolation_allows_passes() {
    let good: &[History] = &[
        History::default(),
        at_once(&[
            (Committed, &[append(1, 1)]),
            (Committed, &[append(1, 2), append(1, 3)]),
            (Committed, &[read(1, &[1, 2, 3])]),
        ]),
        // Write skew: each reads what the other writes.
        at_once(&[
            (Committed, &[read(1, &[]), append(2, 1)]),
            (Committed, &[read(2, &[]), append(1, 2)]),
            (Committed, &[read(1, &[2]), read(2, &[1])]),
        ]),
        // The read-only transaction anomaly of Fekete, O'Neil and O'Neil (SIGMOD Record 33, 2004).
        at_once(&[
            (Committed, &[read(1, &[]), read(2, &[]), append(1, 1)]),
            (Committed, &[append(2, 2)]),
            (Committed, &[read(1, &[]), read(2, &[2])]),
            (Committed, &[read(1, &[1]), read(2, &[2])]),
        ]),
        // Unknown, and seen by some only: it took effect late.
        timed(&[
            (Unknown, &[append(1, 1)], 0, 10),
            (Committed, &[read(1, &[])], 20, 30),
            (Committed, &[read(1, &[1])], 40, 50),
        ]),
        // Unknown, and never seen; rolled back, and never seen.
        timed(&[
            (Unknown, &[append(1, 1)], 0, 10),
            (Aborted, &[append(1, 2), read(1, &[2])], 0, 10),
            (Committed, &[read(1, &[])], 20, 30),
        ]),
        // One sees what it did itself.
        at_once(&[(Committed, &[append(1, 1), read(1, &[1]), append(1, 2), read(1, &[1, 2])])]),
        // Overlapping transactions may be ordered either way.
        timed(&[(Committed, &[append(1, 1)], 0, 10), (Committed, &[read(1, &[])], 10, 12)]),
    ];
    for history in good {
        assert_eq!(check(history), [], "{history:?}");
    }
}

#[test]
fn each_anomaly_has_its_name() {
    let bad: &[(&str, History)] = &[
        ("repeated append", at_once(&[(Committed, &[append(1, 1)]), (Committed, &[read(1, &[1, 1])])])),
        ("invented value", at_once(&[(Committed, &[read(1, &[7])])])),
        ("aborted read (G1a)", at_once(&[(Aborted, &[append(1, 1)]), (Committed, &[read(1, &[1])])])),
        // Also where the reader itself is rolled back.
        ("aborted read (G1a)", at_once(&[(Aborted, &[append(1, 1)]), (Aborted, &[read(1, &[1])])])),
        (
            "intermediate read (G1b)",
            at_once(&[(Committed, &[append(1, 1), append(1, 2)]), (Committed, &[read(1, &[1])])]),
        ),
        (
            "incompatible order",
            at_once(&[
                (Committed, &[append(1, 1)]),
                (Committed, &[append(1, 2)]),
                (Committed, &[read(1, &[1, 2])]),
                (Committed, &[read(1, &[2])]),
            ]),
        ),
        ("internal inconsistency", at_once(&[(Committed, &[append(1, 1), read(1, &[])])])),
        (
            "internal inconsistency",
            at_once(&[(Committed, &[append(1, 1)]), (Committed, &[read(1, &[]), read(1, &[1])])]),
        ),
        ("lost append", timed(&[(Committed, &[append(1, 1)], 0, 10), (Committed, &[read(1, &[])], 20, 30)])),
        (
            "write cycle (G0)",
            at_once(&[
                (Committed, &[append(1, 1), append(2, 2)]),
                (Committed, &[append(1, 3), append(2, 4)]),
                (Committed, &[read(1, &[1, 3])]),
                (Committed, &[read(2, &[4, 2])]),
            ]),
        ),
        (
            "circular information flow (G1c)",
            at_once(&[(Committed, &[append(1, 1), read(2, &[2])]), (Committed, &[append(2, 2), read(1, &[1])])]),
        ),
        (
            "lost update",
            at_once(&[
                (Committed, &[read(1, &[]), append(1, 1)]),
                (Committed, &[read(1, &[]), append(1, 2)]),
                (Committed, &[read(1, &[1, 2])]),
            ]),
        ),
        // A reader that sees half of a transaction.
        (
            "read skew (G-single)",
            at_once(&[(Committed, &[append(1, 1), append(2, 2)]), (Committed, &[read(1, &[1]), read(2, &[])])]),
        ),
        // The same over a third transaction.
        (
            "read skew (G-single)",
            at_once(&[
                (Committed, &[append(1, 1)]),
                (Committed, &[read(1, &[1]), append(2, 2)]),
                (Committed, &[read(2, &[2]), read(1, &[])]),
                (Committed, &[read(1, &[1]), read(2, &[2])]),
            ]),
        ),
        // One of unknown outcome that somebody has seen counts.
        (
            "read skew (G-single)",
            at_once(&[
                (Unknown, &[append(1, 1), append(2, 2)]),
                (Committed, &[read(1, &[1]), read(2, &[])]),
                (Committed, &[read(2, &[2])]),
            ]),
        ),
    ];
    for (name, history) in bad {
        assert!(names(history).contains(name), "{name}: found {:?} in {history:?}", check(history));
    }
}

#[test]
fn a_snapshot_older_than_an_acknowledged_write_is_told_in_words() {
    let history = timed(&[
        (Committed, &[append(1, 1), append(2, 2)], 0, 10),
        (Committed, &[append(3, 3)], 20, 30),
        // Sees the second and not the first.
        (Committed, &[read(3, &[3]), read(2, &[])], 25, 40),
        (Committed, &[read(1, &[1]), read(2, &[2]), read(3, &[3])], 50, 60),
    ]);
    let found = check(&history).iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(
        found.iter().any(|text| text.starts_with("lost append: T0 appended 2 to list 2 before T2 began")),
        "{found:?}"
    );
    let cycle = "T2 read list 2 without 2 of T0 (rw), T0 was acknowledged before T2 began";
    assert!(found.iter().any(|text| text.contains(cycle)), "{found:?}");
}

#[test]
fn a_value_appended_twice_is_the_workloads_fault() {
    let history = at_once(&[(Committed, &[append(1, 1)]), (Aborted, &[append(1, 1)])]);
    assert!(std::panic::catch_unwind(|| check(&history)).is_err());
}

/// Whether a reader's own history shows a committed transaction that is in a cycle of two anti-dependencies.
fn has_write_skew(history: &History) -> bool {
    let reads_without = |reader: &Transaction, writer: &Transaction| {
        reader.operations.iter().any(|operation| {
            match operation {
            Operation::Read { key, list } => writer.operations.iter().any(|other| {
                matches!(other, Operation::Append { key: written, value } if written == key && !list.contains(value))
            }),
            Operation::Append { .. } => false,
        }
        })
    };
    let committed: Vec<&Transaction> =
        history.transactions.iter().filter(|transaction| transaction.outcome == Committed).collect();
    committed.iter().enumerate().any(|(position, left)| {
        committed[position + 1..].iter().any(|right| reads_without(left, right) && reads_without(right, left))
    })
}

#[test]
fn a_store_with_snapshot_isolation_passes_though_it_is_not_serializable() {
    let mut skewed = 0;
    for seed in 0..200 {
        let history = run(seed, Shape::default(), Defect::None);
        assert_eq!(check(&history), [], "seed {seed}");
        skewed += usize::from(has_write_skew(&history));
    }
    assert!(skewed > 20, "write skew was in {skewed} of 200 histories: the store is too tame");
}

#[test]
fn broken_stores_are_found() {
    for (defect, expected) in [
        (Defect::NoConflicts, &["lost update", "read skew (G-single)"][..]),
        (Defect::DirtyReads, &["aborted read (G1a)", "intermediate read (G1b)", "incompatible order"]),
        (Defect::NoSnapshot, &["internal inconsistency", "read skew (G-single)"]),
        (Defect::StaleSnapshots, &["lost append"]),
        (Defect::LostCommits, &["lost append"]),
        (Defect::HalfRollback, &["aborted read (G1a)"]),
        (Defect::RepeatedCommits, &["repeated append"]),
    ] {
        let (mut seen, mut missed) = (std::collections::BTreeSet::new(), 0);
        for seed in 0..40 {
            let found = names(&run(seed, Shape::default(), defect));
            missed += usize::from(found.is_empty());
            seen.extend(found);
        }
        // A defect need not show in every run.
        assert!(missed <= 4, "{defect:?} was missed in {missed} of 40 runs");
        for name in expected {
            assert!(seen.contains(name), "{defect:?} gave {seen:?}, and never {name}");
        }
    }
}

/// Changes one list that was read so that no execution could have shown it; `None` where it has no such place.
fn corrupted(history: &History, choice: usize, change: u8) -> Option<History> {
    let mut history = history.clone();
    let mut places = Vec::new();
    for (position, transaction) in history.transactions.iter().enumerate() {
        for (step, operation) in transaction.operations.iter().enumerate() {
            // Of a transaction that appended to the key itself, the last values are known to be its own.
            let own = |key: &Key| {
                let is_own =
                    |other: &Operation| matches!(other, Operation::Append { key: written, .. } if written == key);
                transaction.operations.iter().any(is_own)
            };
            match operation {
                Operation::Read { key, list } if list.len() >= 3 && !own(key) => places.push((position, step)),
                _ => {}
            }
        }
    }
    let (position, step) = *places.get(choice % places.len().max(1))?;
    let Operation::Read { list, .. } = &mut history.transactions[position].operations[step] else { unreachable!() };
    match change {
        0 => list.swap(0, 1),
        1 => drop(list.remove(1)),
        2 => list.push(list[0]),
        _ => list.push(u64::MAX),
    }
    Some(history)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn right_stores_of_any_shape_pass(
        seed: u64,
        clients in 1usize..12,
        keys in 1u64..8,
        transactions in 1usize..200,
        most_operations in 1usize..8,
    ) {
        let shape = Shape { clients, keys, transactions, most_operations };
        prop_assert_eq!(check(&run(seed, shape, Defect::None)), []);
    }

    #[test]
    fn a_list_that_was_changed_is_found(seed: u64, choice: usize, change in 0u8..4) {
        let history = run(seed, Shape::default(), Defect::None);
        if let Some(history) = corrupted(&history, choice, change) {
            prop_assert!(!check(&history).is_empty(), "{:?}", history);
        }
    }

    #[test]
    fn the_order_of_the_records_does_not_matter(seed: u64, defect in prop_oneof![Just(Defect::None), Just(Defect::NoConflicts)]) {
        let history = run(seed, Shape::default(), defect);
        let mut reversed = history.clone();
        reversed.transactions.reverse();
        prop_assert_eq!(check(&history).is_empty(), check(&reversed).is_empty());
    }
}
