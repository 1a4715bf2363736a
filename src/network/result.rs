//! Results of ADD: made fit for the next plugin of the chain, and read for what a pod's status shows.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::conf::Version;

/// What the network gave a pod; stored in the pod's record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// Addresses of the pod's interface in the order of the result: the first is the primary one.
    pub ips: Vec<IpAddr>,
    pub interfaces: Vec<Interface>,
    /// The result of the last plugin, as it was printed.
    pub result: Value,
}

/// An interface of the result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    #[serde(default)]
    pub mac: String,
    /// The namespace that it is in; empty for the host's end.
    #[serde(default)]
    pub sandbox: String,
}

/// Why a result says nothing that a pod can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    #[error("cniVersion {0:?} is none that cricket speaks")]
    Version(String),
    #[error("{0} does not have the form of the CNI specification")]
    Form(&'static str),
    #[error("ips[{index}].interface is {interface}, but there are {count} interfaces")]
    Index { index: usize, interface: i64, count: usize },
    #[error("ips[{index}].address {address:?} is no address with a prefix length")]
    Address { index: usize, address: String },
    #[error("no address for {0}")]
    NoAddress(String),
}

/// What came with 1.1.0: fields of an interface, and of a route.
const NEW_OF_INTERFACES: [&str; 3] = ["mtu", "socketPath", "pciID"];
const NEW_OF_ROUTES: [&str; 5] = ["mtu", "advmss", "priority", "table", "scope"];

/// Brings a result to the version of the configuration, in which the next plugin reads it. A result without a version has
/// the configuration's. Fields that the version does not have are left out.
///
/// # Errors
/// When the result has a version that cricket does not speak.
pub fn normalise(result: &mut Map<String, Value>, version: Version) -> Result<(), ResultError> {
    let own = match result.get("cniVersion") {
        None => version,
        Some(Value::String(text)) if text.is_empty() => version,
        Some(Value::String(text)) => {
            Version::parse(text).ok_or_else(|| ResultError::Version(text.chars().take(64).collect()))?
        }
        Some(_) => return Err(ResultError::Form("cniVersion")),
    };
    if (own < Version::V1_0_0) != (version < Version::V1_0_0) {
        // From 1.0.0 on an address does not say its family in a field of its own.
        for ip in result.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(ip) = ip.as_object_mut() else { return Err(ResultError::Form("ips")) };
            if version < Version::V1_0_0 {
                let six = ip.get("address").and_then(Value::as_str).is_some_and(|address| address.contains(':'));
                ip.insert("version".into(), if six { "6" } else { "4" }.into());
            } else {
                ip.remove("version");
            }
        }
    }
    if own >= Version::V1_1_0 && version < Version::V1_1_0 {
        for (list, fields) in [("interfaces", &NEW_OF_INTERFACES[..]), ("routes", &NEW_OF_ROUTES)] {
            for entry in result.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                let Some(entry) = entry.as_object_mut() else { return Err(ResultError::Form(list)) };
                entry.retain(|field, _| !fields.contains(&field.as_str()));
            }
        }
    }
    result.insert("cniVersion".into(), version.as_str().into());
    Ok(())
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    interface: Option<i64>,
}

/// Reads what a pod's status shows out of the last result of a chain.
///
/// # Errors
/// When the result has not the form of the specification, or holds no address of the interface.
pub fn read(network: &str, interface: &str, result: Map<String, Value>) -> Result<Attachment, ResultError> {
    let interfaces: Vec<Interface> = list(&result, "interfaces")?;
    let listed: Vec<Ip> = list(&result, "ips")?;
    let mut ips = Vec::new();
    for (index, ip) in listed.iter().enumerate() {
        if let Some(number) = ip.interface {
            let count = interfaces.len();
            let owner = usize::try_from(number).ok().and_then(|number| interfaces.get(number));
            let owner = owner.ok_or(ResultError::Index { index, interface: number, count })?;
            if owner.name != interface || owner.sandbox.is_empty() {
                continue;
            }
        }
        let address = parse_cidr(&ip.address)
            .ok_or_else(|| ResultError::Address { index, address: ip.address.chars().take(64).collect() })?;
        if !ips.contains(&address) {
            ips.push(address);
        }
    }
    if ips.is_empty() {
        return Err(ResultError::NoAddress(interface.to_owned()));
    }
    Ok(Attachment { network: network.to_owned(), ips, interfaces, result: Value::Object(result) })
}

fn list<T: serde::de::DeserializeOwned>(result: &Map<String, Value>, key: &'static str) -> Result<Vec<T>, ResultError> {
    match result.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(value) => Vec::deserialize(value).map_err(|_| ResultError::Form(key)),
    }
}

fn parse_cidr(text: &str) -> Option<IpAddr> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let legal = prefix.parse::<u8>().is_ok_and(|prefix| prefix <= longest) && !address.is_unspecified();
    legal.then_some(address)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(object) = value else { panic!("not an object") };
        object
    }

    fn ips(value: Value) -> Result<Vec<String>, ResultError> {
        read("pods", "eth0", object(value)).map(|a| a.ips.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn addresses_of_the_pod_s_interface_in_order() {
        let interfaces = json!([
            {"name": "cni0", "mac": "00:00:5e:00:53:01"},
            {"name": "eth0", "sandbox": "/run/ns/x"},
            {"name": "net1", "sandbox": "/run/ns/x"},
            {"name": "eth0"},
        ]);
        for (list, wanted) in [
            (
                json!([{"address": "fd00::5/64", "interface": 1}, {"address": "10.0.0.5/24", "interface": 1}]),
                "fd00::5 10.0.0.5",
            ),
            (
                json!([{"address": "10.0.0.1/24", "interface": 0}, {"address": "10.0.0.5/24", "interface": 1}]),
                "10.0.0.5",
            ),
            (
                json!([{"address": "10.0.0.6/24", "interface": 2}, {"address": "10.0.0.5/24", "interface": 1}]),
                "10.0.0.5",
            ),
            (
                json!([{"address": "10.0.0.5/24", "interface": 1}, {"address": "10.0.0.5/24", "interface": 1}]),
                "10.0.0.5",
            ),
            (json!([{"version": "4", "address": "10.0.0.5/24", "gateway": "10.0.0.1"}]), "10.0.0.5"),
        ] {
            let found = ips(json!({"interfaces": interfaces, "ips": list})).unwrap();
            assert_eq!(found.join(" "), wanted, "{list}");
        }
        assert_eq!(ips(json!({"ips": [{"address": "10.0.0.5/32"}]})).unwrap(), ["10.0.0.5"]);
    }

    #[test]
    fn results_that_cannot_be_used() {
        for bad in [
            json!({}),
            json!({"ips": null}),
            json!({"ips": []}),
            json!({"ips": {}}),
            json!({"ips": [{"address": 5}]}),
            json!({"ips": [{"address": "10.0.0.5"}]}),
            json!({"ips": [{"address": "10.0.0.5/33"}]}),
            json!({"ips": [{"address": "0.0.0.0/0"}]}),
            json!({"ips": [{"address": "10.0.0.5/24", "interface": 0}]}),
            json!({"interfaces": [{"name": "eth0", "sandbox": "x"}], "ips": [{"address": "10.0.0.5/24", "interface": -1}]}),
            json!({"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.5/24", "interface": 0}]}),
            json!({"interfaces": [5], "ips": [{"address": "10.0.0.5/24"}]}),
        ] {
            assert!(ips(bad.clone()).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn results_are_brought_to_the_configuration_s_version() {
        for (result, version, wanted) in [
            (
                json!({"ips": [{"address": "10.0.0.5/24"}]}),
                Version::V1_0_0,
                json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}]}),
            ),
            (
                json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.5/24"}]}),
                Version::V1_1_0,
                json!({"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.5/24"}]}),
            ),
            (
                json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.5/24"}, {"address": "fd00::1/64"}]}),
                Version::V0_4_0,
                json!({"cniVersion": "0.4.0", "ips": [
                    {"version": "4", "address": "10.0.0.5/24"}, {"version": "6", "address": "fd00::1/64"}]}),
            ),
            (json!({"cniVersion": "0.3.0"}), Version::V0_4_0, json!({"cniVersion": "0.4.0"})),
            (
                json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mtu": 1400, "pciID": "0"}],
                    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1", "priority": 5}], "dns": {"search": ["a"]}}),
                Version::V1_0_0,
                json!({"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}],
                    "routes": [{"dst": "0.0.0.0/0", "gw": "10.0.0.1"}], "dns": {"search": ["a"]}}),
            ),
            (
                json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mtu": 1400}]}),
                Version::V1_1_0,
                json!({"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mtu": 1400}]}),
            ),
        ] {
            let mut result = object(result);
            normalise(&mut result, version).unwrap();
            assert_eq!(Value::Object(result), wanted);
        }
        for bad in [
            json!({"cniVersion": "0.2.0"}),
            json!({"cniVersion": 1}),
            json!({"cniVersion": "x"}),
            json!({"cniVersion": "1.1.0", "routes": [5]}),
        ] {
            assert!(normalise(&mut object(bad), Version::V1_0_0).is_err());
        }
    }
}
