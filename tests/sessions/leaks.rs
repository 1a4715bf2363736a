//! Advisories of the field about what sessions leave behind or pile up. Descriptors, memory and tasks are this process's.

use cricket::container::session::WindowSize;
use tokio::io::AsyncReadExt as _;

use crate::attach::attach;
use crate::client::{Client, Input};
use crate::place::{LONG, Place, soon, until};

crate::alone!(
    cve_2022_23471_terminals_of_commands_that_cannot_be_started,
    cve_2025_64329_clients_of_a_silent_container,
    conmon_rs_cfa1bdbe_a_client_that_never_reads
);

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

async fn cve_2022_23471_terminals_of_commands_that_cannot_be_started() {
    let place = Place::new("crun").await;
    let id = place.idle().await;
    let try_one = async || {
        let (client, streams) = Client::new(Input::Yes, true);
        let sizes = client.resize.clone();
        // A client that goes on sending sizes for as long as somebody takes them.
        let resizing = cricket::task::spawn("sizes", async move {
            let mut width = 1;
            while sizes.send(WindowSize { width, height: 24 }).await.is_ok() {
                width = width % 500 + 1;
                tokio::task::yield_now().await;
            }
        });
        let command = vec!["/no/such".to_owned()];
        let ended = place.containers().exec_session(&id, command, true, streams).await;
        assert!(!matches!(ended, Ok(0)), "{ended:?}");
        soon("sizes are no longer taken", resizing).await.unwrap();
    };
    try_one().await;
    let (before, tasks_before) = (descriptors(), tasks());
    for _ in 0..1000 {
        try_one().await;
    }
    until("descriptors and tasks are as before", || descriptors() <= before && tasks() <= tasks_before).await;
    assert_eq!(std::fs::read_dir(place.path("state/tty")).unwrap().count(), 0, "sockets of terminals are left");
    place.end().await;
}

async fn cve_2025_64329_clients_of_a_silent_container() {
    let place = Place::new("crun").await;
    let config = cri_proto::runtime::v1::ContainerConfig { stdin: true, ..Place::config("silent", "sleep 100000") };
    let id = place.run(config).await;
    let try_one = async || {
        let (client, streams) = Client::new(Input::Yes, false);
        let session = attach(&place, &id, streams);
        // More than the queue holds: the session is there and takes them.
        for _ in 0..6 {
            soon("the session is in place", client.resize.send(WindowSize { width: 1, height: 1 })).await.unwrap();
        }
        session.abort();
    };
    for _ in 0..500 {
        try_one().await;
    }
    let (before, tasks_before, memory) = (descriptors(), tasks(), resident());
    for _ in 0..10_000 {
        try_one().await;
    }
    until("descriptors and tasks are as before", || descriptors() <= before && tasks() <= tasks_before).await;
    let grown = resident().saturating_sub(memory);
    assert!(grown < 16 << 20, "{grown} bytes more");
    place.end().await;
}

async fn conmon_rs_cfa1bdbe_a_client_that_never_reads() {
    const LEN: u64 = 1 << 30;
    let place = Place::new("crun").await;
    let script = format!("read -r go; head -c {LEN} /dev/zero; read -r end");
    let config = cri_proto::runtime::v1::ContainerConfig { stdin: true, ..Place::config("loud", &script) };
    let id = place.run(config).await;
    let (mut client, streams) = Client::new(Input::Yes, false);
    let session = attach(&place, &id, streams);
    let memory = resident();
    client.write("go\n").await;
    let log = place.log("loud");
    let (mut most, mut length, mut seen) = (0, 0, std::time::Instant::now());
    let started = seen;
    // However slow the disk is, it goes on.
    while length < LEN {
        let now = std::fs::metadata(&log).unwrap().len();
        if now > length {
            (length, seen) = (now, std::time::Instant::now());
        }
        assert!(seen.elapsed() < LONG, "the log stands still at {length} bytes");
        most = most.max(resident().saturating_sub(memory));
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    println!("{LEN} bytes in {:?}, {most} bytes of memory more at most", started.elapsed());
    assert!(most < 32 << 20, "{most} bytes more while nobody read");
    // Nothing was lost for the client either, and it comes back to what is new.
    let mut chunk = vec![1; 1 << 20];
    let mut got = 0;
    while got < LEN {
        let n = soon("output", client.stdout.read(&mut chunk)).await.unwrap();
        assert!(n > 0 && chunk[..n].iter().all(|byte| *byte == 0), "after {got} bytes");
        got += n as u64;
        most = most.max(resident().saturating_sub(memory));
    }
    assert_eq!(got, LEN);
    assert!(most < 32 << 20, "{most} bytes more while the client caught up");
    client.write("end\n").await;
    assert_eq!(client.output().await, (String::new(), String::new()));
    soon("the session ends", session).await.unwrap().unwrap();
    place.end().await;
}
