//! The pods' subnets, and the arithmetic on them. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most addresses of a subnet that are given out; what is beyond is left alone.
pub const ADDRESSES_MAX: u32 = 1 << 20;

/// A network address with its prefix length; no bit after the prefix is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    network: IpAddr,
    prefix: u8,
}

/// Why a text is no subnet that pods can have addresses of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {why}")]
pub struct SubnetError {
    pub text: String,
    pub why: &'static str,
}

impl Subnet {
    /// The subnet that an address is in. A prefix that is too long counts as the longest.
    #[must_use]
    pub fn around(address: IpAddr, prefix: u8) -> Self {
        match address {
            IpAddr::V4(address) => {
                let prefix = prefix.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Self { network: Ipv4Addr::from_bits(address.to_bits() & mask).into(), prefix }
            }
            IpAddr::V6(address) => {
                let prefix = prefix.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Self { network: Ipv6Addr::from_bits(address.to_bits() & mask).into(), prefix }
            }
        }
    }

    /// For the pods of a node: room for a gateway and one pod at least, and not one of the ranges that mean something else.
    ///
    /// # Errors
    /// When the text is no such subnet.
    pub fn for_pods(text: &str) -> Result<Self, SubnetError> {
        let wrong = |why| SubnetError { text: text.chars().take(64).collect(), why };
        let subnet: Self = text.parse()?;
        let (longest, special) = match subnet.network {
            IpAddr::V4(a) => (30, a.is_loopback() || a.is_multicast() || a.is_link_local() || a.octets()[0] == 0),
            IpAddr::V6(a) => {
                let special = a.is_loopback() || a.is_multicast() || a.is_unicast_link_local();
                // ::/8 holds the unspecified address and those of IPv4.
                (126, special || a.octets()[0] == 0)
            }
        };
        if subnet.prefix > longest || subnet.prefix < 8 {
            return Err(wrong("want a prefix of 8 to 30 bits (IPv4) or 8 to 126 bits (IPv6)"));
        }
        if special {
            return Err(wrong("pods cannot have addresses of a loopback, link-local or multicast range"));
        }
        Ok(subnet)
    }

    #[must_use]
    pub fn is_ipv4(self) -> bool {
        self.network.is_ipv4()
    }

    #[must_use]
    pub fn network(self) -> IpAddr {
        self.network
    }

    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        self.is_ipv4() == address.is_ipv4() && Self::around(address, self.prefix) == self
    }

    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// The last address of the subnet.
    #[must_use]
    pub fn last(self) -> IpAddr {
        match self.network {
            IpAddr::V4(network) => {
                Ipv4Addr::from_bits(network.to_bits() | u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0)).into()
            }
            IpAddr::V6(network) => {
                Ipv6Addr::from_bits(network.to_bits() | u128::MAX.checked_shr(self.prefix.into()).unwrap_or(0)).into()
            }
        }
    }

    /// The node's own address, which is the pods' gateway: the first.
    #[must_use]
    pub fn gateway(self) -> IpAddr {
        self.plus(1)
    }

    /// Pods have the numbers 0 to this - 1. IPv4 has a broadcast address at the end.
    #[must_use]
    pub fn room(self) -> u32 {
        let bits = if self.is_ipv4() { 32 - u32::from(self.prefix) } else { 128 - u32::from(self.prefix) };
        let size = 1_u32.checked_shl(bits).unwrap_or(u32::MAX);
        let size = if bits >= 32 { u32::MAX } else { size };
        size.saturating_sub(3).min(ADDRESSES_MAX)
    }

    /// The address of the pod with a number.
    #[must_use]
    pub fn pod(self, number: u32) -> IpAddr {
        self.plus(number.saturating_add(2))
    }

    fn plus(self, offset: u32) -> IpAddr {
        match self.network {
            IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits().wrapping_add(offset)).into(),
            IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits().wrapping_add(offset.into())).into(),
        }
    }
}

/// The numbers that a pod can have in all of these subnets.
#[must_use]
pub fn room(subnets: &[Subnet]) -> u32 {
    subnets.iter().map(|subnet| subnet.room()).min().unwrap_or(0)
}

/// Subnets in ascending order, without those that lie within another.
#[must_use]
pub fn merged(subnets: impl IntoIterator<Item = Subnet>) -> Vec<Subnet> {
    let mut all: Vec<Subnet> = subnets.into_iter().collect();
    // The wider one of two with the same start comes first.
    all.sort();
    let mut kept: Vec<Subnet> = Vec::new();
    for subnet in all {
        if !kept.iter().any(|wider| wider.overlaps(subnet)) {
            kept.push(subnet);
        }
    }
    kept
}

/// A list for pods: one subnet of each family at most, and one at least.
///
/// # Errors
/// Names the first text that is no good.
pub fn pod_subnets(texts: &[String]) -> Result<Vec<Subnet>, SubnetError> {
    let mut subnets: Vec<Subnet> = Vec::new();
    for text in texts {
        let subnet = Subnet::for_pods(text)?;
        if subnets.iter().any(|other| other.is_ipv4() == subnet.is_ipv4()) {
            let why = "there is another subnet of the same family before it";
            return Err(SubnetError { text: text.clone(), why });
        }
        subnets.push(subnet);
    }
    if subnets.is_empty() {
        return Err(SubnetError { text: String::new(), why: "want at least one subnet" });
    }
    Ok(subnets)
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let wrong = |why| SubnetError { text: text.chars().take(64).collect(), why };
        let parts = text.split_once('/');
        let (address, prefix) = parts.ok_or_else(|| wrong("want an address and a prefix length"))?;
        let address: IpAddr = address.parse().map_err(|_| wrong("not an IP address before the slash"))?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= longest && !text.contains('+'));
        let prefix = prefix.ok_or_else(|| wrong("not a prefix length after the slash"))?;
        let subnet = Self::around(address, prefix);
        if subnet.network == address { Ok(subnet) } else { Err(wrong("bits after the prefix are set")) }
    }
}

impl TryFrom<String> for Subnet {
    type Error = SubnetError;

    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().unwrap()
    }

    #[test]
    fn what_pods_can_have() {
        for good in ["10.85.0.0/16", "fd00:85::/64", "192.168.5.0/30", "10.0.0.0/8", "2001:db8::/126"] {
            assert_eq!(Subnet::for_pods(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "10.85.0.0",
            "10.85.0.1/16",
            "10.85.0.0/33",
            "10.85.0.0/31",
            "10.85.0.0/-1",
            "10.85.0.0/+16",
            "10.0.0.0/7",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "224.0.0.0/8",
            "0.0.0.0/8",
            "::/64",
            "fe80::/64",
            "ff00::/16",
            "fd00::/127",
            "::ffff:10.0.0.0/112",
            "10.85.0.0/16/1",
            "x/16",
            "fd00:85::/129",
        ] {
            assert!(Subnet::for_pods(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn addresses_of_a_subnet() {
        let small = subnet("10.1.2.0/29");
        assert_eq!((small.gateway().to_string(), small.room()), ("10.1.2.1".into(), 5));
        assert_eq!((small.pod(0).to_string(), small.pod(4).to_string()), ("10.1.2.2".into(), "10.1.2.6".into()));
        assert_eq!(small.last().to_string(), "10.1.2.7");
        let six = subnet("fd00:85::/64");
        assert_eq!((six.room(), six.pod(0).to_string()), (ADDRESSES_MAX, "fd00:85::2".into()));
        assert_eq!(six.last().to_string(), "fd00:85::ffff:ffff:ffff:ffff");
        assert_eq!(room(&[small, six]), 5);
        assert_eq!(subnet("10.0.0.0/30").room(), 1);
    }

    #[test]
    fn overlaps_and_merging() {
        assert!(subnet("10.0.0.0/8").overlaps(subnet("10.85.0.0/16")));
        assert!(subnet("10.85.1.0/24").overlaps(subnet("10.85.0.0/16")));
        assert!(!subnet("10.84.0.0/16").overlaps(subnet("10.85.0.0/16")));
        assert!(!subnet("0.0.0.0/0").overlaps(subnet("fd00::/8")));
        let all = ["10.85.1.0/24", "10.0.0.0/8", "fd00::/8", "192.168.0.0/16", "10.0.0.0/16"].map(subnet);
        let kept: Vec<String> = merged(all).iter().map(ToString::to_string).collect();
        assert_eq!(kept, ["10.0.0.0/8", "192.168.0.0/16", "fd00::/8"]);
    }

    #[test]
    fn one_of_each_family() {
        let list = |texts: &[&str]| pod_subnets(&texts.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(list(&["10.85.0.0/16", "fd00:85::/64"]).unwrap().len(), 2);
        assert!(list(&[]).is_err());
        assert!(list(&["10.85.0.0/16", "10.86.0.0/16"]).unwrap_err().to_string().contains("10.86.0.0/16"));
    }

    proptest! {
        #[test]
        fn pods_are_inside_and_differ_from_gateway_and_ends(
            bits in any::<u32>(), prefix in 8_u8..=30, number in any::<u32>()
        ) {
            let subnet = Subnet::around(Ipv4Addr::from_bits(bits).into(), prefix);
            let pod = subnet.pod(number % subnet.room());
            prop_assert!(subnet.contains(pod));
            prop_assert!(![subnet.network(), subnet.gateway(), subnet.last()].contains(&pod));
        }

        #[test]
        fn text_and_back(bits in any::<u128>(), prefix in 0_u8..=128) {
            let subnet = Subnet::around(Ipv6Addr::from_bits(bits).into(), prefix);
            prop_assert_eq!(subnet.to_string().parse::<Subnet>().unwrap(), subnet);
        }
    }
}
