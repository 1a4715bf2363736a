//! Fake trees in a temporary folder; the tests that need root use cgroups of their own.

use std::fs;
use std::time::Duration;

use super::*;

const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,seclabel,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
90 80 0:32 /other /run/ctr\\040one/sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
";
const V1_OWN: &str = "9:name=systemd:/\n8:pids:/\n4:memory:/x\n1:cpu,cpuacct:/\n0::/\n";
const V2: &str = "25 30 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";

fn machine(mountinfo: &str, own: &str) -> (tempfile::TempDir, CgroupLayout) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("proc/self")).unwrap();
    fs::write(root.path().join("proc/self/mountinfo"), mountinfo).unwrap();
    fs::write(root.path().join("proc/self/cgroup"), own).unwrap();
    // A mount that another one covers has no folder; these are all to be seen.
    for point in mountinfo.lines().filter_map(|line| line.split(' ').nth(4)) {
        fs::create_dir_all(root.path().join(point.trim_start_matches('/').replace("\\040", " "))).unwrap();
    }
    let layout = CgroupLayout::detect(root.path()).unwrap();
    (root, layout)
}

fn path(text: &str) -> CgroupPath {
    CgroupPath::new(text).unwrap()
}

#[test]
fn each_layout_is_told_apart() {
    let (root, v1) = machine(V1, V1_OWN);
    assert_eq!((v1.version(), v1.is_hybrid()), (CgroupVersion::V1, true));
    let cgroup = v1.cgroup(&path("/kubepods/pod1"));
    let at = |hierarchy: &str| root.path().join(format!("sys/fs/cgroup/{hierarchy}/kubepods/pod1"));
    assert_eq!(cgroup.dir("memory"), Some(at("memory").as_path()));
    assert_eq!(cgroup.dir("cpuacct"), Some(at("cpu,cpuacct").as_path()));
    assert_eq!(cgroup.dir("hugetlb"), None);
    assert_eq!(cgroup.dirs.len(), 5, "the copy inside a container's rootfs does not count: {cgroup:?}");

    let (root, v2) = machine(V2, "0::/init.scope\n");
    assert_eq!((v2.version(), v2.is_hybrid()), (CgroupVersion::V2, false));
    assert_eq!(v2.cgroup(&path("/a")).dir("memory"), Some(root.path().join("sys/fs/cgroup/a").as_path()));

    let legacy = V2.replace("/sys/fs/cgroup rw", "/sys/fs/cgroup/unified rw")
        + "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
    assert_eq!(machine(&legacy, "").1.version(), CgroupVersion::V2, "systemd's named hierarchy has no controller");

    // The kernel lists no cpu hierarchy for us: the mount is another namespace's.
    let (_root, partial) = machine(V1, "4:memory:/\n0::/\n");
    assert_eq!(partial.cgroup(&path("/a")).dir("cpu"), None);

    let none = tempfile::tempdir().unwrap();
    assert!(matches!(CgroupLayout::detect(none.path()), Err(CgroupError::NotMounted { .. })));
}

#[test]
fn placements_name_what_the_runtime_makes() {
    let id = "f00d";
    for (driver, parent, expected, folder) in [
        (Driver::Cgroupfs, "/kubepods/pod1", "/kubepods/pod1/cricket-f00d", "/kubepods/pod1/cricket-f00d"),
        (Driver::Cgroupfs, "//kubepods//pod1/", "/kubepods/pod1/cricket-f00d", "/kubepods/pod1/cricket-f00d"),
        (Driver::Cgroupfs, "", "/default/cricket-f00d", "/default/cricket-f00d"),
        (Driver::Cgroupfs, "/", "/cricket-f00d", "/cricket-f00d"),
        (
            Driver::Systemd,
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
            "kubepods-burstable-pod1_2.slice:cricket:f00d",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cricket-f00d.scope",
        ),
        (Driver::Systemd, "/test.slice", "test.slice:cricket:f00d", "/test.slice/cricket-f00d.scope"),
        (Driver::Systemd, "test.slice", "test.slice:cricket:f00d", "/test.slice/cricket-f00d.scope"),
        (Driver::Systemd, "/-.slice", "-.slice:cricket:f00d", "/cricket-f00d.scope"),
    ] {
        let placement = Placement::new(driver, parent, "/default").unwrap();
        assert_eq!(placement.cgroups_path(id).as_deref(), Ok(expected), "{parent}");
        assert_eq!(placement.container(id).unwrap().as_str(), folder, "{parent}");
    }
    assert_eq!(Placement::new(Driver::Systemd, "/a/a-b.slice", "").unwrap().parent(), Ok(path("/a.slice/a-b.slice")));
    assert!(Placement::new(Driver::Cgroupfs, "/", "").unwrap().parent().is_err());
}

#[test]
fn hostile_parents_and_ids_are_refused() {
    let long = format!("/{}", "x".repeat(256));
    let deep = "/x".repeat(2000);
    for bad in ["kubepods", "../x", "/a/../b", "/a/..", "/./a", "/a\0b", "/a\nb", &long, &deep, "a/b"] {
        assert!(Placement::new(Driver::Cgroupfs, bad, "").is_err(), "{bad:?}");
    }
    for bad in [
        "/kubepods/pod1",
        "/a.slice/b",
        "/.slice",
        "/a--b.slice",
        "/-a.slice",
        "/a-.slice",
        "/a:b.slice",
        "x/a.slice",
        "/../a.slice",
        "a\0.slice",
    ] {
        assert!(Placement::new(Driver::Systemd, bad, "").is_err(), "{bad:?}");
    }
    let error = Placement::new(Driver::Systemd, "/kubepods/pod1", "").unwrap_err();
    assert!(error.to_string().contains("\"/kubepods/pod1\"") && error.to_string().contains(".slice"), "{error}");
    let placement = Placement::new(Driver::Systemd, "a.slice", "").unwrap();
    for bad in ["", "..:", "a/b", "a:b", "a b", &"x".repeat(201)] {
        assert!(placement.cgroups_path(bad).is_err(), "{bad:?}");
    }
    for bad in ["a.slice:cricket", "a.slice:cricket:x:y", "a:cricket:x", "", "/", "//", "a.slice:../..:x"] {
        assert!(CgroupPath::from_runtime(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn the_node_speaks_the_runtimes_names() {
    let (root, _layout) = machine(V2, "0::/\n");
    let top = root.path().join("sys/fs/cgroup");
    fs::create_dir_all(&top).unwrap();
    let node = Cgroups::detect(root.path(), None).unwrap();
    assert!(!node.is_systemd());
    let parent = node.parent("//pods/").unwrap();
    assert!(!node.exists(&parent));
    node.make_parent(&parent).unwrap();
    assert!(node.exists(&parent) && top.join("pods").is_dir());
    let container = node.container_path(&parent, "f00d");
    assert_eq!(container, "/pods/cricket-f00d");
    assert!(node.procs(&container).unwrap().is_empty());
    node.kill_all(&container).unwrap();
    assert!(node.remove_empty(&parent).unwrap() && !node.exists(&parent));
    let top = node.parent("/").unwrap();
    assert!(node.exists(&top) && node.make_parent(&top).is_err());
    assert_eq!(node.container_path(&top, "f00d"), "/cricket-f00d");
    assert_eq!(node.parent("").unwrap(), "/cricket");
    assert!(node.parent("../x").is_err() && !node.exists("../x"));

    fs::create_dir_all(root.path().join("run/systemd/system")).unwrap();
    let node = Cgroups::detect(root.path(), None).unwrap();
    assert!(node.is_systemd());
    let parent = node.parent("/a.slice/a-b.slice").unwrap();
    node.make_parent(&parent).unwrap();
    assert!(!node.exists(&parent), "slices are systemd's to make");
    assert_eq!(node.container_path(&parent, "f00d"), "a-b.slice:cricket:f00d");
    let folder = root.path().join("sys/fs/cgroup/a.slice/a-b.slice/cricket-f00d.scope");
    assert_eq!(node.container("a-b.slice:cricket:f00d").unwrap().dir("memory"), Some(folder.as_path()));
}

#[test]
fn the_oom_counter_is_read_in_both_versions() {
    for (mountinfo, own, file, text) in [
        (V1, V1_OWN, "sys/fs/cgroup/memory/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        (V2, "0::/\n", "sys/fs/cgroup/a/memory.events", "low 0\nhigh 0\nmax 9\noom 4\noom_kill 3\noom_group_kill 1\n"),
    ] {
        let (root, layout) = machine(mountinfo, own);
        let cgroup = layout.cgroup(&path("/a"));
        assert_eq!(cgroup.oom_kills().unwrap(), None, "the cgroup is not there");
        let file = root.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        assert_eq!(cgroup.oom_kills().unwrap(), Some(3));
        fs::write(&file, "garbage\noom_kill x\n").unwrap();
        assert_eq!(cgroup.oom_kills().unwrap(), None);
    }
}

#[test]
fn processes_of_all_descendants_are_listed_once() {
    let (root, layout) = machine(V1, V1_OWN);
    let cgroup = layout.cgroup(&path("/a"));
    assert!(cgroup.procs().unwrap().is_empty());
    let base = root.path().join("sys/fs/cgroup");
    fs::create_dir_all(base.join("pids/a/b/c")).unwrap();
    fs::create_dir_all(base.join("memory/a")).unwrap();
    fs::write(base.join("pids/a/cgroup.procs"), "12\n0\n13\n").unwrap();
    fs::write(base.join("pids/a/b/c/cgroup.procs"), "99\n").unwrap();
    fs::write(base.join("memory/a/cgroup.procs"), "13\n14\n").unwrap();
    assert_eq!(cgroup.procs().unwrap(), [12, 13, 14, 99]);
}

#[tokio::test]
async fn removal_takes_children_first_and_forgives_what_is_gone() {
    let (root, layout) = machine(V1, V1_OWN);
    let cgroup = layout.cgroup(&path("/a"));
    for hierarchy in ["cpu,cpuacct", "memory", "pids", "systemd", "unified"] {
        fs::create_dir_all(root.path().join("sys/fs/cgroup").join(hierarchy)).unwrap();
    }
    assert!(!cgroup.exists());
    cgroup.remove().await.unwrap();
    assert!(cgroup.create().unwrap() && cgroup.exists());
    assert!(!cgroup.create().unwrap(), "it was there");
    assert!(root.path().join("sys/fs/cgroup/unified/a").exists(), "runtimes use a hybrid's unified hierarchy as well");
    fs::create_dir_all(root.path().join("sys/fs/cgroup/pids/a/b/c")).unwrap();
    assert!(!cgroup.remove_if_empty().unwrap());
    cgroup.remove().await.unwrap();
    assert!(!cgroup.exists() && cgroup.remove_if_empty().unwrap());
}

#[tokio::test]
async fn a_cgroup_that_stays_busy_is_an_error_with_its_path() {
    let (root, layout) = machine(V2, "0::/\n");
    let cgroup = layout.cgroup(&path("/a"));
    let dir = root.path().join("sys/fs/cgroup/a");
    fs::create_dir_all(&dir).unwrap();
    // A plain folder with a file in it is as busy as a cgroup with a process in it.
    fs::write(dir.join("cgroup.procs"), "1\n").unwrap();
    let error = cgroup.remove().await.unwrap_err();
    assert!(error.to_string().contains(dir.to_str().unwrap()), "{error}");
}

#[test]
fn new_cpusets_are_filled_and_controllers_handed_down() {
    let cpuset = "36 31 0:32 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n";
    let (root, layout) = machine(cpuset, "3:cpuset:/\n");
    let top = root.path().join("sys/fs/cgroup/cpuset");
    fs::create_dir_all(top.join("a/b")).unwrap();
    for (file, text) in [("cpuset.cpus", "0-1\n"), ("cpuset.mems", "0\n")] {
        fs::write(top.join(file), text).unwrap();
        fs::write(top.join("a").join(file), "\n").unwrap();
        fs::write(top.join("a/b").join(file), "\n").unwrap();
    }
    layout.cgroup(&path("/a/b")).create().unwrap();
    assert_eq!(fs::read_to_string(top.join("a/b/cpuset.cpus")).unwrap().trim(), "0-1");
    assert_eq!(fs::read_to_string(top.join("a/b/cpuset.mems")).unwrap().trim(), "0");

    let (root, layout) = machine(V2, "0::/\n");
    let top = root.path().join("sys/fs/cgroup");
    fs::create_dir_all(&top).unwrap();
    fs::write(top.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
    fs::write(top.join("cgroup.subtree_control"), "memory pids").unwrap();
    layout.cgroup(&path("/a")).create().unwrap();
    assert!(fs::read_to_string(top.join("cgroup.subtree_control")).unwrap().starts_with("+cpu"));
    assert_eq!(layout.controllers().unwrap(), ["cpu", "memory", "pids"]);
}

/// A child that sleeps; it is reaped here, whatever the test did to it.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn start() -> Self {
        Self(std::process::Command::new("sleep").arg("600").spawn().unwrap())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn kill_ends_the_listed_processes_but_never_itself() {
    let (root, layout) = machine(V1, V1_OWN);
    let mut child = Sleeper::start();
    let dir = root.path().join("sys/fs/cgroup/pids/a/nested");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("cgroup.procs"), format!("{}\n{}\n", std::process::id(), child.0.id())).unwrap();
    layout.cgroup(&path("/a")).kill_all(Duration::from_secs(10)).unwrap();
    use std::os::unix::process::ExitStatusExt as _;
    assert_eq!(child.0.wait().unwrap().signal(), Some(9));
}

#[test]
fn version_2_kills_in_one_write_and_reports_who_stays() {
    let (root, layout) = machine(V2, "0::/\n");
    let child = Sleeper::start();
    let dir = root.path().join("sys/fs/cgroup/a");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("cgroup.procs"), format!("{}\n", child.0.id())).unwrap();
    fs::write(dir.join("cgroup.kill"), "").unwrap();
    let error = layout.cgroup(&path("/a")).kill_all(Duration::from_millis(50)).unwrap_err();
    assert_eq!(fs::read_to_string(dir.join("cgroup.kill")).unwrap(), "1");
    assert!(matches!(error, CgroupError::StillAlive { alive: 1, .. }), "{error}");
}

#[tokio::test]
async fn a_watch_on_a_plain_file_still_counts() {
    let (root, layout) = machine(V2, "0::/\n");
    let cgroup = layout.cgroup(&path("/a"));
    assert!(OomWatch::of(&cgroup).is_err(), "there is no cgroup yet");
    let dir = root.path().join("sys/fs/cgroup/a");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("memory.events"), "oom_kill 0\n").unwrap();
    let watch = OomWatch::of(&cgroup).unwrap();
    assert_eq!(watch.oom_kills(), 0);
    fs::write(dir.join("memory.events"), "oom_kill 2\n").unwrap();
    assert_eq!(watch.oom_kills(), 2);
    fs::write(dir.join("memory.events"), "").unwrap();
    assert_eq!(watch.oom_kills(), 2, "the last count stands");
}

#[tokio::test]
async fn a_kill_whose_cgroup_went_first_is_found_in_the_slice_above() {
    let (root, layout) = machine(V2, "0::/\n");
    let cgroup = layout.cgroup(&path("/pod.slice/a.scope"));
    let slice = root.path().join("sys/fs/cgroup/pod.slice");
    let events = |dir: &std::path::Path, text: &str| fs::write(dir.join("memory.events"), text).unwrap();
    // A descriptor of a removed cgroup answers ENODEV; of a plain file that stands for one, an answer without a count.
    for (above, gone, verdict) in [("oom_kill 6", true, 1), ("oom_kill 5", true, 0), ("oom_kill 9", false, 0)] {
        fs::create_dir_all(slice.join("a.scope")).unwrap();
        events(&slice, "oom_kill 5\n");
        events(&slice.join("a.scope"), "oom_kill 0\n");
        let watch = OomWatch::of(&cgroup).unwrap();
        if gone {
            events(&slice.join("a.scope"), "");
        }
        events(&slice, above);
        assert_eq!(watch.oom_kills(), verdict, "{above} {gone}");
        // What a sibling had while this cgroup still answered is not its own.
        events(&slice.join("a.scope"), "");
        assert_eq!(watch.oom_kills(), verdict, "{above} {gone}, later");
    }
}

mod real {
    //! On this machine's own hierarchies, in a cgroup of the test's own.

    use super::*;

    /// A cgroup that a failed test leaves neither behind nor populated.
    struct Own(Cgroup);

    impl std::ops::Deref for Own {
        type Target = Cgroup;

        fn deref(&self) -> &Cgroup {
            &self.0
        }
    }

    impl Drop for Own {
        fn drop(&mut self) {
            let cgroup = self.0.clone();
            let cleaned = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let _ = cgroup.kill_all(Duration::from_secs(10));
                    cgroup.remove().await
                })
            });
            let cleaned = cleaned.join();
            assert!(std::thread::panicking() || matches!(cleaned, Ok(Ok(()))), "{cleaned:?}");
        }
    }

    fn own(name: &str) -> Own {
        let layout = CgroupLayout::detect(std::path::Path::new("/")).unwrap();
        Own(layout.cgroup(&path(&format!("/cricket-test-{name}-{}", std::process::id()))))
    }

    /// Starts a shell that waits for a line on its input, then does the work.
    fn shell(work: &str) -> (std::process::Child, std::process::ChildStdin) {
        let mut child = std::process::Command::new("sh")
            .args(["-c", &format!("read go; {work}")])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        (child, input)
    }

    #[tokio::test]
    #[ignore = "needs root"]
    async fn a_fork_bomb_is_killed_and_its_cgroup_removed() {
        let cgroup = own("kill");
        assert!(cgroup.create().unwrap());
        let (mut child, mut go) = shell("while :; do sleep 300 & sleep 0.001; done");
        cgroup.attach(child.id()).unwrap();
        std::io::Write::write_all(&mut go, b"go\n").unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while cgroup.procs().unwrap().len() < 20 {
            assert!(std::time::Instant::now() < deadline, "the shell does not fork");
            tokio::task::yield_now().await;
        }
        cgroup.kill_all(Duration::from_secs(20)).unwrap();
        child.wait().unwrap();
        assert!(cgroup.procs().unwrap().is_empty());
        cgroup.remove().await.unwrap();
        assert!(!cgroup.exists());
    }

    #[tokio::test]
    #[ignore = "needs root"]
    async fn an_oom_kill_wakes_the_watch_and_is_counted() {
        let cgroup = own("oom");
        assert!(cgroup.create().unwrap());
        let memory = cgroup.dir("memory").unwrap().to_owned();
        let limit = if cgroup.version() == CgroupVersion::V1 { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(memory.join(limit), "16M").unwrap();
        let watch = OomWatch::of(&cgroup).unwrap();
        assert_eq!(watch.oom_kills(), 0);
        let (mut child, mut go) = shell("exec tail /dev/zero");
        cgroup.attach(child.id()).unwrap();
        std::io::Write::write_all(&mut go, b"go\n").unwrap();
        tokio::time::timeout(Duration::from_secs(30), watch.changed()).await.expect("the watch was woken");
        child.wait().unwrap();
        assert!(watch.oom_kills() >= 1);
        assert_eq!(cgroup.oom_kills().unwrap(), Some(watch.oom_kills()));
        let counted = watch.oom_kills();
        cgroup.remove().await.unwrap();
        assert_eq!(watch.oom_kills(), counted, "the count outlives the cgroup");
        assert!(
            tokio::time::timeout(Duration::from_millis(100), watch.changed()).await.is_err(),
            "nothing changes any more"
        );
    }
}
