//! Answers in pieces: the six Stream* lists (KEP-5825), and the events.
//!
//! A list is taken at once, like the answer of its unary twin, and sent in messages that hold each item exactly once and
//! are never empty; a list of nothing is a stream of no message. A message ends at [`MAX_ITEMS`] or before [`MAX_BYTES`],
//! whichever comes first, so that every client can take it: theirs refuse 16 MiB and more.

use std::sync::Arc;

use cri_proto::runtime::v1::{ContainerEventResponse, ContainerEventType};
use futures_util::stream;
use prost::Message;
use tonic::codegen::BoxStream;
use tonic::{Code, Response, Status};

use crate::events::{Event, Events, Kind, Moment};

use super::convert;

/// Items of one message.
const MAX_ITEMS: usize = 2000;

/// Bytes of the items of one message; a single larger item goes alone.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// A list as a stream; `wrap` makes a message of some items.
pub(super) fn list<T, M>(items: Vec<T>, wrap: impl Fn(Vec<T>) -> M) -> Response<BoxStream<M>>
where
    T: Message,
    M: Send + 'static,
{
    let messages: Vec<_> = pieces(items, MAX_ITEMS, MAX_BYTES).into_iter().map(|piece| Ok(wrap(piece))).collect();
    Response::new(Box::pin(stream::iter(messages)))
}

fn pieces<T: Message>(items: Vec<T>, most: usize, bytes: usize) -> Vec<Vec<T>> {
    let mut pieces: Vec<Vec<T>> = Vec::new();
    let mut size = 0;
    for item in items {
        // Beside the item itself its tag and its length, in 11 bytes at most.
        let own = item.encoded_len() + 11;
        match pieces.last_mut() {
            Some(piece) if piece.len() < most && size + own <= bytes => {
                piece.push(item);
                size += own;
            }
            _ => {
                pieces.push(vec![item]);
                size = own;
            }
        }
    }
    pieces
}

/// Every event from now on. A reader that falls too far behind gets the error `DATA_LOSS`, and the stream ends with it.
pub(super) fn events(events: &Events) -> Result<Response<BoxStream<ContainerEventResponse>>, Status> {
    let subscription =
        events.subscribe().map_err(|crowded| Status::new(Code::ResourceExhausted, crowded.to_string()))?;
    let messages = stream::unfold(Some(subscription), |subscription| async {
        let mut subscription = subscription?;
        match subscription.next().await {
            Ok(Some(event)) => Some((Ok(message(&event)), Some(subscription))),
            Ok(None) => None,
            Err(missed) => Some((Err(Status::new(Code::DataLoss, missed.to_string())), None)),
        }
    });
    Ok(Response::new(Box::pin(messages)))
}

fn message(event: &Arc<Event>) -> ContainerEventResponse {
    let Moment { at, sandbox, containers } = &event.pod;
    let kind = match event.kind {
        Kind::Created => ContainerEventType::ContainerCreatedEvent,
        Kind::Started => ContainerEventType::ContainerStartedEvent,
        Kind::Stopped => ContainerEventType::ContainerStoppedEvent,
        Kind::Deleted => ContainerEventType::ContainerDeletedEvent,
    };
    ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: *at,
        pod_sandbox_status: sandbox.as_deref().map(convert::sandbox_status),
        containers_statuses: containers.iter().map(|record| convert::container_status(record)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use cri_proto::runtime::v1::{Container, StreamContainersResponse};
    use futures_util::StreamExt as _;
    use proptest::prelude::*;

    use super::*;

    fn item(n: usize, size: usize) -> Container {
        Container { id: n.to_string(), image_ref: "x".repeat(size), ..Default::default() }
    }

    proptest! {
        #[test]
        fn each_item_is_sent_once_in_messages_of_a_bounded_size(
            sizes in proptest::collection::vec(prop_oneof![0..40_usize, 100..400_usize], 0..60),
            most in 1..9_usize,
        ) {
            let bytes = 300;
            let items: Vec<_> = sizes.iter().enumerate().map(|(n, size)| item(n, *size)).collect();
            let pieces = pieces(items.clone(), most, bytes);
            for piece in &pieces {
                prop_assert!(!piece.is_empty() && piece.len() <= most);
                let size = StreamContainersResponse { containers: piece.clone() }.encoded_len();
                prop_assert!(size <= bytes || piece.len() == 1);
            }
            prop_assert_eq!(pieces.concat(), items);
        }
    }

    #[tokio::test]
    async fn a_list_of_nothing_is_a_stream_of_no_message() {
        let none = list(Vec::<Container>::new(), |containers| StreamContainersResponse { containers });
        assert_eq!(none.into_inner().count().await, 0);
        let many = list((0..4001).map(|n| item(n, 3)).collect(), |containers| StreamContainersResponse { containers });
        let messages: Vec<_> = many.into_inner().map(|message| message.unwrap().containers.len()).collect().await;
        assert_eq!(messages, [2000, 2000, 1]);
    }
}
