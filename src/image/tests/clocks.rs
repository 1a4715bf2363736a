//! Each phase of a request has a clock of its own, against servers that stall in that phase.

use super::*;
use crate::image::tests::server::{Reply, Then};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// A room that is led to one mirror by `hosts.toml`, with a time to connect and a progress clock.
async fn led_to(address: &str, dial: &str, progress: Duration) -> anyhow::Result<Room> {
    let room = Room::new("").await?;
    let folder = room.dir.path().join("certs.d/images.example");
    std::fs::create_dir_all(&folder)?;
    // The server is the mirror, so that nobody else is asked.
    std::fs::write(folder.join("hosts.toml"), format!("server = '{address}'\n{dial}\n"))?;
    let patience = Patience { progress, ..room.images.0.settings.load().patience.clone() };
    let settings = Settings { patience, ..Settings::of(&settings(room.dir.path(), &[])) };
    room.images.0.settings.store(Arc::new(settings));
    Ok(room)
}

/// A listener whose queue is full: the kernel drops what asks for a connection. The connection that fills it must be held.
async fn deaf() -> anyhow::Result<(TcpListener, Vec<TcpStream>)> {
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let listener = socket.listen(0)?;
    let mut held = Vec::new();
    // A queue of no length holds one or two, by the kernel's version.
    loop {
        match tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(listener.local_addr()?)).await {
            Ok(connected) => held.push(connected?),
            Err(_) => return Ok((listener, held)),
        }
    }
}

#[tokio::test]
async fn a_connection_that_never_stands_ends_by_the_hosts_own_clock() -> anyhow::Result<()> {
    let (listener, _held) = deaf().await?;
    let address = listener.local_addr()?;
    // The progress clock is far away, and so is the usual one of connecting: it is the file's that ends it.
    let room = led_to(&format!("http://{address}"), "dial_timeout = '200ms'", Duration::from_secs(3600)).await?;
    let error = room.refused("images.example/app:v1").await;
    assert!(error.starts_with("RegistryUnavailable: "), "{error}");
    assert!(error.contains(&format!("{address}: no connection within 200 ms")), "{error}");
    room.assert_clean().await;
    Ok(())
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_no_connection() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let taken = crate::task::spawn("test-silent", async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    let room = led_to(&format!("https://{address}"), "dial_timeout = '200ms'", Duration::from_secs(3600)).await?;
    let error = room.refused("images.example/app:v1").await;
    assert!(error.contains(&format!("{address}: no connection within 200 ms")), "{error}");
    taken.abort();
    room.assert_clean().await;
    Ok(())
}

#[tokio::test]
async fn headers_and_each_next_byte_have_the_progress_clock() -> anyhow::Result<()> {
    let image = TestImage::new("stalling");
    type Stall = fn(Reply) -> Reply;
    let stalls: [(&str, Stall); 4] = [
        ("/manifests/", |reply| Reply { gate: Some(Arc::new(tokio::sync::Semaphore::new(0))), ..reply }),
        ("/manifests/", |reply| Reply { cut: Some((5, Then::Hang)), ..reply }),
        ("/blobs/", |reply| Reply { gate: Some(Arc::new(tokio::sync::Semaphore::new(0))), ..reply }),
        ("/blobs/", |reply| Reply { cut: Some((0, Then::Hang)), ..reply }),
    ];
    for (part, stall) in stalls {
        let served = image.clone();
        let registry = Registry::start(move |request| {
            let reply = served.answer(request, "app", &["v1"]);
            if request.path.contains(part) { stall(reply) } else { reply }
        })
        .await;
        let address = format!("http://{}", registry.host());
        let room = led_to(&address, "", Duration::from_millis(300)).await?;
        let error = room.refused("images.example/app:v1").await;
        assert!(error.contains("no answer and no byte for 300 ms") && error.contains(&registry.host()), "{error}");
        room.assert_clean().await;
    }
    Ok(())
}

#[tokio::test]
async fn a_token_service_has_the_same_clocks() -> anyhow::Result<()> {
    type Stall = fn() -> Reply;
    let stalls: [(&str, Stall); 3] = [
        ("no answer and no byte for 200 ms", || Reply {
            gate: Some(Arc::new(tokio::sync::Semaphore::new(0))),
            ..Reply::new(200, "")
        }),
        ("no answer and no byte for 200 ms", || Reply {
            cut: Some((1, Then::Hang)),
            ..Reply::new(200, vec![b' '; 1000])
        }),
        ("too slow: ", || Reply { cut: Some((1, Then::Drip)), ..Reply::new(200, vec![b' '; 1000]) }),
    ];
    for (want, stall) in stalls {
        let registry = Registry::start(move |request| {
            let here = request.header("host").unwrap_or_default();
            match request.path.starts_with("/token") {
                true => stall(),
                false => Reply::new(401, "").with("www-authenticate", format!("Bearer realm=\"http://{here}/token\"")),
            }
        })
        .await;
        let room = led_to(&format!("http://{}", registry.host()), "", Duration::from_millis(200)).await?;
        let error = room.refused("images.example/app:v1").await;
        assert!(error.starts_with("RegistryUnavailable: ") && error.contains(want), "{want}: {error}");
        room.assert_clean().await;
    }
    Ok(())
}

#[tokio::test]
async fn a_small_document_that_drips_has_a_clock_as_a_whole() -> anyhow::Result<()> {
    let image = TestImage::new("dripping");
    for part in ["/manifests/", "/blobs/"] {
        let served = image.clone();
        let registry = Registry::start(move |request| {
            let reply = served.answer(request, "app", &["v1"]);
            // The config, not a layer: those have a rate to keep (resume.rs).
            let config = request.path.contains(&format!("/blobs/{}", served.id()));
            if request.path.contains(part) && (config || part == "/manifests/") {
                return Reply { cut: Some((1, Then::Drip)), ..reply };
            }
            reply
        })
        .await;
        let address = format!("http://{}", registry.host());
        let room = led_to(&address, "", Duration::from_millis(200)).await?;
        let error = room.refused("images.example/app:v1").await;
        assert!(error.contains("too slow: ") && error.contains(" bytes in 800 ms"), "{error}");
        room.assert_clean().await;
    }
    Ok(())
}
