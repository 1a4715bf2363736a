//! Order, content and bounds of the events.

use proptest::prelude::*;

use super::*;
use crate::state::{ContainerPhase, SandboxPhase};

fn sandbox(id: &str, phase: SandboxPhase) -> Arc<SandboxRecord> {
    Arc::new(SandboxRecord { id: id.to_owned(), phase, ..SandboxRecord::default() })
}

fn container(id: &str, sandbox_id: &str, phase: ContainerPhase) -> Arc<ContainerRecord> {
    Arc::new(ContainerRecord {
        id: id.to_owned(),
        sandbox_id: sandbox_id.to_owned(),
        phase,
        ..ContainerRecord::default()
    })
}

async fn all(subscription: &mut Subscription) -> Vec<Arc<Event>> {
    let mut found = Vec::new();
    while !subscription.ring.is_empty() {
        found.push(subscription.next().await.unwrap().unwrap());
    }
    found
}

#[tokio::test]
async fn an_event_shows_the_pod_as_it_was_then() {
    let events = Events::new();
    events.sandbox(&sandbox("other", SandboxPhase::Ready), &[Kind::Created]);
    let mut subscription = events.subscribe().unwrap();
    events.sandbox(&sandbox("p", SandboxPhase::Ready), &[Kind::Created, Kind::Started]);
    events.container(&container("c", "p", ContainerPhase::Created), &[Kind::Created]);
    events.container(&container("c", "p", ContainerPhase::Running), &[Kind::Started]);
    events.container(&container("c", "p", ContainerPhase::Running), &[]);
    events.container(&container("c", "p", ContainerPhase::Exited), &[Kind::Stopped]);
    events.container(&container("c", "p", ContainerPhase::Exited), &[Kind::Deleted]);
    events.sandbox(&sandbox("p", SandboxPhase::NotReady), &[Kind::Stopped]);
    events.sandbox(&sandbox("p", SandboxPhase::NotReady), &[Kind::Deleted]);
    let heard = all(&mut subscription).await;
    let short: Vec<_> = heard.iter().map(|event| (&*event.id, event.kind)).collect();
    assert_eq!(
        short,
        [
            ("p", Kind::Created),
            ("p", Kind::Started),
            ("c", Kind::Created),
            ("c", Kind::Started),
            ("c", Kind::Stopped),
            ("c", Kind::Deleted),
            ("p", Kind::Stopped),
            ("p", Kind::Deleted),
        ]
    );
    let phases: Vec<Vec<_>> =
        heard.iter().map(|e| e.pod.containers.iter().map(|record| record.phase).collect()).collect();
    let expected = [vec![], vec![], vec![ContainerPhase::Created], vec![ContainerPhase::Running]];
    assert_eq!(phases[..4], expected);
    assert_eq!(phases[4..], [vec![ContainerPhase::Exited], vec![], vec![], vec![]]);
    assert!(heard.iter().all(|event| event.pod.sandbox.as_ref().is_some_and(|record| record.id == "p")));
    assert!(heard.is_sorted_by_key(|event| event.pod.at));
    assert!(events.moment("p").sandbox.is_none() && events.moment("p").at >= heard[7].pod.at);
    assert_eq!(events.table().pods.len(), 1, "what is gone is not kept");
}

#[tokio::test]
async fn one_that_does_not_read_holds_up_nobody_and_is_told() {
    let events = Events::with_ring(8);
    let mut slow = events.subscribe().unwrap();
    let mut quick = events.subscribe().unwrap();
    for n in 0..100 {
        events.container(&container(&format!("c{n}"), "p", ContainerPhase::Created), &[Kind::Created]);
        assert_eq!(quick.next().await.unwrap().unwrap().id, format!("c{n}"));
    }
    assert_eq!(slow.next().await.unwrap_err(), Missed { count: 92 });
    assert_eq!(slow.next().await.unwrap().unwrap().id, "c92", "and goes on without gaps");
}

#[test]
fn subscribers_are_bounded() {
    let events = Events::new();
    let mut taken: Vec<_> = (0..SUBSCRIBERS).map(|_| events.subscribe().unwrap()).collect();
    assert_eq!(events.subscribe().unwrap_err(), Crowded);
    taken.pop();
    events.subscribe().unwrap();
}

proptest! {
    /// Whoever follows the events from the start knows, after each, what the table says.
    #[test]
    fn events_add_up_to_the_state(steps in proptest::collection::vec((0..3_u8, 0..3_u8, 0..4_u8), 1..40)) {
        let events = Events::new();
        let mut subscription = events.subscribe().unwrap();
        let mut expected: BTreeMap<String, BTreeMap<String, ContainerPhase>> = BTreeMap::new();
        for (pod, id, step) in steps {
            let (pod, id) = (format!("p{pod}"), format!("p{pod}c{id}"));
            let (phase, kind) = [
                (ContainerPhase::Created, Kind::Created),
                (ContainerPhase::Running, Kind::Started),
                (ContainerPhase::Exited, Kind::Stopped),
                (ContainerPhase::Exited, Kind::Deleted),
            ][usize::from(step)];
            events.container(&container(&id, &pod, phase), &[kind]);
            let own = expected.entry(pod.clone()).or_default();
            if kind == Kind::Deleted {
                own.remove(&id);
            } else {
                own.insert(id.clone(), phase);
            }
            let event = subscription.ring.try_recv().unwrap();
            let shown: BTreeMap<_, _> =
                event.pod.containers.iter().map(|record| (record.id.clone(), record.phase)).collect();
            prop_assert_eq!(&shown, &*own);
            prop_assert_eq!((&event.id, event.kind), (&id, kind));
        }
        let left = expected.values().filter(|own| !own.is_empty()).count();
        prop_assert_eq!(events.table().pods.len(), left);
    }
}
