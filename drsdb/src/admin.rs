//! `drsdb admin`: which servers there are. Each command is one SQL statement, which any client could send.

use std::process::ExitCode;

use clap::Subcommand;

use crate::shell::{self, ShellArgs, connection::ConnectArgs};

/// Looks at the cluster's servers and changes them.
#[derive(Debug, clap::Args)]
pub struct AdminArguments {
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one value of it in a process
enum AdminCommand {
    /// The servers and how they are: SHOW CLUSTER.
    Status {
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Index servers: ALTER CLUSTER ... INDEX SERVER.
    #[command(subcommand)]
    Index(IndexCommand),
    /// Storage servers: ALTER CLUSTER ... STORAGE SERVER.
    #[command(subcommand)]
    Storage(StorageCommand),
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one value of it in a process
enum IndexCommand {
    /// Adds an index server that was started with join = true, and waits until it votes.
    Add {
        /// Its node_id.
        #[arg(long)]
        id: u64,
        /// Its public URL, https://host:port.
        #[arg(long)]
        url: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Removes an index server, running or not.
    Remove {
        /// Its node_id.
        #[arg(long)]
        id: u64,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant)] // there is one value of it in a process
enum StorageCommand {
    /// Lets a storage server take shards (again).
    Add {
        /// Its id, which `drsdb admin status` shows.
        #[arg(long)]
        id: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Moves a storage server's shards elsewhere.
    Drain {
        /// Its id, which `drsdb admin status` shows.
        #[arg(long)]
        id: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Removes a storage server for good.
    Remove {
        /// Its id, which `drsdb admin status` shows.
        #[arg(long)]
        id: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

impl AdminCommand {
    /// The statement, and where to send it.
    fn statement(self) -> (String, ConnectArgs) {
        match self {
            AdminCommand::Status { connect } => ("SHOW CLUSTER".to_owned(), connect),
            AdminCommand::Index(IndexCommand::Add { id, url, connect }) => {
                (format!("ALTER CLUSTER ADD INDEX SERVER {id} {}", quoted(&url)), connect)
            }
            AdminCommand::Index(IndexCommand::Remove { id, connect }) => {
                (format!("ALTER CLUSTER REMOVE INDEX SERVER {id}"), connect)
            }
            AdminCommand::Storage(StorageCommand::Add { id, connect }) => {
                (format!("ALTER CLUSTER ADD STORAGE SERVER {}", quoted(&id)), connect)
            }
            AdminCommand::Storage(StorageCommand::Drain { id, connect }) => {
                (format!("ALTER CLUSTER DRAIN STORAGE SERVER {}", quoted(&id)), connect)
            }
            AdminCommand::Storage(StorageCommand::Remove { id, connect }) => {
                (format!("ALTER CLUSTER REMOVE STORAGE SERVER {}", quoted(&id)), connect)
            }
        }
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Runs `drsdb admin`.
pub async fn run(arguments: AdminArguments) -> anyhow::Result<ExitCode> {
    let (sql, connect) = arguments.command.statement();
    let commands = vec![sql];
    shell::run(ShellArgs { commands, files: Vec::new(), csv: false, json: false, stop_on_error: true, connect }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_cannot_end_its_quotes() {
        let connect = ConnectArgs::default();
        let add = AdminCommand::Index(IndexCommand::Add { id: 4, url: "https://a'b".to_owned(), connect });
        assert_eq!(add.statement().0, "ALTER CLUSTER ADD INDEX SERVER 4 'https://a''b'");
    }
}
