//! `drsdb sql`: statements and commands, from a terminal, the command line, a file or a pipe.
//!
//! - [`connection`]: where to connect, by flags, environment or the file that `drsdb local` writes.
//! - [`splitter`]: where a statement ends. [`command`]: lines that begin with a backslash.
//! - `interpreter`: runs both, one after the other. `interrupts`: Ctrl-C. `editor`: the terminal.
//! - `output`: tables, CSV and JSON to the terminal, results to files. [`text`]: values as text.
//! - `describe`: `\d`.

pub mod command;
pub mod connection;
mod describe;
mod editor;
mod interpreter;
mod interrupts;
mod output;
pub mod splitter;
pub mod text;

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use drsdb_client::{Client, Error};

use connection::ConnectArgs;
use interpreter::{Flow, Interpreter};
use interrupts::{INTERRUPTED, Interrupts};
use output::Style;

/// The SQL shell.
#[derive(Debug, Clone, clap::Args)]
pub struct ShellArgs {
    /// Run these statements and end; can be given several times.
    #[arg(short = 'c', long = "command", value_name = "SQL")]
    pub commands: Vec<String>,
    /// Run the statements of this file and end; can be given several times, after all -c.
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Print results as CSV.
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
    /// Print results as JSON, one object a line. NaN and the infinities are texts: "NaN", "Infinity", "-Infinity".
    #[arg(long)]
    pub json: bool,
    /// Stop at the first error. Without it, the exit code is the last statement's.
    #[arg(long)]
    pub stop_on_error: bool,
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// Runs `drsdb sql`.
pub async fn run(args: ShellArgs) -> anyhow::Result<ExitCode> {
    let client = match Client::connect(args.connect.options()?).await {
        Ok(client) => client,
        Err(error) => {
            report(&error, None);
            return Ok(ExitCode::FAILURE);
        }
    };
    let style = match (args.csv, args.json) {
        (true, _) => Style::Csv,
        (_, true) => Style::Json,
        _ => Style::Table,
    };
    let given = !args.commands.is_empty() || !args.files.is_empty();
    let interactive = !given && std::io::stdin().is_terminal();
    let interrupts = Interrupts::listen(interactive)?;
    let mut interpreter = Interpreter::new(client, style, interactive, args.stop_on_error, interrupts);
    let ran = if interactive { editor::run(&mut interpreter).await } else { run_all(&mut interpreter, &args).await };
    match ran {
        Ok(Flow::Interrupted) => Ok(ExitCode::from(INTERRUPTED)),
        Ok(_) if interpreter.last_failed() => Ok(ExitCode::FAILURE),
        Ok(_) => Ok(ExitCode::SUCCESS),
        // Whoever read the output, `head` for example, has seen enough.
        Err(error) if error.downcast_ref().is_some_and(is_broken_pipe) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
    }
}

fn is_broken_pipe(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::BrokenPipe
}

async fn run_all(interpreter: &mut Interpreter, args: &ShellArgs) -> anyhow::Result<Flow> {
    for command in &args.commands {
        let flow = interpreter.run_text(command.as_bytes()).await?;
        if flow != Flow::Next {
            return Ok(flow);
        }
    }
    for file in &args.files {
        let flow = interpreter.run_file(file).await?;
        if flow != Flow::Next {
            return Ok(flow);
        }
    }
    if args.commands.is_empty() && args.files.is_empty() {
        return interpreter.run_text(std::io::stdin().lock()).await;
    }
    Ok(Flow::Next)
}

/// Prints an error to standard error; for an error with a place in `sql`, that line and a mark under it.
pub fn report(error: &Error, sql: Option<&str>) {
    let mut text = format!("error: {} ({})", error.message(), error.code());
    if let Some(marked) = sql.and_then(|sql| marked_line(sql, error)) {
        text.push_str(&marked);
    }
    if !error.hint().is_empty() {
        text.push_str(&format!("\nhint: {}", error.hint()));
    }
    // Nobody is there to be told that standard error is gone.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The line that an error is about, and a mark under its column; both count from 1.
fn marked_line(sql: &str, error: &Error) -> Option<String> {
    const WIDTH: usize = 100;
    let number = |name| error.field(name)?.parse::<usize>().ok()?.checked_sub(1);
    let (line, column) = (number("line")?, number("column")?);
    let line: Vec<char> = sql.lines().nth(line)?.chars().map(|c| if c == '\t' { ' ' } else { c }).collect();
    if column > line.len() {
        return None;
    }
    // Of a long line only what is around the mark.
    let start = column.saturating_sub(WIDTH / 2);
    let part: String = line[start..].iter().take(WIDTH).collect();
    Some(format!("\n  {part}\n  {}^", " ".repeat(column - start)))
}

#[cfg(test)]
mod tests {
    use drsdb_client::{ErrorCode, WireError};

    use super::*;

    #[test]
    fn the_mark_is_under_the_column() {
        let at = |line: usize, column: usize| {
            Error::from(WireError::new(ErrorCode::Syntax, "no").with_field("line", line).with_field("column", column))
        };
        assert_eq!(marked_line("SELECT\n  x FRM t", &at(2, 5)).unwrap(), "\n    x FRM t\n      ^");
        assert_eq!(marked_line("SELECT", &at(1, 7)).unwrap(), "\n  SELECT\n        ^");
        for (line, column) in [(2, 1), (1, 9), (0, 1)] {
            assert_eq!(marked_line("SELECT", &at(line, column)), None);
        }
        let long = "x".repeat(10_000);
        assert!(marked_line(&long, &at(1, 9_000)).unwrap().len() < 300);
    }
}
