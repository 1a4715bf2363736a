//! Frames in pieces of any size, garbage, and real clients over a pair of sockets.

use cri_proto::runtime::v1 as cri;
use cri_proto::runtime::v1::image_service_client::ImageServiceClient;
use cri_proto::runtime::v1::image_service_server::{ImageService, ImageServiceServer};
use fluke_hpack::{Decoder, Encoder};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::{Request, Response, Status};

use super::rewrite::{MAX_RAW, Rewriter};
use super::*;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(body);
    bytes
}

fn request<'a>(authority: &'a [u8], path: &'a [u8]) -> Vec<(&'a [u8], &'a [u8])> {
    vec![
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", authority),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"x-long", b"a value that is in the table after the first request"),
    ]
}

/// All of a stream through the rewriter, cut at the given places.
fn through(stream: &[u8], cuts: &[usize]) -> Result<Vec<u8>, Broken> {
    let mut rewriter = Rewriter::new();
    let mut all = Vec::new();
    let mut start = 0;
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (stream.len() + 1)).chain([stream.len()]).collect();
    ends.sort_unstable();
    for end in ends {
        while start < end {
            let mut output = Vec::new();
            let taken = rewriter.feed(&stream[start..end], &mut output)?;
            assert!(taken > 0, "it must go on");
            start += taken;
            all.extend(output);
        }
    }
    rewriter.flush(&mut all);
    Ok(all)
}

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// The frames of a stream behind its preface, header blocks decoded: (kind, flags that mean something, stream, body).
fn read_back(stream: &[u8]) -> Vec<(u8, u8, u32, Vec<u8>, Fields)> {
    let mut rest = stream.strip_prefix(PREFACE).expect("the preface goes on");
    let (mut decoder, mut frames, mut block) = (Decoder::new(), Vec::new(), Vec::new());
    let mut open: Option<(u8, u32, Vec<u8>)> = None;
    while !rest.is_empty() {
        let length = usize::from(rest[0]) << 16 | usize::from(rest[1]) << 8 | usize::from(rest[2]);
        assert!(length <= 16 << 10, "a frame of {length} bytes");
        let (kind, flags, stream) = (rest[3], rest[4], u32::from_be_bytes(rest[5..9].try_into().unwrap()));
        let mut body = rest[9..9 + length].to_vec();
        rest = &rest[9 + length..];
        if kind != 1 && kind != 9 {
            frames.push((kind, flags, stream, body, Vec::new()));
            continue;
        }
        if kind == 1 {
            if flags & 8 != 0 {
                let padding = usize::from(body.remove(0));
                body.truncate(body.len() - padding);
            }
            let priority = if flags & 0x20 != 0 { body.drain(..5).collect() } else { Vec::new() };
            open = Some((flags & !0xc, stream, priority));
        }
        block.extend(body);
        if flags & 4 != 0 {
            let (flags, stream, priority) = open.take().unwrap();
            let fields = decoder.decode(&std::mem::take(&mut block)).unwrap();
            frames.push((1, flags, stream, priority, fields));
        }
    }
    frames
}

/// Three requests and other frames; the second authority may be a bad one.
fn conversation(authority: &[u8]) -> Vec<u8> {
    let mut encoder = Encoder::new();
    let mut stream = [PREFACE, &frame(4, 0, 0, &[])].concat();
    stream.extend(frame(1, 0x5, 1, &encoder.encode(request(b"localhost", b"/a"))));
    stream.extend(frame(8, 0, 0, &[0, 1, 0, 0]));
    // Padding, priority, and a block in three pieces.
    let block = encoder.encode(request(authority, b"/b"));
    let (one, two) = block.split_at(block.len() / 3);
    let first = [&[4_u8][..], &[0x80, 0, 0, 0, 7], one, &[0; 4]].concat();
    stream.extend(frame(1, 0x28, 3, &first));
    stream.extend(frame(9, 0, 3, &[]));
    stream.extend(frame(9, 0x4, 3, two));
    stream.extend(frame(0, 0, 3, &[7; 40]));
    let mut third = request(authority, b"/c");
    let long = vec![b'v'; 40_000];
    third.push((b"x-huge", &long));
    let block = encoder.encode(third);
    let mut pieces = block.chunks(16 << 10).peekable();
    let mut kind = 1;
    while let Some(piece) = pieces.next() {
        stream.extend(frame(kind, if pieces.peek().is_none() { 4 } else { 0 }, 5, piece));
        kind = 9;
    }
    stream.extend(frame(0, 1, 5, &[]));
    // Trailers have no authority.
    stream.extend(frame(1, 0x5, 3, &encoder.encode(vec![(&b"x-end"[..], &b"1"[..])])));
    stream
}

#[test]
fn legal_authorities_pass_byte_for_byte() {
    for authority in [&b"localhost"[..], b"localhost:80", b"[::1]:443", b"unix", b"a.example"] {
        let stream = conversation(authority);
        assert!(through(&stream, &[]).unwrap() == stream, "{:?}", String::from_utf8_lossy(authority));
    }
}

#[test]
fn a_bad_authority_is_replaced_and_nothing_else() {
    for authority in [&b"%2Frun%2Fx.sock"[..], b"/run/x.sock", b"", b"a b", b"\xff\xfe", b"http://x"] {
        let stream = conversation(authority);
        let mut wanted = read_back(&stream);
        for (_, _, _, _, fields) in &mut wanted {
            for (_, value) in fields.iter_mut().filter(|(name, value)| name == b":authority" && value == authority) {
                *value = b"localhost".to_vec();
            }
        }
        let got = read_back(&through(&stream, &[]).unwrap());
        assert!(got == wanted, "{:?}", String::from_utf8_lossy(authority));
    }
}

#[test]
fn what_cannot_be_followed_is_left_to_h2() {
    let large = vec![0; MAX_RAW + 1];
    for tail in [
        frame(1, 4, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), // no header block
        frame(1, 8, 1, &[200, 0]),                             // more padding than body
        frame(1, 8, 1, &[]),                                   // no room for the padding's length
        frame(1, 0x24, 1, &[0; 3]),                            // no room for the priority
        frame(1, 4, 1, &large),                                // too large
        [frame(1, 0, 1, &[0x82]), frame(0, 0, 1, &[0; 20])].concat(), // DATA within a block
        [frame(1, 0, 1, &[0x82]), frame(9, 4, 3, &[0x84])].concat(), // another stream's continuation
        [frame(1, 0, 1, &[0x82]), frame(9, 0, 1, &[]).repeat(MAX_RAW / 9)].concat(), // endless empty frames
        frame(1, 0, 1, &[0x82]),                               // a block that is cut off
        vec![0, 0, 9, 1],                                      // a frame's header that is cut off
    ] {
        let mut stream = [PREFACE, &frame(4, 0, 0, &[]), &tail].concat();
        stream.extend(frame(0, 0, 1, b"whatever comes then"));
        assert!(through(&stream, &[]).unwrap() == stream, "{:02x?}", &tail[..tail.len().min(20)]);
    }
    for other in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", b"PRI"] {
        assert_eq!(through(other, &[]).unwrap(), other);
    }
}

#[test]
fn breaking_the_protocol_after_a_change_ends_the_connection() {
    for tail in [
        frame(1, 4, 9, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        frame(1, 4, 9, &vec![0; MAX_RAW + 1]),
        [frame(1, 0, 9, &[0x82]), frame(0, 0, 9, &[0; 20])].concat(),
    ] {
        let stream = [conversation(b"/run/x.sock"), tail].concat();
        assert!(through(&stream, &[]).is_err());
    }
}

proptest! {
    #[test]
    fn any_split_gives_the_same(cuts in prop::collection::vec(any::<usize>(), 0..40), bad in any::<bool>()) {
        let stream = conversation(if bad { b"%2Frun%2Fx.sock" } else { b"localhost" });
        prop_assert!(through(&stream, &cuts) == through(&stream, &[]));
    }

    #[test]
    fn garbage_does_not_panic_and_is_not_held_back(
        mut stream in prop::collection::vec(any::<u8>(), 0..2000),
        cuts in prop::collection::vec(any::<usize>(), 0..10),
        after_change in any::<bool>(),
    ) {
        let mut whole = if after_change { conversation(b"") } else { PREFACE.to_vec() };
        // Most random frames would be endless ones of an unknown kind.
        if stream.len() > 12 {
            (stream[0], stream[1]) = (0, 0);
            stream[3] %= 10;
        }
        whole.extend(stream);
        let split = through(&whole, &cuts);
        prop_assert!(split == through(&whole, &[]));
        if let (Ok(out), false) = (split, after_change) {
            prop_assert!(out == whole || out.windows(9).any(|part| part == b"localhost"));
        }
    }
}

#[test]
fn one_byte_at_a_time_gives_the_same() {
    let stream = conversation(b"/run/x.sock");
    let cuts: Vec<usize> = (0..stream.len()).collect();
    assert!(through(&stream, &cuts) == through(&stream, &[]));
}

/// Answers with the image's name and who called.
struct Echo;

#[tonic::async_trait]
impl ImageService for Echo {
    type StreamImagesStream = tokio_stream::Empty<Result<cri::StreamImagesResponse, Status>>;

    async fn list_images(
        &self,
        _: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn stream_images(
        &self,
        _: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn image_status(
        &self,
        _: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        let peer =
            request.extensions().get::<tonic::transport::server::UdsConnectInfo>().and_then(|info| info.peer_cred);
        let uid = peer.ok_or_else(|| Status::internal("no peer"))?.uid();
        let image = request.into_inner().image.unwrap_or_default().image;
        Ok(Response::new(cri::PullImageResponse { image_ref: format!("{} bytes from {uid}", image.len()) }))
    }

    async fn remove_image(
        &self,
        _: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        Ok(Response::new(Default::default()))
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        Ok(Response::new(Default::default()))
    }
}

/// The client's end of a connection that a tonic server serves through the adapter.
fn serve() -> UnixStream {
    let (client, server) = UnixStream::pair().unwrap();
    let service = ImageServiceServer::new(Echo).max_decoding_message_size(32 << 20);
    let connections = tokio_stream::once(Ok::<_, io::Error>(Authority::new(server)));
    let served = tonic::transport::Server::builder().add_service(service).serve_with_incoming(connections);
    crate::task::spawn("test server", async move { served.await.unwrap() });
    client
}

#[tokio::test]
async fn a_tonic_client_works_and_the_server_knows_who_calls() {
    let mut once = Some(serve());
    let connector = tower::service_fn(move |_: http::Uri| {
        std::future::ready(
            once.take().map(hyper_util::rt::TokioIo::new).ok_or_else(|| io::Error::other("one connection")),
        )
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let mut client = ImageServiceClient::new(channel);
    let uid = rustix::process::getuid().as_raw();
    for length in [0, 1, 10_000_000, 3] {
        let image = Some(cri::ImageSpec { image: "x".repeat(length), ..Default::default() });
        let mut request = Request::new(cri::PullImageRequest { image, ..Default::default() });
        request
            .metadata_mut()
            .insert("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap());
        let answer = client.pull_image(request).await.unwrap().into_inner();
        assert_eq!(answer.image_ref, format!("{length} bytes from {uid}"));
    }
}

/// Two calls on one connection with an authority of the test's own; both answers' header fields.
async fn call_by_hand(client: &mut UnixStream, authority: &[u8]) -> io::Result<Vec<Fields>> {
    let mut encoder = Encoder::new();
    client.write_all(PREFACE).await?;
    client.write_all(&frame(4, 0, 0, &[])).await?;
    for stream in [1, 3] {
        let block = encoder.encode(request(authority, b"/runtime.v1.ImageService/ImageFsInfo"));
        client.write_all(&frame(1, 4, stream, &block)).await?;
        client.write_all(&frame(0, 1, stream, &[0; 5])).await?;
    }
    let (mut decoder, mut answers, mut ended) = (Decoder::new(), Vec::new(), 0);
    while ended < 2 {
        let mut head = [0; 9];
        client.read_exact(&mut head).await?;
        let mut body = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        client.read_exact(&mut body).await?;
        match head[3] {
            1 => {
                answers.push(decoder.decode(&body).unwrap());
                ended += usize::from(head[4] & 1);
            }
            3 | 7 => return Err(io::Error::other(format!("the server refused: frame {head:?} {body:?}"))),
            _ => {}
        }
    }
    Ok(answers)
}

#[tokio::test]
async fn clients_that_send_a_path_get_their_answers() {
    for authority in [&b"%2Frun%2Fx.sock"[..], b"/run/x.sock", b"", b"localhost", b"unix:/run/x.sock"] {
        let mut client = serve();
        let answers = call_by_hand(&mut client, authority).await;
        let answers = answers.unwrap_or_else(|error| panic!("{:?}: {error}", String::from_utf8_lossy(authority)));
        let ok = answers.iter().flatten().filter(|(name, value)| name == b"grpc-status" && value == b"0").count();
        assert_eq!(ok, 2, "{:?}: {answers:?}", String::from_utf8_lossy(authority));
    }
}

#[tokio::test]
async fn without_the_adapter_h2_refuses_them() {
    let (mut client, server) = UnixStream::pair().unwrap();
    let connections = tokio_stream::once(Ok::<_, io::Error>(server));
    let service = ImageServiceServer::new(Echo);
    let served = tonic::transport::Server::builder().add_service(service).serve_with_incoming(connections);
    crate::task::spawn("test server", async move { served.await.unwrap() });
    // When this fails, h2 takes such clients by itself and the adapter can go.
    call_by_hand(&mut client, b"/run/x.sock").await.unwrap_err();
}

#[tokio::test]
async fn an_adapter_ends_where_its_stream_ends() {
    for stream in [conversation(b"localhost"), conversation(b""), PREFACE[..10].to_vec(), Vec::new()] {
        let wanted = through(&stream, &[]).unwrap();
        let mut got = Vec::new();
        Authority::new(&stream[..]).read_to_end(&mut got).await.unwrap();
        assert!(got == wanted);
    }
    let broken = [conversation(b""), frame(1, 4, 9, &[0xff; 6])].concat();
    let mut adapter = Authority::new(&broken[..]);
    let mut got = Vec::new();
    adapter.read_to_end(&mut got).await.unwrap_err();
    assert!(got == through(&conversation(b""), &[]).unwrap(), "what was in order is handed on first");
    assert!(adapter.read(&mut [0]).await.is_err(), "and it stays broken");
}
