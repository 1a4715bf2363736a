//! Every key, with what it means: the one table behind the sample file, the unknown-key check and the reload rules.

/// A key that an operator may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// The dotted name; `*` stands for a name that the operator chooses.
    pub name: &'static str,
    /// Plain sentences for the sample file: what it does, its unit and its bounds.
    pub doc: &'static str,
    /// Whether a reload applies it without a restart.
    pub live: bool,
}

impl Key {
    /// The name without its section.
    #[must_use]
    pub fn leaf(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }

    /// The section that it is in, dotted.
    #[must_use]
    pub fn section(&self) -> &'static str {
        self.name.rsplit_once('.').map_or("", |(section, _)| section)
    }
}

const fn key(name: &'static str, doc: &'static str) -> Key {
    Key { name, doc, live: false }
}

const fn live(name: &'static str, doc: &'static str) -> Key {
    Key { name, doc, live: true }
}

/// In the order of the sample file.
pub const KEYS: &[Key] = &[
    key(
        "server.listen",
        "The unix socket of the CRI, for the kubelet's containerRuntimeEndpoint. An absolute path of at most 107 bytes.",
    ),
    key("server.root", "Images and records. It must survive a reboot, so it may not lie below `state`."),
    key(
        "server.state",
        "Bundles, pinned namespaces and sockets of running pods. Best on a tmpfs: a reboot should empty it.",
    ),
    key(
        "server.max_request_size",
        "Largest request taken, in bytes: 16777216 (the size of the kubelet's own limit) to 268435456.",
    ),
    live(
        "runtime.default",
        "Handler of pods that name no RuntimeClass: one of the handlers below, or a program's name.\n\
         Empty: the first of crun, runc, youki that is found in PATH.",
    ),
    live(
        "runtime.cdi_spec_dirs",
        "Folders of Container Device Interface files (.json, .yaml); a later folder's device replaces an earlier one's.\n\
         Their hooks run as root: a file that others than root may write to is passed over, and named in Status.",
    ),
    live("runtime.handlers.*.path", "The runtime's binary: an absolute path, or a name that is looked up in PATH."),
    live(
        "runtime.handlers.*.type",
        "How the runtime is spoken to: \"oci\" (its command line) or \"shim\" (a containerd shim, version 2).",
    ),
    live(
        "runtime.handlers.*.allowed_annotations",
        "Pod annotations that are handed to the runtime: exact keys, or a prefix that ends in `*`.",
    ),
    live("runtime.handlers.*.privileged_without_host_devices", "Privileged containers do not get the host's devices."),
    key(
        "cgroup.driver",
        "Who makes cgroups: \"systemd\", \"cgroupfs\", or \"auto\" (systemd where it is process 1).\n\
         The kubelet asks for it at its start and follows it.",
    ),
    key(
        "cgroup.parent",
        "Cgroup of pods that name no parent: an absolute path, or with systemd a slice.\n\
         Empty: \"/cricket\", or \"cricket.slice\" with systemd.",
    ),
    key(
        "network.mode",
        "Who makes the pods' network: \"cni\" (plugins), \"builtin\" (cricket itself, with no other program), or \"auto\" (plugins\n\
         where `conf_dir` has a configuration, else builtin).",
    ),
    key(
        "network.builtin_subnets",
        "Subnets of the builtin network, one of IPv4 and one of IPv6 at most, until the kubelet hands over pod CIDRs.\n\
         They must not overlap a network that the node has a route to.",
    ),
    key(
        "network.builtin_cluster_cidrs",
        "Networks of other nodes' pods: what pods of the builtin network send there keeps the pod's address. Packets to\n\
         anywhere else leave with the node's address.",
    ),
    key("network.conf_dir", "Where CNI configurations are looked for; the first by name is used."),
    key("network.bin_dirs", "Where CNI plugins are looked for, in this order."),
    key("network.cache_dir", "libcni's cache of results, which are under `results` in it."),
    key("network.plugin_timeout", "A call of a CNI plugin that takes longer is killed, in seconds: 1 to 3600."),
    live(
        "image.registries_conf",
        "Mirrors, blocked registries and short names (containers-registries.conf(5)). This and the other files of this\n\
         section are read again by the next pull after they change; a bad one leaves what was in force.",
    ),
    live("image.registries_conf_dir", "Drop-ins to the file above."),
    live(
        "image.certs_d",
        "Certificates and hosts.toml of registries, in a folder for each host (host, host:port, host_port_ or _default).\n\
         The first folder that has a hosts.toml of the host counts, and only for names that registries.conf has no rule for.\n\
         Where hosts.toml names no proxy, HTTPS_PROXY, HTTP_PROXY and NO_PROXY of the daemon's environment count.",
    ),
    live(
        "image.auth_file",
        "Logins of the node (containers-auth.json(5), or Docker's config.json). The kubelet's come first. Helper programs\n\
         that it names are not run.",
    ),
    live(
        "image.auth_dir",
        "Logins for pods of one namespace: <namespace>.json, or <namespace>-<sha256 of the image's name>.json as CRI-O's\n\
         credential provider writes them (for that, /etc/crio/auth).",
    ),
    live(
        "image.signature_policy",
        "Which images may be pulled (containers-policy.json(5)). The file of the default may be missing: then any may.",
    ),
    live(
        "image.signature_policy_dir",
        "Policies for pods of one namespace, <namespace>.json, in place of the one above.",
    ),
    live(
        "image.unnamed_signatures",
        "Whether a signature may count that names no repository, as cosign 3 makes them by default. It vouches for a digest\n\
         alone: who controls the registry can serve every image that the key has signed under each name that the policy\n\
         has the key for.",
    ),
    key("image.max_concurrent_downloads", "Layers downloaded at the same time, over all pulls: 1 to 64."),
    live(
        "image.pull_progress_timeout",
        "A download that moved no byte for this long is given up, in seconds: 1 to 86400.",
    ),
    live(
        "image.pull_min_rate",
        "The download of a layer that is slower, in bytes per second over the length of `pull_progress_timeout`, is given up:\n\
         0 to 1073741824. 0: any speed will do.",
    ),
    live("image.pinned", "Images that the kubelet must not collect: names, or globs with `*`."),
    key(
        "streaming.listen",
        "Where the server for exec, attach and port-forward listens: an IP address and a port, 0 for any free one.\n\
         The kubelet must reach it.",
    ),
    key(
        "streaming.advertise",
        "Host in the URLs that are given out: a name or an IP address. Empty: the address of `listen`, which must then\n\
         be a real one, not 0.0.0.0 or [::].",
    ),
    key(
        "streaming.tls_cert",
        "Certificate chain of the server (PEM); URLs are then https. Empty: no TLS. The file is read anew at SIGHUP.",
    ),
    key("streaming.tls_key", "Its key (PEM). Read anew at SIGHUP."),
    key(
        "streaming.tls_client_ca",
        "Authorities (PEM): clients must show a certificate of one of them. Empty: none is asked for. Read anew at SIGHUP.",
    ),
    key(
        "streaming.idle_timeout",
        "A session through which nothing goes for so long is ended, in seconds: 1 to 604800. Pings do not count.\n\
         A restart of the daemon ends all sessions; containers run on.",
    ),
    key(
        "streaming.creation_timeout",
        "How long a client may take to open the streams of a session, in seconds: 1 to 3600.",
    ),
    live("log.level", "error, warn, info, debug, trace, or a filter as in \"info,cricket::network=debug\"."),
    key("log.format", "The shape of the daemon's own log: \"text\" or \"json\"."),
    key(
        "log.max_line_size",
        "Lines of a container that are longer are split into partial records, in bytes: 256 to 1048576.",
    ),
];

/// What a section is for, where its keys alone do not say it.
pub(super) const SECTIONS: &[(&str, &str)] = &[
    ("server", "The daemon itself."),
    (
        "runtime",
        "OCI runtimes. The handler of a RuntimeClass is a [runtime.handlers.<name>]; runtimes found in PATH need none.",
    ),
    ("cgroup", "Control groups."),
    ("network", "Pod networks, made by CNI plugins or by cricket itself."),
    ("image", "Pulling and keeping images."),
    ("streaming", "The server behind kubectl exec, attach and port-forward."),
    ("log", "The daemon's log, which goes to standard error, and the containers' logs."),
];

/// Whether a section or a key has this name; `*` in the table matches any one part.
pub(super) fn find<'a>(path: &[&str], of: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let matches = |name: &str| {
        let parts: Vec<&str> = name.split('.').collect();
        parts.len() == path.len() && parts.iter().zip(path).all(|(want, is)| *want == "*" || want == is)
    };
    of.into_iter().find(|name| matches(name))
}

/// Every section, also those that only lead to others (`runtime.handlers`).
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter().flat_map(|key| key.name.match_indices('.').map(|(at, _)| &key.name[..at]))
}
