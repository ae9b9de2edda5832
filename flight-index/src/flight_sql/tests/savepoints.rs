//! Savepoints as Flight SQL has them, by handles, beside SQL's, by names.

use std::collections::BTreeSet;

use arrow_flight::sql::{
    ActionBeginSavepointRequest, ActionBeginSavepointResult, ActionEndSavepointRequest, Any, ProstMessageExt,
};
use bytes::Bytes;
use drsdb_core::Ulid;

use super::*;

const RELEASE: i32 = 1;
const ROLLBACK: i32 = 2;

async fn act(
    client: &mut Client,
    name: &str,
    request: impl ProstMessageExt,
) -> Result<Option<arrow_flight::Result>, WireError> {
    let action = Action { r#type: name.to_owned(), body: request.as_any().encode_to_vec().into() };
    let mut answers = client.do_action(action).await.map_err(wire)?;
    Ok(answers.message().await.unwrap())
}

async fn begin(client: &mut Client, transaction: &Bytes, name: &str) -> Bytes {
    let request = ActionBeginSavepointRequest { transaction_id: transaction.clone(), name: name.to_owned() };
    let answer = act(client, "BeginSavepoint", request).await.unwrap().unwrap();
    let begun: ActionBeginSavepointResult = Any::decode(answer.body).unwrap().unpack().unwrap().unwrap();
    begun.savepoint_id
}

/// How it ended, `None` is well.
async fn end(client: &mut Client, savepoint: &Bytes, action: i32) -> Option<ErrorCode> {
    let request = ActionEndSavepointRequest { savepoint_id: savepoint.clone(), action };
    act(client, "EndSavepoint", request).await.err().map(|error| error.code)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_means_one_savepoint_and_a_name_the_last() {
    let front = Front::new().await;
    let mut client = front.admin().await;
    run(&mut client, "CREATE TABLE t (id BIGINT PRIMARY KEY)").await;
    let transaction = client.begin_transaction().await.unwrap();
    let id = v1::TransactionHandle::decode(transaction.clone()).unwrap().transaction_id;
    let id = Ulid::from_string(&id).unwrap();
    // To the end of which statement was undone what came after; each takes two numbers.
    let undone = || std::mem::take(&mut *front.servers.rolled_back.lock());
    let to = |sequence| BTreeSet::from([(id, sequence)]);
    let execute = async |client: &mut Client, sql: &str| {
        client.execute_update(sql.to_owned(), Some(transaction.clone())).await.map_err(wire)
    };
    for (name, before) in [("s", 0), ("", 6)] {
        let first = begin(&mut client, &transaction, name).await;
        execute(&mut client, &format!("INSERT INTO t VALUES ({before})")).await.unwrap();
        let second = begin(&mut client, &transaction, name).await;
        execute(&mut client, &format!("INSERT INTO t VALUES ({before} + 1)")).await.unwrap();
        assert_eq!(end(&mut client, &first, ROLLBACK).await, None);
        assert_eq!(undone(), to(before));
        for action in [ROLLBACK, RELEASE] {
            assert_eq!(end(&mut client, &second, action).await, Some(ErrorCode::NotFound), "it went with the first");
        }
        // Nothing happened in between, and they are not the same.
        let third = begin(&mut client, &transaction, name).await;
        let fourth = begin(&mut client, &transaction, name).await;
        assert_eq!(end(&mut client, &fourth, RELEASE).await, None);
        execute(&mut client, &format!("INSERT INTO t VALUES ({before} + 2)")).await.unwrap();
        assert_eq!(end(&mut client, &third, ROLLBACK).await, None);
        assert_eq!(undone(), to(before + 4));
        assert_eq!(end(&mut client, &first, RELEASE).await, None);
        assert_eq!(end(&mut client, &third, RELEASE).await, Some(ErrorCode::NotFound), "released with the first");
    }
    begin(&mut client, &transaction, "s").await;
    execute(&mut client, "INSERT INTO t VALUES (20)").await.unwrap();
    begin(&mut client, &transaction, "s").await;
    execute(&mut client, "INSERT INTO t VALUES (21)").await.unwrap();
    execute(&mut client, "ROLLBACK TO s").await.unwrap();
    assert_eq!(undone(), to(14));
    execute(&mut client, "RELEASE SAVEPOINT s").await.unwrap();
    execute(&mut client, "ROLLBACK TO s").await.unwrap();
    assert_eq!(undone(), to(12));
    let gone = execute(&mut client, "ROLLBACK TO absent").await.unwrap_err();
    assert_eq!((gone.code, gone.hint.as_str()), (ErrorCode::NotFound, "set it first: SAVEPOINT absent"));
    assert_eq!(end(&mut client, &"s".into(), RELEASE).await, Some(ErrorCode::InvalidArgument));
}
