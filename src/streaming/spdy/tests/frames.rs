//! Each frame by itself.

use proptest::prelude::*;

use super::super::SpdyError;
use super::super::frame::{self, Control, Farewell, HEAD, Head, MAX_STREAM, MAX_WINDOW, Status};

/// Reads one frame back, which must be all there is.
fn read(bytes: &[u8]) -> Control<'_> {
    let (head, payload) = bytes.split_first_chunk::<HEAD>().unwrap();
    let head = frame::head(*head);
    let Head::Control { version: 3, length, .. } = head else { panic!("{head:?}") };
    assert_eq!(length as usize, payload.len());
    frame::control(head, payload, 64).unwrap()
}

proptest! {
    #[test]
    fn frames_come_back_as_they_were_written(
        stream in 0..=MAX_STREAM, word in any::<u32>(), fin in any::<bool>(), block in prop::collection::vec(any::<u8>(), 0..300),
        settings in prop::collection::vec((0..1_u32 << 24, any::<u32>()), 0..64),
    ) {
        let written = |put: &dyn Fn(&mut Vec<u8>)| { let mut out = Vec::new(); put(&mut out); out };
        let bytes = written(&|out| frame::put_syn_stream(out, stream, &block));
        prop_assert_eq!(read(&bytes), Control::SynStream { stream, fin: false, unidirectional: false, block: &block });
        let bytes = written(&|out| frame::put_syn_reply(out, stream, &block));
        prop_assert_eq!(read(&bytes), Control::SynReply { stream, fin: false, block: &block });
        let bytes = written(&|out| frame::put_rst_stream(out, stream, Status(word)));
        prop_assert_eq!(read(&bytes), Control::RstStream { stream, status: Status(word) });
        let bytes = written(&|out| frame::put_ping(out, word));
        prop_assert_eq!(read(&bytes), Control::Ping { id: word });
        let bytes = written(&|out| frame::put_goaway(out, stream, Farewell::Ok));
        prop_assert_eq!(read(&bytes), Control::GoAway { last: stream });
        let bytes = written(&|out| frame::put_window_update(out, stream, word & MAX_WINDOW));
        prop_assert_eq!(read(&bytes), Control::WindowUpdate { stream, delta: word & MAX_WINDOW });
        let bytes = written(&|out| frame::put_settings(out, &settings));
        let Control::Settings { entries } = read(&bytes) else { panic!("not SETTINGS") };
        prop_assert_eq!(entries.iter().map(|entry| frame::setting(*entry)).collect::<Vec<_>>(), settings);
        let bytes = written(&|out| frame::put_data_head(out, stream, fin, (word & 0xff_ffff) as usize));
        let head = frame::head(bytes.try_into().unwrap());
        prop_assert_eq!(head, Head::Data { stream, fin, length: word & 0xff_ffff });
    }

    /// Whatever the bytes are, reading them ends in a frame or in an error that is the peer's fault.
    #[test]
    fn no_bytes_are_too_strange(bytes in any::<[u8; HEAD]>(), kind in 0..12_u16, payload in prop::collection::vec(any::<u8>(), 0..80)) {
        frame::head(bytes);
        let head = Head::Control { version: 3, kind, flags: bytes[4], length: 0 };
        if let Err(error) = frame::control(head, &payload, 4) {
            prop_assert!(error.is_violation() && !error.is_lost());
        }
    }
}

#[test]
fn flags_are_read() {
    let head = |kind, flags| Head::Control { version: 3, kind, flags, length: 0 };
    let both = frame::control(head(1, 3), &[0; 10], 0).unwrap();
    assert_eq!(both, Control::SynStream { stream: 0, fin: true, unidirectional: true, block: &[] });
    let fin = frame::control(head(2, 1), &[0x80, 0, 0, 9], 0).unwrap();
    assert_eq!(fin, Control::SynReply { stream: 9, fin: true, block: &[] }, "the reserved bit is no part of an id");
    let fin = frame::control(head(8, 1), &[0, 0, 0, 9, 7], 0).unwrap();
    assert_eq!(fin, Control::Headers { stream: 9, fin: true, block: &[7] });
    for kind in [0, 5, 10, 11, 4097] {
        assert_eq!(frame::control(head(kind, 0), b"anything", 0).unwrap(), Control::Unknown);
    }
}

#[test]
fn lengths_that_a_kind_cannot_have_are_errors() {
    for (kind, lengths) in
        [(1, 0..10), (2, 0..4), (3, 0..8), (4, 0..4), (6, 0..4), (6, 5..20), (7, 0..8), (8, 0..4), (9, 9..20)]
    {
        for length in lengths {
            let head = Head::Control { version: 3, kind, flags: 0, length: 0 };
            let error = frame::control(head, &vec![0; length], 64).unwrap_err();
            assert_eq!(error.to_string(), format!("control frame of kind {kind} cannot have {length} bytes"));
        }
    }
    let other = Head::Control { version: 2, kind: 6, flags: 0, length: 4 };
    assert!(matches!(frame::control(other, &[0; 4], 64), Err(SpdyError::Version { version: 2 })));
}

#[test]
fn cve_2026_35469_settings_are_not_believed() {
    let head = Head::Control { version: 3, kind: 4, flags: 0, length: 0 };
    for (count, rest, limit, expected) in [
        (u32::MAX, 0, 64, "SETTINGS with 4294967295 entries; at most 64 are taken"),
        (65, 65 * 8, 64, "SETTINGS with 65 entries; at most 64 are taken"),
        (u32::MAX, 8, u32::MAX, "control frame of kind 4 cannot have 12 bytes"),
        (1, 0, 64, "control frame of kind 4 cannot have 4 bytes"),
        (1, 16, 64, "control frame of kind 4 cannot have 20 bytes"),
        (1, 9, 64, "control frame of kind 4 cannot have 13 bytes"),
    ] {
        let mut payload = count.to_be_bytes().to_vec();
        payload.resize(4 + rest, 0);
        assert_eq!(frame::control(head, &payload, limit).unwrap_err().to_string(), expected);
    }
}
