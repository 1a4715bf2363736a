//! The signal that asks a container to stop: the request's, else the image's, else SIGTERM.

use cri_proto::runtime::v1 as cri;

/// First and last real-time signal, as C programs and images number them.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// Text or a number that is no signal.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignalError {
    #[error("stop_signal {value}: unknown")]
    Request { value: i32 },
    #[error("image StopSignal {text:?}: no such signal")]
    Image { text: String },
}

pub(super) fn stop_signal(request: i32, image: Option<&str>) -> Result<i32, SignalError> {
    let asked = cri::Signal::try_from(request).map_err(|_| SignalError::Request { value: request })?;
    if asked != cri::Signal::RuntimeDefault {
        // The contract's numbers are its own, its names are the signals'.
        let name = asked.as_str_name().trim_start_matches("SIGNAL_");
        let name = name.replace("PLUS", "+").replace("MINUS", "-");
        return parse_signal(&name).ok_or(SignalError::Request { value: request });
    }
    match image {
        None | Some("") => Ok(libc::SIGTERM),
        Some(text) => parse_signal(text).ok_or_else(|| SignalError::Image { text: text.chars().take(256).collect() }),
    }
}

/// A signal by number (`15`) or name (`SIGTERM`, `term`, `RTMIN+3`, `SIGRTMAX-2`); `None` when there is no such signal.
#[must_use]
pub fn parse_signal(text: &str) -> Option<i32> {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().ok().filter(|number| (1..=RTMAX).contains(number));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |offset: &str, base: i32, sign: i32| {
        let offset: i32 = offset.parse().ok().filter(|n| (0..=30).contains(n))?;
        Some(base + sign * offset).filter(|number| (RTMIN..=RTMAX).contains(number))
    };
    if let Some(offset) = name.strip_prefix("RTMIN+") {
        return real_time(offset, RTMIN, 1);
    }
    if let Some(offset) = name.strip_prefix("RTMAX-") {
        return real_time(offset, RTMAX, -1);
    }
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

const NAMES: [(&str, i32); 37] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
    ("UNUSED", libc::SIGSYS),
    ("RTMIN", RTMIN),
    ("RTMAX", RTMAX),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_contract_is_a_signal() {
        let mut seen = std::collections::BTreeSet::new();
        for value in 1..=65 {
            seen.insert(stop_signal(value, Some("HUP")).unwrap_or_else(|e| panic!("{e}")));
        }
        // SIGCLD, SIGIOT and SIGPOLL are other names of CHLD, ABRT and IO.
        assert_eq!(seen.len(), 62);
        assert_eq!(stop_signal(cri::Signal::Sigrtminplus3 as i32, None), Ok(37));
        assert_eq!(stop_signal(cri::Signal::Sigrtmaxminus14 as i32, None), Ok(50));
        assert_eq!(stop_signal(66, None), Err(SignalError::Request { value: 66 }));
    }

    #[test]
    fn the_images_signal_in_all_its_forms() {
        let cases = [
            (None, 15),
            (Some(""), 15),
            (Some("SIGQUIT"), 3),
            (Some("quit"), 3),
            (Some("15"), 15),
            (Some("SIGRTMIN+3"), 37),
            (Some("RTMIN+3"), 37),
            (Some("RTMAX-3"), 61),
            (Some("SIGRTMIN"), 34),
            (Some("64"), 64),
            (Some("WINCH"), 28),
        ];
        for (image, want) in cases {
            assert_eq!(stop_signal(0, image), Ok(want), "{image:?}");
        }
        for bad in ["0", "65", "-1", "SIGNOPE", "RTMIN+31", "RTMIN+-1", "RTMIN+", "SIG", "15 ", "1e1", "99999999999"] {
            assert!(stop_signal(0, Some(bad)).is_err(), "{bad}");
        }
    }
}
