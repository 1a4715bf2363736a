//! Clients at a container's own streams.

use std::io::Read as _;

use cri_proto::runtime::v1 as cri;
use cricket::container::ContainerError;
use cricket::container::session::{MAX_SESSIONS, SessionStreams, WindowSize};
use cricket::state::ContainerPhase;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinHandle;

use crate::client::{Client, Input};
use crate::place::{Place, soon, until};

crate::per_runtime!(
    input_output_and_the_end,
    input_that_stays_open,
    a_terminal_is_the_containers,
    from_the_start_of_a_created_container
);
crate::alone!(sessions_have_a_bound, input_survives_a_restart);

type Session = JoinHandle<Result<(), ContainerError>>;

pub fn attach(place: &Place, id: &str, streams: SessionStreams) -> Session {
    let (containers, id) = (place.containers().clone(), id.to_owned());
    cricket::task::spawn("session", async move { containers.attach(&id, streams).await })
}

async fn ended(session: Session) -> Result<(), ContainerError> {
    soon("the session ends", session).await.unwrap()
}

/// A client that sees the container's output from here on: it has had an answer.
async fn attached(place: &Place, id: &str) -> (Client, Session) {
    let (mut client, streams) = Client::new(Input::Yes, false);
    let session = attach(place, id, streams);
    client.write("hello\n").await;
    client.expect("hello\n").await;
    (client, session)
}

fn with_input(name: &str, script: &str, once: bool) -> cri::ContainerConfig {
    cri::ContainerConfig { stdin: true, stdin_once: once, ..Place::config(name, script) }
}

async fn input_output_and_the_end(runtime: &'static str) {
    let place = Place::new(runtime).await;
    let id = place.run(with_input("echo", "cat; echo to stderr >&2; exit 3", true)).await;
    let (mut client, session) = attached(&place, &id).await;
    let (mut other, streams) = Client::new(Input::No, false);
    let watching = attach(&place, &id, streams);
    // Nobody is told when the second one is in place, so both read until it has seen something.
    let seen = async { other.stdout.read_u8().await.unwrap() };
    tokio::pin!(seen);
    soon("the second client sees output", async {
        loop {
            client.write(".\n").await;
            tokio::select! {
                _ = &mut seen => break,
                () = tokio::time::sleep(std::time::Duration::from_millis(20)) => {}
            }
        }
    })
    .await;
    client.stdin = None;
    let (out, err) = client.output().await;
    assert!(out.chars().all(|c| ".\n".contains(c)), "{out:?}");
    assert_eq!(err, "to stderr\n");
    ended(session).await.unwrap();
    assert_eq!(other.output().await.1, "to stderr\n");
    ended(watching).await.unwrap();
    until("its end is told", || place.containers().find(&id).unwrap().record().phase == ContainerPhase::Exited).await;
    assert_eq!(place.containers().find(&id).unwrap().record().ending.clone().unwrap().exit_code, 3);
    let (_client, streams) = Client::new(Input::No, false);
    assert!(matches!(ended(attach(&place, &id, streams)).await, Err(ContainerError::WrongState { .. })));
    place.end().await;
}

async fn input_that_stays_open(runtime: &'static str) {
    let place = Place::new(runtime).await;
    let id = place.run(with_input("open", "cat", false)).await;
    for _ in 0..3 {
        let (mut client, session) = attached(&place, &id).await;
        client.stdin = None;
        // As in the field: the end of the client's input is the end of its session, not of the container's input.
        ended(session).await.unwrap();
    }
    // A client that breaks off, and two at once.
    let (client, session) = attached(&place, &id).await;
    session.abort();
    drop(client);
    let (mut one, first) = attached(&place, &id).await;
    let (mut two, second) = attached(&place, &id).await;
    one.expect("hello\n").await;
    one.write("from one\n").await;
    two.expect("from one\n").await;
    two.write("from two\n").await;
    one.expect("from two\n").await;
    assert_eq!(place.containers().find(&id).unwrap().record().phase, ContainerPhase::Running);
    drop((one, two));
    ended(first).await.unwrap();
    ended(second).await.unwrap();

    // With stdin_once the first session's end is the end, however it came.
    let once = place.run(with_input("once", "cat; echo input ended; sleep 100000", true)).await;
    let (client, session) = attached(&place, &once).await;
    let (mut other, streams) = Client::new(Input::No, false);
    let watching = attach(&place, &once, streams);
    session.abort();
    drop(client);
    until("cat has ended", || std::fs::read_to_string(place.log("once")).unwrap().contains("input ended")).await;
    let (_refused, streams) = Client::new(Input::Yes, false);
    let refused = ended(attach(&place, &once, streams)).await;
    assert!(matches!(refused, Err(ContainerError::StdinClosed { .. })), "{refused:?}");
    place.containers().stop(&once, std::time::Duration::ZERO).await.unwrap();
    other.output().await;
    ended(watching).await.unwrap();

    let none = place.run(Place::config("none", "sleep 100000")).await;
    let (_client, streams) = Client::new(Input::Yes, false);
    let refused = ended(attach(&place, &none, streams)).await;
    assert!(matches!(refused, Err(ContainerError::NoStdin { .. })), "{refused:?}");
    place.end().await;
}

async fn a_terminal_is_the_containers(runtime: &'static str) {
    let place = Place::new(runtime).await;
    let script = "while read -r line; do echo size $(stty size); done; exit 6";
    let config = cri::ContainerConfig { tty: true, ..with_input("tty", script, true) };
    let id = place.run(config).await;
    for n in 0..2 {
        // The request may say what it likes.
        let (mut client, streams) = Client::new(Input::Yes, n == 0);
        let session = attach(&place, &id, streams);
        client.resize.send(WindowSize { width: 60 + n, height: 30 }).await.unwrap();
        client.ask_until(&format!("size 30 {}\r\n", 60 + n)).await;
        // A terminal stays, with stdin_once too: its session can be resumed.
        session.abort();
    }
    let (mut client, streams) = Client::new(Input::Yes, true);
    let session = attach(&place, &id, streams);
    client.write("\u{4}").await;
    client.output().await;
    ended(session).await.unwrap();
    until("its end is told", || place.containers().find(&id).unwrap().record().phase == ContainerPhase::Exited).await;
    assert_eq!(place.containers().find(&id).unwrap().record().ending.clone().unwrap().exit_code, 6);
    place.end().await;
}

async fn from_the_start_of_a_created_container(runtime: &'static str) {
    let place = Place::new(runtime).await;
    let id = place.create(Place::config("early", "echo first words")).await;
    let (mut client, streams) = Client::new(Input::No, false);
    let session = attach(&place, &id, streams);
    tokio::task::yield_now().await;
    // What tells that the session is in place is that it takes sizes.
    for _ in 0..16 {
        soon("the session is in place", client.resize.send(WindowSize { width: 1, height: 1 })).await.unwrap();
    }
    place.containers().start(&id).await.unwrap();
    assert_eq!(client.output().await, ("first words\n".into(), String::new()));
    ended(session).await.unwrap();
    let mut log = String::new();
    std::fs::File::open(place.log("early")).unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("stdout F first words\n"), "{log}");
    place.end().await;
}

async fn sessions_have_a_bound() {
    let place = Place::new("crun").await;
    let id = place.idle().await;
    let mut clients = Vec::new();
    for _ in 0..MAX_SESSIONS {
        let (client, streams) = Client::new(Input::No, false);
        let session = attach(&place, &id, streams);
        for _ in 0..16 {
            soon("in place", client.resize.send(WindowSize { width: 1, height: 1 })).await.unwrap();
        }
        clients.push((client, session));
    }
    let (_client, streams) = Client::new(Input::No, false);
    let refused = ended(attach(&place, &id, streams)).await;
    assert!(matches!(refused, Err(ContainerError::TooManySessions { limit: MAX_SESSIONS, .. })), "{refused:?}");
    let (_client, streams) = Client::new(Input::No, false);
    let refused = place.containers().exec_session(&id, vec!["true".into()], false, streams).await;
    assert!(matches!(refused, Err(ContainerError::TooManySessions { .. })), "{refused:?}");
    for (_, session) in &clients {
        session.abort();
    }
    let again = async || {
        let (_client, streams) = Client::new(Input::No, false);
        place.containers().exec_session(&id, vec!["true".into()], false, streams).await
    };
    soon("there is room again", async {
        while again().await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    place.end().await;
}

async fn input_survives_a_restart() {
    let first = daemon_runtime();
    let (remains, open, closed) = cricket::task::blocking(move || {
        let made = first.block_on(async {
            let place = Place::new("crun").await;
            let open = place.run(with_input("kept", "cat", true)).await;
            let closed = place.run(with_input("closed", "cat; echo input ended; sleep 100000", true)).await;
            let (mut client, session) = attached(&place, &closed).await;
            client.stdin = None;
            client.expect("input ended\n").await;
            let remains = place.remains();
            drop((client, session));
            (remains, open, closed)
        });
        // As the death of the daemon: every task ends where it is.
        first.shutdown_timeout(crate::place::LONG);
        made
    })
    .await;
    let (dir, runtime, parent) = remains;
    let place = Place::taken_over(dir, runtime, parent).await;
    let (mut client, session) = attached(&place, &open).await;
    client.stdin = None;
    client.output().await;
    ended(session).await.unwrap();
    let (_client, streams) = Client::new(Input::Yes, false);
    let refused = ended(attach(&place, &closed, streams)).await;
    assert!(matches!(refused, Err(ContainerError::StdinClosed { .. })), "{refused:?}");
    place.end().await;
}

#[allow(clippy::disallowed_methods)] // a daemon's runtime of its own
fn daemon_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}
