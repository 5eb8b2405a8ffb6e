//! Requests to stop. The first signal is noted, so that the step at hand can be finished and the run saved; a second one
//! ends the process at once.

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

use crate::failure::{Failure, STOPPED};

/// The signal that the process has received since it began to listen.
pub struct Signals {
    /// The signal's number, 0 for none.
    number: Arc<AtomicUsize>,
}

impl Signals {
    /// Listens from now on to SIGINT (Ctrl-C) and SIGTERM.
    pub fn listen() -> Result<Self, Failure> {
        let (asked, number) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for signal in [SIGINT, SIGTERM] {
            // In this order: what ends the process looks at whether it had been asked before.
            flag::register_conditional_shutdown(signal, STOPPED + signal, asked.clone())
                .and_then(|_| flag::register(signal, asked.clone()))
                .and_then(|_| flag::register_usize(signal, number.clone(), signal as usize))
                .map_err(|e| Failure::working(format!("signals cannot be listened to: {e}")))?;
        }
        Ok(Self { number })
    }

    /// Name and exit code of the signal that asked to stop, if one did.
    pub fn asked(&self) -> Option<(&'static str, u8)> {
        match self.number.load(Ordering::SeqCst) as i32 {
            0 => None,
            SIGTERM => Some(("SIGTERM", (STOPPED + SIGTERM) as u8)),
            _ => Some(("SIGINT", (STOPPED + SIGINT) as u8)),
        }
    }
}

/// Asks a child of this program to save its run and stop. On a system without signals it is ended as it is.
pub fn ask_to_stop(child: &mut Child) {
    // An error says that the child has ended already.
    #[cfg(unix)]
    let _ =
        rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::TERM);
    #[cfg(not(unix))]
    let _ = child.kill();
}
