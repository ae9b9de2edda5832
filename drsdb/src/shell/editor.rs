//! The terminal: line editing, history, statements over several lines.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use rustyline::{Config, DefaultEditor, config::Configurer, error::ReadlineError};

use super::{
    interpreter::{Flow, Interpreter},
    splitter::{Splitter, State},
};

/// Statements that the history keeps.
const HISTORY: usize = 10_000;

/// Reads and runs until the end is wanted.
pub async fn run(interpreter: &mut Interpreter) -> anyhow::Result<Flow> {
    let config = Config::builder().max_history_size(HISTORY)?.auto_add_history(false).build();
    let mut editor = DefaultEditor::with_config(config)?;
    editor.set_history_ignore_dups(true)?;
    let history = history_file();
    if let Some(file) = &history {
        // There is none at the first start.
        let _ = editor.load_history(file);
    }
    writeln!(io::stdout(), "drsdb {}. \\? shows what there is, \\q ends.", env!("CARGO_PKG_VERSION"))?;

    let mut splitter = Splitter::default();
    // The lines of the statement under way, for the history.
    let mut entry = String::new();
    let flow = loop {
        let line =
            match tokio::task::block_in_place(|| editor.readline(prompt(&splitter, interpreter.in_transaction()))) {
                Ok(line) => line,
                // Ctrl-C forgets what is typed.
                Err(ReadlineError::Interrupted) => {
                    splitter.clear();
                    entry.clear();
                    continue;
                }
                Err(ReadlineError::Eof) => break Flow::Quit,
                Err(error) => return Err(error.into()),
            };
        if !entry.is_empty() {
            entry.push('\n');
        }
        entry.push_str(&line);
        let flow = interpreter.feed(&mut splitter, &line).await?;
        if splitter.is_blank() {
            remember(&mut editor, &history, &std::mem::take(&mut entry));
        }
        if flow != Flow::Next {
            break flow;
        }
    };
    Ok(flow)
}

/// A star says that a transaction is open.
fn prompt(splitter: &Splitter, in_transaction: bool) -> &'static str {
    match splitter.state() {
        _ if splitter.is_blank() && in_transaction => "drsdb=*> ",
        _ if splitter.is_blank() => "drsdb=> ",
        State::Literal { .. } => "drsdb'> ",
        State::Name => "drsdb\"> ",
        State::BlockComment { .. } => "drsdb*> ",
        State::Dollar { .. } => "drsdb$> ",
        State::Plain | State::LineComment if in_transaction => "drsdb-*> ",
        State::Plain | State::LineComment => "drsdb-> ",
    }
}

/// Adds a statement to the history, now: a shell that is killed forgets nothing.
fn remember(editor: &mut DefaultEditor, file: &Option<PathBuf>, entry: &str) {
    // Passwords do not belong in a file that is there to be read again.
    if entry.trim().is_empty() || entry.to_lowercase().contains("password") {
        return;
    }
    if matches!(editor.add_history_entry(entry), Ok(true))
        && let Some(file) = file
        && let Err(error) = editor.append_history(file)
    {
        tracing::debug!(%error, "the history cannot be written");
    }
}

/// `$XDG_STATE_HOME/drsdb/history`, by default `~/.local/state/drsdb/history`.
fn history_file() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")))?;
    let folder = state.join("drsdb");
    std::fs::create_dir_all(&folder).ok()?;
    Some(folder.join("history"))
}
