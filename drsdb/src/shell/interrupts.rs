//! Ctrl-C. One listener decides what it means: the end of the statement that runs; without one, the end of a shell that
//! nobody types into. At the prompt the terminal's line editor sees Ctrl-C itself.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Notify,
};

/// Exit code after Ctrl-C, as shells know it.
pub const INTERRUPTED: u8 = 130;

/// Ctrl-C, as statements see it.
#[derive(Debug, Default)]
pub struct Interrupts {
    busy: AtomicBool,
    interrupted: Notify,
}

impl Interrupts {
    /// Listens from now on.
    pub fn listen(interactive: bool) -> std::io::Result<Arc<Self>> {
        let interrupts = Arc::new(Self::default());
        let mut signals = signal(SignalKind::interrupt())?;
        let listener = interrupts.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if listener.busy.load(Ordering::SeqCst) {
                    listener.interrupted.notify_waiters();
                } else if !interactive {
                    std::process::exit(INTERRUPTED.into());
                }
            }
        });
        Ok(interrupts)
    }

    /// Runs `work` to its end, or to Ctrl-C: then it is dropped, which cancels on the servers what it was doing there.
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut interrupted = std::pin::pin!(self.interrupted.notified());
        interrupted.as_mut().enable();
        self.busy.store(true, Ordering::SeqCst);
        let done = tokio::select! {
            biased;
            () = interrupted => None,
            done = work => Some(done),
        };
        self.busy.store(false, Ordering::SeqCst);
        done
    }
}
