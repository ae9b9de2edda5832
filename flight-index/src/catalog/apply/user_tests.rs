//! Users, and which logins of theirs count.

use drsdb_core::{ErrorCode, security::Login};

use super::{
    super::*,
    apply,
    tests::{cluster, done, refused},
    users,
};

#[test]
fn the_last_administrator_stays() {
    let mut state = cluster();
    let user = |name: &str| (name.to_owned(), "hash".to_owned());
    let (name, password_hash) = user("ada");
    done(&mut state, Command::CreateUser { name: name.clone(), password_hash: password_hash.clone(), by: None });
    assert_eq!(
        refused(&mut state, Command::CreateUser { name: name.clone(), password_hash, by: None }).code,
        ErrorCode::AlreadyExists
    );
    done(&mut state, Command::AlterUser { name: name.clone(), password_hash: "new".to_owned(), by: None });
    assert_eq!(state.user("ada").unwrap().password_hash, "new");
    assert_eq!(
        refused(&mut state, Command::DropUser { name: "admin".to_owned(), by: None }).code,
        ErrorCode::InvalidArgument
    );
    done(&mut state, Command::DropUser { name, by: None });
    assert_eq!(
        refused(&mut state, Command::DropUser { name: "admim".to_owned(), by: None }).hint,
        "did you mean admin?"
    );
}

pub(super) fn set_password(name: &str) -> Command {
    Command::AlterUser { name: name.to_owned(), password_hash: "hash".to_owned(), by: None }
}

pub(super) fn create_user(name: &str) -> Command {
    Command::CreateUser { name: name.to_owned(), password_hash: "hash".to_owned(), by: None }
}

pub(super) fn drop_user(name: &str) -> Command {
    Command::DropUser { name: name.to_owned(), by: None }
}

#[test]
fn a_login_counts_until_the_credentials_change() {
    let mut state = cluster();
    let is_admin = |state: &CatalogState, login: &Login| match state.user_of(login) {
        Ok(user) => Ok(user.admin),
        Err(error) => Err(error.code()),
    };
    let admin = state.user("admin").unwrap().login();
    assert_eq!(admin.credentials, 1, "the version of the bootstrap");
    // Each of them changes the credentials, the password itself need not.
    let mut before = Vec::new();
    for command in [create_user("ada"), set_password("ada"), drop_user("ada"), create_user("ada")] {
        done(&mut state, command);
        if let Some(user) = state.user("ada") {
            let login = user.login();
            assert_eq!(login.credentials, state.version());
            assert_eq!(is_admin(&state, &login), Ok(false));
            before.push(login);
        }
    }
    let current = before.pop().unwrap();
    for old in &before {
        assert_eq!(is_admin(&state, old), Err(ErrorCode::Unauthenticated), "{old:?}");
    }
    // What has nothing to do with the user changes nothing, and neither does a refused command.
    done(&mut state, set_password("admin"));
    refused(&mut state, create_user("ada"));
    assert_eq!(is_admin(&state, &current), Ok(false));
    assert_eq!(is_admin(&state, &admin), Err(ErrorCode::Unauthenticated));
    done(&mut state, drop_user("ada"));
    assert_eq!(is_admin(&state, &current), Err(ErrorCode::Unauthenticated));
}

#[test]
fn users_are_changed_by_logins_that_count_when_it_is_done() {
    let mut state = cluster();
    done(&mut state, create_user("ada"));
    let [admin, ada] = ["admin", "ada"].map(|name| state.user(name).unwrap().login());
    let hash = || "hash".to_owned();
    let alter = |name: &str, by: &Login| Command::AlterUser {
        name: name.to_owned(),
        password_hash: hash(),
        by: Some(by.clone()),
    };
    let create =
        |by: &Login| Command::CreateUser { name: "bob".to_owned(), password_hash: hash(), by: Some(by.clone()) };
    let drop = |by: &Login| Command::DropUser { name: "bob".to_owned(), by: Some(by.clone()) };
    for command in [create(&ada), drop(&ada), alter("admin", &ada)] {
        assert_eq!(refused(&mut state, command).code, ErrorCode::PermissionDenied);
    }
    done(&mut state, create(&admin));
    done(&mut state, drop(&admin));
    done(&mut state, alter("ada", &ada));
    // The old password does not set the next one, however early that was asked for.
    assert_eq!(refused(&mut state, alter("ada", &ada)).code, ErrorCode::Unauthenticated);
    done(&mut state, alter("ada", &admin));
    done(&mut state, alter("admin", &admin));
    for command in [create(&admin), drop(&admin), alter("ada", &admin)] {
        assert_eq!(refused(&mut state, command).code, ErrorCode::Unauthenticated);
    }
}

#[test]
fn a_login_that_is_newer_than_the_state_is_not_refused_for_good() {
    let mut behind = cluster();
    done(&mut behind, create_user("ada"));
    let mut ahead = behind.clone();
    for command in [set_password("ada"), create_user("bob")] {
        done(&mut ahead, command);
    }
    for name in ["ada", "bob"] {
        let login = ahead.user(name).unwrap().login();
        assert_eq!(behind.user_of(&login).unwrap_err().code(), ErrorCode::Unavailable, "{name}");
    }
}

#[test]
fn storage_servers_are_told_of_the_newest_revocations() {
    let mut state = cluster();
    done(&mut state, create_user("ada"));
    assert_eq!(state.revoked_logins().count(), 0, "nobody had logged in as a new user");
    done(&mut state, set_password("ada"));
    let login = state.user("ada").unwrap().login();
    assert_eq!(state.revoked_logins().collect::<Vec<_>>(), [("ada", login.credentials)], "that login is no older");
    done(&mut state, drop_user("ada"));
    assert_eq!(state.revoked_logins().collect::<Vec<_>>(), [("ada", login.credentials + 1)]);
    // In one entry of the log, dropped and made again: logins at its version are of the new user.
    let version = state.version() + 1;
    for command in [set_password("admin"), create_user("bob"), drop_user("bob"), create_user("bob")] {
        assert_eq!(apply(&mut state, version, &command), Response::Done { changed: true });
    }
    assert_eq!(state.revoked_logins().find(|(user, _)| *user == "bob"), Some(("bob", version)));
    assert_eq!(state.user("bob").unwrap().credentials, version);
    for number in 0..users::KEPT_REVOKED {
        let name = number.to_string();
        done(&mut state, create_user(&name));
        done(&mut state, drop_user(&name));
    }
    assert_eq!(state.revoked_logins().count(), users::KEPT_REVOKED);
    assert!(state.revoked_logins().all(|(user, _)| user.parse::<usize>().is_ok()), "the oldest are forgotten");
}

#[test]
fn secrets_are_not_printed() {
    let mut state = cluster();
    let secret = "$argon2id$secret".to_owned();
    let command = Command::CreateUser { name: "ada".to_owned(), password_hash: secret.clone(), by: None };
    assert!(!format!("{command:?}").contains(&secret));
    done(&mut state, command);
    let printed = format!("{state:?}");
    assert!(!printed.contains(&secret) && printed.contains("Blob(3 bytes)"), "{printed}");
}
