//! Requests that must be refused: each error names the field and the value, and nothing is left behind.

use anyhow::{Context as _, Result, ensure};
use cri_proto::runtime::v1 as cri;
use tonic::{Code, Status};

use crate::client::{Client, refused};
use crate::ledger::Ledger;
use crate::lifecycle::host_node;
use crate::node::Node;
use crate::requests::{bind, container, host_pod, image, pod, security};

crate::once!(pods, containers, images, nothing_is_known_of_strangers);

/// A refusal that is the request's own fault.
const FAULT: &[Code] = &[Code::InvalidArgument];

struct Case<T: 'static> {
    name: &'static str,
    change: fn(&mut T),
    codes: &'static [Code],
    words: &'static [&'static str],
}

/// Changes to a good pod, each of which must be refused.
const BAD_PODS: &[Case<cri::PodSandboxConfig>] = &[
    Case { name: "no metadata", change: |pod| pod.metadata = None, codes: FAULT, words: &["metadata"] },
    Case {
        name: "no name",
        change: |pod| pod.metadata.get_or_insert_default().name.clear(),
        codes: FAULT,
        words: &["metadata.name"],
    },
    Case {
        name: "group without user",
        change: |pod| {
            let linux = pod.linux.get_or_insert_default().security_context.get_or_insert_default();
            linux.run_as_group = Some(cri::Int64Value { value: 4321 });
        },
        codes: FAULT,
        words: &["run_as_group", "run_as_user"],
    },
    Case {
        name: "a sysctl of the host's network",
        change: |pod| {
            let linux = pod.linux.get_or_insert_default();
            linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default().network = 2;
            linux.sysctls = [("net.ipv4.ip_forward".into(), "0".into())].into();
        },
        codes: FAULT,
        words: &["net.ipv4.ip_forward"],
    },
    Case {
        name: "a sysctl that is none",
        change: |pod| {
            pod.linux.get_or_insert_default().sysctls = [("kernel.shm_../../x".into(), "0".into())].into();
        },
        codes: &[],
        words: &["kernel.shm_../../x"],
    },
    Case {
        name: "a host port twice",
        change: |pod| {
            let port = cri::PortMapping { container_port: 80, host_port: 18181, ..Default::default() };
            pod.port_mappings = vec![port.clone(), cri::PortMapping { container_port: 81, ..port }];
        },
        codes: FAULT,
        words: &["port_mappings", "18181"],
    },
    Case {
        name: "a port that is none",
        change: |pod| {
            pod.port_mappings = vec![cri::PortMapping { container_port: 80, host_port: 70000, ..Default::default() }];
        },
        codes: FAULT,
        words: &["host_port", "70000"],
    },
    Case {
        name: "a hostname that is none",
        change: |pod| pod.hostname = "a\nb".into(),
        codes: FAULT,
        words: &["hostname"],
    },
    Case {
        name: "a name server with a line break",
        change: |pod| {
            pod.dns_config = Some(cri::DnsConfig { servers: vec!["1.1.1.1\noptions x".into()], ..Default::default() })
        },
        codes: FAULT,
        words: &["dns_config"],
    },
    Case {
        name: "a relative log folder",
        change: |pod| pod.log_directory = "relative/logs".into(),
        codes: FAULT,
        words: &["log_directory", "relative/logs"],
    },
    Case {
        name: "a cgroup parent that climbs",
        change: |pod| pod.linux.get_or_insert_default().cgroup_parent = "/../../escaped".into(),
        codes: FAULT,
        words: &["cgroup_parent", "/../../escaped"],
    },
];

async fn pods() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    // The network's first pod makes the bridge and its chains.
    client.run_pod(&pod(&node, "first")).await?;
    client.clear().await?;
    let before = Ledger::take(&node).await?;
    refused(client.run_pod_with(&pod(&node, "handler"), "no-such-handler").await, &[], &["no-such-handler"])?;
    let nothing = cri::RunPodSandboxRequest { config: None, ..Default::default() };
    refused(client.runtime.clone().run_pod_sandbox(nothing).await, FAULT, &["config"])?;
    for case in BAD_PODS {
        let mut config = pod(&node, "bad");
        (case.change)(&mut config);
        refused(client.run_pod(&config).await, case.codes, case.words).context(case.name)?;
        ensure!(client.pods().await?.is_empty(), "{}: a pod is listed", case.name);
    }
    before.assert_same(&node).await
}

/// Changes to a good container, each of which must be refused.
const BAD_CONTAINERS: &[Case<cri::ContainerConfig>] = &[
    Case { name: "no metadata", change: |own| own.metadata = None, codes: FAULT, words: &["metadata"] },
    Case {
        name: "no name",
        change: |own| own.metadata.get_or_insert_default().name.clear(),
        codes: FAULT,
        words: &["metadata.name"],
    },
    Case { name: "no image", change: |own| own.image = None, codes: FAULT, words: &["image"] },
    Case {
        name: "an image that is not present",
        change: |own| own.image = Some(image("registry.k8s.io/never/pulled:9")),
        codes: &[],
        words: &["registry.k8s.io/never/pulled:9"],
    },
    Case {
        name: "two mounts of one path",
        change: |own| own.mounts = vec![bind("/tmp", "/twice"), bind("/var", "/twice/")],
        codes: FAULT,
        words: &["mounts", "/twice"],
    },
    Case {
        name: "a relative mount",
        change: |own| own.mounts = vec![bind("/tmp", "not/absolute")],
        codes: FAULT,
        words: &["container_path", "not/absolute"],
    },
    Case {
        name: "a group without a user",
        change: |own| security(own).run_as_group = Some(cri::Int64Value { value: 4321 }),
        codes: FAULT,
        words: &["run_as_group", "run_as_user"],
    },
    Case {
        name: "a user that nobody knows",
        change: |own| security(own).run_as_username = "nobody-at-all".into(),
        codes: &[],
        words: &["nobody-at-all"],
    },
    Case {
        name: "a capability that is none",
        change: |own| {
            security(own).capabilities =
                Some(cri::Capability { add_capabilities: vec!["FLY".into()], ..Default::default() });
        },
        codes: FAULT,
        words: &["FLY"],
    },
    Case {
        name: "an environment name that is none",
        change: |own| own.envs = vec![cri::KeyValue { key: "A=B".into(), value: Vec::new() }],
        codes: FAULT,
        words: &["env", "A=B"],
    },
    Case {
        name: "privileged in a pod that is not",
        change: |own| security(own).privileged = true,
        codes: &[],
        words: &["privileged"],
    },
    Case {
        name: "a seccomp profile that is not there",
        change: |own| {
            security(own).seccomp = Some(cri::SecurityProfile {
                profile_type: cri::security_profile::ProfileType::Localhost.into(),
                localhost_ref: "/no/such/profile.json".into(),
            });
        },
        codes: &[],
        words: &["/no/such/profile.json"],
    },
    Case {
        name: "a device that is not there",
        change: |own| {
            let path = "/dev/no-such-device".to_owned();
            own.devices =
                vec![cri::Device { host_path: path.clone(), container_path: path, permissions: "rwm".into() }];
        },
        codes: &[],
        words: &["/dev/no-such-device"],
    },
    Case {
        name: "a log outside of the pod's folder",
        change: |own| own.log_path = "../escaped.log".into(),
        codes: FAULT,
        words: &["log_path", "../escaped.log"],
    },
];

async fn containers() -> Result<()> {
    let (node, client, sandbox, pod) = host_node("crun").await?;
    let before = Ledger::take(&node).await?;
    let request = cri::CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: None,
        sandbox_config: Some(sandbox.clone()),
    };
    refused(client.runtime.clone().create_container(request).await, FAULT, &["config"])?;
    for case in BAD_CONTAINERS {
        let mut config = container(&sandbox, "bad", "sleep 1000");
        (case.change)(&mut config);
        refused(client.create(&pod, &config, &sandbox).await, case.codes, case.words).context(case.name)?;
        ensure!(client.containers().await?.is_empty(), "{}: a container is listed", case.name);
    }
    before.assert_same(&node).await
}

async fn images() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    let missing = "registry.k8s.io/e2e-test-images/busybox:no-such-tag";
    // The first request opens a connection, which stays for the next one.
    refused(client.pull(missing).await, &[], &[missing])?;
    let before = Ledger::take(&node).await?;
    for name in [
        "registry.k8s.io/UPPER/Case:1",
        "registry.k8s.io/a:tag with spaces",
        "registry.k8s.io/a@sha256:short",
        "../../etc",
    ] {
        refused(client.pull(name).await, FAULT, &[name]).context(name)?;
    }
    refused(client.pull("").await, FAULT, &["image"])?;
    let nothing = cri::PullImageRequest::default();
    refused(client.image.clone().pull_image(nothing).await, FAULT, &["image"])?;
    refused(client.pull(missing).await, &[], &[missing])?;
    ensure!(client.images().await?.is_empty(), "an image is listed");
    before.assert_same(&node).await
}

async fn nothing_is_known_of_strangers() -> Result<()> {
    let mut node = Node::new("crun").await?;
    let client = node.client().await?;
    let id = "fedcba9876543210".repeat(4);
    let sandbox = host_pod(&node, "pod");
    let not_found = &[Code::NotFound];
    let named: &[&str] = &[&id[..12]];
    refused(client.pod_status(&id).await, not_found, named)?;
    refused(client.status(&id).await, not_found, named)?;
    refused(client.start(&id).await, not_found, named)?;
    refused(client.create(&id, &container(&sandbox, "own", "true"), &sandbox).await, not_found, named)?;
    refused(update(&client, &id).await, not_found, named)?;
    let request = cri::ReopenContainerLogRequest { container_id: id.clone() };
    refused(client.runtime.clone().reopen_container_log(request).await, not_found, named)?;
    // Removal of what is not there is no error, and an image that is not there is no error either.
    client.stop_pod(&id).await?;
    client.remove_pod(&id).await?;
    client.stop(&id, 1).await?;
    client.remove(&id).await?;
    client.remove_image(&id).await?;
    ensure!(client.image_status(&id).await?.is_none());
    let filter = cri::ContainerFilter { id, ..Default::default() };
    let request = cri::ListContainersRequest { filter: Some(filter) };
    ensure!(client.runtime.clone().list_containers(request).await?.into_inner().containers.is_empty());
    Ok(())
}

async fn update(client: &Client, id: &str) -> Result<(), Status> {
    let request = cri::UpdateContainerResourcesRequest { container_id: id.to_owned(), ..Default::default() };
    match client.runtime.clone().update_container_resources(request).await {
        // Until that call is built.
        Err(status) if status.code() == Code::Unimplemented => Err(Status::not_found(id)),
        other => other.map(drop),
    }
}
