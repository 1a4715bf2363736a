//! Who holds which addresses: the leases and the free numbers, in memory as on the disk.

use std::collections::BTreeMap;
use std::net::IpAddr;

use sha2::{Digest as _, Sha256};

use crate::config::subnet::{self, Subnet};

use super::error::BuiltinError;
use super::lease::{Address, Lease, Records};
use super::pool::Pool;

/// Of the lines of the list of returned numbers, how many may be there for each number before it is written anew.
const LINES_PER_NUMBER: usize = 4;

/// The node's subnets, and what pods hold of them.
#[derive(Debug)]
pub struct Holdings {
    records: Records,
    subnets: Vec<Subnet>,
    /// The kubelet handed the subnets over; else they are the configuration's.
    handed_over: bool,
    leases: BTreeMap<String, Lease>,
    pool: Pool,
    /// Lines in the list of returned numbers.
    lines: usize,
}

impl Holdings {
    /// Reads what is on the disk. `configured` are the subnets until the kubelet hands over others.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn load(records: Records, configured: &[Subnet]) -> Result<Self, BuiltinError> {
        let (leases, bad) = records.load()?;
        for path in bad {
            tracing::error!(path = %path.display(), "a lease of the pod network is damaged and was set aside");
        }
        let handed = subnet::pod_subnets(&records.pod_cidrs()?).ok();
        let handed_over = handed.is_some();
        let subnets = handed.unwrap_or_else(|| configured.to_vec());
        let leases = leases.into_iter().map(|lease| (lease.sandbox_id.clone(), lease)).collect();
        let mut holdings = Self { records, subnets, handed_over, leases, pool: Pool::default(), lines: 0 };
        holdings.fill_pool()?;
        Ok(holdings)
    }

    fn fill_pool(&mut self) -> Result<(), BuiltinError> {
        let returned = self.records.returned()?;
        let held = self.leases.values().filter(|lease| self.is_current(lease)).map(|lease| lease.number);
        self.pool = Pool::new(subnet::room(&self.subnets), held, &returned);
        self.lines = returned.len();
        Ok(())
    }

    fn is_current(&self, lease: &Lease) -> bool {
        lease.addresses.iter().any(|address| self.subnets.contains(&address.subnet))
    }

    /// New pods get no IPv6 addresses, since the kernel has no IPv6. With no other subnets nothing is left out.
    pub fn leave_out_ipv6(&mut self) {
        if self.subnets.iter().any(|subnet| subnet.is_ipv4()) && !self.subnets.iter().all(|subnet| subnet.is_ipv4()) {
            tracing::info!("the kernel has no IPv6: pods get IPv4 addresses only");
            self.subnets.retain(|subnet| subnet.is_ipv4());
        }
    }

    #[must_use]
    pub fn handed_over(&self) -> bool {
        self.handed_over
    }

    /// The node's subnets, and those of which only older pods have addresses.
    #[must_use]
    pub fn all_subnets(&self) -> Vec<Subnet> {
        let mut all = self.subnets.clone();
        for address in self.leases.values().flat_map(|lease| &lease.addresses) {
            if !all.contains(&address.subnet) {
                all.push(address.subnet);
            }
        }
        all
    }

    #[must_use]
    pub fn lease(&self, sandbox_id: &str) -> Option<&Lease> {
        self.leases.get(sandbox_id)
    }

    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// Gives a pod its addresses, and writes that down.
    ///
    /// # Errors
    /// When all are held, the pod has a lease, or the disk refuses; nothing is held then.
    pub fn take(&mut self, sandbox_id: &str, pod: &str) -> Result<Lease, BuiltinError> {
        if self.leases.contains_key(sandbox_id) {
            return Err(BuiltinError::Leased(sandbox_id.to_owned()));
        }
        let number = self.pool.take().ok_or_else(|| BuiltinError::UsedUp {
            subnets: list(&self.subnets),
            held: self.pool.held() * self.subnets.len(),
            pods: self.pool.held(),
        })?;
        let addresses: Vec<Address> =
            self.subnets.iter().map(|subnet| Address { address: subnet.pod(number), subnet: *subnet }).collect();
        let lease = Lease {
            sandbox_id: sandbox_id.to_owned(),
            pod: pod.to_owned(),
            number,
            link: link_name("ck", sandbox_id),
            mac: mac(addresses.iter().map(|address| address.address)),
            addresses,
        };
        if let Err(error) = self.records.put(&lease) {
            self.pool.give_back(number);
            return Err(error.into());
        }
        self.leases.insert(sandbox_id.to_owned(), lease.clone());
        Ok(lease)
    }

    /// Writes down a lease that its pod has and that the disk has lost.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn restore(&mut self, lease: Lease) -> Result<(), BuiltinError> {
        self.records.put(&lease)?;
        if self.is_current(&lease) {
            self.pool.take_this(lease.number);
        }
        self.leases.insert(lease.sandbox_id.clone(), lease);
        Ok(())
    }

    /// Takes a pod's addresses back; fine when it has none.
    ///
    /// # Errors
    /// When the disk refuses; the pod then still holds them.
    pub fn give_back(&mut self, sandbox_id: &str) -> Result<(), BuiltinError> {
        self.records.remove(sandbox_id)?;
        let Some(lease) = self.leases.remove(sandbox_id) else { return Ok(()) };
        if self.is_current(&lease) && self.pool.give_back(lease.number) {
            self.note_return(lease.number);
        }
        Ok(())
    }

    /// The order in which numbers go out again is a courtesy to those who still send to an old pod; a disk that refuses to
    /// keep it is told about, and harms nobody.
    fn note_return(&mut self, number: u32) {
        let room = usize::try_from(subnet::room(&self.subnets)).unwrap_or(usize::MAX);
        let written = if self.lines >= room.saturating_mul(LINES_PER_NUMBER).max(1024) {
            self.lines = self.pool.returned().count();
            self.records.put_returned(self.pool.returned())
        } else {
            self.lines += 1;
            self.records.note_return(number)
        };
        if let Err(error) = written {
            tracing::warn!(error = %crate::telemetry::chain(&error), "the order of free addresses is not kept");
        }
    }

    /// Other subnets from now on.
    ///
    /// # Errors
    /// When pods have addresses of the present ones, or the disk refuses; nothing is changed then.
    pub fn hand_over(&mut self, subnets: Vec<Subnet>) -> Result<bool, BuiltinError> {
        if self.handed_over && self.subnets == subnets {
            return Ok(false);
        }
        if self.subnets != subnets && !self.leases.is_empty() {
            let (new, old) = (list(&subnets), list(&self.subnets));
            return Err(BuiltinError::PodCidrHeld { new, old, pods: self.leases.len() });
        }
        self.records.put_pod_cidrs(&subnets)?;
        let changed = self.subnets != subnets;
        (self.subnets, self.handed_over) = (subnets, true);
        if changed {
            // Numbers of other subnets mean other addresses.
            self.records.put_returned(std::iter::empty())?;
            self.fill_pool()?;
        }
        Ok(changed)
    }
}

fn list(subnets: &[Subnet]) -> String {
    subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A link's name that follows from the sandbox id, of 14 bytes (15 are possible).
#[must_use]
pub fn link_name(prefix: &str, sandbox_id: &str) -> String {
    // The id's own beginning, so that an operator recognises it; unless it is not of our making.
    if sandbox_id.len() == 64 && sandbox_id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return format!("{prefix}{}", &sandbox_id[..12]);
    }
    format!("{prefix}{}", &hex::encode(Sha256::digest(sandbox_id))[..12])
}

/// A locally administered MAC that follows from the primary address, so that whoever comes to have the address later has the
/// MAC that neighbours remember for it.
#[must_use]
pub fn mac(mut addresses: impl Iterator<Item = IpAddr>) -> [u8; 6] {
    let [a, b, c, d] = match addresses.next() {
        Some(IpAddr::V4(address)) => address.octets(),
        Some(IpAddr::V6(address)) => {
            let octets = address.octets();
            [octets[12], octets[13], octets[14], octets[15]]
        }
        None => [0; 4],
    };
    [0x0a, 0x58, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnets(texts: &[&str]) -> Vec<Subnet> {
        texts.iter().map(|text| Subnet::for_pods(text).unwrap()).collect()
    }

    #[test]
    fn leases_survive_and_are_used_up() {
        let dir = tempfile::tempdir().unwrap();
        let records = || Records::new(dir.path().to_owned());
        let configured = subnets(&["10.85.0.0/29", "fd00:85::/64"]);
        let mut holdings = Holdings::load(records(), &configured).unwrap();
        let taken: Vec<_> = (0..5).map(|n| holdings.take(&format!("s{n}"), "x/y").unwrap()).collect();
        assert_eq!(taken[0].addresses[0].address.to_string(), "10.85.0.2");
        assert_eq!(taken[0].addresses[1].address.to_string(), "fd00:85::2");
        let error = holdings.take("more", "x/y").unwrap_err().to_string();
        assert_eq!(error, "the addresses of 10.85.0.0/29, fd00:85::/64 are used up: 10 are held by 5 pods");
        holdings.give_back("s3").unwrap();
        holdings.give_back("s1").unwrap();
        holdings.give_back("s1").unwrap();
        drop(holdings);
        let mut holdings = Holdings::load(records(), &configured).unwrap();
        assert_eq!(holdings.lease("s0"), Some(&taken[0]));
        let again = [holdings.take("a", "x/y").unwrap().number, holdings.take("b", "x/y").unwrap().number];
        assert_eq!(again, [3, 1], "the one that came back first goes out first");
        assert!(matches!(holdings.take("a", "x/y"), Err(BuiltinError::Leased(_))));
    }

    #[test]
    fn other_subnets_only_while_nobody_has_addresses() {
        let dir = tempfile::tempdir().unwrap();
        let mut holdings = Holdings::load(Records::new(dir.path().to_owned()), &subnets(&["10.85.0.0/24"])).unwrap();
        holdings.take("a", "x/y").unwrap();
        let error = holdings.hand_over(subnets(&["10.1.0.0/24"])).unwrap_err().to_string();
        assert_eq!(
            error,
            "pod_cidr 10.1.0.0/24: 1 pods have addresses of 10.85.0.0/24; another range can come once they are gone"
        );
        holdings.give_back("a").unwrap();
        assert!(holdings.hand_over(subnets(&["10.1.0.0/24"])).unwrap());
        assert!(!holdings.hand_over(subnets(&["10.1.0.0/24"])).unwrap());
        assert_eq!(holdings.take("a", "x/y").unwrap().addresses[0].address.to_string(), "10.1.0.2");
        drop(holdings);
        let holdings = Holdings::load(Records::new(dir.path().to_owned()), &subnets(&["10.85.0.0/24"])).unwrap();
        assert_eq!((holdings.subnets, holdings.handed_over), (subnets(&["10.1.0.0/24"]), true));
    }

    #[test]
    fn links_are_named_after_the_sandbox() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(link_name("ck", &id), "ck0123456789ab");
        assert_ne!(link_name("ck", "pod-1"), link_name("ck", "pod-2"));
        assert_eq!(link_name("ck", "pod-1").len(), 14);
        assert_eq!(mac(["10.85.0.2".parse().unwrap()].into_iter()), [0x0a, 0x58, 10, 85, 0, 2]);
    }
}
