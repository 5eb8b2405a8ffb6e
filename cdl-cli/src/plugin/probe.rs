//! Loading of a library in another process, so that its initialisers cannot end this process.

use std::{
    io::{ErrorKind, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use cdl_core::registry::dynamic;

use crate::{failure::Failure, plugin::loading::PLUGIN_PATH, terminal::emit};

/// Time in which a library must load.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two checks whether the process has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Time to read what the process wrote, after it has ended. A process started by an initialiser can keep a pipe open.
const READ_TIME: Duration = Duration::from_secs(1);
/// Bytes that are kept of each output: the first ones of the error output, the last ones of the standard output.
const KEPT: usize = 1 << 16;

/// Line that reports a loaded library, with the SHA-256 of its file.
fn report(sha256: &str) -> String {
    format!("loaded {sha256}\n")
}

/// Loads the library and reports it on a new line: initialisers may have written to the standard output.
pub fn load_and_report(file: &Path) -> Result<(), Failure> {
    let loaded = dynamic::load(file)?;
    emit(&format!("\n{}", report(&loaded.sha256)))
}

/// Runs [`load_and_report`] in another process and checks that the file loaded there has the checksum `sha256`.
pub fn probe(file: &Path, sha256: &str) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| format!("the path of this program is unknown: {e}"))?;
    let mut command = Command::new(program);
    command.args(["--quiet", "plugin", "probe"]).arg(file).env_remove(PLUGIN_PATH).stdin(Stdio::null());
    let failed = |e: std::io::Error| format!("cannot be tested: {e}");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(failed)?;
    // The pipes are read while the process runs: it would wait for a reader once they are full.
    let (stdout, stderr) =
        (Output::read(child.stdout.take(), last), Output::read(child.stderr.take(), first));
    let status = wait(&mut child)?;
    // Exit code 2 means an error that this process will find and report itself.
    if status.code() == Some(2) {
        return Ok(());
    }
    let stdout = stdout.finish();
    if status.success() && stdout.ends_with(format!("\n{}", report(sha256)).as_bytes()) {
        return Ok(());
    }
    if status.success()
        && stdout.rsplit(|byte| *byte == b'\n').nth(1).is_some_and(|line| line.starts_with(b"loaded "))
    {
        return Err("was changed while it was loaded; run the command again".into());
    }
    let stderr = stderr.finish();
    let stderr = String::from_utf8_lossy(&stderr);
    let message = stderr.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no message");
    Err(format!("ends the program when it is loaded ({status}): {message}"))
}

/// Waits until the process ends, and ends it after [`TIMEOUT`].
fn wait(child: &mut Child) -> Result<ExitStatus, String> {
    let failed = |e: std::io::Error| format!("cannot be tested: {e}");
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(status);
        }
        if start.elapsed() > TIMEOUT {
            child.kill().and_then(|()| child.wait()).map_err(failed)?;
            let seconds = TIMEOUT.as_secs();
            return Err(format!("was not loaded within {seconds} s: an initialiser does not return"));
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Output of a process, read by another thread.
struct Output {
    kept: Arc<Mutex<Vec<u8>>>,
    /// Disconnected at the end of the output.
    end: Receiver<()>,
}

impl Output {
    /// Reads `pipe` to its end. `limit` shortens what is kept after each read.
    fn read(pipe: Option<impl Read + Send + 'static>, limit: fn(&mut Vec<u8>)) -> Self {
        let kept = Arc::new(Mutex::new(Vec::new()));
        let (sender, end) = channel();
        let shared = kept.clone();
        thread::spawn(move || {
            let _ended_on_drop: Sender<()> = sender;
            let (mut pipe, mut piece) = (pipe, [0; 8192]);
            while let Some(pipe) = &mut pipe {
                match pipe.read(&mut piece) {
                    Ok(0) => break,
                    Ok(read) => {
                        let mut kept = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        kept.extend_from_slice(piece.get(..read).unwrap_or_default());
                        limit(&mut kept);
                    }
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
        });
        Self { kept, end }
    }

    /// Returns what was kept, at the end of the output or after [`READ_TIME`].
    fn finish(self) -> Vec<u8> {
        let _ = self.end.recv_timeout(READ_TIME);
        std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Keeps the first [`KEPT`] bytes.
fn first(bytes: &mut Vec<u8>) {
    bytes.truncate(KEPT);
}

/// Keeps at least the last [`KEPT`] bytes.
fn last(bytes: &mut Vec<u8>) {
    if bytes.len() > 2 * KEPT {
        bytes.drain(..bytes.len() - KEPT);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn long_outputs_are_read_to_their_end_and_kept_in_part() {
        let long: Vec<u8> = (0..40 * KEPT).map(|at| at as u8).collect();
        assert_eq!(Output::read(Some(Cursor::new(long.clone())), first).finish(), long[..KEPT]);
        let end = Output::read(Some(Cursor::new(long.clone())), last).finish();
        assert!(end.len() >= KEPT && end.len() <= 2 * KEPT && long.ends_with(&end), "{}", end.len());
        let short = b"loaded".to_vec();
        assert_eq!(Output::read(Some(Cursor::new(short.clone())), last).finish(), short);
    }
}
