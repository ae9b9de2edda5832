//! Runs statements and commands, one after the other, and remembers what the next one needs to know.

use std::{
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use drsdb_client::{Client, Error, ErrorCode, Executed, IngestMode, QueryStatistics};

use super::{
    command::{self, Command, CopyFrom},
    describe,
    interrupts::Interrupts,
    output::{self, PrintError, Style},
    report,
    splitter::Splitter,
};
use crate::import;

/// `\i` within `\i`, at most.
const MAX_INCLUDES: usize = 64;

/// What comes after a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The next line.
    Next,
    /// The end, wanted or after an error.
    Quit,
    /// The end, by Ctrl-C.
    Interrupted,
}

/// The shell's state.
pub struct Interpreter {
    client: Client,
    style: Style,
    /// Whether somebody types: then an error or Ctrl-C ends nothing but the statement.
    interactive: bool,
    stop_on_error: bool,
    timing: bool,
    /// Where the next result goes, if not to the terminal.
    output: Option<PathBuf>,
    last_failed: bool,
    includes: usize,
    interrupts: Arc<Interrupts>,
}

/// Why a statement or command did not succeed.
enum Failed {
    Error(Error),
    Interrupted,
    /// Standard output is gone: nothing that follows has a point.
    Terminal(io::Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Error(error)
    }
}

impl From<PrintError> for Failed {
    fn from(error: PrintError) -> Self {
        match error {
            PrintError::Query(error) => Failed::Error(error),
            PrintError::Terminal(error) => Failed::Terminal(error),
        }
    }
}

impl Interpreter {
    pub fn new(
        client: Client,
        style: Style,
        interactive: bool,
        stop_on_error: bool,
        interrupts: Arc<Interrupts>,
    ) -> Self {
        Interpreter {
            client,
            style,
            interactive,
            stop_on_error: stop_on_error && !interactive,
            timing: false,
            output: None,
            last_failed: false,
            includes: 0,
            interrupts,
        }
    }

    /// Whether the last statement or command failed.
    pub fn last_failed(&self) -> bool {
        self.last_failed
    }

    /// Whether BEGIN has opened a transaction that is not over.
    pub fn in_transaction(&self) -> bool {
        self.client.in_transaction()
    }

    /// Runs everything in a file.
    pub async fn run_file(&mut self, path: &Path) -> anyhow::Result<Flow> {
        let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.run_text(BufReader::new(file)).await.with_context(|| format!("in {}", path.display()))
    }

    /// Runs everything in a text. A last statement needs no semicolon.
    pub async fn run_text(&mut self, mut text: impl BufRead) -> anyhow::Result<Flow> {
        let mut splitter = Splitter::default();
        let mut line = String::new();
        loop {
            line.clear();
            if tokio::task::block_in_place(|| text.read_line(&mut line))? == 0 {
                break;
            }
            let flow = self.feed(&mut splitter, &line).await?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        match splitter.finish() {
            Some(statement) => self.run_statement(&statement).await,
            None => Ok(Flow::Next),
        }
    }

    /// Takes one line, and runs what it completes.
    pub async fn feed(&mut self, splitter: &mut Splitter, line: &str) -> anyhow::Result<Flow> {
        if splitter.is_blank() && line.trim_start().starts_with('\\') {
            splitter.clear();
            return self.run_command(line).await;
        }
        splitter.push(line);
        if !line.ends_with('\n') {
            splitter.push("\n");
        }
        while let Some(statement) = splitter.next_statement() {
            let flow = self.run_statement(&statement).await?;
            if flow != Flow::Next {
                return Ok(flow);
            }
        }
        Ok(Flow::Next)
    }

    async fn run_statement(&mut self, sql: &str) -> anyhow::Result<Flow> {
        let done = self.interrupts.clone().run(self.execute(sql)).await.unwrap_or(Err(Failed::Interrupted));
        self.done(done, Some(sql))
    }

    async fn run_command(&mut self, line: &str) -> anyhow::Result<Flow> {
        let command = match command::parse(line) {
            Ok(command) => command,
            Err(message) => return self.done(Err(Error::new(ErrorCode::InvalidArgument, message).into()), None),
        };
        match command {
            Command::Quit => return Ok(Flow::Quit),
            Command::Include(path) => {
                if self.includes == MAX_INCLUDES {
                    let message = format!("\\i {} is the {MAX_INCLUDES}th within another", path.display());
                    return self.done(Err(Error::new(ErrorCode::InvalidArgument, message).into()), None);
                }
                self.includes += 1;
                let flow = Box::pin(self.run_file(&path)).await;
                self.includes -= 1;
                return match flow {
                    Ok(flow) => Ok(flow),
                    Err(error) if error.downcast_ref().is_some_and(super::is_broken_pipe) => Err(error),
                    Err(error) => {
                        self.done(Err(Error::new(ErrorCode::InvalidArgument, format!("{error:#}")).into()), None)
                    }
                };
            }
            _ => {}
        }
        let done = self.interrupts.clone().run(self.command(command)).await.unwrap_or(Err(Failed::Interrupted));
        self.done(done, None)
    }

    /// Notes and reports how it went.
    fn done(&mut self, done: Result<(), Failed>, sql: Option<&str>) -> anyhow::Result<Flow> {
        self.last_failed = done.is_err();
        match done {
            Ok(()) => Ok(Flow::Next),
            Err(Failed::Terminal(error)) => Err(error.into()),
            Err(Failed::Interrupted) => {
                // What was to be written to a file will not be.
                self.output = None;
                report(&Error::new(ErrorCode::Cancelled, "cancelled"), None);
                Ok(if self.interactive { Flow::Next } else { Flow::Interrupted })
            }
            Err(Failed::Error(error)) => {
                report(&error, sql);
                Ok(if self.stop_on_error { Flow::Quit } else { Flow::Next })
            }
        }
    }

    async fn execute(&mut self, sql: &str) -> Result<(), Failed> {
        let started = Instant::now();
        let mut out = io::stdout();
        let executed = self.client.execute(sql).await?;
        let planned = started.elapsed();
        let mut rows = match executed {
            Executed::Write(result) => {
                let text = match result.rows {
                    0 => "ok".to_owned(),
                    1 => "ok, 1 row".to_owned(),
                    rows => format!("ok, {rows} rows"),
                };
                self.note(&text)?;
                return self.note_time(started.elapsed(), None);
            }
            Executed::Rows(rows) => rows,
        };
        match self.output.take() {
            Some(path) => {
                let count = output::write_file(&mut rows, &path).await?;
                self.note(&format!("wrote {count} rows to {}", path.display()))?;
            }
            None => {
                let count = output::print(&mut rows, self.style, &mut out).await?;
                if self.style == Style::Table && !output::is_plan(&rows.schema()) {
                    let rows = if count == 1 { "1 row".to_owned() } else { format!("{count} rows") };
                    self.note(&format!("({rows})\n"))?;
                }
            }
        }
        self.note_time(started.elapsed(), Some((planned, rows.statistics())))
    }

    async fn command(&mut self, command: Command) -> Result<(), Failed> {
        let mut out = io::stdout();
        let printed = match command {
            Command::Describe(None) => describe::list(&self.client, &mut out).await?,
            Command::Views => describe::list_views(&self.client, &mut out).await?,
            Command::Describe(Some(table)) => describe::describe(&self.client, &table, &mut out).await?,
            Command::Timing(timing) => {
                self.timing = timing.unwrap_or(!self.timing);
                return self.note(if self.timing { "timing is on" } else { "timing is off" });
            }
            Command::Output(path) => {
                if let Some(path) = &path {
                    // Better now than after the query.
                    import::FileOptions::default().format_of(path)?;
                }
                self.output = path;
                Ok(())
            }
            Command::Copy(copy) => return self.copy(*copy).await,
            Command::Help => out.write_all(command::HELP.as_bytes()),
            Command::Include(_) | Command::Quit => Ok(()),
        };
        printed.map_err(Failed::Terminal)
    }

    async fn copy(&mut self, copy: CopyFrom) -> Result<(), Failed> {
        let started = Instant::now();
        let files = [copy.file];
        let result = import::load(&self.client, &copy.table, &files, &copy.options, IngestMode::Append).await?;
        self.note(&import::loaded(result, started.elapsed()))
    }

    /// A line beside the results: with them where they are read by people, apart where they are read by programs.
    fn note(&self, text: &str) -> Result<(), Failed> {
        let written = match self.style {
            Style::Table => writeln!(io::stdout(), "{text}"),
            Style::Csv | Style::Json => writeln!(io::stderr(), "{}", text.trim_end()),
        };
        written.map_err(Failed::Terminal)
    }

    fn note_time(&self, total: Duration, pulled: Option<(Duration, QueryStatistics)>) -> Result<(), Failed> {
        if !self.timing {
            return Ok(());
        }
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        let detail = match pulled {
            None => String::new(),
            Some((planned, statistics)) => {
                let (endpoints, bytes) = (statistics.endpoints.len(), indicatif::HumanBytes(statistics.bytes()));
                let plural = if endpoints == 1 { "" } else { "s" };
                format!(" ({:.1} ms to plan; {endpoints} endpoint{plural}, {bytes})", ms(planned))
            }
        };
        self.note(&format!("time: {:.1} ms{detail}", ms(total)))
    }
}
