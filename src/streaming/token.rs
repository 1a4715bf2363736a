//! One-time tokens: what stands in a URL for a session that an RPC has allowed.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::url::Kind;

/// How long a token may be used.
pub const TOKEN_TTL: Duration = Duration::from_secs(60);

/// Tokens that wait for their client at most. Each holds a copy of its request, so this bounds memory as well.
pub const MAX_TOKENS: usize = 1000;

/// Random bytes of a token: 192 bits, which nobody guesses in a minute.
const RANDOM_BYTES: usize = 24;

/// A token as the map knows it. The map is looked up by a hash, so the time that this takes tells nothing of the tokens
/// that there are; and none of them can be read out of the daemon's memory.
type Fingerprint = [u8; 32];

/// The tokens that are out, each with what it stands for.
#[derive(Debug)]
pub struct Tokens<T> {
    ttl: Duration,
    limit: usize,
    table: Mutex<Table<T>>,
}

#[derive(Debug)]
struct Table<T> {
    entries: HashMap<Fingerprint, Entry<T>>,
    /// In the order of their ends: all live equally long.
    order: VecDeque<(Instant, Fingerprint)>,
}

#[derive(Debug)]
struct Entry<T> {
    kind: Kind,
    ends: Instant,
    value: T,
}

/// As many tokens are out as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{limit} sessions that nobody has begun are outstanding; one expires {}s after it was asked for", ttl.as_secs())]
pub struct Full {
    pub limit: usize,
    pub ttl: Duration,
}

impl<T> Tokens<T> {
    /// No token yet; at most `limit` are out at a time, each for `ttl`.
    #[must_use]
    pub fn new(ttl: Duration, limit: usize) -> Self {
        Self { ttl, limit, table: Mutex::new(Table { entries: HashMap::new(), order: VecDeque::new() }) }
    }

    /// A fresh token for one session of this kind.
    ///
    /// # Errors
    /// [`Full`] while as many tokens as may be are out.
    pub fn issue(&self, kind: Kind, value: T) -> Result<String, Full> {
        self.issue_at(Instant::now(), kind, value)
    }

    /// Takes what a token stands for. It is spent by that; one of another kind stays as it is.
    pub fn take(&self, kind: Kind, token: &str) -> Option<T> {
        self.take_at(Instant::now(), kind, token)
    }

    fn issue_at(&self, now: Instant, kind: Kind, value: T) -> Result<String, Full> {
        let token = crate::sys::host::random_hex::<RANDOM_BYTES>();
        let (key, ends) = (fingerprint(&token), now + self.ttl);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.expire(now);
        if table.entries.len() >= self.limit {
            return Err(Full { limit: self.limit, ttl: self.ttl });
        }
        table.entries.insert(key, Entry { kind, ends, value });
        table.order.push_back((ends, key));
        Ok(token)
    }

    fn take_at(&self, now: Instant, kind: Kind, token: &str) -> Option<T> {
        let key = fingerprint(token);
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.expire(now);
        if table.entries.get(&key)?.kind != kind {
            return None;
        }
        table.entries.remove(&key).filter(|entry| entry.ends > now).map(|entry| entry.value)
    }

    /// How many are out.
    #[cfg(test)]
    pub(super) fn outstanding(&self) -> usize {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).entries.len()
    }
}

impl<T> Table<T> {
    /// Forgets what has ended. A token that was used leaves its place in the order until then.
    fn expire(&mut self, now: Instant) {
        while let Some((ends, key)) = self.order.front()
            && (*ends <= now || !self.entries.contains_key(key))
        {
            self.entries.remove(key);
            self.order.pop_front();
        }
        // Used tokens behind one that waits would pile up under a client that leaves one in every minute alone.
        if self.order.len() > 2 * self.entries.len() + 16 {
            let entries = &self.entries;
            self.order.retain(|(_, key)| entries.contains_key(key));
        }
    }
}

fn fingerprint(token: &str) -> Fingerprint {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_one_session_of_its_kind() {
        let tokens = Tokens::new(TOKEN_TTL, MAX_TOKENS);
        let token = tokens.issue(Kind::Exec, "payload").unwrap();
        assert_eq!(token.len(), 2 * RANDOM_BYTES);
        assert_eq!(tokens.take(Kind::Attach, &token), None);
        assert_eq!(tokens.take(Kind::PortForward, &token), None);
        assert_eq!(tokens.take(Kind::Exec, ""), None);
        assert_eq!(tokens.take(Kind::Exec, &token[..20]), None);
        assert_eq!(tokens.take(Kind::Exec, &token), Some("payload"));
        assert_eq!(tokens.take(Kind::Exec, &token), None, "it was spent");
    }

    #[test]
    fn a_token_ends() {
        let (tokens, now) = (Tokens::new(TOKEN_TTL, MAX_TOKENS), Instant::now());
        let token = tokens.issue_at(now, Kind::Exec, ()).unwrap();
        let other = tokens.issue_at(now, Kind::Exec, ()).unwrap();
        assert!(tokens.take_at(now + TOKEN_TTL - Duration::from_millis(1), Kind::Exec, &token).is_some());
        assert!(tokens.take_at(now + TOKEN_TTL, Kind::Exec, &other).is_none());
        assert_eq!(tokens.outstanding(), 0);
    }

    #[test]
    fn their_number_is_bounded_and_room_comes_back() {
        let (tokens, now) = (Tokens::new(TOKEN_TTL, 3), Instant::now());
        let first = tokens.issue_at(now, Kind::Exec, 1).unwrap();
        for value in [2, 3] {
            tokens.issue_at(now + Duration::from_secs(1), Kind::Exec, value).unwrap();
        }
        let full = tokens.issue_at(now, Kind::Exec, 4).unwrap_err();
        assert_eq!(full, Full { limit: 3, ttl: TOKEN_TTL });
        assert_eq!(tokens.take_at(now, Kind::Exec, &first), Some(1));
        tokens.issue_at(now, Kind::Exec, 5).unwrap();
        let later = now + TOKEN_TTL + Duration::from_secs(1);
        for value in 0..3 {
            tokens.issue_at(later, Kind::Exec, value).unwrap();
        }
        assert!(tokens.issue_at(later, Kind::Exec, 4).is_err());
    }

    #[test]
    fn used_tokens_leave_nothing() {
        let (tokens, now) = (Tokens::new(TOKEN_TTL, 10), Instant::now());
        let _waits = tokens.issue_at(now, Kind::Attach, 0).unwrap();
        for value in 0..10_000 {
            let token = tokens.issue_at(now, Kind::Exec, value).unwrap();
            assert_eq!(tokens.take_at(now, Kind::Exec, &token), Some(value));
        }
        assert_eq!(tokens.outstanding(), 1);
        assert!(tokens.table.lock().unwrap().order.len() < 64);
    }

    #[test]
    fn no_two_are_alike() {
        let tokens = Tokens::new(TOKEN_TTL, MAX_TOKENS);
        let all: std::collections::HashSet<_> =
            (0..MAX_TOKENS).map(|_| tokens.issue(Kind::Exec, ()).unwrap()).collect();
        assert_eq!(all.len(), MAX_TOKENS);
    }
}
