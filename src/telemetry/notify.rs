//! What systemd is told about the service (sd_notify(3)). Without systemd nothing is sent and nothing fails.

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;

/// Speaks to the service manager that started us, if there is one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Notifier;

/// A message that the service manager did not take.
#[derive(Debug, thiserror::Error)]
#[error("systemd cannot be told {what}")]
pub struct NotifyError {
    pub what: &'static str,
    pub source: io::Error,
}

impl Notifier {
    /// The socket answers.
    ///
    /// # Errors
    /// [`NotifyError`], as for all of these; going on is right, logging it once is enough.
    pub fn ready(self, status: &str) -> Result<(), NotifyError> {
        send("that the service is ready", &[NotifyState::Ready, NotifyState::Status(&line(status))])
    }

    /// A reload begins; [`Self::ready`] ends it.
    ///
    /// # Errors
    /// [`NotifyError`].
    pub fn reloading(self) -> Result<(), NotifyError> {
        let what = "that the service reloads";
        let now = NotifyState::monotonic_usec_now().map_err(|source| NotifyError { what, source })?;
        send(what, &[NotifyState::Reloading, now])
    }

    /// The end begins.
    ///
    /// # Errors
    /// [`NotifyError`].
    pub fn stopping(self) -> Result<(), NotifyError> {
        send("that the service stops", &[NotifyState::Stopping])
    }

    /// One line for `systemctl status`.
    ///
    /// # Errors
    /// [`NotifyError`].
    pub fn status(self, status: &str) -> Result<(), NotifyError> {
        send("the service's status", &[NotifyState::Status(&line(status))])
    }

    /// The daemon is alive: to be sent at least twice in each [`Self::watchdog_interval`].
    ///
    /// # Errors
    /// [`NotifyError`].
    pub fn watchdog(self) -> Result<(), NotifyError> {
        send("that the service is alive", &[NotifyState::Watchdog])
    }

    /// The unit's `WatchdogSec`, when it watches this process.
    #[must_use]
    pub fn watchdog_interval(self) -> Option<Duration> {
        sd_notify::watchdog_enabled()
    }
}

fn send(what: &'static str, states: &[NotifyState<'_>]) -> Result<(), NotifyError> {
    sd_notify::notify(states).map_err(|source| NotifyError { what, source })
}

/// A line break would begin another message of the protocol.
fn line(status: &str) -> String {
    status.chars().map(|c| if c.is_control() { ' ' } else { c }).take(512).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_systemd_nothing_fails() {
        assert!(std::env::var_os("NOTIFY_SOCKET").is_none(), "the test must not run as a notifying service");
        Notifier.ready("up").unwrap();
        Notifier.reloading().unwrap();
        Notifier.status("fine").unwrap();
        Notifier.watchdog().unwrap();
        Notifier.stopping().unwrap();
        assert_eq!(Notifier.watchdog_interval(), None);
    }

    #[test]
    fn a_status_stays_one_line() {
        assert_eq!(line("a\nMAINPID=1\u{7f}"), "a MAINPID=1 ");
        assert_eq!(line(&"x".repeat(600)).len(), 512);
    }
}
