//! Signals that stop the program. The first one sets a flag, so that the current step is finished and the run is saved.
//! A second one ends the process at once.

use std::{
    process::Child,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};

use crate::failure::{Failure, SIGNAL_OFFSET};

/// Signal received since [`Signals::listen`].
pub struct Signals {
    /// Number of the signal, 0 for none.
    number: Arc<AtomicUsize>,
}

impl Signals {
    /// Installs handlers of SIGINT (Ctrl-C) and SIGTERM.
    pub fn listen() -> Result<Self, Failure> {
        let (received, number) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for signal in [SIGINT, SIGTERM] {
            // The order matters: the handler that ends the process must run before the flag is set.
            flag::register_conditional_shutdown(signal, SIGNAL_OFFSET + signal, received.clone())
                .and_then(|_| flag::register(signal, received.clone()))
                .and_then(|_| flag::register_usize(signal, number.clone(), signal as usize))
                .map_err(|e| Failure::working(format!("cannot listen for signals: {e}")))?;
        }
        Ok(Self { number })
    }

    /// Name and exit code of the received signal, if any.
    pub fn received(&self) -> Option<(&'static str, u8)> {
        match self.number.load(Ordering::SeqCst) as i32 {
            0 => None,
            SIGTERM => Some(("SIGTERM", (SIGNAL_OFFSET + SIGTERM) as u8)),
            _ => Some(("SIGINT", (SIGNAL_OFFSET + SIGINT) as u8)),
        }
    }
}

/// Signals a child process to save its run and stop. On systems without signals, kills it.
pub fn request_stop(child: &mut Child) {
    // An error means that the child process has ended already.
    #[cfg(unix)]
    let _ =
        rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM);
    #[cfg(not(unix))]
    let _ = child.kill();
}
