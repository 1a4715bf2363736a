//! Frames: the samples of the RFC, what a client may not send, and that no way of cutting the input matters.

use proptest::prelude::*;

use super::*;

/// A client's frame.
fn frame(first: u8, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut out = BytesMut::new();
    put_header(&mut out, Sent::Binary, payload.len());
    out[0] = first;
    out[1] |= 0x80;
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out.to_vec()
}

fn decode(pieces: &[&[u8]]) -> Result<Vec<Event>, FrameError> {
    let (mut decoder, mut buffer, mut events) = (Decoder::default(), BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(event) = decoder.decode(&mut buffer)? {
            events.push(event);
        }
    }
    Ok(events)
}

/// The same with the parts of each message joined.
fn messages(pieces: &[&[u8]]) -> Result<Vec<Event>, FrameError> {
    let mut joined: Vec<Event> = Vec::new();
    for event in decode(pieces)? {
        if let (Some(Event::Data(last)), Event::Data(next)) = (joined.last_mut(), &event) {
            *last = [&last[..], &next[..]].concat().into();
        } else {
            joined.push(event);
        }
    }
    Ok(joined)
}

#[test]
fn the_samples_of_the_rfc() {
    let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    let want = [Event::Begin { text: true }, Event::Data("Hello".into()), Event::End];
    assert_eq!(decode(&[&hello]).unwrap(), want);
    let ping = [0x89, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(decode(&[&ping]).unwrap(), [Event::Ping("Hello".into())]);
    let mut out = BytesMut::new();
    for (size, want) in [
        (0, vec![0x82, 0]),
        (125, vec![0x82, 125]),
        (126, vec![0x82, 126, 0, 126]),
        (256, vec![0x82, 126, 1, 0]),
        (65_535, vec![0x82, 126, 255, 255]),
        (65_536, vec![0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        out.clear();
        put_header(&mut out, Sent::Binary, size);
        assert_eq!(&out[..], &want[..]);
    }
}

#[test]
fn control_frames_may_come_between_the_pieces_of_a_message() {
    let mask = [1, 2, 3, 4];
    let input = [
        frame(0x02, b"one ", mask),
        frame(0x89, b"ping", mask),
        frame(0x00, b"", mask),
        frame(0x8a, b"pong", mask),
        frame(0x80, b"message", mask),
        frame(0x88, &[0x03, 0xe8, b'b', b'y', b'e'], mask),
    ]
    .concat();
    let want = [
        Event::Begin { text: false },
        Event::Data("one ".into()),
        Event::Ping("ping".into()),
        Event::Pong,
        Event::Data("message".into()),
        Event::End,
        Event::Close(Some(1000)),
    ];
    assert_eq!(decode(&[&input]).unwrap(), want);
}

#[test]
fn what_a_client_may_not_send_ends_the_connection() {
    let mask = [9, 8, 7, 6];
    let large = |bytes: u64| [&[0x82, 0xff][..], &bytes.to_be_bytes(), &mask].concat();
    for (input, want) in [
        (frame(0xc2, b"x", mask), FrameError::ReservedBit),
        (frame(0x83, b"x", mask), FrameError::Opcode(3)),
        (frame(0x8b, b"x", mask), FrameError::Opcode(11)),
        (vec![0x82, 0x01, b'x'], FrameError::Unmasked),
        (vec![0x82, 0x7f], FrameError::Unmasked),
        (frame(0x09, b"x", mask), FrameError::Control),
        (frame(0x89, &[0; 126], mask), FrameError::Control),
        (frame(0x88, &[0; 70_000], mask), FrameError::Control),
        (frame(0x88, b"x", mask), FrameError::CloseCode),
        (frame(0x80, b"x", mask), FrameError::Fragment),
        ([frame(0x02, b"x", mask), frame(0x82, b"y", mask)].concat(), FrameError::Fragment),
        ([&[0x82, 0xfe, 0, 125][..], &mask].concat(), FrameError::Length),
        (large(65_535), FrameError::Length),
        (large(u64::MAX), FrameError::Length),
        (large(1 << 63), FrameError::Length),
    ] {
        assert_eq!(decode(&[&input]), Err(want), "{input:?}");
    }
}

#[test]
fn a_huge_length_is_no_memory() {
    let mut decoder = Decoder::default();
    let mut buffer = BytesMut::from(&[&[0x82, 0xff][..], &(u64::MAX >> 1).to_be_bytes(), &[0; 4], b"abc"].concat()[..]);
    assert_eq!(decoder.decode(&mut buffer), Ok(Some(Event::Begin { text: false })));
    assert_eq!(decoder.decode(&mut buffer), Ok(Some(Event::Data("abc".into()))));
    assert_eq!(decoder.decode(&mut buffer), Ok(None));
    assert!(buffer.capacity() < 4096);
}

proptest! {
    #[test]
    fn no_cut_of_the_input_matters(
        parts in proptest::collection::vec((any::<[u8; 4]>(), proptest::collection::vec(any::<u8>(), 0..300)), 1..6),
        cuts in proptest::collection::vec(1_usize..40, 1..20),
    ) {
        let last = parts.len() - 1;
        let mut input = Vec::new();
        for (at, (mask, payload)) in parts.iter().enumerate() {
            let first = if at == 0 { 2 } else { 0 } | if at == last { 0x80 } else { 0 };
            input.extend(frame(first, payload, *mask));
        }
        let whole = messages(&[&input]).unwrap();
        let mut pieces = Vec::new();
        let mut rest = &input[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        prop_assert_eq!(&whole, &messages(&pieces).unwrap());
        let text: Vec<u8> = parts.iter().flat_map(|(_, payload)| payload.clone()).collect();
        let data: Vec<u8> = whole.iter().filter_map(|event| match event {
            Event::Data(data) => Some(data.to_vec()),
            _ => None,
        }).flatten().collect();
        prop_assert_eq!(text, data);
        prop_assert_eq!(whole.last(), Some(&Event::End));
    }

    #[test]
    fn noise_is_refused_or_waited_for(noise in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::from(&noise[..]));
        let mut events = 0;
        while let Ok(Some(_)) = decoder.decode(&mut buffer) {
            events += 1;
            prop_assert!(events <= 2 * noise.len() + 2);
        }
    }
}
