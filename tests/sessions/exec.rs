//! Commands with a client at their streams.

use std::time::Duration;

use cricket::container::ContainerError;
use cricket::container::session::{SessionStreams, WindowSize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use crate::client::{Client, Input};
use crate::place::{Place, soon, until};

crate::per_runtime!(
    output_input_and_code,
    a_terminal_has_its_size_and_all_of_its_output,
    bytes_in_both_directions,
    a_client_that_goes_away_takes_its_command_along
);
crate::alone!(a_slow_client_gets_all_and_a_background_child_holds_nobody, only_running_containers);

type Session = JoinHandle<Result<i32, ContainerError>>;

pub fn start(place: &Place, id: &str, script: &str, tty: bool, streams: SessionStreams) -> Session {
    let (containers, id) = (place.containers().clone(), id.to_owned());
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    cricket::task::spawn("session", async move { containers.exec_session(&id, command, tty, streams).await })
}

async fn code(session: Session) -> i32 {
    soon("the session ends", session).await.unwrap().unwrap()
}

async fn output_input_and_code(runtime: &'static str) {
    let place = Place::new(runtime).await;
    let id = place.idle().await;
    let (mut client, streams) = Client::new(Input::No, false);
    let session = start(&place, &id, "cat; printf out; printf err >&2; exit 3", false, streams);
    assert_eq!(client.output().await, ("out".into(), "err".into()));
    assert_eq!(code(session).await, 3);

    // The end of the input is told to the command, and a signal is its code.
    let (mut client, streams) = Client::new(Input::Yes, false);
    let session = start(&place, &id, "cat; echo end; kill -TERM $$", false, streams);
    client.write("some ").await;
    client.write("input\n").await;
    client.stdin = None;
    assert_eq!(client.output().await, ("some input\nend\n".into(), String::new()));
    assert_eq!(code(session).await, 143);

    // One that never reads its input ends all the same, with the client still sending.
    let (mut client, streams) = Client::new(Input::Yes, false);
    let session = start(&place, &id, "echo started; read line </dev/tty; exit 5", false, streams);
    let mut stdin = client.stdin.take().unwrap();
    let sending = cricket::task::spawn("sender", async move { while stdin.write_all(&[b'x'; 4096]).await.is_ok() {} });
    assert_eq!(client.output().await.0, "started\n");
    assert_eq!(code(session).await, 5);
    soon("the sender is let go of", sending).await.unwrap();

    // Our ends are non-blocking, its ends are not: 0o4000 is O_NONBLOCK.
    let (mut client, streams) = Client::new(Input::Yes, false);
    let script = "for n in 0 1 2; do while read -r key flags; do [ $key != flags: ] || echo $((flags & 04000)); done \
                  </proc/self/fdinfo/$n; done";
    let session = start(&place, &id, script, false, streams);
    assert_eq!(client.output().await.0, "0\n0\n0\n");
    assert_eq!(code(session).await, 0);

    let (_client, streams) = Client::new(Input::No, false);
    let command = vec!["/no/such".to_owned()];
    match place.containers().exec_session(&id, command, false, streams).await {
        Ok(code) => assert!([126, 127].contains(&code), "code {code}"),
        Err(error) => assert!(cricket::telemetry::chain(&error).contains("/no/such"), "{error:?}"),
    }
    place.end().await;
}

async fn a_terminal_has_its_size_and_all_of_its_output(runtime: &'static str) {
    let place = Place::new(runtime).await;
    let id = place.idle().await;
    let (mut client, streams) = Client::new(Input::Yes, true);
    client.resize.send(WindowSize { width: 101, height: 41 }).await.unwrap();
    let script = "stty size; test -t 0 && test -t 1 && test -t 2 && echo $TERM; \
                  echo ready; while read -r line; do echo size $(stty size); done; exit 7";
    let session = start(&place, &id, script, true, streams);
    let begin = client.expect("ready\r\n").await;
    let rest = begin.strip_prefix("41 101\r\n");
    // This one takes no size in the command's document, so the command may be quicker than the terminal's size.
    let rest = rest.or_else(|| begin.strip_prefix("0 0\r\n").filter(|_| runtime == "crun"));
    assert_eq!(rest, Some("xterm\r\nready\r\n"), "{begin:?}");
    client.ask_until("size 41 101\r\n").await;
    client.resize.send(WindowSize { width: 55, height: 22 }).await.unwrap();
    client.ask_until("size 22 55\r\n").await;
    // Ctrl-D.
    client.write("\u{4}").await;
    // The session ends although the client's input stays open.
    client.output().await;
    assert_eq!(code(session).await, 7);

    // What is written just before the end comes too.
    let (mut client, streams) = Client::new(Input::No, true);
    let session = start(&place, &id, "seq 1 20000", true, streams);
    let (text, _) = client.output().await;
    let expected: String = (1..=20_000).map(|n| format!("{n}\r\n")).collect();
    assert!(text == expected, "{} bytes came instead of {}", text.len(), expected.len());
    assert_eq!(code(session).await, 0);
    place.end().await;
}

async fn bytes_in_both_directions(runtime: &'static str) {
    const LEN: usize = 32 << 20;
    let place = Place::new(runtime).await;
    let id = place.idle().await;
    let sent: Vec<u8> = (0..LEN).map(|n| u8::try_from(n % 253).unwrap()).collect();
    let (mut client, streams) = Client::new(Input::Yes, false);
    let session = start(&place, &id, "exec cat", false, streams);
    let (mut stdin, bytes) = (client.stdin.take().unwrap(), sent.clone());
    let sending = cricket::task::spawn("sender", async move { stdin.write_all(&bytes).await.unwrap() });
    let mut got = Vec::with_capacity(LEN);
    soon("all of it", client.stdout.read_to_end(&mut got)).await.unwrap();
    assert!(got == sent, "{} bytes came back", got.len());
    sending.await.unwrap();
    assert_eq!(code(session).await, 0);
    place.end().await;
}

async fn a_client_that_goes_away_takes_its_command_along(runtime: &'static str) {
    let place = Place::new(runtime).await;
    let id = place.idle().await;
    // The last one does not care for the hang-up, nor does its child in a session of its own.
    let cases = [
        (false, "sleep 71001", "71001"),
        (true, "sleep 71002", "71002"),
        (false, "trap '' HUP; setsid sleep 71003 & echo up; sleep 71003", "71003"),
    ];
    for (tty, script, word) in cases {
        let (client, streams) = Client::new(Input::Yes, tty);
        let session = start(&place, &id, script, tty, streams);
        until("the command runs", || !place.with_word(word).is_empty()).await;
        session.abort();
        drop(client);
        until("all of the command is gone", || place.with_word(word).is_empty()).await;
        assert!(!place.with_word("100000").is_empty(), "the container died too");
    }
    // One that goes before its command has come.
    for _ in 0..10 {
        let (_client, streams) = Client::new(Input::Yes, true);
        let session = start(&place, &id, "sleep 71006", true, streams);
        tokio::task::yield_now().await;
        session.abort();
    }
    // A client that takes no more of its terminal's output is gone as well.
    let (client, streams) = Client::new(Input::No, true);
    let session = start(&place, &id, "yes 71004", true, streams);
    until("the command runs", || !place.with_word("71004").is_empty()).await;
    drop(client);
    let ended = soon("the session ends", session).await.unwrap();
    assert!(matches!(ended, Err(ContainerError::ExecCancelled)), "{ended:?}");
    until("all of the command is gone", || place.with_word("71004").is_empty()).await;
    until("all of those commands are gone", || place.with_word("71006").is_empty()).await;
    // With pipes it is the command's affair, as in a pipeline.
    let (client, streams) = Client::new(Input::No, false);
    let session = start(&place, &id, "yes 71005; echo $? >/tmp/code; exit 9", false, streams);
    drop(client);
    assert_eq!(code(session).await, 9);
    place.end().await;
}

async fn a_slow_client_gets_all_and_a_background_child_holds_nobody() {
    let place = Place::new("crun").await;
    let id = place.idle().await;
    let (mut client, streams) = Client::new(Input::No, false);
    let session = start(&place, &id, "head -c 70000 /dev/zero; sleep 72001 & exit 4", false, streams);
    until("only the child is left", || place.with_word("72001").len() == 1 && place.with_word("head").is_empty()).await;
    // Longer than what holds the pipes may hold the session: it is not the client's clock.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!session.is_finished(), "the code came before the output");
    let mut got = Vec::new();
    soon("the output's end", client.stdout.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), 70_000);
    assert_eq!(code(session).await, 4);
    assert_eq!(place.with_word("72001").len(), 1, "what a command leaves on purpose stays");
    place.end().await;
}

async fn only_running_containers() {
    let place = Place::new("crun").await;
    let try_it = async |id: &str, command: Vec<String>| {
        let (_client, streams) = Client::new(Input::No, false);
        place.containers().exec_session(id, command, false, streams).await.unwrap_err()
    };
    let created = place.create(Place::config("created", "true")).await;
    let ended = place.run(Place::config("ended", "true")).await;
    let state = || place.containers().find(&ended).unwrap().record().phase;
    until("it ends", || state() == cricket::state::ContainerPhase::Exited).await;
    for id in [&created, &ended] {
        let error = try_it(id, vec!["true".into()]).await;
        assert!(matches!(error, ContainerError::WrongState { wanted: "RUNNING", .. }), "{error:?}");
    }
    assert!(matches!(try_it("nobody", vec!["true".into()]).await, ContainerError::NotFound { .. }));
    assert!(matches!(try_it(&created, Vec::new()).await, ContainerError::ExecEmpty));
    place.end().await;
}
