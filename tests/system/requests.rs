//! Sandbox and container configurations as a kubelet would send them, to be changed by each test where it matters.

use cri_proto::runtime::v1 as cri;

use crate::node::Node;

/// The test image with a shell.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

/// An image by name.
pub fn image(name: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: name.to_owned(), ..Default::default() }
}

/// A pod on the pod network whose containers have pid namespaces of their own, with a log folder in the node's.
pub fn pod(node: &Node, name: &str) -> cri::PodSandboxConfig {
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            namespace: "lane".to_owned(),
            attempt: 3,
        }),
        hostname: name.to_owned(),
        log_directory: node.path(&format!("logs/{name}")).to_string_lossy().into_owned(),
        labels: [("label".to_owned(), name.to_owned())].into(),
        annotations: [("annotation".to_owned(), "kept: as = given".to_owned())].into(),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(cri::NamespaceMode::Pod, cri::NamespaceMode::Container)),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The same on the host's network, which is quicker.
pub fn host_pod(node: &Node, name: &str) -> cri::PodSandboxConfig {
    with_namespaces(pod(node, name), namespaces(cri::NamespaceMode::Node, cri::NamespaceMode::Container))
}

/// Namespaces of a pod or container; ipc is the pod's.
pub fn namespaces(network: cri::NamespaceMode, pid: cri::NamespaceMode) -> cri::NamespaceOption {
    cri::NamespaceOption { network: network.into(), pid: pid.into(), ..Default::default() }
}

/// Changes a pod's namespaces.
pub fn with_namespaces(mut pod: cri::PodSandboxConfig, options: cri::NamespaceOption) -> cri::PodSandboxConfig {
    let security = pod.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options = Some(options);
    pod
}

/// A busybox container of this pod that runs a shell script and logs to `<name>.log`.
pub fn container(pod: &cri::PodSandboxConfig, name: &str, script: &str) -> cri::ContainerConfig {
    let options = pod.linux.as_ref().and_then(|linux| linux.security_context.as_ref()?.namespace_options.clone());
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.to_owned(), attempt: 2 }),
        image: Some(image(BUSYBOX)),
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        log_path: format!("{name}.log"),
        labels: [("label".to_owned(), name.to_owned())].into(),
        annotations: [("annotation".to_owned(), "kept".to_owned())].into(),
        linux: Some(cri::LinuxContainerConfig {
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: options,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The security context of a container, to be changed.
pub fn security(container: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    container.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The resources of a container, to be changed.
pub fn resources(container: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerResources {
    container.linux.get_or_insert_default().resources.get_or_insert_default()
}

/// A bind mount.
pub fn bind(host: &str, inside: &str) -> cri::Mount {
    cri::Mount { host_path: host.to_owned(), container_path: inside.to_owned(), ..Default::default() }
}
