//! Log messages: short lines on the terminal, above the progress bar, and lines with time stamps in the run's log file.

use std::{
    fmt,
    fs::File,
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, PoisonError},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::{bench::profile::Profile, terminal::printable};

/// Destinations of log messages: the terminal with its progress bars, and the log file.
#[derive(Clone)]
pub struct Log {
    /// Progress bars. Messages are written between two redraws.
    bars: MultiProgress,
    quiet: bool,
    sink: Arc<Sink>,
}

/// Shared target of the log file's messages.
struct Sink(Mutex<Target>);

/// Log file, or the messages logged before the file was opened.
enum Target {
    Buffer(Vec<u8>),
    File(File),
}

impl Log {
    /// Opens the log file: writes the messages logged so far to `file`, and directs all later ones to it.
    pub fn open(&self, mut file: File) -> io::Result<()> {
        let mut sink = self.sink.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Target::Buffer(bytes) = &*sink {
            file.write_all(bytes)?;
        }
        *sink = Target::File(file);
        Ok(())
    }

    /// Returns `bar` with the given template. The bar is hidden with `--quiet` and if standard error is not a terminal.
    pub fn bar(&self, bar: ProgressBar, template: &str) -> ProgressBar {
        if self.quiet || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = self.bars.add(bar);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar
    }
}

/// Installs logging for the process. `RUST_LOG` filters messages on the terminal unless `--quiet` or `--verbose` is
/// given, `CDL_LOG` those in the log file; both use the filter syntax of `tracing-subscriber`. `profile` receives the
/// phases and operations of every step.
pub fn start(quiet: bool, verbose: bool, profile: Option<Profile>) -> Log {
    let sink = Arc::new(Sink(Mutex::new(Target::Buffer(Vec::new()))));
    let log = Log { bars: MultiProgress::new(), quiet, sink };
    let level = match (quiet, verbose) {
        (true, _) => "warn",
        (_, true) => "debug",
        _ => "info",
    };
    // hf-hub logs every retry as an error. The error that ends the command is sufficient.
    let default =
        format!("warn,hf_hub=off,cdl={level},cdl_core={level},cdl_kernels={level},cdl_plugins={level}");
    let requested = (!quiet && !verbose).then(|| EnvFilter::try_from_default_env().ok()).flatten();
    let filter = requested.unwrap_or_else(|| EnvFilter::new(default));
    let bars = log.bars.clone();
    let terminal = tracing_subscriber::fmt::layer()
        .event_format(TerminalFormat)
        .with_writer(move || TerminalWriter(bars.clone()))
        .with_filter(filter);
    let filter = EnvFilter::try_from_env("CDL_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,cdl=debug,cdl_core=debug"));
    let file =
        tracing_subscriber::fmt::layer().with_ansi(false).with_writer(log.sink.clone()).with_filter(filter);
    let profile =
        profile.map(|profile| profile.with_filter(EnvFilter::new("off,cdl_core=trace,cdl_kernels=trace")));
    tracing_subscriber::registry().with(terminal).with(file).with(profile).init();
    log
}

/// Format of terminal messages: the text, preceded by `warning:` or `error:` at these levels.
struct TerminalFormat;

impl<S, N> FormatEvent<S, N> for TerminalFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match *event.metadata().level() {
            Level::ERROR => out.write_str("error: ")?,
            Level::WARN => out.write_str("warning: ")?,
            _ => {}
        }
        let mut text = String::new();
        context.format_fields(Writer::new(&mut text), event)?;
        writeln!(out, "{}", printable(&text))
    }
}

/// Writer to standard error that hides the progress bars while it writes.
struct TerminalWriter(MultiProgress);

impl Write for TerminalWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl Write for &Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Target::Buffer(buffer) => buffer.write(bytes),
            Target::File(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
