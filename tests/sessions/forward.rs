//! Connections to ports of pods.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use cricket::pod::PodError;
use cricket::sys::namespaces::enter_net;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::place::{Place, soon};

crate::alone!(into_the_pods_namespace);

/// A server that answers one connection with what it was sent, turned round.
fn serve(listener: TcpListener) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        stream.write_all(text.chars().rev().collect::<String>().as_bytes()).unwrap();
    })
}

async fn into_the_pods_namespace() {
    let place = Place::new("crun").await;
    let (own, host) = (place.pod("own", true).await, place.pod("host", false).await);
    let namespace = place.network_namespace(&own);
    let inside = |address: &'static str| {
        enter_net(&namespace, move || TcpListener::bind(address))
            .unwrap()
            .unwrap_or_else(|error| panic!("{address}: {error}"))
    };
    // Both families, only one of them, and the host's; each server is where the others are not.
    let cases = [
        (&own, inside("127.0.0.1:8081"), 8081),
        (&own, inside("[::1]:8082"), 8082),
        (&own, inside("0.0.0.0:8083"), 8083),
        (&host, TcpListener::bind("127.0.0.1:8084").unwrap(), 8084),
    ];
    for (pod, listener, port) in cases {
        let other = if *pod == own { &host } else { &own };
        let refused = soon("an answer", place.pods.port_forward(other, port)).await;
        assert!(matches!(&refused, Err(PodError::PortRefused { port: told, .. }) if *told == port), "{refused:?}");
        let server = serve(listener);
        let mut stream = soon("a connection", place.pods.port_forward(&pod[..12], port)).await.unwrap();
        stream.write_all(b"abc").await.unwrap();
        // The other half stays open.
        stream.shutdown().await.unwrap();
        let mut text = String::new();
        soon("an answer", stream.read_to_string(&mut text)).await.unwrap();
        assert_eq!(text, "cba");
        server.join().unwrap();
    }
    // A port of the ephemeral range must not be answered by the socket itself. Few ports, so that it would be met soon.
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    // What is below this path is that of the thread's network namespace.
    enter_net(&namespace, || std::fs::write(range, "40000 40009")).unwrap().unwrap();
    for _ in 0..100 {
        let refused = soon("an answer", place.pods.port_forward(&own, 40004)).await;
        assert!(matches!(refused, Err(PodError::PortRefused { .. })), "{refused:?}");
    }
    place.pods.stop(&own).await.unwrap();
    assert!(matches!(place.pods.port_forward(&own, 8081).await, Err(PodError::NotReady { .. })));
    assert!(matches!(place.pods.port_forward("nobody", 8081).await, Err(PodError::NotFound { .. })));
    place.end().await;
}
